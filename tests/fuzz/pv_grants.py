"""A PV guest that maps grants, and writes any entries into its page tables, beside one that granted to it."""

from __future__ import annotations

import contextlib
import struct

from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from hypervisor.arch.x86_64.cpu.overlay import RAX, RDI, RSI, RSP
from hypervisor.arch.x86_64.pv.area import FRAME_MASK, Area
from hypervisor.domains.domain import Domain
from hypervisor.domains.grant_table import GrantError
from hypervisor.domains.life import State
from hypervisor.host import Host
from hypervisor.hypercalls.pv import TABLE, dispatch
from hypervisor.memory.foreign import MOST
from hypervisor.memory.guest_memory import PAGE, BadAddress
from tests.fuzz.lives import Lives
from tests.fuzz.steps import counted
from tests.guests.pv_guest import PVGuest
from tests.unit.loader_images import kernel, note

MIB = 1 << 20
RAM, CODE, HEAP, PLACES = 4 * MIB, 0x100000, 0x180000, 0x200000
VICTIM_MEMORY, PATTERN = 64 * PAGE, b"\xa5"
READABLE, WRITABLE, SHOWN = 20, 21, 50
"""Frames of the victim: two granted by references 8 and 9, and one where it shows what it is granted itself."""
AREA = Area(RAM)
UNUSED = 5
"""A slot of the top-level table that is free for tables of the attacker's invention."""
_STORE = bytes.fromhex("48 89 37 0f 05 eb f9")  # mov [rdi], rsi; syscall; again
_NOTES = note(1, struct.pack("<Q", CODE)) + note(3, bytes(8))
_KERNEL = kernel(_STORE + bytes(57), _NOTES, size=0x1000)

