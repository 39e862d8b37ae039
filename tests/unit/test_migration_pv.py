"""The stream of a PV domain: what comes back, what its guest finds anew, and what is refused."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from hypervisor.arch.x86_64.clock import Clock
from hypervisor.arch.x86_64.cpu import context as registers
from hypervisor.arch.x86_64.cpu.overlay import RDX
from hypervisor.arch.x86_64.kinds import PV
from hypervisor.arch.x86_64.pv import context as pv_context
from hypervisor.arch.x86_64.pv import segments
from hypervisor.arch.x86_64.pv.area import M2P_SLOT, Area
from hypervisor.arch.x86_64.pv.cpu import PVCPU
from hypervisor.domains.domain import Domain
from hypervisor.host import Host
from hypervisor.hypercalls.hvm_op import CONSOLE_PFN, STORE_PFN
from hypervisor.memory.guest_memory import PAGE, BadAddress
from hypervisor.migration import resume
from hypervisor.migration.clone import Template
from hypervisor.migration.context import Shape, VCPUContext
from hypervisor.migration.reading import NotSuspended
from hypervisor.migration.records import ImageError, Kind
from hypervisor.migration.restore import Image
from tests.machines import machine
from tests.unit.saved_domain import LDT, RAM, ROOM, image_of, left, records_of, suspended_pv, written

AREA = Area(RAM)
Records = list[tuple[Kind, bytes]]


@pytest.fixture
def host() -> Iterator[Host]:
    with machine(ROOM) as made:
        yield made


@pytest.fixture
def domain(host: Host) -> Domain:
    return suspended_pv(host)


def cpu_of(domain: Domain) -> PVCPU:
    cpu = domain.vcpus[0].cpu
    assert isinstance(cpu, PVCPU)
    return cpu


def restored(host: Host, image: bytes) -> Domain:
    return Image(io.BytesIO(image)).build(host)


def cloned(host: Host, domain: Domain) -> Domain:
    with Template(host, domain) as template:
        return template.clone(host)


def saved(host: Host, domain: Domain) -> Domain:
    return restored(host, image_of(domain, host))


# What comes back


@pytest.mark.parametrize("move", [saved, cloned])
def test_a_domain_comes_back(host: Host, domain: Domain, move: Callable[[Host, Domain], Domain]) -> None:
    """RAM but for the rings, registers, callbacks, descriptor tables, pinned page tables; under another domid."""
    before, after = cpu_of(domain), cpu_of(other := move(host, domain))
    assert other.domid != domain.domid
    assert bytes(other.memory.bytes[:RAM]) == bytes(domain.memory.bytes[:RAM])
    assert [registers.read(v.cpu) for v in other.vcpus] == [registers.read(v.cpu) for v in domain.vcpus]
    assert after.state == before.state and after.state.traps is not before.state.traps
    assert [vcpu.up for vcpu in other.vcpus] == [True, False]
    assert after.tables.pinned() == before.tables.pinned() != {}
    assert all(after.tables.level(frame) == before.tables.level(frame) for frame in range(AREA.frames))
    assert other.ranges == ((0, RAM),) and other.memory.present == domain.memory.present
    assert list(other.physmap.ballooned.runs()) == [(900, 3)] and other.memory_map == domain.memory_map
    with pytest.raises(BadAddress):
        other.physmap.release(AREA.shared_info, 1)
    assert other.platform.hypercall_table is domain.platform.hypercall_table and other.kind is domain.kind is PV


@pytest.mark.parametrize("move", [saved, cloned])
def test_xens_frames_are_there_again(host: Host, domain: Domain, move: Callable[[Host, Domain], Domain]) -> None:
    """The M2P table by the tables of the CPU, the GDT and LDT by their selectors, a shared page without events."""
    domain.memory.bytes[AREA.shared_info * PAGE] = 1
    other = move(host, domain)
    cpu = cpu_of(other)
    assert struct.unpack("<Q", cpu.read((M2P_SLOT << 39 | 0xFFFF << 48) + 8 * 1000, 8)) == (1000,)
    code = segments.find(other.memory, AREA, 0, 0x33, 4)
    assert code is not None and code.flags == 0xAFFB00
    data = segments.find(other.memory, AREA, 0, 1 << 3 | 4, 4)
    assert data is not None and data.flags == 0xCFF300
    assert other.events.shared_info == AREA.shared_info * PAGE and not other.events.vcpu_info
    assert other.memory.read(AREA.shared_info * PAGE, 2) == b"\0\1"


def test_an_image_has_nothing_of_xens_frames(host: Host, domain: Domain) -> None:
    """What a guest did to them, it did to itself; a new domain has good ones."""
    domain.memory.write(AREA.table * PAGE, b"spoilt")
    other = saved(host, domain)
    assert other.memory.read(AREA.table * PAGE, 16) == struct.pack("<QQ", 0, 1)


@pytest.mark.parametrize("move", [saved, cloned])
def test_start_info_tells_what_is_new(host: Host, domain: Domain, move: Callable[[Host, Domain], Domain]) -> None:
    """As Xen's toolstack fills it: no flags, the rings' frames, their new ports, the shared page; the rest is kept."""
    at = cpu_of(domain).general[RDX] * PAGE
    domain.memory.write(at + 32, b"\xee" * 56)
    other = move(host, domain)
    resume.connect(other, 11, 12)
    info = struct.unpack_from("<32sQQIxxxxQIxxxxQIxxxx", other.memory.read(at, 88))
    frames = other.params[STORE_PFN], other.params[CONSOLE_PFN]
    assert info == (
        *(domain.memory.read(at, 32), RAM // PAGE, AREA.shared_info * PAGE, 0),
        *(frames[0], 11, frames[1], 12),
    )
    assert other.memory.read(at + 88, PAGE - 88) == domain.memory.read(at + 88, PAGE - 88)
    assert not any(other.memory.read(frames[0] * PAGE, PAGE) + other.memory.read(frames[1] * PAGE, PAGE))


def test_a_wall_clock_behind_the_system_time_is_told(domain: Domain) -> None:
    """A host whose clock is wrong says that the guest's time began before 1970."""
    early = Host(64 << 20, 1, lambda: 0)
    domain.time.clock = Clock(base=10 * 10**9)
    domain.host = early
    domain.time.write_wallclock()
    low, high = struct.unpack("<I4xI", domain.memory.read(AREA.shared_info * PAGE + 0xC04, 12))
    assert high << 32 | low == (1 << 64) - 11
    early.stop()


