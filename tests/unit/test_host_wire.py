"""Calls over a connection: both ways, cancelled, in streams with a credit each, and what hostile bytes do."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Protocol, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogLevel, globalLogPublisher
from zope.interface import implementer

from hypervisor.api import Disk
from tests.wires import FULL, Half, Pair, joined
from xapi.host.wire import frames
from xapi.host.wire.asking import WINDOW
from xapi.host.wire.connection import SILENT, TURN, UNSENT, Connection, Terms
from xapi.host.wire.errors import Broken, Errors, Lost, Mismatch
from xapi.host.wire.frames import FRAME, Call, Hello, Item, encode
from xapi.host.wire.interface import interface_of
from xapi.host.wire.proxy import served


class Refusal(Exception):
    """An error that both ends know."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


class Counter(Protocol):
    """An object that stays where it is."""

    async def add(self, count: int) -> int: ...


class Shop(Protocol):
    """What is served in these tests."""

    @property
    def counter(self) -> Counter: ...

    async def echo(self, disk: Disk, *, times: int = 1) -> tuple[Disk, ...]: ...

    async def big(self, size: int) -> bytes: ...

    async def refuse(self, number: int) -> None: ...

    async def stumble(self) -> None: ...

    async def wait(self) -> str: ...

    async def open(self) -> Counter: ...

    async def call_back(self, heard: Callable[[float], None]) -> None: ...

    async def total(self, numbers: AsyncIterator[int]) -> int: ...

    def numbers(self, upto: int) -> AsyncIterator[int]: ...

    def output(self, size: int) -> AsyncIterator[bytes]: ...

    def note(self, text: str) -> None: ...


class RealCounter:
    def __init__(self) -> None:
        self.count = 0

    async def add(self, count: int) -> int:
        self.count += count
        return self.count


class RealShop:
    def __init__(self) -> None:
        self.counter = RealCounter()
        self.waiting: Deferred[str] = Deferred()
        self.cancelled = 0
        self.yielded = 0
        self.closed = 0
        self.notes: list[str] = []

    async def echo(self, disk: Disk, *, times: int = 1) -> tuple[Disk, ...]:
        return (disk,) * times

    async def big(self, size: int) -> bytes:
        return bytes(size)

    async def refuse(self, number: int) -> None:
        raise Refusal(number, "no")

    async def stumble(self) -> None:
        raise KeyError("a fault")

    async def wait(self) -> str:
        try:
            return await self.waiting
        except CancelledError:
            self.cancelled += 1
            raise

    async def open(self) -> Counter:
        return RealCounter()

    async def call_back(self, heard: Callable[[float], None]) -> None:
        heard(0.5)
        heard(1.0)

    async def total(self, numbers: AsyncIterator[int]) -> int:
        return sum([number async for number in numbers])

    async def numbers(self, upto: int) -> AsyncIterator[int]:
        for number in range(upto):
            yield number

    async def output(self, size: int) -> AsyncIterator[bytes]:
        try:
            while True:
                self.yielded += size
                yield bytes(size)
        finally:
            self.closed += 1

    def note(self, text: str) -> None:
        self.notes.append(text)


TERMS = Terms("shop", 1, Errors([Refusal]))


class Open:
    """A shop and who calls it."""

    def __init__(self) -> None:
        self.shop = RealShop()
        self.client, self.server, self.pair = joined(
            TERMS, {}, {"": (Shop, self.shop), "counter": (Counter, self.shop.counter)}, Clock()
        )
        self.remote = cast("Shop", served(Shop, self.client.asking))


@pytest.fixture
def open_shop() -> Open:
    return Open()


@pytest.fixture
def said() -> Any:
    """What was logged as a warning or worse."""
    lines: list[str] = []

    @implementer(ILogObserver)
    def hear(event: Any) -> None:
        if event["log_level"] >= LogLevel.warn:
            lines.append(str(event["log_format"]))

    globalLogPublisher.addObserver(hear)
    yield lines
    globalLogPublisher.removeObserver(hear)


