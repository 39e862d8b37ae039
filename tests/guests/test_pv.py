"""Paravirtual CPUs and their hypercalls, against a small kernel of our own that prints one line of what it saw."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from hypervisor.domains.life import Reason
from hypervisor.host import Host
from tests.guests.pv_guest import MIB, PVGuest, build_kernel
from tests.machines import machine

EFAULT, ENODEV, EINVAL, ENOSYS = 14, 19, 22, 38


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build_kernel(tmp_path_factory.mktemp("pv"))


@pytest.fixture
def host() -> Iterator[Host]:
    with machine(256 * MIB) as made:
        yield made


@pytest.fixture
def guest(host: Host, kernel: bytes) -> Callable[..., PVGuest]:
    """Make a domain for one of the kernel's tests."""

    def make(test: str, initrd: bytes | None = None) -> PVGuest:
        return PVGuest(host, kernel, initrd, test)

    return make


def fields(text: str) -> dict[str, int]:
    """Return the line's "name=value" parts; values are hexadecimal."""
    return {name: int(value, 16) for name, value in re.findall(r"([\w-]+)=([0-9a-f]+)(?= |\n|$)", text)}


def traps(text: str) -> dict[str, tuple[int, int, int, int]]:
    """Return vector, error code (-1 for none), distance from the instruction and how often, by the trap's name."""
    found = re.findall(r" (\w+):([0-9a-f]+)/([0-9a-f]+)@([0-9a-f]+)x([0-9a-f]+)", text)
    none = (1 << 64) - 1
    return {
        name: (int(vector, 16), -1 if int(code, 16) == none else int(code, 16), int(offset, 16), int(count, 16))
        for name, vector, code, offset, count in found
    }


def test_kernel_starts_as_the_abi_says_and_prints_by_console_and_by_ring(guest: Callable[..., PVGuest]) -> None:
    """start_info, p2m and M2P, the events' mask, page tables that are read-only, both consoles, poweroff."""
    made = guest("start", bytes(5000))
    text = made.finish()
    seen = fields(text)
    assert "magic=xen-3.0-x86_64 text=start" in text
    assert seen["pages"] == 8 * MIB // 4096
    assert (seen["selectors"], seen["flags"], seen["mask"]) == (0xE030, 0x200, 1)
    assert seen["wrong"] == 0, "M2P[P2M[n]] is n"
    assert (seen["initrd"], seen["module"]) == (5000, 8)
    assert seen["root-write"] == 1
    assert made.console.history == b"by the ring\n"
    assert made.domain.life.reason is Reason.POWEROFF


def test_each_exception_arrives_with_its_vector_code_and_place(guest: Callable[..., PVGuest]) -> None:
    """Faults name the instruction, traps the next one; INT n needs the gate's level; CR2 is in vcpu_info."""
    text = guest("exceptions").finish()
    seen = traps(text)
    assert seen["divide"] == (0, -1, 4, 1)
    assert seen["breakpoint"] == (3, -1, 1, 1)
    assert seen["undefined"] == (6, -1, 0, 1)
    assert seen["system"] == (128, -1, 2, 1)
    assert seen["vector"] == (13, 0x81 * 8 + 2, 0, 1)
    assert seen["selector"] == (13, 0x4008, 5, 1)
    assert seen["read"] == (14, 0, 0, 1)
    assert seen["write"] == (14, 2, 0, 1)
    assert seen["fpu"] == (7, -1, 0, 1)
    assert seen["again"][3] == 0, "the task-switched bit went with the exception"
    assert seen["step"][0] == 1 and seen["step"][3] == 1
    assert re.findall(r"cr2=(\w+)", text) == ["5000", "6008"]
    assert fields(text)["masked"] == 1, "the page fault's entry asks for events to be masked"


def test_versions_and_memory_are_told_as_to_a_domain_without_translation(guest: Callable[..., PVGuest]) -> None:
    """The forced CPUID, features, the M2P's place, reservations, and calls that such a domain has not."""
    seen = fields(guest("version").finish())
    assert seen["xen"] == int.from_bytes(b"XenV", "little")
    assert seen["hidden"] == 0
    assert seen["features"] & 1 << 2 == 0 and seen["features"] & 0xE0 == 0xE0
    assert seen["hole"] == seen["m2p"] == 0xFFFF_8000_0000_0000
    assert seen["largest"] + 1 == seen["reservation"] == 8 * MIB // 4096
    assert (seen["assist"], seen["bad-assist"], seen["hvm"]) == (0, EINVAL, ENOSYS)
    assert (seen["iopl"], seen["bad-iopl"], seen["apic"]) == (0, EINVAL, 1)
    assert (seen["multicall"], seen["first"], seen["second"]) == (0, 4 << 16 | 17, ENOSYS)


def test_events_wait_for_the_mask_and_wake_a_blocked_cpu(guest: Callable[..., PVGuest]) -> None:
    """Masked events stay pending; unmasked ones come at a hypercall's end with the mask set; frames keep it."""
    seen = fields(guest("events").finish())
    assert (seen["bind"], seen["masked"], seen["pending"]) == (0, 0, 1)
    assert (seen["taken"], seen["number"], seen["inside"], seen["after"]) == (1, 1000, 1, 0)
    assert (seen["saved"], seen["if"]) == (0, 0x200)
    assert seen["at-once"] == 2
    assert (seen["woken"], seen["timer"]) == (1, 1000)
    assert (seen["shadow"], seen["shadow-if"], seen["still"]) == (1, 0, 1)


