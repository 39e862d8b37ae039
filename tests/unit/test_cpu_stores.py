"""Stores to pages with and without code: the first are noticed at whatever address, the second are fast."""

from __future__ import annotations

import ctypes
import struct
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unicorn import Uc

from hypervisor.arch.x86_64.cpu import proof, stores
from hypervisor.arch.x86_64.cpu.overlay import CODE, RAX, RBX, RCX, TABLES, Overlay
from hypervisor.arch.x86_64.cpu.support import UnsupportedUnicorn

proof.self_check()  # makes the changes, as any import of a CPU does

PAGE, DATA = 4096, 0x190000
ADDRESSES = (DATA, 0x40005000, 0x40009000)
"""Two pages three times; at the last address they cannot be executed. They have different places in the TLB."""
STORE, CALL = CODE, CODE + 16
FUNCTION = struct.Struct("<BIB")
NOT_DIRTY = 1 << 10
"""TLB_NOTDIRTY of exec/cpu-all.h: stores take the slow path."""


def machine() -> tuple[Uc, Overlay]:
    """Return a machine that stores ECX at RBX, at `STORE`, and calls RBX, at `CALL`."""
    engine, overlay = proof.machine("89 0b f4")
    engine.mem_write(CALL, bytes.fromhex("ff d3 f4"))
    pages = {5: DATA, 6: DATA + PAGE, 9: 1 << 63 | DATA, 10: 1 << 63 | DATA + PAGE}
    entries = {0x1008: 0x4000, 0x4000: 0x5000} | {0x5000 + 8 * number: page for number, page in pages.items()}
    for place, entry in entries.items():
        engine.mem_write(TABLES + place, struct.pack("<Q", entry | 7 if entry >= DATA else entry + TABLES | 7))
    return engine, overlay


def store(machine: tuple[Uc, Overlay], address: int, value: int) -> None:
    engine, overlay = machine
    overlay.general[RBX], overlay.general[RCX] = address, value
    engine.emu_start(STORE, 0)


def call(machine: tuple[Uc, Overlay], address: int) -> int:
    engine, overlay = machine
    overlay.general[RBX] = address
    engine.emu_start(CALL, 0)
    return int(overlay.general[RAX])


def stored_slowly(overlay: Overlay, address: int) -> bool:
    """Tell from the TLB (CPUTLBDescFast of exec/cpu-defs.h, for a kernel) whether the next store will be slow."""
    mask, table = struct.unpack("<QQ", ctypes.string_at(overlay.address - 0x20, 16))
    entry = table + (address // PAGE & mask >> 6) * 64
    written = struct.unpack("<Q", ctypes.string_at(entry + 8, 8))[0]
    assert written & -PAGE == address & -PAGE
    return bool(written & NOT_DIRTY)


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_page_without_code_is_stored_to_at_full_speed(address: int) -> None:
    """Where it could be executed too, as all data of a kernel can that has not set its protection up yet."""
    made = machine()
    store(made, address, 1)
    assert not stored_slowly(made[1], address)


def test_the_first_code_of_a_page_makes_stores_slow_at_all_its_addresses_until_it_is_gone() -> None:
    made = engine, overlay = machine()
    engine.mem_write(DATA, bytes.fromhex("90 90 90 90 c3"))
    for address in ADDRESSES:
        store(made, address + 8, 0)
    call(made, ADDRESSES[0])
    assert [stored_slowly(overlay, address) for address in ADDRESSES] == [True] * 3
    store(made, ADDRESSES[2] + 8, 0)
    assert stored_slowly(overlay, ADDRESSES[2])  # beside the code
    store(made, ADDRESSES[2], 0x90909090)
    assert not stored_slowly(overlay, ADDRESSES[2])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(ADDRESSES), st.integers(0, 5), st.none() | st.integers(0, 2**32 - 1)), max_size=40
    )
)
def test_code_is_never_stale(steps: list[tuple[int, int, int | None]]) -> None:
    """Functions on both sides of a page's end, and across it, are changed and called by all their addresses."""
    made = engine, _ = machine()
    places = [PAGE - 2 * FUNCTION.size - 3 + FUNCTION.size * number for number in range(6)]
    values = dict.fromkeys(places, 7)
    for place in places:
        engine.mem_write(DATA + place, FUNCTION.pack(0xB8, 7, 0xC3))  # mov eax, 7; ret
    for address, number, value in steps:
        place = places[number]
        if value is not None:
            store(made, address + place + 1, value)
            values[place] = value
        else:
            assert call(made, min(address, ADDRESSES[1]) + place) == values[place]


def test_the_change_is_what_notices() -> None:
    """Unicorn as it is runs stale code, and the self-check says so."""
    program = "from hypervisor.arch.x86_64.cpu import stores; stores.mend = lambda: None\n"
    program += "import hypervisor.arch.x86_64.cpu.vcpu"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode and "noticing that code was changed" in done.stderr


@pytest.mark.parametrize("name", ["_CONDITION", "_RAM_ADDRESS", "_EXECUTABLE", "_FIND_PAGE"])
def test_code_that_is_not_known_is_not_changed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(stores, "JUMP", b"?")
    monkeypatch.setattr(stores, name, b"not Unicorn's")
    with pytest.raises(UnsupportedUnicorn, match="is not where it was"):
        proof.self_check()
