"""Durable changes: VM.set_name_description, answered when it is on disk, against SQLite's bare commit rate."""

from __future__ import annotations

from tests.benchmarks.figures import Figure, median, ms, percent, quantile, times
from tests.benchmarks.processes import run
from tests.benchmarks.stage import Stage, say
from tests.benchmarks.wire import COUNTER, request

SECONDS = 2.0
ROUNDS = 3


def benchmark(stage: Stage) -> list[Figure]:
    """Change over 1 and 100 connections and commit bare, by turns, on one disk."""
    login = stage.warm
    say("durable changes")
    requests = [
        request("VM.set_name_description", login.session, vm, COUNTER.decode()).decode("latin-1")
        for vm in login.labelled(100)
    ]
    rates: dict[int, list[float]] = {1: [], 100: []}
    p50s: dict[int, list[float]] = {1: [], 100: []}
    bare: list[float] = []
    database = stage.directory / "bare.db"
    for _ in range(ROUNDS):
        for connections in rates:
            given = {
                "port": login.daemon.port,
                "requests": requests,
                "connections": connections,
                "seconds": SECONDS,
            }
            found = run("tests.benchmarks.load", "calls", given=given)
            rates[connections].append(found["count"] / found["seconds"])
            p50s[connections].append(quantile(found["latencies"], 0.5))
        bare.append(run("tests.benchmarks.peers", "commits", str(database), str(SECONDS)))
    limit, one, many = median(bare), median(rates[1]), median(rates[100])
    note = "SQLite alone: one UPDATE a transaction, WAL, synchronous=FULL, one thread, the same disk."
    return [
        Figure(f"durable changes a second, 1 connection (p50 {ms(median(p50s[1]))}); limit: bare SQLite commits",
               f"{one:,.0f}", f"{limit:,.0f}", percent(one / limit), ">= 30 %", one / limit * 100, note),
        Figure(f"the same, 100 connections (p50 {ms(median(p50s[100]))})",
               f"{many:,.0f}", f"{limit:,.0f}", times(many / limit), ">= 1 x", many / limit, note),
    ]  # fmt: skip