def test_renewing_places_the_shared_page_again(host: Host, domain: Domain) -> None:
    """Without ports and events; what the guest has told of its kernel stays."""
    domain.events.place_vcpu_info(0, 800 * PAGE)
    domain.memory.write(AREA.shared_info * PAGE, b"\1\0")
    state = replace(cpu_of(domain).state)
    resume.renew(host, domain)
    assert domain.memory.read(AREA.shared_info * PAGE, 2) == b"\0\1" and not domain.events.vcpu_info
    assert cpu_of(domain).state == state
    domain.events.place_vcpu_info(0, 800 * PAGE)


def test_a_guest_that_does_not_say_where_its_start_info_is_cannot_be_saved(host: Host, domain: Domain) -> None:
    """It would be written into whatever it named; it can go on where it is."""
    cpu_of(domain).general[RDX] = AREA.frames
    with pytest.raises(NotSuspended, match="start_info"):
        image_of(domain, host)
    with pytest.raises(NotSuspended):
        Template(host, domain)
    resume.cancel(host, domain)


# Refusals, with good checksums


def changed(kind: Kind, change: Callable[[bytes], bytes]) -> Callable[[Records], Records]:
    """Return what changes the first record of a kind."""

    def apply(records: Records) -> Records:
        at = next(number for number, record in enumerate(records) if record[0] is kind)
        return [*records[:at], (kind, change(records[at][1])), *records[at + 1 :]]

    return apply


