"""What clients are told of errors that nobody foresaw, and what no client is told: where things lie on the host.

Paths of the host and addresses of the database are for the log. Where the host itself runs short the error is one
that clients know and may try again after.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from xapi.datamodel import errors
from xapi.datamodel.errors import Fault

_ADDRESS = re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.-]*)://[^\s'\"]*")
_PATH = re.compile(r"(?<![\w.:/])/(?:[^\s/'\":,;()\[\]]+/)+([^\s/'\":,;()\[\]]*)")


def unexpected(error: Exception) -> Fault:
    """Return the API's error for an exception that is none."""
    short = shortage(error)
    if short is not None:
        return short
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return errors.OUT_OF_SPACE(os.path.basename(str(error.filename or "")))
    return errors.INTERNAL_ERROR(f"{type(error).__name__}: {without_places(str(error))}")


def shortage(error: BaseException) -> Fault | None:
    """Return the API's error if the daemon lacked memory, file descriptors or threads, None for other reasons."""
    for cause in _causes(error):
        number = cause.errno if isinstance(cause, OSError) else None
        if number == errno.ENOMEM or isinstance(cause, MemoryError):
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            return errors.HOST_NOT_ENOUGH_FREE_MEMORY("unknown", str(free))
        no_thread = isinstance(cause, RuntimeError) and "can't start new thread" in str(cause)
        if no_thread or number in (errno.EMFILE, errno.ENFILE, errno.EAGAIN):
            return errors.TOO_BUSY()
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def without_places(text: str) -> str:
    """Return a text in which paths are their last part, and addresses their scheme."""
    return _PATH.sub(r"\1", _ADDRESS.sub(r"\1://", text))


class Veil:
    """Takes the paths of directories that are the host's own out of errors: what remains is relative to them."""

    def __init__(self, directories: Sequence[Path]) -> None:
        own = sorted({str(directory) for directory in directories if len(directory.parts) > 2}, key=len, reverse=True)
        self._own = re.compile("|".join(rf"{re.escape(each)}(?:/|(?![^\s'\":,;()\[\]]))" for each in own) or r"(?!)")

    def over(self, fault: Fault) -> list[str]:
        """Return an error's description as clients may see it."""
        code, *parameters = fault.description
        return [code, *(self._own.sub("", parameter) for parameter in parameters)]