def test_a_call_carries_values_and_its_answer(open_shop: Open) -> None:
    """Also what is given by name, and defaults."""
    disk = Disk(0, "/a")
    assert open_shop.pair.do(open_shop.remote.echo(disk, times=2)) == (disk, disk)
    assert open_shop.pair.do(open_shop.remote.echo(disk)) == (disk,)


def test_both_ends_call_each_other() -> None:
    """Each serves something of its own."""
    left, right = RealShop(), RealShop()
    one, other, pair = joined(TERMS, {"": (Shop, left)}, {"": (Shop, right)}, Clock())
    pair.do(cast("Shop", served(Shop, one.asking)).echo(Disk(1, "")))
    served(Shop, one.asking).note("to the right")
    served(Shop, other.asking).note("to the left")
    pair.turn()
    assert (left.notes, right.notes) == (["to the left"], ["to the right"])


def test_answers_come_in_any_order(open_shop: Open) -> None:
    """Who waits holds nobody up."""
    slow = open_shop.pair.start(open_shop.remote.wait())
    assert open_shop.pair.do(open_shop.remote.echo(Disk(0, ""))) == (Disk(0, ""),)
    open_shop.shop.waiting.callback("at last")
    assert open_shop.pair.outcome(slow) == "at last"


def test_errors_that_both_know_arrive_as_they_are(open_shop: Open, said: list[str]) -> None:
    """Others are faults of the other end's program, which logs them."""
    with pytest.raises(Refusal, match="no") as caught:
        open_shop.pair.do(open_shop.remote.refuse(7))
    assert caught.value.number == 7 and said == []
    with pytest.raises(Broken, match="KeyError: 'a fault'"):
        open_shop.pair.do(open_shop.remote.stumble())
    assert said == ["{method} failed"]
    assert open_shop.pair.do(open_shop.remote.echo(Disk(0, ""))), "the connection lives"


def test_a_cancel_reaches_the_other_end_and_is_told_when_it_has_ended(open_shop: Open) -> None:
    """As it is without a connection."""
    waiting = open_shop.pair.start(open_shop.remote.wait())
    ended: list[Any] = []
    waiting.addErrback(lambda failure: failure.trap(CancelledError)).addCallback(ended.append)
    open_shop.pair.turn()
    waiting.cancel()
    assert open_shop.shop.cancelled == 0 and ended == [], "it has not arrived yet"
    open_shop.pair.turn()
    assert open_shop.shop.cancelled == 1 and ended == [CancelledError]


def test_objects_stay_where_they_are_and_are_released_when_nobody_uses_them(open_shop: Open) -> None:
    """Those of the other end are told with the next beat."""
    assert open_shop.pair.do(open_shop.remote.counter.add(2)) == 2 == open_shop.shop.counter.count
    counter = open_shop.pair.do(open_shop.remote.open())
    assert [open_shop.pair.do(counter.add(3)), open_shop.pair.do(counter.add(4))] == [3, 7]
    assert len(open_shop.server.objects) == 1
    del counter
    gc.collect()
    open_shop.pair.advance(6)
    assert len(open_shop.server.objects) == 0


def test_a_function_and_an_iterator_may_be_given(open_shop: Open) -> None:
    """They are called and read where they are."""
    heard: list[float] = []
    open_shop.pair.do(open_shop.remote.call_back(heard.append))
    assert heard == [0.5, 1.0]

    async def numbers() -> AsyncIterator[int]:
        for number in range(1000):
            yield number

    assert open_shop.pair.do(open_shop.remote.total(numbers())) == 499_500
    gc.collect()
    open_shop.pair.advance(6)
    assert len(open_shop.client.objects) == 0


def test_a_stream_comes_whole_and_in_order(open_shop: Open) -> None:
    """Many small items are no exception."""

    async def read() -> list[int]:
        return [number async for number in open_shop.remote.numbers(20_000)]

    assert open_shop.pair.do(read()) == list(range(20_000))


