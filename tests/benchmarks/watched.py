"""Run the daemon with a reactor whose turns are timed: ``python -m tests.benchmarks.watched FILE ARGUMENTS``.

A turn is the time between the return of epoll and the next call of it: as long as it lasts, nobody else is
served. SIGUSR1 writes to FILE what the turns were like since the last signal, and begins anew.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from time import perf_counter, thread_time
from typing import Any

LONG = 0.010


class WatchedPoller:
    """An epoll object that notes how long its caller stays away."""

    def __init__(self, poller: Any) -> None:
        self._poller = poller
        self._wall, self._cpu = perf_counter(), thread_time()
        self._ready = 0  # sockets that this turn serves
        self.reset()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poller, name)

    def reset(self) -> None:
        """Forget all turns so far."""
        self.count = self.long = 0
        self.longest = self.longest_cpu = 0.0
        self.ready = 0

    def poll(self, *arguments: Any) -> Any:
        """End one turn, wait, begin the next."""
        wall = perf_counter() - self._wall
        self.count += 1
        if wall > self.longest:
            self.longest, self.ready = wall, self._ready
        if wall > 0.001:
            self.longest_cpu = max(self.longest_cpu, thread_time() - self._cpu)
            self.long += wall > LONG
        events = self._poller.poll(*arguments)
        self._ready = 0
        self._wall, self._cpu = perf_counter(), thread_time()
        return self._counted(events)

    def _counted(self, events: Any) -> Any:
        for event in events:
            self._ready += 1
            yield event


def main() -> int:
    """Install the watch and run the daemon."""
    from xapi.process.reactor import install

    install()
    from twisted.internet import reactor

    from xapi.__main__ import main as run_daemon

    watch: Any = WatchedPoller(reactor._poller)  # type: ignore[attr-defined]
    reactor._poller = watch  # type: ignore[attr-defined]
    path = sys.argv[1]

    def report(number: int, frame: object) -> None:
        found = {
            "count": watch.count,
            "long": watch.long,
            "longest": watch.longest,
            "longest_cpu": watch.longest_cpu,
            "ready": watch.ready,
        }
        watch.reset()
        with open(path + ".new", "w", encoding="ascii") as file:
            json.dump(found, file)
        os.replace(path + ".new", path)

    signal.signal(signal.SIGUSR1, report)
    return run_daemon(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
