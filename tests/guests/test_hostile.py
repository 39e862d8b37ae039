"""Hostile guests: what they may do to themselves, and that nobody else notices. The long runs are `make fuzz`."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from hypervisor.arch.x86_64.cpu.overlay import RSP, VMCB_PAGE, long_mode
from hypervisor.domains.domain import Domain
from hypervisor.domains.event_channel import VIRQ_CONSOLE
from hypervisor.domains.life import Reason, State
from hypervisor.errors import EFAULT, EINVAL, ENOSYS
from hypervisor.host import Host
from hypervisor.hypercalls.table import dispatch
from hypervisor.memory.guest_memory import PAGE, BadAddress
from tests.fuzz import code, pv_code
from tests.fuzz.hypercalls import HEAP, SHARED, Hypercalls, a_guest
from tests.fuzz.pv_grants import PVGrants
from tests.fuzz.rings import Block, Rings
from tests.fuzz.services import Services
from tests.guests.demo_guest import MIB, DemoGuest
from tests.machines import machine
from tests.x86_64 import cpu_of

GIB = 1 << 30
_SECONDS = 20
few = settings(max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture
def host() -> Iterator[Host]:
    """A machine without threads."""
    with machine(16 * GIB) as made:
        yield made


@pytest.fixture
def running() -> Iterator[Host]:
    """A machine whose guests run."""
    with machine(1 * GIB, 2, threads=True) as made:
        yield made


def call(domain: Domain, number: int, *arguments: int, memory: bytes = b"", vcpu: int = 0) -> int:
    """Make a hypercall for a domain, with something at HEAP."""
    domain.memory.write(HEAP, memory)
    return dispatch(domain, domain.vcpus[vcpu].cpu, number, (*arguments, 0, 0, 0, 0, 0)[:5])


# Machines in the state of fuzzing


@pytest.mark.parametrize("machine", [Hypercalls, PVGrants, Rings, Block, Services])
def test_whatever_a_guest_does_others_are_untouched(machine: type[RuleBasedStateMachine]) -> None:
    run_state_machine_as_test(machine, settings=few)


@pytest.mark.parametrize("first", range(0, 120, 30))
@pytest.mark.parametrize("case", [code.case, pv_code.case], ids=["hvm", "pv"])
def test_random_code_ends_by_itself_or_by_a_stop(case: Callable[[Host, int, float], code.Ending], first: int) -> None:
    """Dangerous instructions and nonsense, in both rings, over spoilt page tables, gates and descriptors."""
    host = Host(1 * GIB, 1)
    endings = {case(host, number, 0.003).state for number in range(first, first + 30)}
    assert endings <= {State.RUNNING, State.SHUTDOWN}
    assert not host.domains


def test_a_demo_guest_works_beside_guests_that_execute_nonsense(running: Host) -> None:
    """On the same two threads; each of the others is stopped at once when it is asked to."""
    demo = DemoGuest(running, memory=4 * MIB).boot()
    for first in range(1000, 1060, 6):
        others = [code.build(running, number) for number in range(first, first + 6)]
        for other in others:
            running.scheduler.look(other.domid)
        demo.start("help")
        assert "spin SECONDS" in demo.finish()
        for other in others:
            begun = time.monotonic()
            running.pause(other)
            running.destroy(other)
            assert time.monotonic() - begun < 5
    assert demo.domain.life.state is State.RUNNING


# Stops


def spinning(host: Host, text: str, handler: str = "") -> Domain:
    """A domain of `tests.fuzz.code` with given code and one handler for everything."""
    domain = code.build(host, 3)
    cpu, memory = cpu_of(domain), domain.memory
    cpu.overlay.enter_flat32()  # forget what the case has set
    domain.life.pauses, domain.life.state = 1, State.PAUSED
    long_mode(cpu.engine, cpu.overlay)
    at = code.CODE + 0x3000
    gate = struct.pack("<HHBBHII", at & 0xFFFF, 8, 0, 0x8E, at >> 16 & 0xFFFF, 0, 0)
    memory.write(code.IDT, gate * 256)
    memory.write(at, bytes.fromhex(handler or "48cf"))
    memory.write(code.CODE, bytes.fromhex(text))
    cpu.overlay.regs.rip, cpu.general[RSP] = code.CODE, code.STACK
    return domain


ENDLESS = {
    "a loop": "ebfe",
    "faults at one place": "0f0b",
    "page faults": "488b042500000050",
    "software interrupts": "cceb fd",
    "hypercalls": "b8ffffff000f01c1 ebf6",
    "ports": "e6 80 ec eb fb",
    "CPUID": "0fa2 ebfc",
    "its own code": "b000 fe05f9ffffff ebf6",
    "string moves": "b900001000 bf00001c00 be00002c00 f3a4 ebed",
    "its own timer": "31ff b80f000000 bf01000000 0f01c1 ebf2",
    "TLB flushes": "0f20d8 0f22d8 ebf8",
}


@pytest.mark.parametrize("text", ENDLESS.values(), ids=ENDLESS.keys())
def test_endless_work_is_stopped_at_once(running: Host, text: str) -> None:
    """And its thread serves others afterwards."""
    domain = spinning(running, text, "4883c40848cf" if text.startswith("488b") else "48cf")
    running.unpause(domain)
    end = time.monotonic() + 0.05
    while time.monotonic() < end:
        pass
    begun = time.monotonic()
    running.pause(domain)
    assert time.monotonic() - begun < 5
    assert domain.life.state is State.PAUSED, domain.life.crash
    other = spinning(running, "faf4")
    running.unpause(other)
    end = time.monotonic() + _SECONDS
    while other.life.reason is None:
        assert time.monotonic() < end
        time.sleep(0.001)
    assert other.life.reason is Reason.POWEROFF


def test_a_guest_cannot_become_a_hypervisor(host: Host) -> None:
    """SVM stays off, whatever is written to EFER, and VMRUN is an invalid opcode."""
    domain = spinning(host, "b9800000c0b8011d000031d20f30 0f01d8 f4", "faf4")
    host.unpause(domain)
    host.step(domain)
    assert domain.life.reason is Reason.POWEROFF
    assert domain.memory.read_u64(cpu_of(domain).general[RSP]) == code.CODE + 14


# Hypercalls


def test_numbers_that_nobody_has_are_not_counted(host: Host) -> None:
    """A guest could have filled our memory with counters of four billion numbers."""
    domain = a_guest(host)
    for number in range(0, 1 << 32, 1 << 22):
        assert call(domain, number) == -ENOSYS
    assert len(domain.hypercalls) <= 64


def test_a_list_of_calls_holds_no_list(host: Host) -> None:
    """64 lists of 64 lists of … once took the host's lock for ever; a list that holds itself took the stack."""
    domain = a_guest(host)
    entry = struct.pack("<8Q", 13, 0, HEAP, 64, 0, 0, 0, 0)
    begun = time.monotonic()
    assert call(domain, 13, HEAP, 64, memory=entry * 64) == 0
    assert time.monotonic() - begun < 1
    results = [struct.unpack_from("<q", domain.memory.bytes, HEAP + 64 * number + 8)[0] for number in range(64)]
    assert results == [-EINVAL] * 64


