"""vCPUs of a domain without a kernel: started by hypercalls, taken away, waiting for ports; and what is refused."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from hypervisor.arch.x86_64 import entry
from hypervisor.arch.x86_64.cpu.shared import SharingVCPU
from hypervisor.arch.x86_64.kinds import PV
from hypervisor.domains.domain import Domain
from hypervisor.domains.life import Reason
from hypervisor.errors import EEXIST, EINVAL, ENOENT, ENOSYS
from hypervisor.host import Host
from hypervisor.hypercalls.table import dispatch
from tests.machines import machine
from tests.x86_64 import cpu_of

SIZE, HEAP, CODE, SHARED = 4 << 20, 0x20000, 0x100000, 5
INITIALISE, UP, DOWN, IS_UP = range(4)
FLAT = (0xC9B, 0xC93, 0xC93, 0xC93, 0x8B)
"""Attributes of CS, DS, SS, ES and TR: 32 bits, flat."""


@pytest.fixture
def host() -> Iterator[Host]:
    """A machine without threads."""
    with machine(1 << 30) as made:
        yield made


@pytest.fixture
def domain(host: Host) -> Domain:
    """Two vCPUs in flat 32-bit mode with paging off; the first is up and halts."""
    made = host.create(((0, SIZE),), vcpus=2)
    for vcpu in made.vcpus:
        entry.local_apic(vcpu.cpu)
    cpu = cpu_of(made)
    cpu.reside()
    cpu.overlay.enter_flat32()
    cpu.overlay.regs.rip = CODE
    made.memory.write(CODE, b"\xfb\xf4\xeb\xfc")  # sti; hlt; again
    made.place_shared_info(SHARED)
    made.vcpus[0].up = True
    host.unpause(made)
    return made


def call(domain: Domain, number: int, *arguments: int, memory: bytes = b"", vcpu: int = 0) -> int:
    """Make a hypercall, with something at HEAP."""
    domain.memory.write(HEAP, memory)
    return dispatch(domain, domain.vcpus[vcpu].cpu, number, (*arguments, 0, 0, 0, 0, 0)[:5])


def vcpu_op(domain: Domain, command: int, number: int = 1, memory: bytes = b"") -> int:
    return call(domain, 24, command, number, HEAP, memory=memory)


def context32(rip: int = CODE + 0x100, attributes: tuple[int, ...] = FLAT, cr0: int = 0x11, efer: int = 0) -> bytes:
    """vcpu_hvm_context with EBX 77."""
    registers = struct.pack("<8I", 0, 0, 0, 77, 0, 0, 0, 0) + struct.pack("<6IQ", rip, 2, cr0, 0, 0, 0, efer)
    segments = struct.pack("<10I", *[0] * 5, *[0xFFFFFFFF] * 4, 0x67) + struct.pack("<5H6x", *attributes)
    return struct.pack("<II", 0, 0) + registers + segments


def test_a_vcpu_is_started_in_32_bits(host: Host, domain: Domain) -> None:
    """VCPUOP_initialise and _up, as guests without a use for a local APIC do it; HLT without interrupts ends it."""
    assert vcpu_op(domain, UP) == -EINVAL
    assert vcpu_op(domain, INITIALISE, memory=context32()) == 0
    assert vcpu_op(domain, INITIALISE, memory=context32()) == -EEXIST
    assert vcpu_op(domain, IS_UP) == 0
    domain.memory.write(CODE + 0x100, bytes.fromhex("89 1d 00 00 19 00 f4"))  # mov [0x190000], ebx; hlt
    host.step(domain)
    assert domain.memory.read_u32(0x190000) == 0
    assert vcpu_op(domain, UP) == vcpu_op(domain, UP) == 0 and vcpu_op(domain, IS_UP) == 1
    host.step(domain)
    assert domain.memory.read_u32(0x190000) == 77, domain.life.crash
    assert [vcpu.up for vcpu in domain.vcpus] == [True, False] and domain.life.reason is None


def test_a_vcpu_is_started_in_64_bits(host: Host, domain: Domain) -> None:
    """With the first GiB mapped one to one."""
    domain.memory.write(0x1000, struct.pack("<Q", 0x2007))
    domain.memory.write(0x2000, struct.pack("<Q", 0x87))
    registers = (0, 0, 0, 1 << 40, 0, 0, 0, 0, CODE + 0x100, 2, 0x80000011, 0x1000, 0x20, 0x100)
    domain.memory.write(CODE + 0x100, bytes.fromhex("48 89 1c 25 00 00 19 00 f4"))  # mov [0x190000], rbx; hlt
    domain.memory.write(0x2000, struct.pack("<Q", 0x3007))
    domain.memory.write(0x3000, struct.pack("<2Q", 0x83, 0x200083))
    assert vcpu_op(domain, INITIALISE, memory=struct.pack("<II14Q", 1, 0, *registers).ljust(128, b"\0")) == 0
    assert vcpu_op(domain, UP) == 0
    host.step(domain)
    assert domain.memory.read_u64(0x190000) == 1 << 40, domain.life.crash


@pytest.mark.parametrize(
    "context",
    [
        struct.pack("<II", 2, 0).ljust(128, b"\0"),
        struct.pack("<II", 1, 0).ljust(128, b"\0"),
        struct.pack("<II", 0, 1).ljust(128, b"\0"),
        context32(attributes=(0xC93, *FLAT[1:])),
        context32(attributes=(0xC9B, 0xC93, 0, 0xC93, 0x8B)),
        context32(attributes=(*FLAT[:4], 0x89 | 0x10)),
        context32(attributes=(0x1C9B, *FLAT[1:])),
        context32(attributes=(0xC9B, 0xCF3, 0xC93, 0xC93, 0x8B)),
        context32(efer=1 << 10),
        context32(efer=1 << 12),
        context32(cr0=1 << 20),
    ],
)
def test_a_state_that_no_cpu_can_start_in_is_refused(domain: Domain, context: bytes) -> None:
    """And the vCPU cannot be brought up in it."""
    assert vcpu_op(domain, INITIALISE, memory=context) == -EINVAL
    assert vcpu_op(domain, UP) == -EINVAL


def test_a_vcpu_that_is_taken_down_goes_on_where_it_was(host: Host, domain: Domain) -> None:
    """It counts, and the first waits, until words of memory tell them to halt."""
    wait = "f3 90 83 3d 04 00 19 00 00 74 f5 fb f4 eb fc"  # pause; cmp dword [0x190004], 0; je; sti; hlt; again
    count = "ff 05 00 00 19 00 f3 90 83 3d 08 00 19 00 00 74 ef f4"  # inc [0x190000]; pause; cmp [0x190008]; je; hlt
    domain.memory.write(CODE, bytes.fromhex(wait))
    domain.memory.write(CODE + 0x100, bytes.fromhex(count))
    assert vcpu_op(domain, INITIALISE, memory=context32()) == vcpu_op(domain, UP) == 0
    host.step(domain, 10)
    counted = domain.memory.read_u32(0x190000)
    assert counted
    assert vcpu_op(domain, DOWN) == vcpu_op(domain, DOWN) == 0 and not domain.vcpus[1].up
    domain.memory.write_u32(0x190004, 1)
    host.step(domain, 10)
    assert domain.memory.read_u32(0x190000) == counted and domain.vcpus[0].blocked
    domain.memory.write_u32(0x190008, 1)
    assert vcpu_op(domain, UP) == 0
    host.step(domain, 10)
    assert counted <= domain.memory.read_u32(0x190000) <= counted + 1
    assert not domain.vcpus[1].up and not domain.vcpus[1].held and domain.time.runstate_times(1)[3] > 0


def test_listeners_hear_of_another_number_of_vcpus(host: Host, domain: Domain) -> None:
    """When one starts, when it goes down, by a hypercall, an INIT or a halt for good; not of what changes nothing."""
    heard: list[int] = []
    host.listen(lambda domain: heard.append(sum(vcpu.up for vcpu in domain.vcpus)))
    domain.memory.write(CODE + 0x100, b"\xf4")  # hlt
    assert vcpu_op(domain, DOWN) == vcpu_op(domain, INITIALISE, memory=context32()) == 0 and heard == []
    assert vcpu_op(domain, UP) == vcpu_op(domain, UP) == 0 and heard == [2]
    assert vcpu_op(domain, DOWN) == vcpu_op(domain, DOWN) == 0 and heard == [2, 1]
    assert vcpu_op(domain, UP) == 0
    domain.platform.reset_cpu(1)
    domain.platform.reset_cpu(1)
    assert heard == [2, 1, 2, 1]
    assert vcpu_op(domain, INITIALISE, memory=context32()) == vcpu_op(domain, UP) == 0
    host.step(domain)
    assert heard == [2, 1, 2, 1, 2, 1]


def test_the_last_vcpu_that_goes_down_ends_the_domain(host: Host, domain: Domain) -> None:
    """As in Xen."""
    assert vcpu_op(domain, DOWN, 0) == 0
    assert domain.life.reason is Reason.POWEROFF


def test_a_poll_ends_with_its_port_though_it_is_masked(host: Host, domain: Domain) -> None:
    """Another port does not end it; one that is pending already does not begin it."""
    ports = [domain.events.bind_ipi(0) for _ in range(2)]
    poll = struct.pack("<QIxxxxQI", HEAP + 24, 1, 0, ports[0])
    assert call(domain, 29, 3, HEAP, memory=poll) == 0 and domain.vcpus[0].blocked
    domain.events.send(ports[1])
    assert domain.vcpus[0].blocked
    domain.events.send(ports[0])
    assert (domain.vcpus[0].blocked, domain.events.is_pending(ports[0])) == (False, True)
    assert call(domain, 29, 3, HEAP, memory=poll) == 0 and not domain.vcpus[0].blocked


def test_a_poll_ends_in_time(host: Host, domain: Domain) -> None:
    """The domain has a deadline by it."""
    until = domain.time.clock.now() + 10**8
    assert call(domain, 29, 3, HEAP, memory=struct.pack("<QIxxxxQ", HEAP, 0, until)) == 0
    assert domain.vcpus[0].blocked and domain.time.deadline() == until and not domain.runnable()
    while domain.time.clock.now() < until:
        pass
    assert domain.runnable()
    host.step(domain)
    assert domain.time.deadline() is None


@pytest.mark.parametrize(("count", "port"), [(129, 0), (1, 4096), (1, 0xFFFFFFFF)])
def test_a_poll_of_what_is_no_port_is_refused(domain: Domain, count: int, port: int) -> None:
    """Nor more ports than Xen takes."""
    assert call(domain, 29, 3, HEAP, memory=struct.pack("<QIxxxxQI", HEAP + 24, count, 0, port)) == -EINVAL
    assert not domain.vcpus[0].blocked


def test_a_pv_domain_has_one_vcpu_online(host: Host) -> None:
    """The others are refused, and said to be down."""
    domain = host.create(((0, SIZE),), vcpus=2, kind=PV)
    assert vcpu_op_of(domain, UP) == vcpu_op_of(domain, INITIALISE) == -ENOSYS
    assert vcpu_op_of(domain, IS_UP) == 0 and vcpu_op_of(domain, IS_UP, 2) == -ENOENT


def vcpu_op_of(domain: Domain, command: int, number: int = 1) -> int:
    return dispatch(domain, cpu_of(domain), 24, (command, number, HEAP, 0, 0))


def test_a_domain_with_one_vcpu_has_an_engine_to_itself(host: Host, domain: Domain) -> None:
    """Only several share one; all of theirs is the same."""
    alone = host.create(((0, SIZE),))
    assert not alone.vcpus.startable and not isinstance(cpu_of(alone), SharingVCPU)
    assert domain.vcpus.startable and cpu_of(domain).engine is cpu_of(domain, 1).engine
