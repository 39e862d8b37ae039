"""What a host in this process needs of the reactor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred


@dataclass(frozen=True, slots=True)
class Threads:
    """How to leave the reactor's thread, and how to come back; `later` is reactor.callLater."""

    run: Callable[..., Deferred[Any]]
    back: Callable[..., object]
    later: Callable[..., Any]
