"""A local APIC: priorities, IPIs to each kind of destination, INIT and startup, and the timer, without any CPU."""

from __future__ import annotations

import struct

import pytest

from hypervisor.arch.x86_64.cpu.apic import (
    CURRENT,
    CYCLE,
    DFR,
    DIVIDE,
    EOI,
    ESR,
    ICR_HIGH,
    ICR_LOW,
    ID,
    INITIAL,
    IRR,
    ISR,
    LDR,
    LVT_TIMER,
    PPR,
    SVR,
    TPR,
    VERSION,
    LocalAPIC,
    after_reset,
    identity,
)

INIT, STARTUP, ASSERT, LEVEL, LOGICAL = 5 << 8, 6 << 8, 1 << 14, 1 << 15, 1 << 11
SELF, EVERYBODY, OTHERS = 1 << 18, 2 << 18, 3 << 18


class Board:
    """Four APICs, on, with the identities that Xen gives; `said` is what they asked of the machine."""

    def __init__(self, count: int = 4) -> None:
        self.now = 1000
        self.said: list[tuple[object, ...]] = []
        self.apics: list[LocalAPIC] = []
        self.apics += (LocalAPIC(number, self.apics, self, lambda: self.now) for number in range(count))
        for number, apic in enumerate(self.apics):
            apic.load(after_reset(identity(number)))
            apic.write(SVR, 0x1FF)

    def reset_cpu(self, number: int) -> None:
        self.said.append(("reset", number))

    def start_cpu(self, number: int, page: int) -> None:
        self.said.append(("start", number, page))

    def wake_cpu(self, number: int) -> None:
        self.said.append(("wake", number))

    def send(self, command: int, destination: int = 0, source: int = 0) -> list[int]:
        """Return the CPUs that have an interrupt waiting now."""
        self.apics[source].write(ICR_HIGH, destination << 24)
        self.apics[source].write(ICR_LOW, command)
        return [number for number, apic in enumerate(self.apics) if apic.deliverable()]


@pytest.fixture
def board() -> Board:
    return Board()


def test_it_tells_who_it_is(board: Board) -> None:
    """An integrated one with six local interrupts; its identity cannot be written, and is twice the vCPU's number."""
    for number, apic in enumerate(board.apics):
        apic.write(ID, 0xFF << 24)
        assert apic.read(ID) == 2 * number << 24 and apic.read(VERSION) == 0x50014
    fresh = LocalAPIC(0, [], board, lambda: 0)
    assert fresh.read(SVR) == 0xFF and fresh.read(DFR) == 0xFFFFFFFF and fresh.read(LVT_TIMER) == 1 << 16


@pytest.mark.parametrize(
    ("command", "destination", "heard"),
    [
        (0x40, 4, [2]),
        (0x40, 3, []),
        (0x40, 0xFF, [0, 1, 2, 3]),
        (0x40 | SELF, 4, [0]),
        (0x40 | EVERYBODY, 0, [0, 1, 2, 3]),
        (0x40 | OTHERS, 0, [1, 2, 3]),
        (0x40 | LOGICAL, 0b1010, [1, 3]),
        (0x40 | LOGICAL | 1 << 8, 0b1010, [1]),
        (0x0F, 4, []),
    ],
)
def test_an_interrupt_reaches_whom_it_is_for(board: Board, command: int, destination: int, heard: list[int]) -> None:
    """By number, by shorthand, by flat logical address, by lowest priority; vectors below 16 are none."""
    for number, apic in enumerate(board.apics):
        apic.write(LDR, 1 << 24 + number)
    assert board.send(command, destination) == heard
    assert board.said == [("wake", number) for number in heard]


