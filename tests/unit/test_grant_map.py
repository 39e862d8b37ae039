"""GNTTABOP_map_grant_ref and unmap_grant_ref between two domains that no CPU runs, their ends and hostile cases too."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from itertools import count as counting
from typing import Any

import pytest

from hypervisor.arch.x86_64.cpu.overlay import long_mode
from hypervisor.arch.x86_64.pv.area import Area
from hypervisor.domains.domain import Domain
from hypervisor.domains.grant_table import (
    GNTST_BAD_DOMAIN,
    GNTST_BAD_GNTREF,
    GNTST_BAD_HANDLE,
    GNTST_BAD_PAGE,
    GNTST_GENERAL_ERROR,
    GNTST_NO_SPACE,
    GNTST_OKAY,
    GTF_READING,
    GTF_READONLY,
    GTF_WRITING,
)
from hypervisor.domains.life import Reason, State
from hypervisor.errors import EBUSY, EFAULT, EINVAL
from hypervisor.host import Host
from hypervisor.hypercalls import pv, table
from hypervisor.memory import atomic
from hypervisor.memory.foreign import MOST
from hypervisor.memory.guest_memory import EXTRA, PAGE
from hypervisor.migration.clone import Template
from hypervisor.migration.live import LiveCopy
from hypervisor.migration.restore import Image
from hypervisor.migration.save import save
from tests.machines import machine
from tests.unit.saved_domain import suspended, suspended_pv
from tests.x86_64 import cpu_of

MIB = 1 << 20
SIZE, HEAP, GRANTS = 8 * MIB, 0x100000, 10
SECRET, PLACE = 40, 600
"""The granter's frame and the mapper's place for it."""
HOST_MAP, READONLY = 2, 4
MAP, UNMAP, REPLACE = 0, 1, 7


@pytest.fixture
def host() -> Iterator[Host]:
    """A machine without threads."""
    with machine(1 << 30) as made:
        yield made


def a_guest(host: Host) -> Domain:
    domain = host.create([(0, SIZE)])
    long_mode(cpu_of(domain).engine, cpu_of(domain).overlay)
    domain.grants.place(0, GRANTS)
    return domain


@pytest.fixture
def granter(host: Host) -> Domain:
    made = a_guest(host)
    made.memory.write(SECRET * PAGE, b"granted")
    return made


@pytest.fixture
def mapper(host: Host, granter: Domain) -> Domain:
    made = a_guest(host)
    grant(granter, 8, SECRET, made.domid)
    return made


def grant(domain: Domain, ref: int, frame: int, domid: int, flags: int = 1) -> None:
    struct.pack_into("<HHI", domain.memory.bytes, GRANTS * PAGE + 8 * ref, flags, domid, frame)


def marks(domain: Domain, ref: int = 8) -> int:
    """The bits of an entry that say that it is in use."""
    flags: int = struct.unpack_from("<H", domain.memory.bytes, GRANTS * PAGE + 8 * ref)[0]
    return flags & (GTF_READING | GTF_WRITING)


def call(domain: Domain, number: int, *arguments: int, memory: bytes = b"") -> int:
    domain.memory.write(HEAP, memory)
    return table.dispatch(domain, cpu_of(domain), number, (*arguments, 0, 0, 0, 0, 0)[:5])


def map_ref(
    domain: Domain, granter: Domain | int, ref: int = 8, place: int = PLACE, flags: int = HOST_MAP
) -> tuple[int, int]:
    """Map; return status and handle."""
    domid = granter if isinstance(granter, int) else granter.domid
    asked = struct.pack("<QIIHhIQ", place * PAGE, flags, ref, domid, 99, 0, 0)
    assert call(domain, 20, MAP, HEAP, 1, memory=asked) == 0
    status, handle = struct.unpack("<hI", domain.memory.read(HEAP + 18, 6))
    return status, handle


def unmap(domain: Domain, handle: int, address: int = PLACE * PAGE, command: int = UNMAP, second: int = 0) -> int:
    """Unmap; return the status."""
    assert call(domain, 20, command, HEAP, 1, memory=struct.pack("<QQIhxx", address, second, handle, 99)) == 0
    status: int = struct.unpack("<h", domain.memory.read(HEAP + 20, 2))[0]
    return status


def reservation(domain: Domain, command: int, frame: int) -> int:
    """Give one frame back (1) or take it (6); return how many were done."""
    asked = struct.pack("<QQIIHxxxxxx", HEAP + 32, 1, 0, 0, 0x7FF0) + struct.pack("<Q", frame)
    return call(domain, 12, command, HEAP, memory=asked)


# Mapping


def test_both_see_what_either_writes(granter: Domain, mapper: Domain) -> None:
    assert map_ref(mapper, granter) == (GNTST_OKAY, 0)
    assert mapper.memory.read(PLACE * PAGE, 7) == b"granted"
    mapper.memory.write(PLACE * PAGE, b"MAPPER")
    granter.memory.write(SECRET * PAGE + 100, b"GRANTER")
    assert granter.memory.read(SECRET * PAGE, 7) == b"MAPPERd"
    assert mapper.memory.read(PLACE * PAGE + 100, 7) == b"GRANTER"
    assert not any(mapper.memory.read((PLACE - 1) * PAGE, PAGE) + mapper.memory.read((PLACE + 1) * PAGE, PAGE))


def test_the_entry_tells_that_it_is_in_use(granter: Domain, mapper: Domain) -> None:
    """By readers and writers, until the last of each is gone."""
    handles = [map_ref(mapper, granter, place=PLACE + n, flags=flags)[1] for n, flags in enumerate((6, 2, 2, 6))]
    assert handles == [0, 1, 2, 3] and marks(granter) == GTF_READING | GTF_WRITING
    for number, left in ((1, 3), (2, 1), (0, 1), (3, 0)):
        assert unmap(mapper, number, (PLACE + number) * PAGE) == GNTST_OKAY
        assert marks(granter) == (0, GTF_READING, None, GTF_READING | GTF_WRITING)[left]


def test_an_unmapped_frame_is_empty_until_it_is_populated(granter: Domain, mapper: Domain) -> None:
    """What lay there before was given back, and is not restored."""
    present = mapper.memory.present
    mapper.memory.write(PLACE * PAGE, b"before")
    _, handle = map_ref(mapper, granter)
    assert mapper.memory.present == present - 1
    assert unmap(mapper, handle) == GNTST_OKAY
    assert not any(mapper.memory.read(PLACE * PAGE, PAGE)) and mapper.memory.present == present - 1
    assert granter.memory.read(SECRET * PAGE, 7) == b"granted"
    assert reservation(mapper, 6, PLACE) == 1 and mapper.memory.present == present
    mapper.memory.write(PLACE * PAGE, b"mine")
    assert granter.memory.read(SECRET * PAGE, 7) == b"granted"


def test_a_ballooned_frame_is_a_place_and_is_counted_once(granter: Domain, mapper: Domain) -> None:
    """As Linux uses it."""
    assert reservation(mapper, 1, PLACE) == 1
    present = mapper.memory.present
    _, handle = map_ref(mapper, granter)
    assert unmap(mapper, handle) == GNTST_OKAY and mapper.memory.present == present


def test_a_place_beyond_the_memory_is_shown_to_the_vcpus(granter: Domain, mapper: Domain) -> None:
    """As Linux uses it that has unpopulated memory to spare; empty when it is unmapped."""
    place = 0x80000
    _, handle = map_ref(mapper, granter, place=place)
    engine = cpu_of(mapper).engine
    assert bytes(engine.mem_read(place * PAGE, 7)) == b"granted"
    assert unmap(mapper, handle, place * PAGE) == GNTST_OKAY
    assert not any(engine.mem_read(place * PAGE, PAGE))


def test_what_is_written_through_a_readonly_mapping_reaches_nobody(granter: Domain, mapper: Domain) -> None:
    """And until then the mapper sees what the granter writes."""
    grant(granter, 8, SECRET, mapper.domid, 1 | GTF_READONLY)
    assert map_ref(mapper, granter)[0] == GNTST_GENERAL_ERROR and marks(granter) == 0
    assert map_ref(mapper, granter, flags=HOST_MAP | READONLY)[0] == GNTST_OKAY and marks(granter) == GTF_READING
    granter.memory.write(SECRET * PAGE, b"news")
    assert mapper.memory.read(PLACE * PAGE, 4) == b"news"
    mapper.memory.write(PLACE * PAGE, b"spoilt")
    assert granter.memory.read(SECRET * PAGE, 7) == b"newsted"


def test_a_version_2_entry_is_mapped(granter: Domain, mapper: Domain) -> None:
    """Its marks are in the status; one for a part of a page cannot be mapped."""
    granter.grants.set_version(2)
    granter.grants.place(0, GRANTS + 1, status=True)
    at = GRANTS * PAGE + 16 * 8
    granter.memory.write(at, struct.pack("<HHIQ", 1, mapper.domid, 0, SECRET))
    _, handle = map_ref(mapper, granter)
    status = (GRANTS + 1) * PAGE + 2 * 8
    assert granter.memory.read(status, 2) == struct.pack("<H", GTF_READING | GTF_WRITING)
    assert unmap(mapper, handle) == GNTST_OKAY and granter.memory.read(status, 2) == b"\0\0"
    granter.memory.write(at, struct.pack("<HHHHQ", 1 | 1 << 8, mapper.domid, 0, 64, SECRET))
    assert map_ref(mapper, granter)[0] == GNTST_GENERAL_ERROR
    assert granter.memory.read(status, 2) == b"\0\0"


def test_a_list_is_done_one_after_the_other(granter: Domain, mapper: Domain) -> None:
    """A bad one does not stop the rest; a list that is too long is refused whole."""
    asked = b"".join(
        struct.pack("<QIIHhIQ", (PLACE + n) * PAGE, HOST_MAP, ref, granter.domid, 99, 0, 0)
        for n, ref in enumerate((8, 9, 8))
    )
    assert call(mapper, 20, MAP, HEAP, 3, memory=asked) == 0
    states = [struct.unpack("<h", mapper.memory.read(HEAP + 32 * n + 18, 2))[0] for n in range(3)]
    assert states == [GNTST_OKAY, GNTST_GENERAL_ERROR, GNTST_OKAY] and len(mapper.maptrack) == 2
    assert call(mapper, 20, MAP, HEAP, MOST + 1) == -EINVAL
    assert call(mapper, 20, MAP, 1 << 40, 1) == -EFAULT


# What is refused


def test_what_cannot_be_mapped_is_refused(granter: Domain, mapper: Domain) -> None:
    """With Xen's status, nothing mapped, nothing marked and the place as it was."""
    mapper.memory.write(PLACE * PAGE, b"before")
    refused: list[tuple[dict[str, Any], int]] = [
        ({"granter": 0}, GNTST_BAD_DOMAIN),
        ({"granter": 0x7FF0}, GNTST_BAD_DOMAIN),
        ({"ref": 512}, GNTST_BAD_GNTREF),
        ({"ref": 9}, GNTST_GENERAL_ERROR),
        ({"flags": 0}, GNTST_BAD_GNTREF),
        ({"flags": READONLY}, GNTST_BAD_GNTREF),
        ({"flags": HOST_MAP | 1}, GNTST_GENERAL_ERROR),
        ({"flags": HOST_MAP | 8}, GNTST_GENERAL_ERROR),
        ({"flags": HOST_MAP | 16}, GNTST_GENERAL_ERROR),
        ({"place": (1 << 52) - 1}, GNTST_GENERAL_ERROR),
    ]
    for what, status in refused:
        assert map_ref(mapper, **{"granter": granter, **what})[0] == status, what
    for flags, domid, frame, status in (
        (0, mapper.domid, SECRET, GNTST_GENERAL_ERROR),
        (2, mapper.domid, SECRET, GNTST_GENERAL_ERROR),
        (3, mapper.domid, SECRET, GNTST_GENERAL_ERROR),
        (1, mapper.domid + 1, SECRET, GNTST_GENERAL_ERROR),
        (1, mapper.domid, SIZE // PAGE, GNTST_BAD_PAGE),
        (1, mapper.domid, 0xFFFFFFFF, GNTST_BAD_PAGE),
    ):
        grant(granter, 8, frame, domid, flags)
        assert map_ref(mapper, granter)[0] == status
        assert marks(granter) == 0
    grant(granter, 8, SECRET, mapper.domid)
    assert granter.physmap.release(SECRET, 1)
    assert map_ref(mapper, granter)[0] == GNTST_BAD_PAGE
    assert not len(mapper.maptrack) and mapper.memory.read(PLACE * PAGE, 6) == b"before"
    assert granter.grants._in_use == {} and not granter.memory.lent


def test_a_mapped_frame_cannot_be_granted_on_nor_mapped_over(granter: Domain, mapper: Domain) -> None:
    """Only its owner grants it, and what another domain shows stays what it is."""
    map_ref(mapper, granter)
    assert map_ref(mapper, granter)[0] == GNTST_GENERAL_ERROR
    grant(mapper, 8, PLACE, granter.domid)
    assert map_ref(granter, mapper)[0] == GNTST_BAD_PAGE
    grant(mapper, 8, PLACE - 1, granter.domid)
    assert map_ref(granter, mapper, place=SECRET)[0] == GNTST_GENERAL_ERROR
    assert granter.memory.read(SECRET * PAGE, 7) == b"granted"


def test_what_another_domain_shows_is_not_ballooned(granter: Domain, mapper: Domain) -> None:
    """Neither the granter's frame nor the mapper's place, until it is unmapped."""
    _, handle = map_ref(mapper, granter)
    assert reservation(granter, 1, SECRET) == 0 and not granter.physmap.release(SECRET - 3, 8)
    assert reservation(mapper, 1, PLACE) == 0 and reservation(mapper, 6, PLACE) == 0
    assert mapper.memory.read(PLACE * PAGE, 7) == b"granted"
    unmap(mapper, handle)
    assert reservation(granter, 1, SECRET) == 1 and reservation(mapper, 6, PLACE) == 1


def test_handles_stand_for_their_mapping_only(granter: Domain, mapper: Domain) -> None:
    """Others, used ones, other addresses; unmap_and_replace has no replacement for translated domains."""
    _, handle = map_ref(mapper, granter)
    assert unmap(mapper, handle + 1) == unmap(mapper, 0xFFFFFFFF) == GNTST_BAD_HANDLE
    assert unmap(granter, handle) == GNTST_BAD_HANDLE
    assert unmap(mapper, handle, (PLACE + 1) * PAGE) == GNTST_GENERAL_ERROR
    assert unmap(mapper, handle, command=REPLACE, second=(PLACE + 1) * PAGE) == GNTST_GENERAL_ERROR
    assert unmap(mapper, handle, 0) == GNTST_OKAY
    assert mapper.memory.read(PLACE * PAGE, 7) == b"granted" and marks(granter)
    assert unmap(mapper, handle, command=REPLACE) == GNTST_OKAY
    assert unmap(mapper, handle) == GNTST_BAD_HANDLE and not any(mapper.memory.read(PLACE * PAGE, 7))
    assert map_ref(mapper, granter) == (GNTST_OKAY, handle)


def test_a_mapping_for_devices_is_unmapped_by_its_bus_address(granter: Domain, mapper: Domain) -> None:
    """It shows nothing, and pins the grant; another bus address than its own is refused for any mapping, as by Xen."""
    before = mapper.memory.read(PLACE * PAGE, PAGE)
    (status, handle), bus = map_ref(mapper, granter, flags=1 | READONLY), struct.unpack("<Q", told(mapper))[0]
    assert status == GNTST_OKAY and bus and marks(granter) == GTF_READING
    assert mapper.memory.read(PLACE * PAGE, PAGE) == before and not mapper.memory.foreign
    assert unmap(mapper, handle, 0, second=bus + PAGE) == GNTST_GENERAL_ERROR
    assert unmap(mapper, handle, PLACE * PAGE) == GNTST_OKAY and marks(granter) == GTF_READING
    _, shown = map_ref(mapper, granter)
    other = struct.unpack("<Q", told(mapper))[0]
    assert other not in (0, bus)
    assert unmap(mapper, shown, second=bus) == GNTST_GENERAL_ERROR
    assert mapper.memory.read(PLACE * PAGE, 7) == b"granted"
    assert unmap(mapper, shown, second=other) == unmap(mapper, handle, 0, second=bus) == GNTST_OKAY
    assert not len(mapper.maptrack) and marks(granter) == 0
    assert unmap(mapper, handle, 0, second=bus) == GNTST_BAD_HANDLE


def told(domain: Domain) -> bytes:
    """What the last map told as dev_bus_addr."""
    return domain.memory.read(HEAP + 24, 8)


def version(domain: Domain, number: int) -> tuple[int, int]:
    """Ask for a version; return the result, and what the guest is told that it has."""
    result = call(domain, 20, 8, HEAP, 1, memory=struct.pack("<I", number))
    return result, domain.memory.read_u32(HEAP)


def add_to_physmap(domain: Domain, space: int, index: int, frame: int) -> int:
    return call(domain, 12, 7, HEAP, memory=struct.pack("<HHIQQ", 0x7FF0, 0, space, index, frame))


def test_a_change_of_version_leaves_the_reserved_entries_only(granter: Domain, mapper: Domain) -> None:
    """In their new layout, in use or not; with others in use it is refused, and the guest is told what it has."""
    grant(granter, 3, SECRET, mapper.domid, 1 | GTF_READONLY)
    _, kept = map_ref(mapper, granter, ref=3, flags=HOST_MAP | READONLY)
    _, handle = map_ref(mapper, granter, place=PLACE + 1)
    assert version(granter, 2) == (-EBUSY, 1) and version(granter, 3) == (-EINVAL, 1)
    unmap(mapper, handle, (PLACE + 1) * PAGE)
    assert version(granter, 2) == (0, 2)
    entry = struct.unpack("<HHxxxxQ", granter.memory.read(GRANTS * PAGE + 3 * 16, 16))
    assert entry == (1 | GTF_READONLY, mapper.domid, SECRET)
    assert not any(granter.memory.read(GRANTS * PAGE + 8 * 16, PAGE - 8 * 16))
    assert map_ref(mapper, granter, place=PLACE + 1)[0] == GNTST_GENERAL_ERROR
    assert add_to_physmap(granter, 1, 1 << 31, GRANTS + 1) == 0
    assert granter.memory.read((GRANTS + 1) * PAGE + 6, 2) == bytes([GTF_READING, 0])
    assert version(granter, 1) == (0, 1)
    entry = struct.unpack("<HHI", granter.memory.read(GRANTS * PAGE + 3 * 8, 8))
    assert entry == (1 | GTF_READONLY | GTF_READING, mapper.domid, SECRET)
    assert unmap(mapper, kept) == GNTST_OKAY and marks(granter, 3) == 0


def test_status_frames_go_with_their_version(granter: Domain) -> None:
    """They are empty, are written no more, and cannot be had in version 1."""
    assert add_to_physmap(granter, 1, 1 << 31, GRANTS + 1) == -EINVAL
    version(granter, 2)
    assert add_to_physmap(granter, 1, 1 << 31, GRANTS + 1) == 0
    granter.memory.write((GRANTS + 1) * PAGE, b"status")
    version(granter, 1)
    assert not granter.grants.status_frames and not any(granter.memory.read((GRANTS + 1) * PAGE, PAGE))
    grant(granter, 9, SECRET, 0)
    granter.grants.access(9, 0, True).end()
    assert not any(granter.memory.read((GRANTS + 1) * PAGE, PAGE))
    version(granter, 2)
    assert granter.grants.status_frames == [] and add_to_physmap(granter, 1, 1 << 31, GRANTS + 1) == 0


def test_what_the_hypervisor_reads_lies_in_no_frame_of_anothers(granter: Domain, mapper: Domain) -> None:
    """Who lends a frame could else write the grants of who shows it, and who shows one those of who lent it."""
    granter.place_shared_info(GRANTS + 2)
    mapper.place_shared_info(GRANTS + 2)
    table = mapper.memory.read(GRANTS * PAGE, PAGE)
    for place in (GRANTS, GRANTS + 2):
        assert map_ref(mapper, granter, place=place)[0] == GNTST_GENERAL_ERROR
    assert mapper.memory.read(GRANTS * PAGE, PAGE) == table and marks(granter) == 0
    map_ref(mapper, granter)
    for domain, frame in ((mapper, PLACE), (granter, SECRET)):
        assert add_to_physmap(domain, 0, 0, frame) == add_to_physmap(domain, 1, 0, frame) == -EBUSY
    assert granter.memory.read(SECRET * PAGE, 7) == mapper.memory.read(PLACE * PAGE, 7) == b"granted"
    assert add_to_physmap(granter, 1, 0, GRANTS + 4) == 0 and not any(granter.memory.read(GRANTS * PAGE, PAGE))


def test_there_is_a_most(granter: Domain, mapper: Domain) -> None:
    """Of mappings, and of places beyond the memory; both are free again."""
    for number in range(MOST):
        assert map_ref(mapper, granter, place=PLACE + number)[0] == GNTST_OKAY
    assert map_ref(mapper, granter, place=PLACE - 1)[0] == GNTST_NO_SPACE
    assert unmap(mapper, 700, (PLACE + 700) * PAGE) == GNTST_OKAY
    assert map_ref(mapper, granter, place=PLACE - 1) == (GNTST_OKAY, 700)
    for number in range(MOST):
        unmap(mapper, number, (PLACE - 1 if number == 700 else PLACE + number) * PAGE)
    assert not len(mapper.maptrack) and marks(granter) == 0 and not mapper.memory.foreign and not granter.memory.lent
    found = [map_ref(mapper, granter, place=0x80000 + number)[0] for number in range(EXTRA + 2)]
    assert found.count(GNTST_OKAY) == EXTRA and found[-1] == GNTST_GENERAL_ERROR


def test_an_entry_in_use_is_used_by_one_domain(host: Host, granter: Domain, mapper: Domain) -> None:
    """Though the granter writes another's number into it meanwhile."""
    map_ref(mapper, granter)
    third = a_guest(host)
    grant(granter, 8, SECRET, third.domid)
    assert map_ref(third, granter)[0] == GNTST_GENERAL_ERROR
    assert unmap(mapper, 0) == GNTST_OKAY and map_ref(third, granter)[0] == GNTST_OKAY


def test_an_entry_taken_back_while_it_is_marked_is_not_used(
    granter: Domain, mapper: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The granter runs on another thread; its word is not overwritten by what we read before."""
    from hypervisor.domains import grant_table

    def taken_back(address: int, bits: int) -> None:
        grant(granter, 8, 0, 0, 0)
        marked(address, bits)

    marked = atomic.set_bits
    monkeypatch.setattr(grant_table, "set_bits", taken_back)
    assert map_ref(mapper, granter)[0] == GNTST_GENERAL_ERROR
    assert granter.memory.read(GRANTS * PAGE + 64, 8) == bytes(8) and granter.grants._in_use == {}


# Ends


def test_a_mapper_keeps_what_a_dead_granter_left(host: Host, granter: Domain, mapper: Domain) -> None:
    """A copy, which is its own; its handle is good once more."""
    _, handle = map_ref(mapper, granter)
    map_ref(mapper, granter, place=PLACE + 1, flags=HOST_MAP | READONLY)
    host.destroy(granter)
    assert mapper.memory.read(PLACE * PAGE, 7) == mapper.memory.read((PLACE + 1) * PAGE, 7) == b"granted"
    mapper.memory.write(PLACE * PAGE, b"alone")
    assert reservation(mapper, 6, PLACE) == 0
    assert unmap(mapper, handle) == GNTST_OKAY and not any(mapper.memory.read(PLACE * PAGE, PAGE))
    assert unmap(mapper, handle) == GNTST_BAD_HANDLE
    host.destroy(mapper)


def test_a_granters_file_does_not_outlive_it(host: Host, granter: Domain, mapper: Domain) -> None:
    """One frame that is mapped does not hold the others."""
    map_ref(mapper, granter)
    file = os.dup(granter.memory.file)
    number = os.fstat(file).st_ino
    os.close(file)
    host.destroy(granter)
    with open("/proc/self/maps") as maps:
        assert not any(line.split()[4] == str(number) for line in maps)


def test_a_dead_mapper_uses_nothing(host: Host, granter: Domain, mapper: Domain) -> None:
    map_ref(mapper, granter)
    host.destroy(mapper)
    assert marks(granter) == 0 and not granter.memory.lent and granter.grants._in_use == {}
    assert granter.memory.read(SECRET * PAGE, 7) == b"granted" and reservation(granter, 1, SECRET) == 1


def test_a_dying_granter_grants_nothing(granter: Domain, mapper: Domain) -> None:
    granter.life.state = State.DYING
    assert map_ref(mapper, granter)[0] == GNTST_BAD_DOMAIN


def test_a_domain_may_map_its_own(granter: Domain) -> None:
    """And end with it mapped."""
    grant(granter, 8, SECRET, granter.domid)
    assert map_ref(granter, granter)[0] == GNTST_OKAY
    granter.memory.write(PLACE * PAGE, b"twice")
    assert granter.memory.read(SECRET * PAGE, 5) == b"twice"


# Suspended, saved, cloned


@pytest.fixture
def asleep(host: Host, granter: Domain) -> Domain:
    """A suspended domain, with a grant to the granter and one of the granter's mapped at PLACE."""
    made = suspended(host)
    made.grants.place(0, GRANTS)
    grant(granter, 8, SECRET, made.domid)
    made.maptrack.map(PLACE - 300, granter.physmap, granter.grants, 8, True)
    grant(made, 8, 200, granter.domid)
    made.memory.write(200 * PAGE, b"asleep")
    assert map_ref(granter, made)[0] == GNTST_OKAY
    return made


def test_an_image_has_empty_frames_for_foreign_ones(host: Host, granter: Domain, asleep: Domain) -> None:
    """They were given back, as the restored guest finds; the domain itself keeps them."""
    file = io.BytesIO()
    save(host, asleep, file, compress=False)
    assert b"granted" not in file.getvalue()
    file.seek(0)
    again = Image(file).build(host)
    assert not any(again.memory.read((PLACE - 300) * PAGE, PAGE)) and PLACE - 300 in again.physmap.ballooned
    assert again.memory.present == asleep.memory.present and again.memory.read(200 * PAGE, 6) == b"asleep"
    assert asleep.memory.read((PLACE - 300) * PAGE, 7) == b"granted"


def test_nobody_writes_into_what_is_frozen(host: Host, granter: Domain, asleep: Domain) -> None:
    """Whoever mapped a frame keeps a copy; what the frozen domain had mapped is empty, in its clones too."""
    with Template(host, asleep) as template:
        granter.memory.write(PLACE * PAGE, b"GRANTER")
        clone = template.clone(host)
        for domain in (asleep, clone):
            assert domain.memory.read(200 * PAGE, 6) == b"asleep"
            assert not any(domain.memory.read((PLACE - 300) * PAGE, PAGE))
    assert granter.memory.read(PLACE * PAGE, 7) == b"GRANTER" and granter.memory.read(SECRET * PAGE, 7) == b"granted"
    asleep.maptrack.unmap(0)
    assert marks(granter) == 0 and not granter.memory.lent


def test_a_freeze_forgets_code_of_frames_that_it_empties(host: Host, granter: Domain, asleep: Domain) -> None:
    """A domain that goes on would else execute what it sees no more."""
    at = PLACE - 300
    assert asleep.memory.foreign.keys() == {at}
    asleep.platform._overwritten.clear()
    with Template(host, asleep):
        assert (at * PAGE, (at + 1) * PAGE) in asleep.platform._overwritten and not asleep.memory.foreign


def test_a_clone_maps_but_is_not_mapped(host: Host, granter: Domain, asleep: Domain) -> None:
    """Its pages are in no file."""
    with Template(host, asleep) as template:
        clone = template.clone(host)
    clone.grants.place(0, GRANTS)
    grant(clone, 8, 200, granter.domid)
    assert map_ref(granter, clone, place=PLACE + 5)[0] == GNTST_GENERAL_ERROR
    grant(granter, 9, SECRET, clone.domid)
    handle = clone.maptrack.map(50, granter.physmap, granter.grants, 9, True)
    clone.memory.write(50 * PAGE, b"CLONE")
    assert granter.memory.read(SECRET * PAGE, 7) == b"CLONEed"
    clone.maptrack.unmap(handle)
    assert not any(clone.memory.read(50 * PAGE, PAGE)) and marks(granter, 9) == 0


def test_a_guest_that_begins_anew_has_nothing_mapped(granter: Domain, asleep: Domain) -> None:
    """It resumes as another domain, to which nothing was granted."""
    asleep.life.resume()
    asleep.renew()
    assert marks(granter) == 0 and not len(asleep.maptrack) and not asleep.memory.foreign


def test_a_live_copy_has_what_a_mapper_wrote(host: Host, granter: Domain, mapper: Domain) -> None:
    """It came by another mapping than the one that is watched: before it was unmapped, and until the stop."""
    source = suspended(host)
    source.life.state, source.life.reason = State.PAUSED, None
    source.grants.place(0, GRANTS)
    times = counting()
    for ref, frame in ((8, 200), (9, 201)):
        grant(source, ref, frame, mapper.domid)
        source.memory.write(frame * PAGE, b"old")
        assert map_ref(mapper, source, ref, PLACE + ref) == (GNTST_OKAY, next(times))
    file = io.BytesIO()
    with LiveCopy(host, source, file) as copy:
        copy.round()
        copy.round()
        mapper.memory.write((PLACE + 8) * PAGE, b"new")
        unmap(mapper, 0, (PLACE + 8) * PAGE)
        mapper.memory.write((PLACE + 9) * PAGE, b"new")
        source.life.shut_down(Reason.SUSPEND)
        source.life.state = State.SHUTDOWN
        copy.finish()
    file.seek(0)
    again = Image(file).build(host)
    assert again.memory.read(200 * PAGE, 3) == again.memory.read(201 * PAGE, 3) == b"new"


# PV domains, whose kernel `tests.guests.test_grant_map` runs

PV_HEAP, PV_PLACE = 0x200000, 0x201000
"""Virtual addresses, which are the domain's frames as well."""


@pytest.fixture
def asleep_pv(host: Host, granter: Domain) -> Domain:
    """A suspended domain with a grant of the granter's mapped at PV_PLACE."""
    made = suspended_pv(host)
    grant(granter, 8, SECRET, made.domid)
    assert pv_map(made, granter) == (GNTST_OKAY, 0, Area(made.ranges[0][1]).foreign.start * PAGE)
    return made


def pv_map(domain: Domain, granter: Domain, flags: int = HOST_MAP) -> tuple[int, int, int]:
    """Map at PV_PLACE; return status, handle and machine address."""
    domain.memory.write(PV_HEAP, struct.pack("<QIIHhIQ", PV_PLACE, flags, 8, granter.domid, 99, 0, 0))
    assert pv.dispatch(domain, cpu_of(domain), 20, (MAP, PV_HEAP, 1, 0, 0)) == 0
    status, handle, address = struct.unpack("<hIQ", domain.memory.read(PV_HEAP + 18, 14))
    return status, handle, address


def pv_unmap(domain: Domain, handle: int) -> int:
    domain.memory.write(PV_HEAP, struct.pack("<QQIhxx", PV_PLACE, 0, handle, 99))
    assert pv.dispatch(domain, cpu_of(domain), 20, (UNMAP, PV_HEAP, 1, 0, 0)) == 0
    status: int = struct.unpack("<h", domain.memory.read(PV_HEAP + 20, 2))[0]
    return status


def test_a_pv_domain_has_no_more_mappings_than_handles(granter: Domain, asleep_pv: Domain) -> None:
    """Each has a frame, to which it returns; a list that is longer is refused whole."""
    cpu, memory = cpu_of(asleep_pv), asleep_pv.memory
    present = memory.present
    entry = cpu.tables.entry(cpu.state.kernel_root, PV_PLACE)  # type: ignore[attr-defined]
    entries = [memory.read_u64(entry)]
    for handle in range(1, MOST):
        assert pv_map(asleep_pv, granter)[:2] == (GNTST_OKAY, handle)
        entries.append(memory.read_u64(entry))
    assert len({value & ~0xFFF for value in entries}) == MOST
    assert pv_map(asleep_pv, granter) == (GNTST_NO_SPACE, 0, 0) and memory.read_u64(entry) == entries[-1]
    assert pv_unmap(asleep_pv, 700) == GNTST_GENERAL_ERROR
    memory.write_u64(entry, entries[700])
    assert pv_unmap(asleep_pv, 700) == GNTST_OKAY and memory.read_u64(entry) == 0
    assert pv_map(asleep_pv, granter)[:2] == (GNTST_OKAY, 700) and memory.read_u64(entry) == entries[700]
    assert memory.present == present
    assert pv.dispatch(asleep_pv, cpu, 20, (MAP, PV_HEAP, MOST + 1, 0, 0)) == -EINVAL


def test_a_pv_mapper_keeps_what_a_dead_granter_left(host: Host, granter: Domain, asleep_pv: Domain) -> None:
    """A copy, at the same address; it unmaps it as ever."""
    host.destroy(granter)
    assert cpu_of(asleep_pv).read(PV_PLACE, 7) == b"granted"
    assert pv_unmap(asleep_pv, 0) == GNTST_OKAY and not asleep_pv.memory.foreign


def test_a_failed_entry_leaves_nothing_mapped(granter: Domain, asleep_pv: Domain) -> None:
    """No table of the lowest level has it."""
    assert pv_unmap(asleep_pv, 0) == GNTST_OKAY
    assert pv_map(asleep_pv, granter, HOST_MAP | 16) == (GNTST_GENERAL_ERROR, 0, 0)
    assert not len(asleep_pv.maptrack) and not asleep_pv.memory.foreign and marks(granter) == 0


def test_entries_in_an_image_or_a_clone_show_empty_frames(host: Host, granter: Domain, asleep_pv: Domain) -> None:
    """As in the domain itself once it is frozen, or begins anew; the image has nothing of the granter's."""
    file = io.BytesIO()
    save(host, asleep_pv, file, compress=False)
    assert b"granted" not in file.getvalue() and cpu_of(asleep_pv).read(PV_PLACE, 7) == b"granted"
    file.seek(0)
    made = [Image(file).build(host)]
    with Template(host, asleep_pv) as template:
        made += [template.clone(host), asleep_pv]
    for domain in made:
        assert not any(cpu_of(domain).read(PV_PLACE, PAGE))
        cpu_of(domain).write(PV_PLACE, b"mine")
    assert granter.memory.read(SECRET * PAGE, 7) == b"granted"
    asleep_pv.life.resume()
    asleep_pv.renew()
    assert marks(granter) == 0 and not granter.memory.lent and not len(asleep_pv.maptrack)
    grant(granter, 8, SECRET, made[1].domid)
    assert pv_map(made[1], granter)[0] == GNTST_OKAY and made[1].vcpus[0].cpu.read(PV_PLACE, 7) == b"granted"
