"""The bus against a model that asks each claim in turn, with accesses of all sizes and at all places."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.platform.bus import PORTS, Claimed, Space

END = 256


@dataclass(eq=False)
class Recorder:
    """A device that remembers what it was asked, and answers with its number in each byte."""

    number: int
    said: list[tuple[int, ...]] = field(default_factory=list)

    def read(self, offset: int, size: int) -> int:
        self.said.append((offset, size))
        return int.from_bytes(bytes([self.number]) * 16, "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.said.append((offset, size, value))


RANGES = st.lists(st.tuples(st.integers(-8, END + 8), st.integers(-1, 40)), max_size=8)
VALUES = st.integers(0, (1 << 64) - 1)
SIZES = st.sampled_from([1, 2, 4, 8])


@given(
    ranges=RANGES,
    gone=st.sets(st.integers(0, 7)),
    accesses=st.lists(st.tuples(st.integers(0, END - 1), SIZES, st.none() | VALUES), max_size=20),
)
def test_an_access_goes_to_whom_it_lies_within(
    ranges: list[tuple[int, int]], gone: set[int], accesses: list[tuple[int, int, int | None]]
) -> None:
    """Overlaps are refused; what nobody claims, or has claimed, reads as all ones."""
    space, claimed = Space(END), list[tuple[int, int, Recorder]]()
    for number, (start, length) in enumerate(ranges):
        device = Recorder(number)
        free = all(start + length <= low or high <= start for low, high, _ in claimed)
        if start >= 0 and length > 0 and start + length <= END and free:
            space.claim(start, length, device)
            claimed.append((start, start + length, device))
        else:
            with pytest.raises(Claimed):
                space.claim(start, length, device)
    for number in gone:
        for each in [each for each in claimed if each[2].number == number]:
            space.release(each[2])
            claimed.remove(each)
    assert [(claim.start, claim.end, claim.device) for claim in space.claims()] == sorted(claimed, key=lambda c: c[0])
    for address, size, value in accesses:
        whose = [each for each in claimed if each[0] <= address and address + size <= each[1]]
        before = sum(len(device.said) for _, _, device in claimed)
        if value is None:
            ones = (1 << 8 * size) - 1
            assert space.read(address, size) == (ones & int("01" * size, 16) * whose[0][2].number if whose else ones)
        else:
            space.write(address, size, value)
        assert sum(len(device.said) for _, _, device in claimed) == before + len(whose)
        if whose:
            start, _, device = whose[0]
            said = (address - start, size) if value is None else (address - start, size, value & (1 << 8 * size) - 1)
            assert device.said[-1] == said


def test_a_refusal_by_whom_a_claim_is_told_changes_nothing() -> None:
    """As where the guest has memory."""

    def refuse(start: int, length: int) -> None:
        raise ArithmeticError

    space = Space(PORTS, refuse)
    with pytest.raises(ArithmeticError):
        space.claim(0x300, 4, Recorder(1))
    assert space.claims() == () and space.read(0x300, 4) == 0xFFFFFFFF