def test_one_call_moves_a_bounded_number_of_frames(host: Host) -> None:
    """A thousand extents of 2 MiB took 50 ms of everybody's time."""
    domain = host.create([(0, 64 * MIB)])
    extents = struct.pack("<1024Q", *(512 * (number % 31 + 1) for number in range(1024)))
    for at in range(0, 64 * MIB, 2 * MIB):
        domain.memory.write_u64(at, 1)
    reservation = struct.pack("<QQIIHHI", HEAP + 64, 1024, 9, 0, 0x7FF0, 0, 0).ljust(64, b"\0")
    assert call(domain, 12, 1, HEAP, memory=reservation + extents) == 2
    assert domain.memory.present == 64 * MIB // PAGE - 1024


def test_events_for_a_domain_that_does_not_run_cost_no_memory(host: Host) -> None:
    """Each of them once waited in a queue of its own."""
    sender, asleep = a_guest(host), host.create([(0, MIB)])
    port = asleep.events.alloc_unbound(sender.domid)
    bound = sender.events.bind_interdomain(asleep.domid, port)
    for _ in range(10_000):
        assert call(sender, 32, 4, HEAP, memory=struct.pack("<I", bound)) == 0
    assert len(asleep.events.queued) == 1
    asleep.place_shared_info(1)
    asleep.events.drain()
    assert asleep.memory.read_u64(PAGE + 0x800) == 1 << port
    call(sender, 32, 4, HEAP, memory=struct.pack("<I", bound))
    assert len(asleep.events.queued) == 1


def test_a_global_interrupt_bound_to_another_vcpu_can_be_closed(host: Host) -> None:
    """It was looked for under the wrong vCPU: the domain could not even be destroyed."""
    domain = a_guest(host, 2)
    port = domain.events.bind_virq(VIRQ_CONSOLE, 0)
    assert call(domain, 32, 8, HEAP, memory=struct.pack("<II", port, 1)) == 0
    assert call(domain, 32, 3, HEAP, memory=struct.pack("<I", port)) == 0
    assert domain.events.bind_virq(VIRQ_CONSOLE, 0)


@pytest.mark.parametrize("frame", [VMCB_PAGE // PAGE, (1 << 36) - 1, 1 << 36, (1 << 64) - 1])
def test_a_grant_table_cannot_lie_over_what_is_ours(host: Host, frame: int) -> None:
    """Unicorn's refusal to map it once escaped into the thread."""
    domain = a_guest(host)
    space = struct.pack("<HHIQQ", 0x7FF0, 0, 1, 1, frame)
    assert call(domain, 12, 7, HEAP, memory=space) == (0 if frame == (1 << 36) - 1 else -EFAULT)


def test_there_is_no_memory_in_the_hole_below_4_gib(host: Host) -> None:
    """Nobody would count it: a guest could have had a quarter of a GiB more than it was given."""
    domain = host.create([(0, GIB), (4 * GIB, 5 * GIB)])
    for address, length in ((GIB, 1), (GIB - 1, 2), (4 * GIB - 1, 2), (2 * GIB, 8), (GIB - 8, 4 * GIB)):
        with pytest.raises(BadAddress):
            domain.memory.check(address, length)
    with pytest.raises(BadAddress):
        domain.memory.frame(GIB // PAGE)
    domain.memory.write(GIB - 1, b"x")
    domain.memory.write(4 * GIB, b"x")
    space = struct.pack("<HHIQQ", 0x7FF0, 0, 0, 0, 2 * GIB // PAGE)
    assert call(domain, 12, 7, HEAP, memory=space) == -EFAULT


def test_unmasking_before_there_is_a_shared_page_changes_nothing(host: Host) -> None:
    domain = host.create([(0, MIB)])
    port = domain.events.alloc_unbound(0)
    domain.memory.write(0, b"\xff" * 0x2000)
    domain.events.unmask(port)
    assert domain.memory.read(0, 0x2000) == b"\xff" * 0x2000


def test_a_page_of_ones_is_no_shared_page_that_hurts(host: Host) -> None:
    """All pending, all masked, all selectors set."""
    domain = a_guest(host)
    domain.memory.write(SHARED * PAGE, b"\xff" * PAGE)
    host.step(domain, 3)
    domain.time.write_time(0)
    domain.time.write_wallclock()
    host.destroy(domain)
