"""Building a domain from a stream: as if a loader had built it, but for its guest, who goes on from a suspend.

What the guest finds is what Xen's toolstack leaves after a migration (tools/libs/guest/xg_sr_restore.c): memory
and CPUs as they were, empty console and xenstore rings at the frames that they had, no ports, no grants, no
shared page until the guest places one, frames given to the host still given. System time goes on from its value
when the domain was suspended, however long ago that was; the wall clock is the host's.
"""

from __future__ import annotations

from hypervisor.cpu.tsc import Clock
from hypervisor.domain import Domain
from hypervisor.host import Host, NoMemory
from hypervisor.memory import Memory
from hypervisor.snapshot.context import DomainContext, Shape, VCPUContext, install
from hypervisor.snapshot.pages import PageReader, Run, decode_runs
from hypervisor.snapshot.records import ImageError, Kind, Reader, Source


class Image:
    """A stream whose beginning has been read: `config` and `shape`; `build` reads the rest, once. Raises ImageError."""

    def __init__(self, file: Source) -> None:
        self._reader = Reader(file)
        self.config = self._reader.expect(Kind.CONFIG)
        """What the toolstack gave to `save`."""
        self.shape = Shape.decode(self._reader.expect(Kind.DOMAIN))

    def build(self, host: Host, uuid_text: str = "", code_cache: int = 1 << 20) -> Domain:
        """Return a new domain, paused, with the saved memory and CPUs; console and xenstore are to be joined to it.

        The whole stream is read and checked before there is a domain. Raises ImageError, NoMemory, OSError, with
        nothing left behind.
        """
        shape = self.shape
        ram = sum(high - low for low, high in shape.ranges)
        if ram > host.free_memory():  # before any of it is filled
            raise NoMemory(f"{ram} bytes asked for, {host.free_memory()} are free")
        memory = Memory(shape.ranges[-1][1])
        try:
            context = self._read(memory)
            return place(host, shape, memory, context, uuid_text, code_cache)
        except BaseException:
            memory.close()
            raise

    def _read(self, memory: Memory) -> DomainContext:
        reader, pages = self._reader, PageReader(memory, self.shape.is_ram)
        kind, body = reader.take()
        while kind in (Kind.PAGES, Kind.ZEROS):
            if kind is Kind.PAGES:
                pages.pages(body)
            else:
                pages.zeros(body)
            kind, body = reader.take()
        if kind is not Kind.STATE:
            raise ImageError(f"{kind.name} stands where the state belongs")
        state, ballooned = body, list[Run]()
        kind, body = reader.take()
        while kind is Kind.BALLOONED:
            ballooned += self._ballooned(memory, body)
            kind, body = reader.take()
        vcpus = []
        for _ in range(self.shape.vcpus):
            if kind is not Kind.VCPU:
                raise ImageError(f"{kind.name} stands where a virtual CPU belongs")
            vcpus.append(VCPUContext.decode(body))
            kind, body = reader.take()
        if kind is not Kind.END or body:
            raise ImageError(f"{kind.name} stands where the end belongs")
        return DomainContext.decode(state, vcpus, ballooned)

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
        shape.ranges,
        vcpus=shape.vcpus,
        uuid_text=uuid_text,
        code_cache=code_cache,
        space=memory,
        clock=Clock(base=context.system_time),
    )
    try:
        install(domain, context)
    except BaseException:
        host.destroy(domain)
        raise
    return domain