def test_a_cluster_is_addressed_by_its_number(board: Board) -> None:
    """DFR 0: four bits of a cluster's number, four of its members."""
    for number, apic in enumerate(board.apics):
        apic.write(DFR, 0)
        apic.write(LDR, (number // 2 << 4 | 1 << number % 2) << 24)
    assert board.send(0x50 | LOGICAL, 0x12) == [3]
    assert board.send(0x60 | LOGICAL, 0xF1) == [0, 2, 3]


def test_a_higher_interrupt_goes_first_and_a_lower_one_waits_for_the_end(board: Board) -> None:
    """Classes of sixteen: the same class does not interrupt itself; EOI ends the highest."""
    apic = board.apics[0]
    for vector in (0x31, 0x45, 0x41):
        apic.request(vector)
    assert apic.deliverable() == 0x45 and apic.read(IRR + 0x20) == 1 << 5 | 1 << 1
    apic.accept(0x45)
    assert (apic.deliverable(), apic.read(PPR), apic.read(ISR + 0x20)) == (0, 0x40, 1 << 5)
    apic.request(0x52)
    assert apic.deliverable() == 0x52
    apic.accept(0x52)
    apic.write(EOI, 0)
    assert apic.deliverable() == 0
    apic.write(EOI, 0)
    assert apic.deliverable() == 0x41
    apic.write(TPR, 0x40)
    assert apic.deliverable() == 0
    apic.write(EOI, 0)  # of nothing
    apic.write(TPR, 0x3F)
    assert apic.deliverable() == 0x41


def test_what_is_off_takes_no_interrupt_but_can_be_started(board: Board) -> None:
    """An AP is started while its APIC is as after power-on."""
    board.apics[1].write(SVR, 0xFF)
    assert board.send(0x40, 2) == [] and board.said == []
    board.send(INIT | ASSERT | LEVEL, 2)
    board.send(INIT | LEVEL, 2)  # the end of INIT, which is nothing
    board.send(STARTUP | 0x9A, 2)
    assert board.said == [("reset", 1), ("start", 1, 0x9A)]


def test_init_leaves_nothing_but_the_identity(board: Board) -> None:
    """Also what waited and what was served."""
    apic = board.apics[1]
    apic.request(0x40)
    apic.accept(0x40)
    apic.request(0x51)
    board.send(INIT | ASSERT, 2)
    assert apic.page() == after_reset(2)


def test_errors_are_told_when_asked_for(board: Board) -> None:
    """A vector below 16 was sent: bit 5, once the register is written."""
    board.send(0x05, 2)
    assert board.apics[0].read(ESR) == 0
    board.apics[0].write(ESR, 0)
    assert board.apics[0].read(ESR) == 1 << 5
    board.apics[0].write(ESR, 0)
    assert board.apics[0].read(ESR) == 0


def test_a_timer_interrupts_once(board: Board) -> None:
    """Divided by sixteen; its count falls to zero and stays there."""
    apic = board.apics[0]
    apic.write(DIVIDE, 3)
    apic.write(LVT_TIMER, 0x70)
    apic.write(INITIAL, 100)
    due = apic.deadline
    assert due == 1000 + 100 * 16 * CYCLE
    board.now += 40 * 16 * CYCLE
    apic.expire()
    assert apic.read(CURRENT) == 60 and apic.deliverable() == 0
    board.now = due
    apic.expire()
    assert (apic.deliverable(), apic.read(CURRENT), apic.deadline) == (0x70, 0, None)


def test_a_periodic_timer_goes_on_and_a_masked_one_only_counts(board: Board) -> None:
    """Divided by one."""
    apic = board.apics[0]
    apic.write(DIVIDE, 0xB)
    apic.write(LVT_TIMER, 0x70 | 1 << 17)
    apic.write(INITIAL, 10)
    for turn in (1, 2, 3):
        board.now = 1000 + turn * 10 * CYCLE + 5
        apic.expire()
        assert apic.deliverable() == 0x70 and apic.deadline == 1000 + (turn + 1) * 10 * CYCLE
        apic.accept(0x70)
        apic.write(EOI, 0)
    apic.write(LVT_TIMER, 0x70 | 1 << 16)
    assert apic.deadline is None
    apic.write(INITIAL, 10)
    board.now += 4 * CYCLE
    assert apic.read(CURRENT) == 6


def test_a_page_of_registers_is_the_whole_state(board: Board) -> None:
    """As a saved domain carries it."""
    apic = board.apics[2]
    for vector in (0x45, 0xFE, 0x33):
        apic.request(vector)
    apic.accept(0xFE)
    apic.write(TPR, 0x20)
    apic.write(LVT_TIMER, 0x70 | 1 << 17)
    page = apic.page()
    assert struct.unpack_from("<I", page, ISR + 0x70)[0] == 1 << 30
    other = Board().apics[2]
    other.load(page)
    assert other.page() == page
    other.write(EOI, 0)
    assert other.deliverable() == 0x45


def test_no_write_of_any_register_raises(board: Board) -> None:
    """Every offset, aligned or not, with all ones, zeros, and all ones again."""
    apic = board.apics[0]
    for value in (0xFFFFFFFF, 0, 0xFFFFFFFF):
        for offset in range(0, 4096, 4):
            apic.write(offset, value)
            assert 0 <= apic.read(offset) <= 0xFFFFFFFF
    assert apic.deliverable() in (0, 0xFF)
