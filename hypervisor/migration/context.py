"""What a domain knows besides its memory, as plain values and as the bodies of records."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hypervisor.arch.x86_64 import entry
from hypervisor.arch.x86_64.cpu import context as registers
from hypervisor.arch.x86_64.cpu.context import CPUContext
from hypervisor.arch.x86_64.kinds import PV
from hypervisor.arch.x86_64.pv import context as pv_context
from hypervisor.arch.x86_64.pv.area import VCPUS, Area
from hypervisor.arch.x86_64.pv.cpu import PVCPU
from hypervisor.arch.x86_64.pv.state import PVState
from hypervisor.domains.domain import Domain
from hypervisor.domains.vcpus import DomainVCPU
from hypervisor.hypercalls.hvm_op import CONSOLE_EVTCHN, CONSOLE_PFN, STORE_EVTCHN, STORE_PFN
from hypervisor.loader import pv
from hypervisor.loader.elf import LoadError
from hypervisor.memory.guest_memory import EXTRA, PAGE, BadAddress
from hypervisor.migration.pages import Run
from hypervisor.migration.records import ImageError

MOST_VCPUS, MOST_RANGES, MOST_ENTRIES, MOST_PARAMS = 512, 16, 128, 64
LARGEST_MEMORY = 1 << 46
_SHAPE, _PAIR, _ENTRY, _PARAM = struct.Struct("<III"), struct.Struct("<QQ"), struct.Struct("<QQI"), struct.Struct("<IQ")
_STATE = struct.Struct("<QQIIII")
_VCPU = struct.Struct("<BBBxI")
_Value = TypeVar("_Value")
_FRAME = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Shape:
    """What a domain consists of: CPUs, and RAM at ranges of guest-physical bytes."""

    vcpus: int
    ranges: tuple[tuple[int, int], ...]
    is_pv: bool = False

    @classmethod
    def of(cls, domain: Domain) -> Shape:
        """Return a domain's."""
        return cls(len(domain.vcpus), domain.ranges, domain.kind is PV)

    @property
    def end(self) -> int:
        """Where the guest's memory ends."""
        return self.ranges[-1][1]

    @property
    def area(self) -> Area:
        """Xen's frames behind a PV domain's."""
        return Area(self.end)

    @property
    def space(self) -> tuple[tuple[int, int], ...]:
        """The ranges of the domain's `Memory`: Xen's frames too, if it has any."""
        return pv.ranges(self.end) if self.is_pv else self.ranges

    def is_ram(self, frame: int, count: int) -> bool:
        """Tell whether all frames of a run are RAM."""
        start, end = frame * PAGE, (frame + count) * PAGE
        return any(low <= start and end <= high for low, high in self.ranges)

    def encode(self) -> bytes:
        """Return the body of a record."""
        pairs = b"".join(_PAIR.pack(*pair) for pair in self.ranges)
        return _SHAPE.pack(self.vcpus, PAGE, len(self.ranges)) + pairs

    @classmethod
    def decode(cls, body: bytes, is_pv: bool = False) -> Shape:
        """Return what a body says. Raises ImageError."""
        cursor = _Cursor(body)
        vcpus, page, count = cursor.take(_SHAPE)
        if not 0 < vcpus <= MOST_VCPUS or page != PAGE or not 0 < count <= MOST_RANGES:
            raise ImageError("the domain has an impossible shape")
        ranges = tuple(cursor.pair(_PAIR) for _ in range(count))
        cursor.end()
        last = 0
        for low, high in ranges:
            if low % PAGE or high % PAGE or not last <= low < high <= LARGEST_MEMORY:
                raise ImageError("the domain's memory has impossible ranges")
            last = high
        shape = cls(vcpus, ranges, is_pv)
        if is_pv:
            shape._check_pv()
        return shape

    def _check_pv(self) -> None:
        if self.vcpus > VCPUS or self.ranges != ((0, self.end),):
            raise ImageError("the PV domain has an impossible shape")
        try:
            pv.ranges(self.end)
        except LoadError as error:
            raise ImageError(str(error)) from error


