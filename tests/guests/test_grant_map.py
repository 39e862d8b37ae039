"""Guests that share a frame by a mapped grant: two tiny kernels at the same time, and a PV one."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator

import pytest

from hypervisor.domains.domain import Domain
from hypervisor.domains.life import Reason, State
from hypervisor.errors import EINVAL
from hypervisor.host import Host
from hypervisor.memory.guest_memory import PAGE
from tests.guests.pv_guest import MIB, PVGuest, build_kernel
from tests.guests.test_pv import fields
from tests.machines import machine
from tests.x86_64 import x86

CODE, GRANTS, SECRET, PLACE, ASKED, GIVEN_BACK, RESULT = (n * PAGE for n in (256, 10, 40, 600, 300, 301, 302))
REF, MAP, UNMAP = 8, 0, 1
ENTRY = GRANTS + 8 * REF
HALT = b"\xf4"


def a_guest(host: Host, vcpus: int = 1) -> Domain:
    """A domain in flat 32-bit mode without paging, at CODE."""
    domain = host.create([(0, 4 << 20)], vcpus=vcpus)
    domain.grants.place(0, GRANTS // PAGE)
    vcpu = domain.vcpus[0]
    x86(vcpu.cpu).reside()
    x86(vcpu.cpu).overlay.enter_flat32()
    x86(vcpu.cpu).overlay.regs.rip = CODE
    vcpu.up = True
    return domain


def store(at: int, value: int) -> bytes:
    return b"\xc7\x05" + struct.pack("<II", at, value)


def move(source: int, target: int) -> bytes:
    return b"\xa1" + struct.pack("<I", source) + b"\xa3" + struct.pack("<I", target)


def until(test: bytes, again: int) -> bytes:
    """Repeat a test and PAUSE while its condition code, of a short jump, says so."""
    loop = test + b"\xf3\x90"
    return loop + bytes([again, 256 - len(loop) - 2])


def grant_table_op(command: int, at: int) -> bytes:
    numbers = ((0xB8, 20), (0xBB, command), (0xB9, at), (0xBA, 1))
    return b"".join(struct.pack("<BI", *number) for number in numbers) + b"\x0f\x01\xc1"


def call(at: int) -> bytes:
    return b"\xb8" + struct.pack("<I", at) + b"\xff\xd0"


def map_until_granted() -> bytes:
    """Ask again while the status is not 0; the handle goes to where it is given back."""
    asking = grant_table_op(MAP, ASKED) + b"\x66\x83\x3d" + struct.pack("<IB", ASKED + 18, 0)
    return until(asking, 0x75) + move(ASKED + 20, GIVEN_BACK + 16)


def ask(mapper: Domain, granter: Domain) -> None:
    """Put the operations where the mapper's code finds them."""
    mapper.memory.write(ASKED, struct.pack("<QIIHhIQ", PLACE, 2, REF, granter.domid, 0, 0, 0))
    mapper.memory.write(GIVEN_BACK, struct.pack("<QQIhxx", PLACE, 0, 0, 0))


def run(host: Host, *domains: Domain) -> None:
    """Let domains run until each has halted for good."""
    halted = threading.Semaphore(0)
    host.listen(lambda domain: halted.release())
    for domain in domains:
        host.unpause(domain)
    for _ in domains:
        assert halted.acquire(timeout=20), [domain.life.crash for domain in domains]
    assert {(domain.life.state, domain.life.reason) for domain in domains} == {(State.SHUTDOWN, Reason.POWEROFF)}


