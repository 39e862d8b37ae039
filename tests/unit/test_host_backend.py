"""An emulated host's console and screen on the reactor's thread; the rest of it is tested through the API."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from hypervisor.api import Area, Code, Damage, HostError
from hypervisor.host import Host
from hypervisor.split.console import HISTORY, TYPED_MOST, Console
from hypervisor.split.keyboard import BUTTON_LEFT
from tests.machines import machine
from tests.unit import display_front
from xapi.host import console
from xapi.host.console import ConsoleStream
from xapi.host.screen import ScreenView
from xapi.host.threads import Threads


@pytest.fixture
def guest() -> Iterator[Guest]:
    with machine(1 << 24) as host:
        yield Guest(host)


class Guest:
    """A domain whose end of the console's ring the test has; it runs when the test says so."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.domain = host.create([(0, 1 << 20)])
        self.domain.place_shared_info(1)
        self.port = self.domain.events.alloc_unbound(0)
        self.console = Console(self.domain, 2, self.port)
        self.page = self.domain.memory.frame(2)
        self.laters: list[Callable[[], None]] = []
        self.stream = ConsoleStream(self.console, threads(self.laters))

    def says(self, data: bytes) -> None:
        """Write, at most 2,048 bytes."""
        consumed, produced = struct.unpack_from("<II", self.page, 3080)
        assert consumed == produced
        for number, byte in enumerate(data):
            self.page[1024 + (produced + number & 2047)] = byte
        struct.pack_into("<I", self.page, 3084, produced + len(data))
        self.domain.events.send(self.port)

    def reads(self) -> bytes:
        """Take what there is."""
        self.domain.events.drain()
        consumed, produced = struct.unpack_from("<II", self.page, 3072)
        data = bytes(self.page[at & 1023] for at in range(consumed, produced))
        struct.pack_into("<I", self.page, 3072, produced)
        self.domain.events.send(self.port)
        return data


def threads(laters: list[Callable[[], None]]) -> Threads:
    """One thread: what crosses comes at once, what is for later is kept."""

    def never(*_: Any) -> Any:
        raise AssertionError("a console needs no thread")

    return Threads(
        never, lambda function, *arguments: function(*arguments), lambda _, function: laters.append(function)
    )


def follow(stream: ConsoleStream, seen: list[bytes], slow: list[Deferred[None]]) -> Deferred[None]:
    async def run() -> None:
        async for data in stream.follow():
            seen.append(data)
            if slow:
                await slow.pop()

    return Deferred.fromCoroutine(run())


def test_output_is_followed_as_it_comes(guest: Guest) -> None:
    """What came before at first, then each piece once, in order, until the reader goes."""
    seen: list[bytes] = []
    guest.says(b"before")
    reading = follow(guest.stream, seen, [])
    for piece in (b"a", b"b", b"c"):
        guest.says(piece)
    assert seen == [b"before", b"a", b"b", b"c"]
    reading.addErrback(lambda _: None)
    reading.cancel()
    guest.says(b"d")
    assert seen[4:] == [] and not guest.stream._waiting


