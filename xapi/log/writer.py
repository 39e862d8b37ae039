"""Format and write lines on a thread of its own; whoever has something to say only appends a tuple to a queue.

Appending takes 0.3 µs. The thread gathers for `GATHER` seconds, so that a busy daemon is not interrupted for each
line; what is an error is written at once. The queue is bounded, and a file system may be full: the daemon goes on,
and the log says how many lines it lacks as soon as it can. A daemon that is killed loses what was gathered.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from xapi.log.files import Sink
from xapi.log.lines import ERROR, WARN, Line, Render, Said

GATHER = 0.02
QUEUED = 10_000
"""Lines that may wait."""


class Stream:
    """Lines of one form for one sink, and how many of them got lost."""

    def __init__(self, name: str, form: Callable[[Line], bytes], sink: Sink) -> None:
        self.name = name
        self.sink = sink
        self.lost = 0
        self.why = ""
        self._form = form
        self._gathered: list[bytes] = []

    def gather(self, line: Line) -> None:
        """Format a line; what cannot be formatted is lost."""
        try:
            self._gathered.append(self._form(line))
        except Exception as error:
            self.lost, self.why = self.lost + 1, f"{type(error).__name__}: {error}"

    def write(self) -> bool:
        """Write what has gathered; tell whether it could be written."""
        gathered, self._gathered = self._gathered, []
        if not gathered:
            return True
        try:
            self.sink.write(b"".join(gathered))
        except OSError as error:
            self.lost, self.why = self.lost + len(gathered), error.strerror or str(error)
            return False
        return True


class Writer:
    """Write to streams, the first of which is the log. `seconds` tells the time of day."""

    def __init__(self, log: Stream, seconds: Callable[[], float]) -> None:
        self.log = log
        self._seconds = seconds
        self._queue: deque[tuple[Stream, Line] | threading.Event] = deque()
        self._overflow = 0
        self._streams = [log]
        self._news, self._now = threading.Event(), threading.Event()
        self._ends = False
        self._thread: threading.Thread | None = None

    def add(self, stream: Stream) -> None:
        """Write to one more stream."""
        self._streams.append(stream)

    def remove(self, stream: Stream) -> None:
        """Write what one more stream was given so far, and close it."""
        if self.flush() and stream in self._streams:
            self._streams.remove(stream)
            stream.sink.close()

    def put(self, stream: Stream, line: Line) -> None:
        """Let a line be written, from any thread."""
        if len(self._queue) >= QUEUED or self._ends:
            self._overflow += 1
            return
        self._queue.append((stream, line))
        if line[1] >= ERROR:
            self._now.set()
        if not self._news.is_set():
            self._wake()

    def _wake(self) -> None:
        self._news.set()
        if self._thread is None or not self._thread.is_alive():  # the first line, or the first after a fork
            self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
            self._thread.start()

    def forget(self) -> None:
        """Begin anew in a child process: its thread and what was queued stayed in the parent."""
        self._queue.clear()
        self._news, self._now = threading.Event(), threading.Event()
        self._thread = None

    def flush(self, seconds: float = 2.0) -> bool:
        """Wait until all is written that was put so far; tell whether it was in time."""
        written = threading.Event()
        self._queue.append(written)
        self._now.set()
        self._wake()
        return written.wait(seconds)

    def close(self) -> None:
        """Write what is queued, for a short time at most, and end."""
        self._ends = True
        if self.flush():
            for stream in self._streams:
                stream.sink.close()

    def _run(self) -> None:
        while not self._ends or self._queue:
            self._news.wait()
            self._now.wait(GATHER)
            self._news.clear()
            self._now.clear()
            self._write()

    def _write(self) -> None:
        """Write all that is queued."""
        waiting: list[threading.Event] = []
        while self._queue:
            item = self._queue.popleft()
            if isinstance(item, threading.Event):
                waiting.append(item)
            else:
                item[0].gather(item[1])
        for stream in reversed(self._streams):
            stream.write()
        self._tell_losses()
        for event in waiting:
            event.set()

    def _tell_losses(self) -> None:
        """Say what is missing, where that can be said."""
        if self._overflow:
            self._overflow, count = 0, self._overflow
            self._say(WARN, _overflowed, count)
        for stream in self._streams:
            if stream.lost:
                count, stream.lost = stream.lost, 0
                if not self._say(ERROR, _lost, stream.name, count, stream.why):
                    stream.lost += count

    def _say(self, level: int, render: Render, *values: object) -> bool:
        self.log.gather((self._seconds(), level, __name__, render, values))
        before = self.log.lost
        if self.log.write():
            return True
        self.log.lost = before  # this line itself is none that anybody misses
        return False


def _overflowed(count: int) -> Said:
    return f"{count:,} lines are missing here: more came than could be written", {"lost": count}


def _lost(name: str, count: int, why: str) -> Said:
    return f"{count:,} lines of {name} could not be written: {why}", {"lost": count, "file": name}