def test_who_reads_slowly_stops_its_own_stream_and_nothing_else(open_shop: Open) -> None:
    """What is under way for it is bounded, by the credit it gave."""
    stream = open_shop.remote.output(10_000)
    open_shop.pair.do(stream.__anext__())
    stopped = open_shop.shop.yielded
    assert WINDOW <= stopped <= WINDOW + 20_000
    open_shop.pair.turn()
    assert open_shop.shop.yielded == stopped
    assert open_shop.pair.do(open_shop.remote.big(1 << 20)) == bytes(1 << 20)
    for _ in range(20):
        open_shop.pair.do(stream.__anext__())
    assert stopped < open_shop.shop.yielded <= stopped + WINDOW


def test_who_reads_no_more_ends_the_stream_at_the_other_end(open_shop: Open) -> None:
    """By leaving the loop, and by being cancelled in it."""

    async def some() -> None:
        async with aclosing(cast("Any", open_shop.remote.output(FULL))) as stream:
            async for _ in stream:
                return

    open_shop.pair.do(some())
    open_shop.pair.turn()
    assert open_shop.shop.closed == 1

    async def follow() -> None:
        async for _ in open_shop.remote.output(10):
            await Deferred[None]()

    reading = open_shop.pair.start(follow())
    reading.addErrback(lambda failure: failure.trap(CancelledError))
    open_shop.pair.turn()
    reading.cancel()
    gc.collect()
    open_shop.pair.turn()
    assert open_shop.shop.closed == 2


def test_a_long_answer_comes_in_parts_between_which_others_come(open_shop: Open) -> None:
    """And only as fast as the other end reads."""
    order: list[str] = []

    async def read() -> None:
        assert await open_shop.remote.big(8 << 20) == bytes(8 << 20)
        order.append("long")

    open_shop.pair.start(read())
    open_shop.pair.halves[0].arrive()
    assert open_shop.pair.halves[1].size <= 2 * FULL + 1000, "all of it is not in memory twice"
    short = open_shop.pair.start(open_shop.remote.echo(Disk(0, "")))
    short.addCallback(lambda _: order.append("short"))
    open_shop.pair.turn()
    assert order == ["short", "long"]


def test_what_is_longer_than_an_answer_may_be_fails_alone(open_shop: Open, said: list[str]) -> None:
    """So does a call with arguments that are too long; the connection goes on."""
    with pytest.raises(Broken, match="too long"):
        open_shop.pair.do(open_shop.remote.big(frames.VALUE))
    with pytest.raises(ValueError, match="longer than a frame"):
        open_shop.pair.do(open_shop.remote.echo(Disk(0, "x" * FRAME)))
    assert open_shop.pair.do(open_shop.remote.echo(Disk(0, "")))


def test_a_lost_connection_fails_what_waits_and_cancels_what_runs(open_shop: Open) -> None:
    """Nothing can be asked afterwards."""
    lost: list[Lost] = []
    open_shop.client.on_lost = lost.append
    waiting = open_shop.pair.start(open_shop.remote.wait())
    stream = open_shop.remote.output(10)
    open_shop.pair.do(stream.__anext__())
    open_shop.pair.cut()
    assert len(lost) == 1 and open_shop.shop.cancelled == 1 and open_shop.shop.closed == 1
    with pytest.raises(Lost):
        open_shop.pair.outcome(waiting)
    with pytest.raises(Lost):
        open_shop.pair.do(open_shop.remote.echo(Disk(0, "")))

    async def rest() -> None:
        async for _ in stream:
            pass

    with pytest.raises(Lost):
        open_shop.pair.do(rest())


def test_an_end_that_is_silent_is_lost_and_one_that_has_nothing_to_say_is_not(open_shop: Open) -> None:
    """Each tells that it lives."""
    lost: list[Lost] = []
    open_shop.client.on_lost = lost.append
    open_shop.pair.advance(10 * SILENT)
    assert lost == []
    open_shop.pair.halves[0].reads = False  # as if nothing more came from there
    open_shop.pair.advance(SILENT + 5)
    assert "silent for" in str(lost[0])


