"""VM.get_all_records of 10,000 VMs, warm and cold, against xmlrpc.client and against what loopback carries."""

from __future__ import annotations

from tests.benchmarks.figures import Figure, ms, percent, times
from tests.benchmarks.processes import Child, run
from tests.benchmarks.stage import VMS, Stage, say

ROUNDS = 6
READS = {"warm": 5, "bare": 5, "cold": 2}
"""Reads a round: enough for the CPU clock of /proc, which ticks a hundred times a second."""


def benchmark(stage: Stage) -> list[Figure]:
    """By turns: read warm, cold, and as many bytes from a bare socket; write the same with xmlrpc.client.

    The best round of each counts: what else the machine does can only slow one.
    """
    warm, cold = stage.warm, stage.cold
    size = warm.connection.drain(warm.everything)
    bare, bare_port = stage.peer("bare_send", str(size))
    path = stage.directory / "records.xml"
    path.write_bytes(warm.connection.exchange(warm.everything))
    say(f"reading {VMS:,} records, {size / 2**20:.0f} MiB, and writing them with xmlrpc.client")
    sides: tuple[tuple[str, Child, int, bytes], ...] = (
        ("warm", warm.daemon, warm.daemon.port, warm.everything),
        ("bare", bare, bare_port, b"x"),
        ("cold", cold.daemon, cold.daemon.port, cold.everything),
    )
    walls: dict[str, list[float]] = {name: [] for name in READS}
    cpus: dict[str, list[float]] = {name: [] for name in READS}
    dumps: list[float] = []
    for turn in range(ROUNDS):
        for name, server, port, request in sides:
            given = {"port": port, "request": request.decode("latin-1"), "seconds": 20, "most": READS[name]}
            before = server.cpu
            walls[name] += run("tests.benchmarks.load", "read", given=given)["taken"]
            cpus[name].append((server.cpu - before) / READS[name])
        if turn < 2:  # most of its time it reads the records
            dumps += run("tests.benchmarks.peers", "dumps", str(path), "2")
    bare.stop()
    path.unlink()
    wall = {name: min(values) for name, values in walls.items()}
    cpu = {name: min(values) for name, values in cpus.items()}
    return _figures(size, wall, cpu, min(dumps))


def _figures(size: int, wall: dict[str, float], cpu: dict[str, float], dumps: float) -> list[Figure]:
    limit = wall["bare"] / wall["warm"]
    what = f"VM.get_all_records of {VMS:,} VMs"
    note = (
        "Ours is the CPU time of the server, sending included; xmlrpc.client.dumps of the same records has no wire. "
        "Cold: all records are rendered anew, as after a change of all. The best of some rounds by turns."
    )
    figures = [
        Figure(
            f"{what}, {name}, CPU time (at the client {ms(wall[name])}); peer: xmlrpc.client.dumps",
            ms(cpu[name]), ms(dumps), times(dumps / cpu[name]), goal, dumps / cpu[name], note,
        )
        for name, goal in (("warm", ">= 20 x"), ("cold", ">= 4 x"))
    ]  # fmt: skip
    figures.append(
        Figure(
            f"{what}, warm, MB/s at the client; limit: bare loopback send",
            f"{size / wall['warm'] / 1e6:,.0f}", f"{size / wall['bare'] / 1e6:,.0f}", percent(limit),
            ">= 60 %", limit * 100,
        )
    )  # fmt: skip
    return figures