@dataclass(frozen=True, slots=True)
class VCPUContext:
    """A vCPU, as it stands when its domain was suspended."""

    up: bool
    blocked: bool
    upcall_vector: int
    registers: CPUContext
    pv: PVState | None = None
    """What else a PV one has; it has a record of its own."""

    @classmethod
    def of(cls, vcpu: DomainVCPU) -> VCPUContext:
        """Return a vCPU's."""
        state = pv_context.copied(vcpu.cpu.state) if isinstance(vcpu.cpu, PVCPU) else None
        return cls(vcpu.up, vcpu.blocked, vcpu.upcall_vector, registers.read(vcpu.cpu), state)

    def encode(self) -> bytes:
        """Return the body of a record."""
        registers = self.registers.encode()
        return _VCPU.pack(self.up, self.blocked, self.upcall_vector, len(registers)) + registers

    @classmethod
    def decode(cls, body: bytes, state: PVState | None = None) -> VCPUContext:
        """Return what a body says, with the record of a PV one. Raises ImageError."""
        cursor = _Cursor(body)
        up, blocked, vector, length = cursor.take(_VCPU)
        if up > 1 or blocked > 1 or length != len(body) - _VCPU.size:
            raise ImageError("a virtual CPU is damaged")
        registers = decoded(CPUContext.decode, body[_VCPU.size :])
        if state is not None and registers.apic:
            raise ImageError("a PV CPU has a local APIC")
        return cls(bool(up), bool(blocked), vector, registers, state)


@dataclass(frozen=True, slots=True)
class DomainContext:
    """What a suspended domain takes along. Of its ports, grants, timers and shared page nothing: it makes new ones."""

    system_time: int
    """Nanoseconds that its clock showed; it goes on from there."""
    callback_vector: int
    params: Mapping[int, int]
    """HVM parameters, without the event channels, which are new ones."""
    memory_map: tuple[tuple[int, int, int], ...]
    extra: tuple[int, ...]
    """Frames beyond the memory, in the order of their places."""
    vcpus: tuple[VCPUContext, ...]
    ballooned: tuple[Run, ...]
    pinned: Mapping[int, int]
    """A PV guest's page tables: levels by frames."""

    def encode(self) -> bytes:
        """Return the body of the record `STATE`; vCPUs and ballooned frames have records of their own."""
        head = _STATE.pack(
            *(self.system_time, 0, self.callback_vector, len(self.params), len(self.memory_map), len(self.extra))
        )
        params = b"".join(_PARAM.pack(*item) for item in self.params.items())
        entries = b"".join(_ENTRY.pack(*entry) for entry in self.memory_map)
        return head + params + entries + b"".join(_FRAME.pack(frame) for frame in self.extra)

    @classmethod
    def decode(
        cls,
        body: bytes,
        vcpus: Sequence[VCPUContext] = (),
        ballooned: Sequence[Run] = (),
        pinned: Mapping[int, int] | None = None,
    ) -> DomainContext:
        """Return what a body says, with what other records said. Raises ImageError."""
        cursor = _Cursor(body)
        system_time, _, vector, params, entries, extra = cursor.take(_STATE)
        if vector > 255 or params > MOST_PARAMS or entries > MOST_ENTRIES or extra > EXTRA or system_time >> 62:
            raise ImageError("the domain's state is impossible")
        state = cls(
            system_time,
            vector,
            dict(cursor.pair(_PARAM) for _ in range(params)),
            tuple((start, size, kind) for start, size, kind in (cursor.take(_ENTRY) for _ in range(entries))),
            tuple(cursor.take(_FRAME)[0] for _ in range(extra)),
            tuple(vcpus),
            tuple(ballooned),
            dict(pinned or {}),
        )
        cursor.end()
        return state


