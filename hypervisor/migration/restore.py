"""Building a domain from a stream: as if a loader had built it, but for its guest, who goes on from a suspend.

What the guest finds is what Xen's toolstack leaves after a migration (tools/libs/guest/xg_sr_restore.c): memory
and CPUs as they were, empty console and xenstore rings at the frames that they had, no ports, no grants, no
shared page until the guest places one, frames given to the host still given. A PV guest finds its shared page where
it was, and what is new in its start_info (`resume.connect`). System time goes on from its value when the domain was
suspended, however long ago that was; the wall clock is the host's.
"""

from __future__ import annotations

from hypervisor.arch.x86_64.clock import Clock
from hypervisor.arch.x86_64.kinds import PV, PVH
from hypervisor.arch.x86_64.pv import context as pv_context
from hypervisor.domains.domain import Domain
from hypervisor.host import Host, NoMemory
from hypervisor.loader import pv
from hypervisor.memory.guest_memory import Memory
from hypervisor.migration.context import DomainContext, Shape, VCPUContext, decoded, install
from hypervisor.migration.pages import PageReader, Run, decode_runs
from hypervisor.migration.records import ImageError, Kind, Reader, Source


class Image:
    """A stream whose beginning has been read: `config` and `shape`; `build` reads the rest, once. Raises ImageError."""

    def __init__(self, file: Source) -> None:
        self._reader = Reader(file)
        self.config = self._reader.expect(Kind.CONFIG)
        """What the toolstack gave to `save`."""
        kind, body = self._reader.take()
        if kind not in (Kind.DOMAIN, Kind.PV_DOMAIN):
            raise ImageError(f"{kind.name} stands where the domain belongs")
        self.shape = Shape.decode(body, kind is Kind.PV_DOMAIN)

    def build(self, host: Host, uuid_text: str = "", code_cache: int = 1 << 20) -> Domain:
        """Return a new domain, paused, with the saved memory and CPUs; console and xenstore are to be joined to it.

        The whole stream is read and checked before there is a domain. Raises ImageError, NoMemory, OSError, with
        nothing left behind.
        """
        shape = self.shape
        size = sum(high - low for low, high in shape.space)
        if size > host.free_memory():  # before any of it is filled
            raise NoMemory(f"{size} bytes asked for, {host.free_memory()} are free")
        memory = Memory(shape.space[-1][1])
        try:
            if shape.is_pv:
                shape.area.build(memory)
            context = self._read(memory)
            return place(host, shape, memory, context, uuid_text, code_cache)
        except BaseException:
            memory.close()
            raise

    def _read(self, memory: Memory) -> DomainContext:
        reader, pages = self._reader, PageReader(memory, self.shape.is_ram)
        for kind, body in reader.each(Kind.PAGES, Kind.ZEROS):
            if kind is Kind.PAGES:
                pages.pages(body)
            else:
                pages.zeros(body)
        state = reader.expect(Kind.STATE)
        ballooned = [run for _, body in reader.each(Kind.BALLOONED) for run in self._ballooned(memory, body)]
        pinned = self._pinned() if self.shape.is_pv else {}
        vcpus = [self._vcpu() for _ in range(self.shape.vcpus)]
        if reader.expect(Kind.END):
            raise ImageError("the end has a body")
        return DomainContext.decode(state, vcpus, ballooned, pinned)

    def _pinned(self) -> dict[int, int]:
        """Return the levels of page tables by frames: as each is there once, they are no more than the frames."""
        found: dict[int, int] = {}
        for _, body in self._reader.each(Kind.PINNED):
            for frame, level in decoded(pv_context.decode_pinned, body):
                if frame in found or not self.shape.is_ram(frame, 1):
                    raise ImageError(f"frame {frame:#x} cannot be pinned")
                found[frame] = level
        return found

    def _vcpu(self) -> VCPUContext:
        body, state = self._reader.expect(Kind.VCPU), None
        if self.shape.is_pv:
            state = decoded(pv_context.decode, self._reader.expect(Kind.PV_VCPU))
        return VCPUContext.decode(body, state)

    def _ballooned(self, memory: Memory, body: bytes) -> list[Run]:
        """Return frames that the guest does not have; what a live copy has sent of them goes."""
        runs = decode_runs(body)
        if not all(self.shape.is_ram(*run) for run in runs):
            raise ImageError("a ballooned frame is outside of the domain's memory")
        for run in runs:
            memory.free(*run)
        return runs


def place(host: Host, shape: Shape, memory: Memory, context: DomainContext, uuid_text: str, code_cache: int) -> Domain:
    """Return a new domain, paused, over memory that is filled already; it is the domain's then.

    Raises ImageError, NoMemory, OSError, with the memory as it was and no domain.
    """
    domain = host.create(
        shape.space,
        vcpus=shape.vcpus,
        uuid_text=uuid_text,
        code_cache=code_cache,
        space=memory,
        clock=Clock(base=context.system_time),
        kind=PV if shape.is_pv else PVH,
    )
    try:
        if shape.is_pv:
            pv.adopt(domain, shape.area)
        install(domain, context)
    except BaseException:
        host.destroy(domain)
        raise
    return domain
