"""Hostile PV kernels: any hypercall with any arguments, any frame to return by: only they are harmed."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.arch.x86_64.cpu.overlay import R8, R10, RAX, RDI, RDX, RSI, RSP
from hypervisor.arch.x86_64.pv.area import Area
from hypervisor.arch.x86_64.pv.page_tables import PageTables
from hypervisor.domains.life import State
from hypervisor.errors import XenError
from hypervisor.host import Host
from hypervisor.hypercalls.pv import TABLE
from hypervisor.memory.guest_memory import PAGE, Memory
from tests.guests.pv_guest import PVGuest
from tests.unit.loader_images import kernel, note

MIB = 1 << 20
RAM = 4 * MIB
CODE, BUFFER = 0x100000, 0x180000
FRAMES = RAM // PAGE
CALL = bytes.fromhex("0f 05 eb fc")  # syscall, again and again

ENTRY_NOTE = note(1, struct.pack("<Q", CODE)) + note(3, struct.pack("<Q", 0))
KERNEL = kernel(CALL + bytes(60), ENTRY_NOTE, size=0x1000)

addresses = st.one_of(
    st.integers(BUFFER, BUFFER + 2 * PAGE),
    st.sampled_from([0, 1, CODE, RAM - 8, 0xFFFF_8000_0000_0000, 0xFFFF_8080_0000_0000, 1 << 47, (1 << 64) - 4]),
)
numbers = st.one_of(
    st.integers(0, 40), st.integers(0, FRAMES + 300), st.sampled_from([0x7FF0, 1 << 31, (1 << 32) - 1, (1 << 63)])
)
words = st.one_of(addresses, numbers, st.integers(0, (1 << 64) - 1))
contents = st.lists(st.one_of(words, st.integers(0, FRAMES + 200).map(lambda frame: frame << 12 | 0x67)), max_size=64)
calls = st.tuples(st.sampled_from([*TABLE, 23, 34, 63]), st.lists(words, min_size=5, max_size=5), contents)


@settings(deadline=None)
@given(st.lists(calls, min_size=1, max_size=12))
def test_any_hypercall_ends_in_an_answer_or_a_crash_of_the_domain(
    program: list[tuple[int, list[int], list[int]]],
) -> None:
    """Each is made by the CPU's own SYSCALL; the host, and what it counts, stay whole."""
    host = Host(64 * MIB, 1)
    guest = PVGuest(host, KERNEL, ram=RAM)
    domain, cpu = guest.domain, guest.cpu
    host.unpause(domain)
    for number, arguments, content in program:
        if domain.life.state is not State.RUNNING:
            break
        domain.memory.write(BUFFER, struct.pack(f"<{len(content)}Q", *content))
        for register, value in zip((RDI, RSI, RDX, R10, R8), arguments):
            cpu.general[register] = value
        cpu.general[RAX] = number
        cpu.general[RSP] = BUFFER
        cpu.overlay.regs.rip = CODE
        one_call(guest)
    assert "internal error" not in domain.life.crash
    assert host.free_memory() == 64 * MIB - guest.image.area.size
    host.destroy(domain)


def one_call(guest: PVGuest) -> None:
    """Run until a hypercall was made."""
    platform = guest.cpu.platform
    made = platform.hypercall

    def hypercall(cpu: object, number: int, arguments: Sequence[int]) -> int:
        guest.cpu.halt_here()
        return made(guest.cpu, number, arguments)

    platform.hypercall = hypercall  # type: ignore[method-assign]
    try:
        if guest.cpu.general[RAX] == 23:  # no hypercall that comes back: one instruction
            guest.cpu.engine.emu_start(CODE, 0, 0, 1)
            if guest.cpu.crash:
                guest.domain.run()
        else:
            guest.domain.run()
    finally:
        platform.hypercall = made  # type: ignore[method-assign]


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("pin"), st.integers(0, FRAMES), st.integers(1, 4)),
            st.tuples(st.just("unpin"), st.integers(0, 40), st.just(0)),
            st.tuples(
                st.just("update"),
                st.integers(0, 40 * 512).map(lambda word: word * 8),
                st.integers(0, 45).map(lambda n: n << 12 | 0x67),
            ),
            st.tuples(
                st.just("poke"),
                st.integers(0, 40 * 512).map(lambda word: word * 8),
                st.integers(0, 45).map(lambda n: n << 12 | 0x67),
            ),
        ),
        max_size=60,
    )
)
def test_tables_are_counted_and_forgotten_whatever_a_guest_does(steps: list[tuple[str, int, int]]) -> None:
    """Unless the guest wrote behind our back, nothing is left when the last pin is gone."""
    area = Area(RAM)
    memory = Memory(area.size)
    tables = PageTables(memory, area)
    honest = True
    for what, where, value in steps:
        try:
            if what == "pin":
                tables.pin(where, value)
            elif what == "unpin":
                tables.unpin(where)
            elif what == "update":
                tables.update(where, value)
            else:
                honest = honest and not tables.level(where >> 12)
                memory.write_u64(where, value)
        except XenError:
            pass
        assert len(tables._levels) <= area.frames
        assert tables._levels.keys() == tables._uses.keys()
        assert all(count > 0 for count in tables._uses.values())
    for frame in list(tables.pinned()):
        tables.unpin(frame)
    if honest:
        assert not tables._levels
    memory.close()