class _Cursor:
    """Takes a body apart. Raises ImageError where it ends too early or too late."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def take(self, form: struct.Struct) -> tuple[int, ...]:
        if len(self._body) - self._at < form.size:
            raise ImageError("a record is too short")
        self._at += form.size
        return form.unpack_from(self._body, self._at - form.size)

    def pair(self, form: struct.Struct) -> tuple[int, int]:
        first, second = self.take(form)
        return first, second

    def end(self) -> None:
        if self._at != len(self._body):
            raise ImageError("a record is too long")


def decoded(decode: Callable[[bytes], _Value], body: bytes) -> _Value:
    """Return what bytes of the architecture's say. Raises ImageError."""
    try:
        return decode(body)
    except ValueError as error:
        raise ImageError(str(error)) from error


def capture(domain: Domain) -> DomainContext:
    """Return the state of a domain that no thread runs. Raises BadAddress if its guest has not told what it must."""
    first, pinned = domain.vcpus[0].cpu, dict[int, int]()
    if isinstance(first, PVCPU):
        pv.start_info_frame(domain)
        pinned = first.tables.pinned()
    return DomainContext(
        system_time=domain.time.clock.now(),
        callback_vector=domain.callback_vector,
        params={key: value for key, value in domain.params.items() if key not in (STORE_EVTCHN, CONSOLE_EVTCHN)},
        memory_map=tuple(domain.memory_map),
        extra=tuple(sorted(domain.memory.extra, key=domain.memory.extra.__getitem__)),
        vcpus=tuple(VCPUContext.of(vcpu) for vcpu in domain.vcpus),
        ballooned=tuple(domain.physmap.ballooned.runs()),
        pinned=pinned,
    )


def install(domain: Domain, context: DomainContext) -> None:
    """Put a state into a domain that was created for it, whose memory is filled already. Raises ImageError.

    The clock is the caller's business: the domain was made with one.
    """
    if len(context.vcpus) != len(domain.vcpus):
        raise ImageError("the domain has another number of virtual CPUs")
    try:
        for first, count in context.ballooned:
            domain.physmap.hold_out(first, count)
        for frame in context.extra:
            _empty_extra(domain, frame)
        for key in (STORE_PFN, CONSOLE_PFN):
            # What stood in a ring is answered or will be said again; both ends begin at 0.
            domain.memory.write(context.params[key] * PAGE, bytes(PAGE))
        for vcpu, saved in zip(domain.vcpus, context.vcpus):
            if saved.registers.apic:
                entry.local_apic(vcpu.cpu)
            registers.load(vcpu.cpu, saved.registers)
            vcpu.up, vcpu.blocked, vcpu.upcall_vector = saved.up, saved.blocked, saved.upcall_vector
            vcpu.runstate.since = domain.time.clock.now()
        if context.vcpus[0].pv is not None:
            _install_pv(domain, context)
    except (BadAddress, KeyError, ValueError) as error:
        raise ImageError(f"the domain's state is impossible: {error}") from error
    domain.params = dict(context.params)
    domain.callback_vector = context.callback_vector
    domain.memory_map = list(context.memory_map)


def _install_pv(domain: Domain, context: DomainContext) -> None:
    first = domain.vcpus[0].cpu
    assert isinstance(first, PVCPU)
    pv_context.pin(first.tables, context.pinned)
    for vcpu, saved in zip(domain.vcpus, context.vcpus):
        assert isinstance(vcpu.cpu, PVCPU) and saved.pv is not None
        pv_context.install(vcpu.cpu, saved.pv)
    pv.start_info_frame(domain)
    pv.place_shared_page(domain)


def _empty_extra(domain: Domain, frame: int) -> None:
    """Show the guest a frame beyond its memory, empty: it held grants."""
    if frame * PAGE < domain.memory.size:
        raise BadAddress(f"frame {frame:#x} is not beyond the memory")
    offset = domain.memory.place_extra(frame)
    domain.memory.bytes[offset : offset + PAGE] = bytes(PAGE)
    domain.platform.map_extra(frame)