def state(**fields: Any) -> Callable[[Records], Records]:
    return changed(Kind.PV_VCPU, lambda body: pv_context.encode(replace(pv_context.decode(body), **fields)))


def context(change: Callable[[registers.CPUContext], registers.CPUContext]) -> Callable[[Records], Records]:
    def apply(body: bytes) -> bytes:
        found = VCPUContext.decode(body)
        return replace(found, registers=change(found.registers)).encode()

    return changed(Kind.VCPU, apply)


def pinned(*frames: tuple[int, int]) -> Callable[[Records], Records]:
    return changed(Kind.PINNED, lambda body: body + pv_context.encode_pinned(frames))


def shape(vcpus: int, *ranges: tuple[int, int]) -> Callable[[Records], Records]:
    return changed(Kind.PV_DOMAIN, lambda _: Shape(vcpus, ranges).encode())


BAD: dict[str, Callable[[Records], Records]] = {
    "taken for a PVH domain": lambda records: [records[0], (Kind.DOMAIN, records[1][1]), *records[2:]],
    "without what is of PV": lambda records: [record for record in records if record[0] is not Kind.PV_VCPU],
    "a short record": changed(Kind.PV_VCPU, lambda body: body[:100]),
    "a long record": changed(Kind.PV_VCPU, lambda body: body + bytes(8)),
    "a trap at no address": state(traps=[(1 << 63, 0)] * 256),
    "a callback at no address": state(syscall=(1 << 47, False)),
    "a root inside a page": state(user_root=0x1008),
    "a root behind the RAM": state(user_root=RAM),
    "a root that is no page table": state(user_root=LDT * PAGE),
    "other page tables than those in use": context(lambda found: replace(found, control=(*found.control[:2], PAGE, 0))),
    "an APIC": context(lambda found: replace(found, apic=bytes(PAGE))),
    "start_info behind the RAM": context(
        lambda found: replace(found, general=(*found.general[:RDX], AREA.frames, *found.general[RDX + 1 :]))
    ),
    "a GDT behind the RAM": state(gdt=(AREA.frames,)),
    "a GDT over Xen's part": state(gdt=(1,) * 15),
    "an LDT inside a page": state(ldt=(8, 1)),
    "a long LDT": state(ldt=(0, 8193)),
    "a level that there is not": pinned((LDT, 5)),
    "a pinned frame that is no page table": pinned((LDT, 4)),
    "a pinned frame behind the RAM": pinned((AREA.frames, 1)),
    "a frame pinned twice": changed(Kind.PINNED, lambda body: body + body),
    "half a pinned frame": changed(Kind.PINNED, lambda body: body + b"x"),
    "too many CPUs": shape(17, (0, RAM)),
    "RAM with a hole": shape(2, (0, RAM), (2 * RAM, 3 * RAM)),
    "RAM not from 0 on": shape(2, (PAGE, RAM)),
    "too little RAM": shape(2, (0, RAM // 2)),
    "a page of Xen's": changed(
        Kind.PAGES, lambda _: struct.pack("<IIQI", 0, 1, AREA.shared_info, 1) + bytes(PAGE)
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", BAD.values(), ids=BAD.keys())
def test_a_domain_that_cannot_be_is_refused(host: Host, domain: Domain, change: Callable[[Records], Records]) -> None:
    """With one error, and nothing left behind."""
    image, before = written(change(records_of(image_of(domain, host)))), left(host)
    with pytest.raises(ImageError):
        restored(host, image)
    assert left(host) == before


def test_what_is_changed_by_these_tests_is_good_without(host: Host, domain: Domain) -> None:
    """Or they would prove nothing."""
    assert restored(host, written(records_of(image_of(domain, host))))
