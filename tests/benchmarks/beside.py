"""The latency of a small call while another client reads 10,000 records again and again."""

from __future__ import annotations

from tests.benchmarks.figures import Figure, ms, quantile
from tests.benchmarks.processes import Task, run
from tests.benchmarks.stage import VMS, Login, Stage, say

SECONDS = 6.0


def benchmark(stage: Stage) -> list[Figure]:
    """Measure alone, beside warm reads, and beside cold reads."""
    say(f"a small call beside reads of {VMS:,} records")
    alone = _latencies(stage.warm, SECONDS / 3)
    figures = [Figure("VM.get_power_state, 1 connection, alone: p50 / p99", _both(alone))]
    for name, login in (("warm", stage.warm), ("cold", stage.cold)):
        given = {
            "port": login.daemon.port,
            "request": login.everything.decode("latin-1"),
            "seconds": SECONDS + 1.5,
        }
        reader = Task("tests.benchmarks.load", "read", given=given)
        try:
            beside = _latencies(login, SECONDS)
        finally:
            reads = len(reader.result()["taken"])
        p99 = quantile(beside, 0.99)
        figures.append(
            Figure(
                f"the same beside {name} reads of {VMS:,} records ({reads}): p50 / p99, max {ms(max(beside))}",
                _both(beside), _both(alone), "", "<= 10 ms", p99 * 1000,
            )
        )  # fmt: skip
    return figures


def _both(latencies: list[float]) -> str:
    return f"{ms(quantile(latencies, 0.5))} / {ms(quantile(latencies, 0.99))}"


def _latencies(login: Login, seconds: float) -> list[float]:
    given = {
        "port": login.daemon.port,
        "requests": [login.small.decode("latin-1")],
        "connections": 1,
        "seconds": seconds,
    }
    found: list[float] = run("tests.benchmarks.load", "calls", given=given)["latencies"]
    return found