def test_a_slow_reader_misses_the_oldest_output(guest: Guest) -> None:
    """What is kept for it is what is kept for all; it comes in one piece."""
    seen: list[bytes] = []
    gate: Deferred[None] = Deferred()
    follow(guest.stream, seen, [gate])
    guest.says(b"first")
    for number in range(HISTORY // 1024 + 3):
        guest.says(bytes([number]) * 1024)
    gate.callback(None)
    assert seen[0] == b"first" and len(seen) == 2
    assert seen[1] == b"".join(bytes([number]) * 1024 for number in range(3, HISTORY // 1024 + 3))


def test_the_end_of_the_domain_ends_following_and_typing(guest: Guest) -> None:
    """With all that the guest has written, for who is in the middle of it too; later nothing is taken."""
    seen: list[bytes] = []
    slow: list[bytes] = []
    gate: Deferred[None] = Deferred()
    ends = [follow(guest.stream, seen, []), follow(guest.stream, slow, [gate])]
    guest.says(b"a")
    guest.says(b"b")
    assert result(guest.stream.write(b"x" * (TYPED_MOST + 1))) == TYPED_MOST
    waiting = Deferred.fromCoroutine(guest.stream.write(b"y"))
    guest.host.destroy(guest.domain)
    gate.callback(None)
    assert [each.called for each in ends] == [True, True] and waiting.result == 0
    assert seen == [b"a", b"b"] and b"".join(slow) == b"ab"
    assert result(guest.stream.write(b"x")) == 0 == guest.console.write(b"x")
    late: list[bytes] = []
    assert follow(guest.stream, late, []).called and late == [b"ab"]


def test_who_was_refused_hears_of_room(guest: Guest) -> None:
    """And what was taken reaches the guest, whole and in order."""
    typed = bytes(range(256)) * (TYPED_MOST // 256 + 8)
    taken: int = result(guest.stream.write(typed))
    rest = Deferred.fromCoroutine(guest.stream.write(typed[taken:]))
    assert (taken, rest.called) == (TYPED_MOST, False)
    heard = guest.reads()
    assert len(heard) == 1024 and rest.called and rest.result == 1024
    taken += rest.result
    while more := guest.reads():
        heard += more
    taken += result(guest.stream.write(typed[taken:]))
    while more := guest.reads():
        heard += more
    assert taken == len(typed) and heard == typed


def test_who_waits_for_room_and_goes_has_typed_nothing(guest: Guest) -> None:
    """Those who wait beside it have."""
    result(guest.stream.write(bytes(TYPED_MOST)))
    gone, stays = (Deferred.fromCoroutine(guest.stream.write(typed)) for typed in (b"gone", b"stays"))
    gone.addErrback(lambda failure: failure.type)
    gone.cancel()
    heard = b""
    while more := guest.reads():
        heard += more
    assert gone.result is CancelledError and stays.result == 5 and heard == bytes(TYPED_MOST) + b"stays"


def test_thousands_of_followers_hear_in_turns_that_are_short(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each turn has so many as there is time for; what comes meanwhile is one piece for who has not woken yet."""
    now = itertools.count()
    monkeypatch.setattr(console, "monotonic", lambda: next(now) * console.TURN / 10)
    seen: list[list[bytes]] = [[] for _ in range(3000)]
    for each in seen:
        follow(guest.stream, each, [])
    guest.says(b"a")
    assert 0 < sum(map(bool, seen)) <= 10
    guest.says(b"b")
    turns = 0
    while guest.laters:
        guest.laters.pop()()
        turns += 1
    assert {b"".join(each) for each in seen} == {b"ab"} and turns > 250
    assert sum(len(each) == 1 for each in seen) > 2900


# The screen


def at_once() -> Threads:
    """Threads that are the test's own."""

    def run(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        async def call() -> Any:
            return function(*arguments)

        return Deferred.fromCoroutine(call())

    return Threads(run, lambda function, *arguments: function(*arguments), run)


def result(coroutine: Any) -> Any:
    found: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(found.append)
    return found[0]


def test_a_screen_is_followed_and_looked_at() -> None:
    """From before there is a front until it has gone; what changes while nobody waits comes at once."""
    front, seen, gate = display_front.Screen(), list[Damage](), Deferred[None]()
    view = ScreenView(front.device, display_front.Keys().device, at_once())
    slow = [gate]

    async def run() -> None:
        async for damage in view.follow():
            seen.append(damage)
            if slow:
                await slow.pop()

    reading = Deferred.fromCoroutine(run())
    assert seen == []
    front.connect()
    assert seen == [Damage(40, 30, (Area(0, 0, 40, 30),))]
    front.draw(4 * 41, b"wxyz")
    front.update(1, 1, 2, 1)
    front.update(10, 10, 1, 1)
    gate.callback(None)
    assert seen[1:] == [Damage(40, 30, (Area(1, 1, 2, 1), Area(10, 10, 1, 1)))]
    assert result(view.pixels(Area(1, 1, 1, 1))) == b"wxyz"
    front.write("state", 6)
    assert seen[2:] == [Damage(0, 0, ())]
    refused = result(view.pixels(Area(1, 1, 1, 1)))
    assert refused.check(HostError) and refused.value.code is Code.OFF_SCREEN
    reading.addErrback(lambda _: None)
    reading.cancel()
    front.connect()
    assert len(seen) == 3


def test_keys_and_pointer_reach_the_front() -> None:
    """Places are those of the screen as the guest has made it."""
    screen, keys = display_front.Screen().connect(), display_front.Keys()
    view = ScreenView(screen.device, keys.device, at_once())
    assert not result(view.key(30, True))
    keys.connect(request_abs_pointer=1)
    assert result(view.key(BUTTON_LEFT, True)) and result(view.point(39, 29, wheel=1))
    assert keys.take() == [(3, 1, BUTTON_LEFT), (4, 799, 599, -1)]
    assert result(view.key(0x300, True)).value.code is Code.NO_KEY


@pytest.mark.parametrize("how", ["domain", "forced"])
def test_a_screen_that_is_taken_away_is_followed_no_more(how: str) -> None:
    """With its domain, or before; who comes later is told at once, and keys and pixels are refused."""
    screen, keys, seen = display_front.Screen().connect(), display_front.Keys().connect(), list[Damage]()
    view = ScreenView(screen.device, keys.device, at_once())

    async def run() -> None:
        async for damage in view.follow():
            seen.append(damage)

    reading = Deferred.fromCoroutine(run())
    assert (len(seen), reading.called) == (1, False)
    for front in (screen, keys):
        if how == "domain":
            front.host.destroy(front.domain)
        else:
            front.backend.remove()
    assert reading.called and seen[1] == Damage(0, 0, ())
    assert Deferred.fromCoroutine(run()).called
    assert not result(view.key(30, True)) and not result(view.point(1, 1))
    assert result(view.pixels(Area(0, 0, 1, 1))).value.code is Code.OFF_SCREEN