@pytest.mark.parametrize("vcpus", [1, 2])
def test_one_writes_and_the_other_reads_and_answers(host: Host, vcpus: int) -> None:
    """The granter waits for the answer in its frame, then until its entry is not in use any more."""
    granter, mapper = a_guest(host), a_guest(host, vcpus)
    entry = store(ENTRY + 4, SECRET // PAGE) + store(ENTRY, 1 | mapper.domid << 16)
    answered = until(b"\x83\x3d" + struct.pack("<IB", SECRET + 4, 0), 0x74) + move(SECRET + 4, RESULT)
    ended = until(b"\xf6\x05" + struct.pack("<IB", ENTRY, 0x18), 0x75) + store(RESULT + 4, 1)
    granter.memory.write(CODE, store(SECRET, 0x1234) + entry + answered + ended + HALT)
    ask(mapper, granter)
    answer = move(PLACE, RESULT) + b"\x40\xa3" + struct.pack("<I", PLACE + 4)  # inc eax; mov [PLACE + 4], eax
    unmap = grant_table_op(UNMAP, GIVEN_BACK) + move(PLACE, RESULT + 4)
    mapper.memory.write(CODE, store(RESULT + 4, 99) + map_until_granted() + answer + unmap + HALT)
    run(host, mapper, granter)
    assert struct.unpack("<II", mapper.memory.read(RESULT, 8)) == (0x1234, 0)
    assert struct.unpack("<II", granter.memory.read(RESULT, 8)) == (0x1235, 1)
    assert granter.memory.read(ENTRY, 2) == b"\1\0" and not mapper.memory.foreign


@pytest.mark.parametrize("vcpus", [1, 2])
def test_code_in_a_mapped_frame_is_not_what_lay_there_before(host: Host, vcpus: int) -> None:
    """The mapper calls a function of its own at the place, the granter's there, and what it writes after unmapping."""
    granter, mapper = a_guest(host), a_guest(host, vcpus)
    granter.memory.write(SECRET, b"\xb8\x02\x00\x00\x00\xc3")  # mov eax, 2; ret
    granter.memory.write(ENTRY, struct.pack("<HHI", 1, mapper.domid, SECRET // PAGE))
    ask(mapper, granter)
    mapper.memory.write(PLACE, b"\xb8\x01\x00\x00\x00\xc3")
    kept = [call(PLACE) + b"\xa3" + struct.pack("<I", RESULT + 4 * number) for number in range(3)]
    again = grant_table_op(UNMAP, GIVEN_BACK) + store(PLACE, 0x3B8) + store(PLACE + 4, 0xC300)
    stack = b"\xbc" + struct.pack("<I", RESULT + PAGE)
    mapper.memory.write(CODE, stack + kept[0] + map_until_granted() + kept[1] + again + kept[2] + HALT)
    run(host, mapper)
    assert struct.unpack("<III", mapper.memory.read(RESULT, 12)) == (1, 2, 3)
    assert granter.memory.read(SECRET, 2) == b"\xb8\x02"


# Paravirtual guests


@pytest.fixture
def still() -> Iterator[Host]:
    """A machine without threads."""
    with machine(256 * MIB) as made:
        yield made


@pytest.fixture
def granter(still: Host) -> Domain:
    """Domain 1, which grants to domain 2 a frame to write to, by 8, and one to read, by 9."""
    made = a_guest(still)
    for ref, flags in ((REF, 1), (REF + 1, 5)):
        made.memory.write(GRANTS + 8 * ref, struct.pack("<HHI", flags, 2, SECRET // PAGE + ref - REF))
        made.memory.write_u64(SECRET + PAGE * (ref - REF), 0x1230 + ref)
    return made


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build_kernel(tmp_path_factory.mktemp("pv"))


@pytest.fixture
def seen(still: Host, granter: Domain, kernel: bytes) -> dict[str, int]:
    """What domain 2 saw, which has powered off with two grants mapped."""
    guest = PVGuest(still, kernel, None, "maps")
    text = guest.finish()
    assert (granter.domid, guest.domain.domid, guest.domain.life.reason) == (1, 2, Reason.POWEROFF), (
        guest.domain.life.crash
    )
    return fields(text)


def test_a_pv_guest_maps_by_address_and_by_entry(seen: dict[str, int], granter: Domain) -> None:
    """It reads and writes, by an entry with the flags it asked for, until it unmaps with the same address."""
    done = ("map", "read-only", "unmap", "by-entry", "unmap-entry", "device", "replace", "unmap-again", "left")
    assert {name: seen[name] for name in done} == dict.fromkeys(done, 0)
    assert (seen["seen"], seen["shown"], seen["read"], seen["same"]) == (0x1238, 1, 0x1239, 0x4321)
    assert granter.memory.read_u64(SECRET + 8) == 0x4321
    assert (seen["entry"], seen["read-entry"], seen["high"]) == (0x63, 0xA65, 0xC)
    assert (seen["gone"], seen["entry-gone"], seen["host-gone"], seen["moved"]) == (0x100,) * 4
    assert (seen["replaced"], seen["alive"]) == (0xF0, 0x1239)


def test_what_a_pv_guest_may_only_read_it_cannot_write(seen: dict[str, int], granter: Domain) -> None:
    """It faults; and what it writes by an entry that it has changed itself is its own."""
    assert (seen["write"], seen["copy"]) == (0x103, 0xBAD)
    assert granter.memory.read_u64(SECRET + PAGE) == 0x1239


def test_page_tables_reach_no_frame_that_is_not_mapped(seen: dict[str, int]) -> None:
    """Not by hypercalls, as with Xen, though flags may be changed; and by an entry written directly it is empty."""
    refused = ("no-grant", "no-grant-update", "again")
    assert {name: seen[name] for name in refused} == dict.fromkeys(refused, EINVAL)
    assert (seen["other-flags"], seen["empty"]) == (0, 0)


def test_a_pv_guest_is_refused_as_by_xen(seen: dict[str, int]) -> None:
    """With the status that Xen has for it, and the mapping as it was."""
    wrong = (
        *("spoilt", "by-address", "unaligned", "no-table", "far-table", "upper-table", "no-ref", "not-writable"),
        *("no-address", "not-canonical", "xens-address", "other-address", "replace-entry", "no-table-now"),
    )
    assert {name: seen[name] for name in wrong} == dict.fromkeys(wrong, 1)
    assert (seen["no-flags"], seen["bad-ref"], seen["no-domain"]) == (3, 3, 2)
    assert (seen["bad-handle"], seen["both-gone"], seen["other-bus"]) == (4, 4, 1)
    assert (seen["nowhere"], seen["still"], seen["host"], seen["bus"]) == (0, 0x4321, 0, 0)
    assert (seen["in-table"], seen["unpin"]) == (0, 0)


def test_a_dead_pv_guest_uses_nothing(still: Host, seen: dict[str, int], granter: Domain) -> None:
    """One entry is still there when it ends, the other went with its page table."""
    assert [granter.memory.read(ENTRY + at, 1)[0] & 0x18 for at in (0, 8)] == [0x18, 8]
    still.destroy(still.domains[2])
    assert [granter.memory.read(ENTRY + at, 1)[0] & 0x18 for at in (0, 8)] == [0, 0] and not granter.memory.lent
