"""Small calls: VM.get_power_state a CPU-second of the server, against twisted.web.xmlrpc under the same load."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

from tests.benchmarks.figures import Figure, times
from tests.benchmarks.processes import Child, run
from tests.benchmarks.stage import Stage, say

CONNECTIONS = 50
SECONDS = 1.0
ROUNDS = 9


def benchmark(stage: Stage) -> list[Figure]:
    """Load both servers by turns; the best round of each counts, as what else the machine does can only slow one."""
    login = stage.warm
    peer, peer_port = stage.peer("twisted_web", login.session, login.vms[0])
    load = _wrk if shutil.which("wrk") else _own
    say(f"small calls, with {'wrk' if load is _wrk else 'the load client of tests.benchmarks'}")
    sides: list[tuple[Child, int, list[float], list[float]]] = [
        (login.daemon, login.daemon.port, [], []),
        (peer, peer_port, [], []),
    ]
    for _, port, _, _ in sides:
        load(stage.directory, port, login.small, 1.0)
    for _ in range(ROUNDS):
        for server, port, per_cpu, rates in sides:
            cpu, begun = server.cpu, time.perf_counter()
            count = load(stage.directory, port, login.small, SECONDS)
            per_cpu.append(count / (server.cpu - cpu))
            rates.append(count / (time.perf_counter() - begun))
    peer.stop()
    ours, theirs = max(sides[0][2]), max(sides[1][2])
    rate, their_rate = max(sides[0][3]), max(sides[1][3])
    return [
        Figure(
            f"VM.get_power_state, {CONNECTIONS} connections, calls a CPU-second; peer: twisted.web.xmlrpc",
            f"{ours:,.0f}", f"{theirs:,.0f}", times(ours / theirs), ">= 5 x", ours / theirs,
            f"The best of {ROUNDS} rounds by turns.",
        ),
        Figure("the same, calls a second", f"{rate:,.0f}", f"{their_rate:,.0f}", times(rate / their_rate)),
    ]  # fmt: skip


def _own(directory: Path, port: int, request: bytes, seconds: float) -> int:
    given = {
        "port": port,
        "requests": [request.decode("latin-1")],
        "connections": CONNECTIONS,
        "seconds": seconds,
    }
    count: int = run("tests.benchmarks.load", "calls", given=given)["count"]
    return count


def _wrk(directory: Path, port: int, request: bytes, seconds: float) -> int:
    script = directory / "call.lua"
    quoted = "".join(f"\\{byte:03d}" for byte in request)
    script.write_text(f'local all = "{quoted}"\nrequest = function() return all end\n', "ascii")
    printed = subprocess.run(
        ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:.0f}", "-s", str(script), f"http://127.0.0.1:{port}/"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = re.search(r"(\d+) requests in", printed)
    if found is None or "Non-2xx" in printed:
        raise RuntimeError(f"wrk: {printed}")
    return int(found.group(1))