word = st.one_of(st.integers(0, 70), st.integers(0, (1 << 64) - 1))
half = st.one_of(st.integers(0, 12), st.integers(0, 0xFFFFFFFF))
place = st.integers(PLACES // PAGE, PLACES // PAGE + 7).map(lambda number: number * PAGE)
frame = st.one_of(
    st.integers(AREA.foreign.start, AREA.foreign.start + 6),
    st.integers(0, AREA.size // PAGE + 2),
    st.integers(PLACES // PAGE, PLACES // PAGE + 7),
)
entry = st.builds(
    lambda number, flags: number * PAGE | flags, frame, st.one_of(st.sampled_from([0x63, 0x67]), st.integers(0, 0xFFF))
)
flags = st.one_of(st.sampled_from([2, 6, 10, 1, 3, 7]), half)
handle = st.one_of(st.integers(0, 5), half)
ref = st.one_of(st.integers(7, 10), half)


class PVGrants(Lives):
    """The attacker runs on its CPU to store words; all else it asks for by hypercalls, or pokes into its memory."""

    victim: Domain

    def __init__(self) -> None:
        super().__init__()
        self.host = Host(64 * MIB, 1)
        self.begin_anew(0)

    def subject(self, which: int) -> tuple[Host, Domain]:
        return self.host, self.domain

    def begin_anew(self, which: int) -> None:
        """Let there be an attacker, and its victim where there is none."""
        self.guest = PVGuest(self.host, _KERNEL, ram=RAM)
        self.domain, self.cpu = self.guest.domain, self.guest.cpu
        self.consoles[self.domain] = self.guest.console
        self.domain.grants.place(0, AREA.grants)
        self.host.unpause(self.domain)
        if hasattr(self, "victim"):
            self.host.destroy(self.victim)
        self.victim = self._victim()

    def destroy(self, host: Host, domain: Domain) -> None:
        host.destroy(domain)
        with host.lock:
            host.xenstore.release(domain.domid)
            host.xenstore.rm(f"/local/domain/{domain.domid}")

    def _victim(self) -> Domain:
        made = self.host.create([(0, VICTIM_MEMORY)])
        made.memory.write(0, PATTERN * VICTIM_MEMORY)
        made.grants.place(0, 2)
        for number, how, granted in ((8, 5, READABLE), (9, 1, WRITABLE)):
            made.memory.write(2 * PAGE + 8 * number, struct.pack("<HHI", how, self.domain.domid, granted))
        return made

    def _entry(self, address: int) -> int:
        """Where the level-1 entry of a place was at first."""
        root = self.guest.image.root * PAGE
        return self.cpu.tables.entry(root, address)

    def _call(self, number: int, arguments: tuple[int, ...], memory: bytes = b"") -> None:
        counted()
        self.domain.memory.write(HEAP, memory)
        with self.host.lock:
            result = dispatch(self.domain, self.cpu, number, (*arguments, 0, 0, 0, 0, 0)[:5])
        assert -(1 << 63) <= result < 1 << 63

    @rule(where=place, how=st.sampled_from([2, 3, 6, 7, 10]), ref=st.integers(8, 9), own=st.booleans())
    def map(self, where: int, how: int, ref: int, own: bool) -> None:
        """Map what there is to be mapped, of the victim's or of its own."""
        domid = (self.domain if own else self.victim).domid
        self._call(20, (0, HEAP, 1), struct.pack("<QIIHHIQ", where, how, ref, domid, 0, 0, 0))

    @rule(where=place, how=flags, ref=ref)
    def map_by_entry(self, where: int, how: int, ref: int) -> None:
        where, how, domid = self._entry(where), how | 16, self.victim.domid
        self._call(20, (0, HEAP, 1), struct.pack("<QIIHHIQ", where, how, ref, domid, 0, 0, 0))

    @rule(address=word, how=half, ref=ref, domid=st.integers(0, 3))
    def map_anywhere(self, address: int, how: int, ref: int, domid: int) -> None:
        self._call(20, (0, HEAP, 1), struct.pack("<QIIHHIQ", address, how, ref, domid, 0, 0, 0))

    @rule(
        where=st.one_of(place, word), second=st.one_of(st.just(0), entry, word), handle=handle, by_entry=st.booleans()
    )
    def unmap(self, where: int, second: int, handle: int, by_entry: bool) -> None:
        if by_entry and where in range(PLACES, PLACES + 8 * PAGE):
            where = self._entry(where)
        self._call(20, (1, HEAP, 1), struct.pack("<QQIHH", where, second & ~0xFFF, handle, 0, 0))

    @rule(where=place, other=st.one_of(st.just(0), place, word), handle=handle)
    def replace(self, where: int, other: int, handle: int) -> None:
        self._call(20, (7, HEAP, 1), struct.pack("<QQIHH", where, other, handle, 0, 0))

    @rule(where=place, value=entry, by_address=st.booleans())
    def update(self, where: int, value: int, by_address: bool) -> None:
        """Ask for an entry; never for a frame that is another's, unless its flags only are changed."""
        at = self._entry(where)
        before = self.domain.memory.read_u64(at)
        if by_address:
            self._call(14, (where, value, 2))
        else:
            self._call(1, (HEAP, 1, 0, 0x7FF0), struct.pack("<QQ", at, value))
        after = self.domain.memory.read_u64(at)
        foreign = after & 1 and (after & FRAME_MASK) >> 12 in AREA.foreign
        assert not foreign or not (after ^ before) & (FRAME_MASK | 3)

    @rule(where=place, value=entry)
    def poke(self, where: int, value: int) -> None:
        """Write an entry directly, as a guest may here."""
        self.domain.memory.write_u64(self._entry(where), value)
        self.cpu.flush()

    @rule(value=entry)
    def invent(self, value: int) -> None:
        """Let anything, a frame of another's too, be a table of an upper level."""
        self.domain.memory.write_u64(self.guest.image.root * PAGE + 8 * UNUSED, value)
        self.cpu.flush()

    @rule(command=st.integers(0, 18), first=frame, second=word)
    def extended(self, command: int, first: int, second: int) -> None:
        """Pins, base pointers, the LDT, whole frames; the CPU's own base is kept."""
        if command not in (5, 15):
            self._call(26, (HEAP, 1, 0, 0x7FF0), struct.pack("<QQQ", command, first, second))

    @rule(number=st.sampled_from(sorted(TABLE)), arguments=st.tuples(*[st.one_of(word, st.just(HEAP))] * 5))
    def call(self, number: int, arguments: tuple[int, ...]) -> None:
        if number != 29:  # sched_op: it is to go on
            self._call(number, arguments, bytes(64))

    @rule(number=st.integers(8, 9), what=st.tuples(st.integers(0, 12), st.integers(0, 3), frame))
    def grant(self, number: int, what: tuple[int, int, int]) -> None:
        """Grant a frame, which may be another's, to anybody."""
        self.domain.memory.write(AREA.grants * PAGE + 8 * number, struct.pack("<HHI", *what))

    @rule(ref=st.integers(8, 9))
    def be_mapped(self, ref: int) -> None:
        """Let the victim look at what it was granted, and leave it again."""
        track = self.victim.maptrack
        with contextlib.suppress(GrantError):
            track.unmap(track.map(SHOWN, self.domain.physmap, self.domain.grants, ref, True))

    @rule()
    def granter_dies(self) -> None:
        """And another comes."""
        self.host.destroy(self.victim)
        self.victim = self._victim()

    @rule(where=st.one_of(place, st.just(UNUSED << 39)), at=st.integers(0, PAGE - 8), value=word, running=st.booleans())
    def store(self, where: int, at: int, value: int, running: bool) -> None:
        """Write to a place, by the CPU or as a hypercall does."""
        counted()
        if not running:
            with contextlib.suppress(BadAddress):
                self.cpu.write(where + at, struct.pack("<Q", value))
        elif not self.domain.life.crash:
            general, calls = self.cpu.general, self.domain.hypercalls.get(18, 0)
            general[RDI], general[RSI], general[RAX], general[RSP] = where + at, value, 18, HEAP + 0x800
            self.cpu.state.traps = [(CODE + 3, 0)] * 256
            self.cpu.overlay.regs.rip = CODE
            self.domain.life.state, self.domain.life.reason = State.RUNNING, None
            self.domain.platform.defer(self.cpu.halt_here)
            self.domain.run()
            assert self.domain.life.crash or self.domain.hypercalls.get(18, 0) > calls
            assert "internal error" not in self.domain.life.crash

    @invariant()
    def nothing_that_was_not_granted_is_touched(self) -> None:
        memory = self.victim.memory
        for first, last in ((3, WRITABLE), (WRITABLE + 1, SHOWN), (SHOWN + 1, VICTIM_MEMORY // PAGE)):
            content = memory.bytes[first * PAGE : last * PAGE]
            assert content == PATTERN * len(content)

    @invariant()
    def nothing_is_seen_that_is_not_mapped(self) -> None:
        memory, pattern = self.domain.memory, PATTERN * 2048
        for number in AREA.foreign[:8]:
            if number not in memory.foreign:
                assert pattern not in bytes(memory.frame(number))

    @invariant()
    def what_is_in_use_is_mapped(self) -> None:
        domain, tables = self.domain, (self.domain.grants, self.victim.grants)
        pins = [pin for table in tables for pin in table._in_use.values()]
        assert all(pin.domid == domain.domid for pin in pins)
        alive = [each for each in domain.maptrack._mappings.values() if each.grant.table in tables]
        assert sum(sum(pin.uses) for pin in pins) == len(alive)
        shown = [
            each for each in domain.maptrack._mappings.values() if each.loan and not each.loan.ended
        ]  # a freeze has ended them
        assert len(shown) == len(domain.memory.foreign) and len(domain.maptrack) <= MOST
        assert all(number in AREA.foreign for number in domain.memory.foreign)
        lent = sum(map(len, [*domain.memory.lent.values(), *self.victim.memory.lent.values()]))
        assert lent == sum(each in shown for each in alive)
        assert self.victim.memory.lent.keys() <= {READABLE, WRITABLE}
        assert domain.memory.present == AREA.size // PAGE - len(domain.physmap.ballooned)

    def teardown(self) -> None:
        self.host.destroy(self.domain)
        self.nothing_that_was_not_granted_is_touched()
        assert self.victim.grants._in_use == {} and not self.victim.memory.lent
        self.host.destroy(self.victim)