def test_page_tables_are_changed_as_asked_and_refused_as_by_xen(guest: Callable[..., PVGuest]) -> None:
    """Mappings, pins, levels, foreign frames, Xen's slots; writes to read-only tables pass, to other pages not."""
    seen = fields(guest("tables").finish())
    done = ("map", "restore", "read-only", "pin", "entry", "unpin", "clear", "cleared")
    assert {name: seen[name] for name in done} == dict.fromkeys(done, 0)
    refused = (
        *("foreign", "far", "no-table", "again", "level", "entry-foreign", "unaligned", "not-pinned", "outside"),
        *("xen-slot", "clear-table", "balloon-table"),
    )
    assert {name: seen[name] for name in refused} == dict.fromkeys(refused, EINVAL)
    assert (seen["mode"], seen["other"]) == (ENOSYS, 3)
    assert seen["alias"] == 0x1234
    assert seen["written"] == 1, "a level-1 table that is mapped read-only"
    assert (seen["protected"], seen["code"], seen["m2p"]) == (1, 3, 1)


def test_users_have_their_own_tables_stack_and_gs(guest: Callable[..., PVGuest]) -> None:
    """A system call, INT with and without the right, a privileged instruction, a look at the kernel; iret between."""
    text = guest("users").finish()
    seen = fields(text)
    assert (seen["pin"], seen["base"]) == (0, 0)
    assert (seen["rbx"], seen["cs"], seen["ss"]) == (5, 0xE033, 0xE02B)
    assert (seen["gs"], seen["user-gs"], seen["on-stack"]) == (0x6B65726E, 0x75736572, 1)
    order = re.findall(r" ([0-9a-f]+)/([0-9a-f]+)@([0-9a-f]+)", text)
    none = "f" * 16
    assert [(vector, code) for vector, code, _ in order] == [
        *(("3e9", none), ("80", none), ("d", f"{0x81 * 8 + 2:x}"), ("d", "0"), ("e", "4"), ("3e9", none)),
    ]
    assert order[0][2] == f"{seen['rcx']:x}", "RCX and RIP are behind the SYSCALL"
    assert int(order[2][2], 16) == int(order[1][2], 16), "the refused INT itself, which follows the granted one"
    assert seen["own"] == 1, "CR2 is the kernel's address"
    assert (seen["end"], seen["returned"]) == (0xD01E, 0xAB)


def test_users_of_32_bits_run_by_the_guests_own_descriptors(guest: Callable[..., PVGuest]) -> None:
    """set_gdt and update_descriptor, and an iret to a compatibility segment."""
    seen = fields(guest("compat").finish())
    assert (seen["gdt"], seen["descriptor"], seen["there"]) == (0, 0, 1)
    assert (seen["too-many"], seen["gate"]) == (EINVAL, EINVAL)
    assert (seen["rax"], seen["cs"]) == (0x3232, 0x23)


def test_return_to_a_segment_that_cannot_be_is_the_failsafe_callbacks(guest: Callable[..., PVGuest]) -> None:
    """The frame shows what could not be loaded."""
    seen = fields(guest("failsafe").finish())
    assert (seen["cs"], seen["rip"]) == (0x4003, 0x400000)


def test_registers_of_debugging_segments_and_callbacks_are_checked(guest: Callable[..., PVGuest]) -> None:
    """A kernel's own IRET to itself, debug registers, callbacks of unknown kinds, addresses that are none."""
    text = guest("registers").finish()
    seen = fields(text)
    assert "iretq=ok" in text and seen["if"] == 0x200
    assert (seen["dr0"], seen["got"], seen["xen"], seen["detect"], seen["ninth"]) == (0, 0x1000, 1, 1, ENODEV)
    assert (seen["kind"], seen["remove"], seen["address"], seen["base"]) == (ENOSYS, EINVAL, EINVAL, EINVAL)
    assert (seen["pointer"], seen["gs"]) == (EFAULT, 0x6B65726E)


def test_grant_table_is_where_xen_says(guest: Callable[..., PVGuest]) -> None:
    """setup_table gives frames beyond the guest's own that it can map; too many and others' are refused."""
    made = guest("grants")
    seen = fields(made.finish())
    assert (seen["setup"], seen["status"], seen["next"], seen["xen"], seen["map"]) == (0, 0, 1, 1, 0)
    assert (seen["many"], seen["other"], seen["kept"]) == (1, 2, 0x77)
    assert made.domain.memory.read_u64(made.image.area.grants * 4096) == 0x77


@pytest.mark.parametrize(
    ("test", "why"),
    [
        ("nobody", "no trap of the guest's for exception 6"),
        ("no-tables", "without page tables"),
        ("no-stack", "the guest's kernel stack"),
    ],
)
def test_what_cannot_be_delivered_crashes_the_domain(guest: Callable[..., PVGuest], test: str, why: str) -> None:
    """No trap, no tables for users, no stack: the domain crashes and says why."""
    made = guest(test)
    made.finish()
    assert made.domain.life.reason is Reason.CRASH
    assert why in made.domain.life.crash
