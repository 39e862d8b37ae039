"""Whose password is checked when, and what is known without a check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from twisted.internet.defer import CancelledError, Deferred

from xapi.access.checks import Checks
from xapi.access.passwords import CHEAP, hash_password

STORED = hash_password("right", CHEAP)


T = TypeVar("T")


class Threads:
    """Threads that run what they were given when the test says so."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, Callable[[], None]]] = []

    def run(self, function: Callable[..., T], *args: object) -> Deferred[T]:
        waiting: Deferred[None] = Deferred()
        self.begun.append((str(args[0]), lambda: waiting.callback(None)))
        return waiting.addCallback(lambda _: function(*args))

    def finish(self) -> str:
        """End the oldest check that runs, and return which password it was."""
        password, end = self.begun.pop(0)
        end()
        return password


@pytest.fixture
def threads() -> Threads:
    return Threads()


@pytest.fixture
def checks(threads: Threads) -> Checks:
    return Checks(threads.run, at_once=1)


def told(check: Deferred[bool]) -> list[Any]:
    outcome: list[Any] = []
    check.addBoth(outcome.append)
    return outcome


def test_one_check_runs_at_a_time(checks: Checks, threads: Threads) -> None:
    """And tells whether the password fits."""
    wrong, right = told(checks.check("a", "wrong", STORED)), told(checks.check("a", "right", STORED))
    assert [password for password, _ in threads.begun] == ["wrong"]
    threads.finish()
    assert (wrong, right) == ([False], [])
    threads.finish()
    assert right == [True]


def test_origins_take_turns_and_the_newest_goes_first(checks: Checks, threads: Threads) -> None:
    """A guesser's queue is in the way of its own oldest guesses only."""
    for guess in range(5):
        checks.check("192.0.2.1", f"guess {guess}", STORED)
    checks.check("192.0.2.2", "mine", STORED)
    checks.check("192.0.2.3", "theirs", STORED)
    order = [threads.finish() for _ in range(7)]
    assert order == ["guess 0", "guess 4", "mine", "theirs", "guess 3", "guess 2", "guess 1"]


def test_a_network_of_ipv6_is_one_origin(checks: Checks, threads: Threads) -> None:
    """One site has 2**64 addresses to guess from."""
    for host in range(3):
        checks.check(f"2001:db8::{host}", f"guess {host}", STORED)
    checks.check("2001:db8:0:1::1", "mine", STORED)
    assert [threads.finish() for _ in range(4)] == ["guess 0", "guess 2", "mine", "guess 1"]


def test_a_password_that_fitted_is_known_again(checks: Checks, threads: Threads) -> None:
    """At once, also for those that wait; wrong ones are checked like any other."""
    first, wrong = told(checks.check("a", "right", STORED)), told(checks.check("a", "wrong", STORED))
    waiting = told(checks.check("a", "right", STORED))
    threads.finish()
    assert (first, waiting, wrong) == ([True], [True], [])
    assert [password for password, _ in threads.begun] == ["wrong"]
    assert told(checks.check("b", "right", STORED)) == [True]
    assert told(checks.check("b", "right ", STORED)) == []


def test_a_changed_password_is_known_no_more(checks: Checks, threads: Threads) -> None:
    """What is known is known of one hash."""
    checks.check("a", "right", STORED)
    threads.finish()
    assert told(checks.check("a", "right", hash_password("other", CHEAP))) == []


def test_who_is_gone_is_not_checked(checks: Checks, threads: Threads) -> None:
    """Whether the check waits or runs already; the next one begins all the same."""
    running, waiting, last = (checks.check("a", word, STORED) for word in ("one", "two", "right"))
    outcome = told(running), told(waiting), told(last)
    running.cancel()
    waiting.cancel()
    assert all(gone[0].check(CancelledError) for gone in outcome[:2])
    assert threads.finish() == "one"
    assert threads.finish() == "right"
    assert (outcome[2], threads.begun) == ([True], [])


def test_a_check_that_fails_is_told_and_the_next_begins(checks: Checks, threads: Threads) -> None:
    """A hash that cannot be computed is no wrong password."""
    broken, right = told(checks.check("a", "x", "scrypt$3$8$1$00$00")), told(checks.check("a", "right", STORED))
    threads.finish()
    assert broken[0].check(ValueError)
    threads.finish()
    assert right == [True]
