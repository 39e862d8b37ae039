"""Whose each frame of a domain is, against a model, while memory is written, ballooned, granted, frozen and cloned."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from hypervisor.memory.foreign import Loan
from hypervisor.memory.guest_memory import PAGE, BadAddress, Memory
from hypervisor.memory.pagemap import own_pages
from hypervisor.memory.physmap import Owner, Physmap

FRAMES = 600
"""More than those from which on a clone maps what it gives back anew."""
WATCHED = (0, 1, 2, 3, 511, 520, 598, 599)
GRANTED = b"granted"
which = st.integers(0, 9)
frames = st.sampled_from(WATCHED)
runs = st.sampled_from([(0, 1), (1, 2), (0, 520), (2, 597), (511, 89), (598, 2)])


@dataclass(eq=False)
class Subject:
    """A memory with its physmap, and what is expected: the first byte and the owner of each watched frame."""

    memory: Memory
    content: dict[int, int] = field(default_factory=lambda: dict.fromkeys(WATCHED, 0))
    owners: dict[int, Owner] = field(default_factory=lambda: dict.fromkeys(WATCHED, Owner.DOMAIN))
    loans: dict[int, Loan] = field(default_factory=dict)
    apart: set[int] = field(default_factory=set)
    """Frames that it gave back since it was frozen."""

    def __post_init__(self) -> None:
        ranges = ((0, self.memory.size),)
        self.physmap = Physmap(
            self.memory, ranges, lambda more: True, lambda frame: None, lambda ranges: None, lambda at: False
        )

    def of(self, first: int, count: int) -> Iterator[int]:
        return (frame for frame in WATCHED if first <= frame < first + count)


class Owners(RuleBasedStateMachine):
    """Some domains, clones among them, and one more whose frames they may map."""

    def __init__(self) -> None:
        super().__init__()
        self.files = len(os.listdir("/proc/self/fd"))
        self.granter = Memory(PAGE)
        self.granter.write(0, GRANTED)
        self.borrower = Memory(PAGE)
        self.subjects = [Subject(Memory(FRAMES * PAGE))]

    def subject(self, number: int) -> Subject:
        return self.subjects[number % len(self.subjects)]

    def teardown(self) -> None:
        for subject in self.subjects:
            subject.memory.close()
        self.granter.close()
        self.borrower.close()
        assert len(os.listdir("/proc/self/fd")) == self.files

    @rule(number=which, frame=frames, byte=st.integers(1, 255))
    def write(self, number: int, frame: int, byte: int) -> None:
        """Who writes what it has together with others has a copy of its own then."""
        subject = self.subject(number)
        if subject.owners[frame] in (Owner.DOMAIN, Owner.SHARED):
            subject.memory.write(frame * PAGE, bytes([byte]))
            subject.content[frame], subject.owners[frame] = byte, Owner.DOMAIN

    @rule(number=which, run=runs)
    def release(self, number: int, run: tuple[int, int]) -> None:
        """What is shown of another domain's cannot be given back; all else reads as zero then."""
        subject = self.subject(number)
        first, count = run
        refused = any(first <= frame < first + count for frame in subject.loans)
        assert subject.physmap.release(first, count) == (not refused)
        if not refused:
            for frame in subject.of(first, count):
                subject.content[frame], subject.owners[frame] = 0, Owner.HOST
                subject.apart.add(frame)

    @rule(number=which, run=runs)
    def populate(self, number: int, run: tuple[int, int]) -> None:
        """What comes from the host is the domain's own, unless it was not there when others came to have the rest."""
        subject = self.subject(number)
        first, count = run
        if subject.physmap.populate(first, count):
            for frame in subject.of(first, count):
                if subject.owners[frame] is Owner.HOST:
                    own = frame in subject.apart or not subject.memory.private
                    subject.owners[frame] = Owner.DOMAIN if own else Owner.SHARED

    @rule(number=which, frame=frames)
    def borrow(self, number: int, frame: int) -> None:
        """A mapped grant takes the place of what was there."""
        subject = self.subject(number)
        if frame not in subject.loans:
            subject.loans[frame] = subject.physmap.borrow(frame, self.granter, 0, False)
            subject.content[frame], subject.owners[frame] = GRANTED[0], Owner.OTHER
            subject.apart.add(frame)

    @rule(number=which, frame=frames)
    def unmap(self, number: int, frame: int) -> None:
        """It is empty then, and nobody's."""
        subject = self.subject(number)
        if loan := subject.loans.pop(frame, None):
            subject.physmap.end(loan)
            subject.content[frame], subject.owners[frame] = 0, Owner.HOST

    @precondition(lambda self: len(self.subjects) < 4)
    @rule(number=which)
    def clone(self, number: int) -> None:
        """Source and clone have all together that is memory, until one of them writes."""
        subject = self.subject(number)
        for frame in list(subject.loans):
            self.unmap(number, frame)
        shared = subject.memory.freeze()
        other = Subject(Memory.clone(shared, FRAMES * PAGE), dict(subject.content))
        shared.drop()
        for first, count in subject.physmap.ballooned.runs():
            other.physmap.hold_out(first, count)
        for frame, owner in subject.owners.items():
            now = owner if owner is Owner.HOST else Owner.SHARED
            subject.owners[frame] = other.owners[frame] = now
        subject.apart.clear()
        self.subjects.append(other)

    @precondition(lambda self: len(self.subjects) > 1)
    @rule(number=which)
    def end(self, number: int) -> None:
        """The others keep what they have."""
        subject = self.subjects.pop(number % len(self.subjects))
        subject.memory.close()

    @rule(number=which, frame=frames)
    def lend(self, number: int, frame: int) -> None:
        """What a memory has together with others, or has copied from it, is in no file that another could show."""
        subject = self.subject(number)
        if subject.memory.private:
            borrower = Physmap(self.borrower, ((0, PAGE),), *[lambda *_: False] * 4)  # type: ignore[arg-type]
            with pytest.raises(BadAddress, match="in no file"):
                borrower.borrow(0, subject.memory, frame, False)

    @invariant()
    def each_frame_is_as_expected(self) -> None:
        for subject in self.subjects:
            # The owners first: to read a frame that was mapped anew makes it one of the domain's own.
            assert {frame: subject.physmap.owner(frame) for frame in WATCHED} == subject.owners
            assert {frame: subject.memory.bytes[frame * PAGE] for frame in WATCHED} == subject.content
            assert subject.memory.present == FRAMES - len(subject.physmap.ballooned)
            shared = [frame for frame, owner in subject.owners.items() if owner is Owner.SHARED]
            assert not shared or subject.memory.shared is not None
        assert self.granter.read(0, len(GRANTED)) == GRANTED


def test_each_frame_has_the_owner_that_it_should() -> None:
    """Skipped where the kernel does not tell which pages a private mapping has copied."""
    memory = Memory(PAGE)
    try:
        list(own_pages(memory.address, PAGE))
    except OSError as error:
        pytest.skip(f"this kernel does not tell: {error}")
    finally:
        memory.close()
    run_state_machine_as_test(Owners, settings=settings(max_examples=60, stateful_step_count=30, deadline=None))
