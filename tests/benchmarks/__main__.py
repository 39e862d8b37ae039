"""Run the benchmarks, all or those named: ``python -m tests.benchmarks [NAME...]``.

Prints the machine, then, as each benchmark ends, its figures, then a Markdown table of all. Traffic stays on
127.0.0.1; files are in the temporary directory (TMPDIR), which should be on the disk that one wants to know of.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.benchmarks import (
    api_vms,
    beside,
    boot,
    calls,
    disks,
    durable,
    exits,
    guests,
    hosts,
    listeners,
    moves,
    nets,
    records,
    scale,
)
from tests.benchmarks.figures import Figure, markdown, ms
from tests.benchmarks.stage import Stage, say

BENCHMARKS: Mapping[str, Callable[[Stage], list[Figure]]] = {
    "calls": calls.benchmark,
    "durable": durable.benchmark,
    "events": listeners.benchmark,
    "records": records.benchmark,
    "beside": beside.benchmark,
    "scale": scale.benchmark,
    "boot": boot.benchmark,
    "exits": exits.benchmark,
    "disks": disks.benchmark,
    "nets": nets.benchmark,
    "moves": moves.benchmark,
    "guests": guests.benchmark,
    "hosts": hosts.benchmark,
    "vms": api_vms.benchmark,
}
FILES = 8192
"""Open files that a thousand listeners need, of both ends."""


def main() -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)} (default: all)")
    names = parser.parse_args().names or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"there is no {unknown[0]}; there are {', '.join(BENCHMARKS)}")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES if hard < 0 else min(FILES, hard), hard))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(machine(), flush=True)
    begun = time.perf_counter()
    figures: list[Figure] = []
    failed: list[str] = []
    stage = Stage(Path(tempfile.mkdtemp(prefix="xapi-bench-")))
    try:
        for name in names:
            try:
                figures += BENCHMARKS[name](stage)
                figures += turns(name, stage)
            except Exception:  # the others' figures are worth having
                traceback.print_exc()
                failed.append(name)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    finally:
        stage.close()
    say(f"{time.perf_counter() - begun:.0f} s; load average now {os.getloadavg()[0]:.1f}")
    print("\n" + markdown(figures))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def turns(name: str, stage: Stage) -> list[Figure]:
    """Return the longest turn of the reactors since the last benchmark."""
    figures = []
    for side in ("warm", "cold"):
        login = stage.__dict__.get(side)  # a cached property: only if it has been started
        if login is not None:
            found = login.daemon.turns()
            if found["count"] > 100:
                figures.append(
                    Figure(
                        f"longest reactor turn during {name}, {side} daemon ({found['ready']} sockets in it; "
                        f"{found['long']} of {found['count']:,} over 10 ms; most CPU {ms(found['longest_cpu'])})",
                        ms(found["longest"]), goal="<= 10 ms", judged=found["longest"] * 1000,
                    )
                )  # fmt: skip
    return figures


def machine() -> str:
    """Describe the machine."""
    model = platform.processor() or "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return (
        f"{os.cpu_count()} cores, {model}; {platform.python_implementation()} {platform.python_version()}, "
        f"{platform.system()} {platform.release()}; load average {load}"
    )


if __name__ == "__main__":
    sys.exit(main())
