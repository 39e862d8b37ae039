"""Events: how long one change takes to reach 1,000 clients that wait in event.from."""

from __future__ import annotations

from tests.benchmarks.figures import Figure, median, ms, quantile
from tests.benchmarks.processes import run
from tests.benchmarks.stage import Stage, say
from tests.benchmarks.wire import COUNTER, request

LISTENERS = 1000
ROUNDS = 7


def benchmark(stage: Stage) -> list[Figure]:
    """Change one VM while all wait, a few times."""
    login = stage.warm
    say(f"{LISTENERS:,} listeners")
    call, session, vm = login.connection.call, login.session, login.vms[0]
    before = call("event.inject", session, "VM", vm)
    token = call("event.from", session, ["vm"], before, 1.0)["token"]
    # A token is as long as the placeholder's stand-in, so that Content-Length stays right.
    wait = request("event.from", session, ["vm"], token, 60.0).replace(token.encode(), b"TOKEN")
    given = {
        "port": login.daemon.port,
        "change": request("VM.set_name_description", session, vm, COUNTER.decode()).decode("latin-1"),
        "token": token,
        "wait": wait.decode("latin-1"),
        "listeners": LISTENERS,
        "rounds": ROUNDS,
    }
    rounds = run("tests.benchmarks.load", "listen", given=given)["rounds"]
    delays = [found["delays"] for found in rounds]
    every = median([max(found) for found in delays])
    what = f"one change to {LISTENERS:,} event.from listeners, {rounds[0]['size'] / 1024:.1f} KiB each"
    note = "From the change being sent, which is on disk before anybody is told; one Python process reads all answers."
    p50, p99 = (median([quantile(found, fraction) for found in delays]) for fraction in (0.5, 0.99))
    return [
        Figure(f"{what}: first", ms(median([min(found) for found in delays])), note=note),
        Figure(f"{what}: p50", ms(p50), note=note),
        Figure(f"{what}: p99", ms(p99), note=note),
        Figure(f"{what}: all", ms(every), goal="<= 100 ms", judged=every * 1000, note=note),
    ]
