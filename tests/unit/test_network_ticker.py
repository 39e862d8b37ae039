"""The thread that ticks networks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface

from hypervisor.network.endpoint import Endpoint
from hypervisor.network.frame import Frame
from hypervisor.network.port import Port
from hypervisor.network.ratelimit import TokenBucket
from hypervisor.network.switch import Switch
from hypervisor.network.ticker import Ticker

SECONDS = 20


class Part:
    """Something with a deadline."""

    def __init__(self, due: int | None = None) -> None:
        self.due = due
        self.ticks: list[int] = []
        self.ticked = threading.Event()
        self.alarm: Callable[[], None] = lambda: None

    def tick(self, now: int) -> None:
        self.ticks.append(now)
        self.due = None
        self.ticked.set()

    def next_deadline(self) -> int | None:
        return self.due


def test_parts_are_ticked_when_they_are_due() -> None:
    """Not before, and those without a deadline not at all."""
    now = [0]
    ticker = Ticker(threading.RLock(), lambda: now[0])
    soon, late, never = Part(2_000_000_000), Part(5_000_000_000), Part()
    for part in (soon, late, never):
        ticker.add(part)
    assert ticker.tick() == 2.0
    now[0] = 3_000_000_000
    assert ticker.tick() == 2.0
    assert (soon.ticks, late.ticks, never.ticks) == ([now[0]], [], [])
    ticker.remove(late)
    now[0] = 9_000_000_000
    assert ticker.tick() is None and late.ticks == []


def test_an_alarm_wakes_the_thread() -> None:
    """It sleeps while nothing is under way, however long, and is not needed by parts that were removed."""
    ticker, part, gone = Ticker(threading.RLock(), lambda: 1), Part(), Part()
    ticker.add(part)
    ticker.add(gone)
    ticker.remove(gone)
    ticker.start()
    part.due = gone.due = 1
    gone.alarm()
    part.alarm()
    assert part.ticked.wait(SECONDS) and not gone.ticked.is_set()
    ticker.stop()


def test_an_alarm_for_nothing_wakes_nobody() -> None:
    """Stations ring for each frame: the thread looks when there is a deadline, once for each."""
    looks: list[int] = []

    def now() -> int:
        looks.append(1)
        return 1

    ticker, part = Ticker(threading.RLock(), now), Part()
    ticker.add(part)
    ticker.start()
    for _ in range(3):
        for _ in range(1000):
            part.alarm()
        part.ticked.clear()
        part.due = 1
        part.alarm()
        assert part.ticked.wait(SECONDS)
    ticker.stop()
    assert len(part.ticks) == 3 and len(looks) < 20


def test_a_switch_and_a_station_call_for_it() -> None:
    """When a rate holds a frame back, and when somebody is waited for."""
    switch, calls = Switch(lambda: 0), []
    station = Endpoint(switch, lambda: 0, b"\x02\0\0\0\0\x01", IPv4Interface("10.0.0.1/24"))
    switch.alarm = lambda: calls.append("switch")
    station.alarm = lambda: calls.append("station")
    port = switch.attach(Port(lambda _: True, ready=lambda: None))
    port.limit_rate(TokenBucket(1))
    assert not port.send(Frame(bytes(6) + b"\x02\0\0\0\0\x07" + bytes(1000)))
    assert calls == ["switch"] and switch.next_deadline() is not None
    station.ping(IPv4Address("10.0.0.9"), lambda _: None)
    assert "station" in calls and station.next_deadline() is not None