def test_ends_that_differ_say_how() -> None:
    """Both hear it."""
    clock = Clock()
    old, new = Connection(Terms("shop", 1), clock), Connection(Terms("shop", 2), clock)
    pair = Pair(old, new, clock)
    pair.turn()
    for each in (old, new):
        with pytest.raises(Mismatch, match="version of the service"):
            pair.outcome(cast("Deferred[Any]", each.ready))
    assert all(half.ended for half in pair.halves)


HELLO = encode(Hello(frames.WIRE, frames.VERSION, "shop", 1))


class Mute:
    """A peer that the test speaks for."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.shop = RealShop()
        self.end = Connection(TERMS, self.clock, {"": (interface_of(Shop), self.shop)})
        self.half = Half(self.end)
        self.end.ready.addErrback(lambda failure: failure.trap(Lost))
        self.end.makeConnection(self.half)  # type: ignore[no-untyped-call]

    def say(self, data: bytes) -> None:
        self.end.dataReceived(data)
        while self.end._more is not None and self.end._more.active():
            self.clock.advance(0)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\1\xc1",
        b"\0\0\0\1\x93",
        encode(frames.Beat()),
        encode(Hello("another", 1, "shop", 1)),
        b"\x7f\xff\xff\xff",
        HELLO + b"\0\5\0\0",
        HELLO + b"\0\0\x40\0" + b"\x91" * 0x4000,
        HELLO + encode(Item(7, b"")),
        HELLO + encode(frames.Answer(1, b"\xc0")),
        HELLO + encode(Call(1, "", "wait", b"\x90")) * 2,
    ],
)
def test_bytes_that_may_not_come_end_the_connection_with_one_line(data: bytes, said: list[str]) -> None:
    """Before and after the greeting."""
    peer = Mute()
    peer.say(data)
    assert isinstance(peer.half.ending, Exception) and said == ["connection to {peer} ended: {why}"]


@settings(max_examples=300)
@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_do_harm(data: bytes, greeted: bool) -> None:
    """Whatever comes, nothing is raised into the reactor, and little is kept."""
    peer = Mute()
    peer.say((HELLO if greeted else b"") + data)
    assert len(peer.end._reading) <= len(data)


def test_a_flood_of_calls_is_taken_in_turns() -> None:
    """What is behind waits in the socket."""
    peer = Mute()
    flood = HELLO + encode(Call(0, "", "note", b"\x91\xa1x")) * 1000
    peer.end.dataReceived(flood)
    assert len(peer.shop.notes) < TURN and not peer.half.reads
    peer.say(b"")
    assert len(peer.shop.notes) == 1000 and peer.half.reads


def test_who_does_not_read_its_answers_is_dropped(said: list[str]) -> None:
    """After what may wait for it."""
    peer = Mute()
    peer.say(HELLO)
    number = 0
    while peer.half.ending is None:
        number += 1
        peer.say(encode(Call(number, "", "echo", _echo("x" * 60_000))))
    assert number * 60_000 > UNSENT and said == ["connection to {peer} ended: {why}"]


def _echo(path: str) -> bytes:
    method = interface_of(Shop).methods["echo"]
    return method.write_arguments((Disk(0, path),), {}, lambda interface, target: 0)


def test_what_cannot_be_carried_is_refused_before_anything_is_called() -> None:
    """A call that is not awaited has no answer to wait for."""

    class Bad(Protocol):
        def now(self) -> int: ...

    with pytest.raises(TypeError, match="neither asynchronous"):
        interface_of(Bad)


def test_the_greeting_tells_what_is_served(open_shop: Open) -> None:
    """So that an end knows what the other can do."""
    assert open_shop.client.peer is not None
    assert {"Shop.echo", "Counter.add"} <= open_shop.client.peer.capabilities
