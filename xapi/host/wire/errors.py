"""Errors that go over a connection as what they are, and those of the connection itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, get_type_hints

import msgspec
from twisted.internet.defer import CancelledError

from xapi.host.wire.frames import Failed

CANCELLED = "cancelled"
BROKEN = ""


class Lost(Exception):
    """The connection is lost, or there is none; what was asked may have been done."""


class Mismatch(Lost):
    """Both ends do not speak the same."""


class Violation(Exception):
    """The other end does what it may not; nothing more is taken from it."""


class Broken(Exception):
    """The other end could not do it for a reason that is a fault of its program; its log says more."""


class Errors:
    """Kinds of errors that both ends know, told by what their constructors take.

    The attribute of that name is sent, or the error's text where there is none. `lost` and `late` make what callers
    are to see of a connection that is lost, and of an answer that does not come.
    """

    def __init__(
        self,
        kinds: Iterable[type[Exception]] = (),
        lost: Callable[[Lost], Exception] = lambda lost: lost,
        late: Callable[[str], Exception] = TimeoutError,
    ) -> None:
        self._kinds = {kind.__name__: (kind, *_constructor(kind)) for kind in kinds}
        self.lost = lost
        self.late = late

    def failed(self, number: int, error: BaseException) -> Failed | None:
        """Return what is said of an error, None for one that is a fault of the program."""
        if isinstance(error, CancelledError):
            return Failed(number, CANCELLED, b"")
        for base in type(error).__mro__:
            if base.__name__ in self._kinds:
                names = self._kinds[base.__name__][1]
                values = [getattr(error, name, str(error)) for name in names]
                return Failed(number, base.__name__, msgspec.msgpack.encode(values))
        return None

    def error(self, failed: Failed) -> Exception:
        """Return the error that the other end has told of. Raises msgspec.MsgspecError."""
        if failed.kind == CANCELLED:
            return CancelledError()
        if failed.kind in self._kinds:
            kind, _, values = self._kinds[failed.kind]
            return kind(*values.decode(failed.data))
        return Broken(failed.data.decode("utf-8", "replace"))


def _constructor(kind: type[Exception]) -> tuple[list[str], msgspec.msgpack.Decoder[Any]]:
    hints: dict[str, object] = get_type_hints(kind.__init__)
    names = list(inspect.signature(kind).parameters)
    types = tuple(hints[name] for name in names)
    return names, msgspec.msgpack.Decoder(tuple[types])  # type: ignore[valid-type]
