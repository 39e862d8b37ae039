"""What we compare with, each a process of its own: ``python -m tests.benchmarks.peers NAME [ARGUMENTS]``.

The servers print ``Ready: http://127.0.0.1:PORT/``, the others a JSON value.
"""

from __future__ import annotations

import json
import socket
import sqlite3
import sys
import xmlrpc.client
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any


def twisted_web(session: str, vm: str) -> None:
    """Serve VM.get_power_state the way Twisted offers: twisted.web.xmlrpc, with a session looked up.

    Without its access log, as the daemon keeps none: writing that takes it a sixth of a call.
    """
    from twisted.internet import reactor
    from twisted.web import server
    from twisted.web import xmlrpc as web_xmlrpc

    sessions, states = {session}, {vm: "Halted"}

    def get_power_state(given: str, ref: str) -> dict[str, Any]:
        if given not in sessions:
            return {"Status": "Failure", "ErrorDescription": ["SESSION_INVALID", given]}
        return {"Status": "Success", "Value": states[ref]}

    class Calls(web_xmlrpc.XMLRPC):
        def lookupProcedure(self, path: str) -> Callable[..., Any]:
            return {"VM.get_power_state": get_power_state}[path]

    class Quiet(server.Site):
        def log(self, request: Any) -> None:
            pass

    loop: Any = reactor
    site = Quiet(Calls())  # type: ignore[no-untyped-call]
    port = loop.listenTCP(0, site, interface="127.0.0.1", backlog=1000)
    print(f"Ready: http://127.0.0.1:{port.getHost().port}/", flush=True)
    loop.run()


def bare_send(size: str) -> None:
    """Answer whatever comes with the same big answer, by sendall of one buffer: what loopback can carry."""
    body = b"x" * int(size)
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body)
    answer += body
    listening = socket.create_server(("127.0.0.1", 0))
    print(f"Ready: http://127.0.0.1:{listening.getsockname()[1]}/", flush=True)
    while True:
        connection, _ = listening.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            while connection.recv(65536):
                connection.sendall(answer)


def dumps(path: str, rounds: str) -> None:
    """Write records that were read from the daemon, with Python's own XML-RPC; print the CPU seconds of each time."""
    answer = xmlrpc.client.loads(Path(path).read_bytes().decode())[0]
    taken = []
    for _ in range(int(rounds)):
        begun = process_time()
        xmlrpc.client.dumps(answer, methodresponse=True).encode()
        taken.append(process_time() - begun)
    print(json.dumps(taken))


def commits(path: str, seconds: str) -> None:
    """Change one field of one of 10,000 rows a transaction, WAL and synchronous=FULL; print how many a second."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS vm (ref TEXT PRIMARY KEY, name TEXT, rest TEXT) WITHOUT ROWID")
    rows = [(f"OpaqueRef:{number}", "", "x" * 3000) for number in range(10_000)]
    connection.executemany("INSERT OR REPLACE INTO vm VALUES (?, ?, ?)", [])
    connection.execute("BEGIN")
    connection.executemany("INSERT OR REPLACE INTO vm VALUES (?, ?, ?)", rows)
    connection.execute("COMMIT")
    count, begun = 0, perf_counter()
    end = begun + float(seconds)
    while perf_counter() < end:
        connection.execute("BEGIN")
        connection.execute("UPDATE vm SET name = ? WHERE ref = ?", (str(count), rows[count * 7919 % 10_000][0]))
        connection.execute("COMMIT")
        count += 1
    print(json.dumps(count / (perf_counter() - begun)))
    connection.close()


PEERS: dict[str, Callable[..., None]] = {
    "twisted_web": twisted_web,
    "bare_send": bare_send,
    "dumps": dumps,
    "commits": commits,
}

if __name__ == "__main__":
    PEERS[sys.argv[1]](*sys.argv[2:])
