"""A guest that makes any hypercall with any registers and memory, beside one whose memory it must not touch."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from hypervisor.arch.x86_64.cpu.overlay import long_mode
from hypervisor.domains.domain import Domain
from hypervisor.domains.event_channel import PORTS
from hypervisor.domains.life import Reason, State
from hypervisor.host import Host
from hypervisor.hypercalls.table import NUMBERS, TABLE, dispatch
from hypervisor.memory.foreign import MOST
from hypervisor.memory.guest_memory import EXTRA, PAGE
from tests.fuzz.lives import Lives
from tests.fuzz.steps import counted
from tests.x86_64 import cpu_of, x86

MIB = 1 << 20
MEMORY, VICTIM_MEMORY = 4 * MIB, 64 * PAGE
GRANTS, SHARED, HEAP, PATTERN = 10, 11, 0x100000, b"\xa5"
READABLE, WRITABLE = 20, 21
"""Frames of the victim that the attacker was granted, by references 8 and 9."""
_OUTSIDE = 0x4000_0000
"""Where the page tables end."""

edges = st.sampled_from(
    [0, 1, 7, 8, PAGE - 1, PAGE, HEAP - 1, HEAP, HEAP + PAGE - 4, MEMORY - 1, MEMORY - 4, MEMORY, _OUTSIDE - 8,
     _OUTSIDE, (1 << 32) - 1, 1 << 32, (1 << 47) - 8, 1 << 47, (1 << 63) - 1, 1 << 63, (1 << 64) - 8, (1 << 64) - 1]
)  # fmt: skip
word = st.one_of(st.integers(0, 70), edges, st.integers(0, (1 << 64) - 1))
half = st.one_of(
    st.integers(0, 70), st.sampled_from([0x7FF0, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]), st.integers(0, 0xFFFFFFFF)
)
short = st.one_of(st.integers(0, 12), st.sampled_from([0x7FF0, 0x7FF1, 0xFFFF, PAGE - 1]), st.integers(0, 0xFFFF))
pointer = st.one_of(st.just(HEAP), st.integers(HEAP, HEAP + 2 * PAGE), edges, word)
frame = st.one_of(st.integers(0, 40), st.integers(1020, 1030), word)


@dataclass(frozen=True)
class Call:
    """A hypercall, and what lies where it points."""

    number: int
    arguments: tuple[int, ...]
    memory: bytes = b""


def _call(number: int, command: int, address: int, third: int, memory: bytes) -> Call:
    return Call(number, (command, address, third, 0, 0), memory)


def _packed(layout: str, *fields: st.SearchStrategy[int]) -> st.SearchStrategy[bytes]:
    return st.tuples(*fields).map(lambda values: struct.pack("<" + layout, *values))


def _operation(
    number: int, commands: st.SearchStrategy[int], memory: st.SearchStrategy[bytes]
) -> st.SearchStrategy[Call]:
    return st.builds(_call, st.just(number), commands, pointer, st.one_of(st.integers(0, 3), half), memory)


_many_words = st.lists(word, max_size=12).map(lambda words: struct.pack(f"<{len(words)}Q", *words))
_copy = _packed("QHHIQHHIHHI", frame, short, short, half, frame, short, short, half, short, short, half)
_place = st.integers(24, 32).map(lambda number: number * PAGE)
_address = st.one_of(_place, word)
_ref = st.one_of(st.integers(7, 10), half)
_map = _packed("QIIHHIQ", _address, half, _ref, short, short, half, word)
_unmap = _packed("QQIHH", _address, word, half, short, short)
_reservation = _packed("QQIIHHI", pointer, word, half, half, short, short, half)
_extents = st.lists(frame, min_size=1, max_size=40).map(lambda frames: struct.pack(f"<{len(frames)}Q", *frames))
_at_heap = st.builds(
    lambda count, order: struct.pack("<QQIIHHI", HEAP + 64, count, order, 0, 0x7FF0, 0, 0),
    st.one_of(st.integers(0, 60), word),
    st.one_of(st.integers(0, 10), half),
)
_moved = st.builds(lambda head, extents: head.ljust(64, b"\0") + extents, _at_heap, _extents)
_space = st.one_of(st.integers(0, 70), st.just(1 << 31), word)
_numbers = st.one_of(st.sampled_from(sorted(TABLE)), st.integers(0, 0xFFFFFFFF))
single = st.one_of(
    st.builds(Call, _numbers, st.tuples(*[word] * 5), _many_words),
    _operation(12, st.one_of(st.integers(0, 30), word), st.one_of(_reservation, _moved, _many_words)),
    _operation(12, st.sampled_from([1, 6]), _moved),
    _operation(12, st.just(7), _packed("HHIQQ", short, short, half, _space, frame)),
    _operation(18, st.integers(0, 3), _many_words),
    _operation(20, st.sampled_from([3, 5, 5, 5, 6, 8, 10]), st.lists(_copy, max_size=3).map(b"".join)),
    _operation(20, st.sampled_from([0, 1, 7]), st.lists(st.one_of(_map, _unmap), max_size=3).map(b"".join)),
    _operation(24, st.integers(0, 12), _packed("QQ", word, half)),
    _operation(29, st.integers(0, 7), _packed("II", half, half)),
    _operation(32, st.integers(0, 14), _packed("HHII", short, short, half, half)),
    _operation(32, st.sampled_from([0, 4, 6]), _packed("HHII", st.integers(0, 3), short, st.integers(0, 5), half)),
    _operation(34, st.sampled_from([0, 1, 9, 23]), _packed("HHIQ", short, short, half, word)),
)  # fmt: skip


def _listed(calls: list[Call]) -> Call:
    entries = b"".join(struct.pack("<8Q", call.number, 0, *call.arguments, 0) for call in calls)
    return Call(13, (HEAP, len(calls), 0, 0, 0), entries)


calls = st.one_of(single, single, single, st.lists(single, max_size=64).map(_listed))


def a_guest(host: Host, vcpus: int = 1) -> Domain:
    """A domain in 64-bit mode with its shared page, its grant table and one port unbound for us."""
    domain = host.create([(0, MEMORY)], vcpus=vcpus)
    for vcpu in domain.vcpus:
        long_mode(x86(vcpu.cpu).engine, x86(vcpu.cpu).overlay)
        vcpu.up = True
    domain.place_shared_info(SHARED)
    domain.grants.place(0, GRANTS)
    domain.events.alloc_unbound(0)
    domain.life.pauses, domain.life.state = 0, State.RUNNING
    return domain


class Hypercalls(Lives):
    """The attacker has two vCPUs; the other domain has granted it two frames and left it a port."""

    victim: Domain

    def __init__(self) -> None:
        super().__init__()
        self.host = Host(64 * MIB, 1)
        self.begin_anew(0)

    def subject(self, which: int) -> tuple[Host, Domain]:
        return self.host, self.domain

    def begin_anew(self, which: int) -> None:
        """Let there be an attacker, and its victim where there is none."""
        self.domain = a_guest(self.host, 2)
        if hasattr(self, "victim"):
            self.host.destroy(self.victim)
        self.victim = self.host.create([(0, VICTIM_MEMORY)])
        memory = self.victim.memory
        memory.write(0, PATTERN * VICTIM_MEMORY)
        self.victim.place_shared_info(1)
        self.victim.grants.place(0, 2)
        for ref, number, flags in ((8, READABLE, 5), (9, WRITABLE, 1)):
            memory.write(2 * PAGE + 8 * ref, struct.pack("<HHI", flags, self.domain.domid, number))
        self.port = self.victim.events.alloc_unbound(self.domain.domid)

    @rule(call=calls, vcpu=st.integers(0, 1))
    def call(self, call: Call, vcpu: int) -> None:
        counted()
        self.domain.memory.write(HEAP, call.memory)
        with self.host.lock:
            result = dispatch(self.domain, self.domain.vcpus[vcpu].cpu, call.number, call.arguments)
        assert -(1 << 63) <= result < 1 << 63

    @rule(
        at=st.one_of(st.integers(0x1000, 0x4000 - 8), st.integers(GRANTS * PAGE, (GRANTS + 2) * PAGE - 8)), value=word
    )
    def write(self, at: int, value: int) -> None:
        """Change page tables, grant entries, the shared page."""
        self.domain.memory.write(at, struct.pack("<Q", value))

    @rule(port=st.integers(0, 8), times=st.sampled_from([1, 3, 200]))
    def send(self, port: int, times: int) -> None:
        """Send events, though the victim does not run."""
        self.domain.memory.write(HEAP, struct.pack("<I", port))
        for _ in range(times):
            counted()
            dispatch(self.domain, cpu_of(self.domain), 32, (4, HEAP, 0, 0, 0))

    @rule(place=_place, ref=st.integers(8, 9), flags=st.sampled_from([2, 6]))
    def map(self, place: int, ref: int, flags: int) -> None:
        """Map what there is to be mapped."""
        counted()
        self.domain.memory.write(HEAP, struct.pack("<QIIHHIQ", place, flags, ref, self.victim.domid, 0, 0, 0))
        dispatch(self.domain, cpu_of(self.domain), 20, (0, HEAP, 1, 0, 0))

    @rule(place=_place, handle=st.integers(0, 5))
    def unmap(self, place: int, handle: int) -> None:
        """Unmap something, perhaps at its place."""
        counted()
        self.domain.memory.write(HEAP, struct.pack("<QQIHH", place, 0, handle, 0, 0))
        dispatch(self.domain, cpu_of(self.domain), 20, (1, HEAP, 1, 0, 0))

    @rule()
    def enter(self) -> None:
        """Do what the domain's thread does when it comes by, after a shutdown too."""
        self.domain.life.state, self.domain.life.reason = State.RUNNING, None
        with self.host.lock:
            self.domain.events.drain()
            if self.domain.time.fire():
                self.domain.life.shut_down(Reason.WATCHDOG)
            self.domain.runnable()
            self.domain.vcpus._set_state(0, 1)

    @invariant()
    def nothing_outside_is_touched(self) -> None:
        memory = self.victim.memory
        for first, last in ((3, WRITABLE), (WRITABLE + 1, VICTIM_MEMORY // PAGE)):
            content = memory.bytes[first * PAGE : last * PAGE]
            assert content == PATTERN * len(content)
        assert self.victim.memory.present == VICTIM_MEMORY // PAGE

    @invariant()
    def nothing_grows_without_bound(self) -> None:
        domain = self.domain
        assert 0 <= domain.memory.present <= MEMORY // PAGE
        assert len(domain.memory.extra) <= EXTRA
        assert len(domain.hypercalls) <= NUMBERS
        assert len(domain.platform.console.text) <= 64 * 1024
        assert len(domain.params) < 64
        for other in (domain, self.victim):
            assert len(other.events.channels) <= PORTS
            assert len(other.events.queued) <= len(other.events.channels) + 64
        assert len(domain.maptrack) <= MOST and not len(self.victim.maptrack)

    @invariant()
    def what_is_in_use_is_mapped(self) -> None:
        domain, victim = self.domain, self.victim
        pins = [pin for table in (domain.grants, victim.grants) for pin in table._in_use.values()]
        assert all(pin.domid == domain.domid for pin in pins)
        shown = [
            each for each in domain.maptrack._mappings.values() if each.loan and not each.loan.ended
        ]  # a freeze has ended them
        assert sum(sum(pin.uses) for pin in pins) == len(domain.maptrack) and len(shown) == len(domain.memory.foreign)
        assert sum(map(len, [*domain.memory.lent.values(), *victim.memory.lent.values()])) == len(shown)
        assert victim.memory.lent.keys() <= {READABLE, WRITABLE} and not victim.memory.foreign
        assert domain.memory.present == MEMORY // PAGE - len(domain.physmap.ballooned)

    def teardown(self) -> None:
        self.host.destroy(self.domain)
        self.nothing_outside_is_touched()
        assert self.victim.grants._in_use == {} and not self.victim.memory.lent
        self.host.destroy(self.victim)
