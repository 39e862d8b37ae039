"""Grants between domains, against a model that knows for each page of each what it may show: that, and nothing else."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hypervisor.arch.x86_64.cpu.overlay import long_mode
from hypervisor.domains.domain import Domain
from hypervisor.domains.grant_table import GTF_READONLY
from hypervisor.domains.life import Reason, State
from hypervisor.errors import EBUSY
from hypervisor.host import Host
from hypervisor.hypercalls.hvm_op import CONSOLE_PFN, STORE_PFN
from hypervisor.hypercalls.table import dispatch
from hypervisor.memory.guest_memory import PAGE
from hypervisor.migration.clone import Template
from tests.x86_64 import cpu_of

SIZE, HEAP, GRANTS, STATUS = 64 * PAGE, 8 * PAGE, 5, 6
FRAMES = (*range(16, 24), 0x8000, 0x8001)
"""What is looked at: pages of RAM, and places beyond it, which are there once something was mapped."""
HOST_MAP, READONLY = 2, 4
_WORD = 16

slots = st.integers(0, 2)
seldom = st.integers(0, 40)
"""A slot, or mostly none: what ends mappings by the dozen must not come all the time."""
frames = st.sampled_from(FRAMES[:8])
places = st.sampled_from(FRAMES)
refs = st.integers(6, 10)
buses = st.sampled_from([0, 0, 0, 1, 1, 2])
"""No bus address, the right one, another."""


@dataclass(eq=False)
class Page:
    """What a page holds; pages that are one have one of these."""

    data: bytes = bytes(_WORD)


@dataclass(eq=False)
class Mapped:
    """A handle: where, whose page, whether that is the borrower's own by now, and whether a freeze has emptied it."""

    place: int
    owner: Domain
    writable: bool
    bus: int
    own: bool = False
    emptied: bool = False


class Guest:
    """A domain, what its pages should hold, and what it has mapped."""

    def __init__(self, host: Host, number: int) -> None:
        self.domain = host.create([(0, SIZE)])
        cpu = cpu_of(self.domain)
        long_mode(cpu.engine, cpu.overlay)
        self.domain.params |= {STORE_PFN: 1, CONSOLE_PFN: 2}
        self.domain.grants.place(0, GRANTS)
        self.pages = {frame: Page() for frame in FRAMES}
        self.mapped: dict[int, Mapped] = {}
        for frame in FRAMES[:8]:
            self.write(frame, struct.pack("<QQ", number, frame))

    def write(self, frame: int, data: bytes) -> None:
        """Write to a page that is there, and to whatever is the same page."""
        memory = self.domain.memory
        if frame in memory.extra or frame * PAGE < memory.size:
            at = memory.offset(frame)
            memory.bytes[at : at + _WORD] = data
            self.pages[frame].data = data

    def read(self, frame: int) -> bytes:
        memory = self.domain.memory
        at = memory.offset(frame) if frame in memory.extra or frame * PAGE < memory.size else None
        return bytes(_WORD) if at is None else bytes(memory.bytes[at : at + _WORD])

    def call(self, number: int, *arguments: int, memory: bytes = b"") -> int:
        self.domain.memory.write(HEAP, memory)
        return dispatch(self.domain, cpu_of(self.domain), number, (*arguments, 0, 0, 0, 0, 0)[:5])


