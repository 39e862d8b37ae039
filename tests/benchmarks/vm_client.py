"""A client of VM messages, a process of its own: ``python -m tests.benchmarks.vm_client``, its work as JSON on stdin.

Some connections, kept alive, take one call after the other from one list; each waits for its answer.
"""

from __future__ import annotations

import json
import sys
import threading
from time import perf_counter
from typing import Any

from tests.benchmarks.wire import Connection


def work(port: int, clients: int, calls: list[list[Any]]) -> dict[str, Any]:
    """Do calls, each a method and its parameters; return the seconds of all, and of each in order, and the values."""
    connections = [Connection(port) for _ in range(clients)]
    waiting = iter(enumerate(calls))
    lock = threading.Lock()
    taken: list[float] = [0.0] * len(calls)
    values: list[Any] = [None] * len(calls)
    failures: list[str] = []

    def client(connection: Connection) -> None:
        while not failures:
            with lock:
                number, call = next(waiting, (-1, None))
            if call is None:
                return
            begun = perf_counter()
            try:
                values[number] = connection.call(*call)
            except Exception as error:
                failures.append(f"{call[0]}: {error}")
            taken[number] = perf_counter() - begun

    threads = [threading.Thread(target=client, args=(connection,)) for connection in connections]
    begun = perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = perf_counter() - begun
    if failures:
        raise RuntimeError(failures[0])
    return {"seconds": seconds, "taken": taken, "values": values}


if __name__ == "__main__":
    json.dump(work(**json.load(sys.stdin)), sys.stdout)
