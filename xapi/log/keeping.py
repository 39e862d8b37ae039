"""The log and the audit trail of one daemon: opened when it is made, closed when it has ended."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from xapi.log import audit, output
from xapi.log.audit import Trail
from xapi.log.calls import Calls
from xapi.log.files import LogError, Nowhere
from xapi.log.lines import DEBUG
from xapi.log.output import Log

if TYPE_CHECKING:
    from xapi.store.memory import Store


class Keeping:
    """Where a daemon's calls are told: the process's log, if it has one, and the trail's file. Raises LogError."""

    def __init__(self, store: Store, seconds: Callable[[], float], trail: Path) -> None:
        started = output.current()
        log = started or Log("critical", "text", Nowhere(), seconds)
        self._own = log if started is None else None
        self._writer = log.writer
        try:
            self._stream = audit.stream(trail)
        except OSError as error:
            raise LogError(f"{trail}: {error.strerror}") from error
        self._writer.add(self._stream)
        kept = Trail(store, seconds, partial(self._writer.put, self._stream))
        self.calls = Calls(store, seconds, log.put, every=log.level <= DEBUG, trail=kept)

    def close(self) -> None:
        """Write what is queued, and close the trail's file."""
        if self._own is not None:
            self._own.close()
        else:
            self._writer.remove(self._stream)