class Grants(RuleBasedStateMachine):
    """Three domains that grant to each other, map, change, end, are frozen and begin anew."""

    def __init__(self) -> None:
        super().__init__()
        self.host = Host(1 << 28, 1)
        self.number = 0
        self.guests = [self._guest() for _ in range(3)]

    def _guest(self) -> Guest:
        self.number += 1
        return Guest(self.host, self.number)

    def _keep(self, owner: Domain) -> None:
        """Let all who show pages of a domain have copies."""
        for guest in self.guests:
            for mapped in guest.mapped.values():
                if mapped.owner is owner and not mapped.own:
                    guest.pages[mapped.place] = Page(guest.pages[mapped.place].data)
                    mapped.own = True

    def _empty(self, guest: Guest) -> None:
        """Let a domain show nobody's pages."""
        for mapped in guest.mapped.values():
            if not mapped.emptied:
                guest.pages[mapped.place] = Page()
            mapped.own = mapped.emptied = True

    # What guests do

    @rule(which=slots, to=slots, ref=refs, frame=places, readonly=st.booleans(), valid=st.booleans())
    def grant(self, which: int, to: int, ref: int, frame: int, readonly: bool, valid: bool) -> None:
        """Write an entry, in use or not."""
        domain, other = self.guests[which].domain, self.guests[to].domain
        flags = (1 | GTF_READONLY * readonly) if valid else 0
        if domain.grants.version == 1:
            entry, at = struct.pack("<HHI", flags, other.domid, frame), GRANTS * PAGE + 8 * ref
        else:
            entry, at = struct.pack("<HHxxxxQ", flags, other.domid, frame), GRANTS * PAGE + 16 * ref
        domain.memory.write(at, entry)

    @rule(which=slots, owner=slots, ref=refs, place=places, readonly=st.booleans())
    def map(self, which: int, owner: int, ref: int, place: int, readonly: bool) -> None:
        """Map what may be; what is shown then is the page that the entry names."""
        guest, granter = self.guests[which], self.guests[owner]
        flags, domid, frame = self._entry(granter.domain, ref)
        asked = struct.pack(
            "<QIIHhIQ", place * PAGE, HOST_MAP | READONLY * readonly, ref, granter.domain.domid, 9, 0, 0
        )
        assert guest.call(20, 0, HEAP, 1, memory=asked) == 0
        status, handle, bus = struct.unpack("<hIQ", guest.domain.memory.read(HEAP + 18, 14))
        if status:
            return
        assert flags & 3 == 1 and domid == guest.domain.domid and (readonly or not flags & GTF_READONLY)
        assert frame in FRAMES[:8] and handle not in guest.mapped
        assert all(mapped.place != place or mapped.emptied for mapped in guest.mapped.values())
        guest.pages[place] = granter.pages[frame]
        guest.mapped[handle] = Mapped(place, granter.domain, not readonly, bus)

    @rule(which=slots, owner=slots, ref=refs, frame=frames, place=places, readonly=st.booleans(), allowed=st.booleans())
    def grant_and_map(
        self, which: int, owner: int, ref: int, frame: int, place: int, readonly: bool, allowed: bool
    ) -> None:
        """What is mostly good, but for writing where only reading is allowed."""
        if ref not in self.guests[owner].domain.grants._in_use:
            self.grant(owner, which, ref, frame, not allowed, True)
        self.map(which, owner, ref, place, readonly)

    def _entry(self, domain: Domain, ref: int) -> tuple[int, int, int]:
        layout, size = ("<HHI", 8) if domain.grants.version == 1 else ("<HHxxxxQ", 16)
        flags, domid, frame = struct.unpack_from(layout, domain.memory.bytes, GRANTS * PAGE + size * ref)
        return flags, domid, frame

    @rule(which=slots, number=st.integers(0, 6), wrong=st.sampled_from([None, None, None, *FRAMES]), by_bus=buses)
    def unmap(self, which: int, number: int, wrong: int | None, by_bus: int) -> None:
        """Unmap, mostly what is mapped, at the right place or another, with the right bus address, none or another."""
        guest = self.guests[which]
        handle = list(guest.mapped)[number % len(guest.mapped)] if guest.mapped and number < 6 else 99
        mapped = guest.mapped.get(handle)
        place = wrong or (mapped.place if mapped else FRAMES[0])
        bus = (0, mapped.bus if mapped else PAGE, PAGE)[by_bus]
        asked = struct.pack("<QQIhxx", place * PAGE, bus, handle, 9)
        assert guest.call(20, 1, HEAP, 1, memory=asked) == 0
        status = struct.unpack("<h", guest.domain.memory.read(HEAP + 20, 2))[0]
        good = mapped is not None and mapped.place == place and bus in (0, mapped.bus)
        assert (status == 0) == good
        if good and not guest.mapped.pop(handle).emptied:
            guest.pages[place] = Page()

    @rule(which=slots, frame=places, text=st.binary(min_size=_WORD, max_size=_WORD))
    def write(self, which: int, frame: int, text: bytes) -> None:
        """Write to a page; to one that may only be read the writer has a copy of its own from then on."""
        guest = self.guests[which]
        for mapped in guest.mapped.values():
            if mapped.place == frame and not mapped.writable and not mapped.own:
                guest.pages[frame] = Page(guest.pages[frame].data)
        guest.write(frame, text)

    @rule(which=slots, frame=frames, populate=st.booleans())
    def balloon(self, which: int, frame: int, populate: bool) -> None:
        """Give a page back, or take it; not one that is shared."""
        guest = self.guests[which]
        asked = struct.pack("<QQIIHxxxxxx", HEAP + 32, 1, 0, 0, 0x7FF0) + struct.pack("<Q", frame)
        done = guest.call(12, 6 if populate else 1, HEAP, memory=asked)
        if done and not populate:
            guest.pages[frame] = Page()

    @rule(which=slots, version=st.integers(1, 2))
    def change_version(self, which: int, version: int) -> None:
        """The status frames come and go with it."""
        guest, grants = self.guests[which], self.guests[which].domain.grants
        busy = version != grants.version and any(ref >= 8 for ref in grants._in_use)
        result = guest.call(20, 8, HEAP, 1, memory=struct.pack("<I", version))
        assert result == (-EBUSY if busy else 0)
        if grants.version == 2 and not grants.status_frames:
            guest.call(12, 7, HEAP, memory=struct.pack("<HHIQQ", 0x7FF0, 0, 1, 1 << 31, STATUS))

    # What befalls them

    @rule(which=seldom)
    def end(self, which: int) -> None:
        if which >= len(self.guests):
            return
        guest = self.guests[which]
        self._keep(guest.domain)
        views = [guest.domain.memory.frame(frame) for frame in FRAMES[:8]]
        self.host.destroy(guest.domain)
        assert not any(any(view) for view in views)
        self.guests[which] = self._guest()

    @rule(which=seldom, clone=st.booleans())
    def freeze(self, which: int, clone: bool) -> None:
        """Make a template, whose clone sees no more than the domain's own pages, and let the domain go on."""
        if which >= len(self.guests):
            return
        guest = self.guests[which]
        guest.domain.life.state, guest.domain.life.reason = State.SHUTDOWN, Reason.SUSPEND
        self._empty(guest)
        self._keep(guest.domain)
        with Template(self.host, guest.domain) as template:
            if clone:
                made = template.clone(self.host)
                for frame in FRAMES[:8]:
                    assert bytes(made.memory.bytes[frame * PAGE : frame * PAGE + _WORD]) == guest.pages[frame].data
                self.host.destroy(made)
        guest.domain.life.state, guest.domain.life.reason = State.PAUSED, None

    @rule(which=seldom)
    def begin_anew(self, which: int) -> None:
        """Resume as a domain that is new to its guest: neither it nor others have anything mapped of the other."""
        if which >= len(self.guests):
            return
        guest = self.guests[which]
        self._empty(guest)
        self._keep(guest.domain)
        guest.mapped.clear()
        guest.domain.renew()
        guest.domain.grants.place(0, GRANTS)

    # What must be so

    @invariant()
    def every_page_shows_what_it_may(self) -> None:
        for guest in self.guests:
            for frame in FRAMES:
                assert guest.read(frame) == guest.pages[frame].data, (guest.domain.domid, frame)

    @invariant()
    def what_is_in_use_is_mapped(self) -> None:
        for guest in self.guests:
            pins = sum(sum(pin.uses) for pin in guest.domain.grants._in_use.values())
            handles = [each for other in self.guests for each in other.domain.maptrack._mappings.values()]
            assert pins == sum(each.grant.table is guest.domain.grants for each in handles)
            assert len(guest.domain.maptrack) == len(guest.mapped)
            lent = sum(map(len, guest.domain.memory.lent.values()))
            assert lent == sum(
                mapped.owner is guest.domain and not mapped.own
                for other in self.guests
                for mapped in other.mapped.values()
            )

    def teardown(self) -> None:
        for guest in self.guests:
            self.host.destroy(guest.domain)


TestGrants = Grants.TestCase
TestGrants.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
