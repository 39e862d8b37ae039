"""Checks of passwords, which take 50 ms of a processor each: nobody's failures hold up another's login.

A few run at once in threads, so that one processor stays for the rest. Origins take turns, and within an origin the
newest goes first: who types a password meets at most one check that is under way, whatever a guesser has queued from
elsewhere. A password that fitted is known again without a check, by a digest with a key that ends with the process;
so a flood does not delay whoever has logged in before. A wrong one always takes the whole way: the time tells nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from xapi.access.passwords import verify_password

T = TypeVar("T")
REMEMBERED = 1024
"""Accounts whose password is known again."""


class InThread(Protocol):
    """Runs a slow function beside the reactor, and tells what it returned or raised."""

    def __call__(self, function: Callable[..., T], /, *args: object) -> Deferred[T]: ...


class Checks:
    """The checks that wait and those that run. `in_thread(function, *args)` runs a slow function."""

    def __init__(self, in_thread: InThread, at_once: int = 0) -> None:
        self._in_thread = in_thread
        self._free = at_once or max(1, (os.cpu_count() or 1) - 1)
        self._waiting: OrderedDict[str, list[_Check]] = OrderedDict()
        self._key = secrets.token_bytes(32)
        self._fitted: OrderedDict[str, bytes] = OrderedDict()

    def check(self, address: str, password: str, stored: str) -> Deferred[bool]:
        """Tell whether a password from an address fits a hash; who cancels is not checked any more."""
        if self._is_known(password, stored):
            return succeed(True)
        check = _Check(password, stored)
        self._waiting.setdefault(_origin(address), []).append(check)
        self._begin()
        return check.told

    def _begin(self) -> None:
        while self._free and self._waiting:
            origin, checks = self._waiting.popitem(last=False)
            check = checks.pop()
            if checks:
                self._waiting[origin] = checks  # behind all others
            if check.told.called:
                continue
            if self._is_known(check.password, check.stored):
                check.told.callback(True)
                continue
            self._free -= 1
            self._in_thread(verify_password, check.password, check.stored).addBoth(self._checked, check)

    def _checked(self, outcome: bool | Failure, check: _Check) -> None:
        self._free += 1
        if outcome is True:
            self._fitted[check.stored] = self._digest(check.password, check.stored)
            self._fitted.move_to_end(check.stored)
            while len(self._fitted) > REMEMBERED:
                self._fitted.popitem(last=False)
        if not check.told.called:
            check.told.callback(outcome)  # a Failure becomes an errback
        self._begin()

    def _is_known(self, password: str, stored: str) -> bool:
        digest = self._fitted.get(stored)
        return digest is not None and hmac.compare_digest(digest, self._digest(password, stored))

    def _digest(self, password: str, stored: str) -> bytes:
        return hmac.digest(self._key, f"{stored}\0{password}".encode(), hashlib.sha256)


class _Check:
    """One password, until it is told whether it fits."""

    __slots__ = ("password", "stored", "told")

    def __init__(self, password: str, stored: str) -> None:
        self.password = password
        self.stored = stored
        self.told: Deferred[bool] = Deferred()


def _origin(address: str) -> str:
    """Return what counts as one origin: an IPv4 address, or the 64 bits of IPv6 that one site has."""
    if ":" not in address:
        return address
    return str(IPv6Address(address.partition("%")[0]).packed[:8])
