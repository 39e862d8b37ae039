"""Turns of the reactor that end in time, and what is left of them."""

from __future__ import annotations

import select

import pytest
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import ConnectionDone
from twisted.logger import ILogObserver, LogEvent, capturedLogs, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from xapi.process import reactor
from xapi.process.reactor import ShortTurnReactor, _Few


class Poller:
    """An epoll object by whose word the same files are always ready."""

    def __init__(self, *ready: int) -> None:
        self.ready = dict.fromkeys(ready, select.EPOLLIN)
        self.waited: list[float] = []

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        self.waited.append(timeout)
        return list(self.ready.items())[:most]

    def modify(self, number: int, events: int) -> None:
        self.ready[number] = events

    def unregister(self, number: int) -> None:
        del self.ready[number]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything take more than half as long as a turn may last."""
    now = iter(range(1000))
    monkeypatch.setattr(reactor, "monotonic", lambda: next(now) * 0.6 * reactor.LASTING)


@pytest.mark.usefixtures("slow")
def test_a_turn_that_lasts_leaves_the_rest_to_the_next_and_nobody_is_passed_over() -> None:
    """Who was served waits for those that were not, though it is ready again and epoll tells of it first."""
    few = _Few(Poller(5, 6, 7))
    turns = [[number for number, _ in few.poll(1.0, 9)] for _ in range(3)]
    assert turns == [[5, 6], [7], [5, 6]]


@pytest.mark.usefixtures("slow")
def test_a_turn_with_something_left_does_not_wait() -> None:
    """It is ready already."""
    poller = Poller(5, 6, 7)
    few = _Few(poller)
    for _ in range(2):
        assert list(few.poll(1.0, 9))
    assert poller.waited == [1.0]


def test_who_polls_has_waited_when_it_returns() -> None:
    """A turn begins with the return: the benchmarks measure it from there."""
    poller = Poller(5)
    _Few(poller).poll(1.0, 9)
    assert poller.waited == [1.0]


@pytest.mark.usefixtures("slow")
def test_what_is_left_of_a_file_goes_when_it_is_closed_or_wants_something_else() -> None:
    """The next file of its number has nothing to do with it."""
    poller = Poller(5, 6, 7, 8)
    few = _Few(poller)
    assert [number for number, _ in few.poll(1.0, 9)] == [5, 6]
    few.unregister(7)
    few.modify(8, select.EPOLLOUT)
    poller.ready = {8: select.EPOLLOUT}
    assert list(few.poll(1.0, 9)) == [(8, select.EPOLLOUT)]


@pytest.mark.usefixtures("slow")
def test_news_of_threads_are_heard_in_order_over_several_turns() -> None:
    """All of them, each once, and the reactor does not sleep before."""
    turning = ShortTurnReactor()
    heard: list[int] = []
    try:
        for number in range(5):
            turning.callFromThread(heard.append, number)
        turns = []
        while len(heard) < 5:
            turning.runUntilCurrent()
            turns.append(len(heard))
        assert heard == [0, 1, 2, 3, 4] and turns == [2, 4, 5]
    finally:
        EPollReactor.removeAll(turning)
        turning._poller.close()


class Socket:
    """A socket that is lost as soon as it is read, or whose loss even fails."""

    def __init__(self, number: int, fails: bool) -> None:
        self.number = number
        self.fails = fails
        self.lost = False

    def fileno(self) -> int:
        return self.number

    def doRead(self) -> Exception:
        return ConnectionDone()

    def connectionLost(self, reason: Failure) -> None:
        if self.fails:
            raise RuntimeError("losing it failed")
        self.lost = True


def test_a_socket_that_fails_is_logged_and_all_others_of_its_turn_are_served() -> None:
    """One that was closed in the same turn is passed over."""
    turning = ShortTurnReactor()
    epoll, last = turning._poller, Socket(7, fails=False)
    turning._selectables.update({5: Socket(5, fails=True), 7: last})
    turning._poller = Poller(5, 6, 7)
    try:
        with capturedLogs() as events:
            turning.doPoll(0)
        assert [type(event["log_failure"].value) for event in events] == [RuntimeError]
        assert last.lost
    finally:
        turning._poller = epoll
        del turning._selectables[5], turning._selectables[7]
        EPollReactor.removeAll(turning)
        epoll.close()


def test_it_ends_without_an_error_however_often_it_is_asked_to() -> None:
    """Two signals at once, to a process and to its group, are both heard before the first is heeded."""
    turning = ShortTurnReactor()
    failures: list[Failure] = []

    @implementer(ILogObserver)
    def hear(event: LogEvent) -> None:
        if "log_failure" in event:
            failures.append(event["log_failure"])

    for _ in range(2):
        turning.callWhenRunning(turning.callFromThread, turning.stop)
    globalLogPublisher.addObserver(hear)
    try:
        turning.run(installSignalHandlers=False)
    finally:
        globalLogPublisher.removeObserver(hear)
        EPollReactor.removeAll(turning)
        turning._poller.close()
    assert failures == []
