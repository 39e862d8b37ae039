"""The load client, a process of its own: ``python -m tests.benchmarks.load KIND`` with settings as JSON on stdin.

Plain sockets and epoll, requests built beforehand: it costs some 10 µs of CPU a call, less than any server here.
"""

from __future__ import annotations

import json
import select
import socket
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

from tests.benchmarks.wire import COUNTER, Connection, answer_size


class _Caller:
    """One connection that sends its request again as soon as the answer is there."""

    def __init__(self, port: int, request: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.head, self.counter, self.tail = request.rpartition(COUNTER) if COUNTER in request else (request, b"", b"")
        self.sent = 0.0
        self.got = bytearray()

    def send(self, number: int) -> None:
        self.sent = perf_counter()
        self.socket.send(b"%b%08d%b" % (self.head, number, self.tail) if self.counter else self.head)

    def received(self, expected: int) -> bool:
        """Read what is there; tell whether the answer is whole. `expected` is a size that is probable."""
        data = self.socket.recv(262144)
        if not data:
            raise ConnectionError("the server closed a connection")
        if len(data) == expected and not self.got:
            return True
        self.got += data
        size = answer_size(self.got)
        if not size or len(self.got) < size:
            return False
        if b"Failure" in self.got:
            raise RuntimeError(bytes(self.got[-400:]).decode())
        self.got.clear()
        return True


def calls(port: int, requests: list[str], connections: int, seconds: float) -> dict[str, Any]:
    """Send small requests over some connections for some seconds; each waits for its answer.

    Answers that are as long as the first of their kind are not looked into.
    """
    callers = [_Caller(port, requests[n % len(requests)].encode("latin-1")) for n in range(connections)]
    first = callers[0]
    first.send(99999999)
    while not first.received(0):
        pass
    poller = select.epoll()
    by_number = {caller.socket.fileno(): caller for caller in callers}
    for number in by_number:
        poller.register(number, select.EPOLLIN)
    latencies: list[float] = []
    expected, count = 0, 0
    begun = perf_counter()
    end = begun + seconds
    for caller in callers:
        count += 1
        caller.send(count)
    while by_number:
        for number, _ in poller.poll():
            caller = by_number[number]
            if not caller.received(expected):
                continue
            now = perf_counter()
            latencies.append(now - caller.sent)
            if now < end:
                count += 1
                caller.send(count)
            else:
                del by_number[number]
    return {"count": len(latencies), "seconds": perf_counter() - begun, "latencies": latencies}


def read(port: int, request: str, seconds: float, most: int = 1_000_000) -> dict[str, Any]:
    """Read one big answer again and again; return its size and what each took."""
    connection = Connection(port)
    data = request.encode("latin-1")
    taken: list[float] = []
    size = 0
    end = perf_counter() + seconds
    while not taken or (perf_counter() < end and len(taken) < most):
        begun = perf_counter()
        size = connection.drain(data)
        taken.append(perf_counter() - begun)
    return {"size": size, "taken": taken}


def listen(port: int, change: str, token: str, wait: str, listeners: int, rounds: int) -> dict[str, Any]:
    """Let many clients wait for events, make one change, and note when each has the whole answer.

    `wait` is the request of event.from with TOKEN where the token goes, of which `token` is the first.
    """
    changer = _Caller(port, change.encode("latin-1"))
    crowd = [_Caller(port, b"") for _ in range(listeners)]
    poller = select.epoll()
    by_number = {caller.socket.fileno(): caller for caller in crowd}
    for number in by_number:
        poller.register(number, select.EPOLLIN)
    found = []
    for turn in range(rounds):
        request = wait.replace("TOKEN", token).encode("latin-1")
        for caller in crowd:
            caller.socket.send(request)
        # All wait when one that came after them has been answered, in some later turn.
        select.select([], [], [], 0.5)
        delays: list[float] = []
        token, size = "", 0
        changer.send(turn)
        begun = perf_counter()
        while len(delays) < listeners:
            events = poller.poll(20)
            if not events:
                raise TimeoutError(f"{listeners - len(delays)} listeners heard nothing")
            for number, _ in events:
                caller = by_number[number]
                caller.got += caller.socket.recv(262144)
                size = answer_size(caller.got)
                if size and len(caller.got) >= size:
                    delays.append(perf_counter() - begun)
                    token = token or _token(bytes(caller.got))
                    caller.got.clear()
        while not changer.received(0):
            pass
        found.append({"delays": delays, "size": size})
    return {"rounds": found}


def _token(answer: bytes) -> str:
    if b"<name>operation</name><value>mod<" not in answer:
        raise RuntimeError(f"no event: {answer[-300:]!r}")
    return answer.partition(b"<name>token</name><value>")[2].partition(b"<")[0].decode()


KINDS: dict[str, Callable[..., dict[str, Any]]] = {"calls": calls, "read": read, "listen": listen}

if __name__ == "__main__":
    json.dump(KINDS[sys.argv[1]](**json.load(sys.stdin)), sys.stdout)
