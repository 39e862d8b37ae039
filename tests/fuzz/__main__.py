"""Fuzz the hypervisor for a while: ``python -m tests.fuzz [--minutes N] [--first NUMBER] [NAME...]``.

Each target runs in a process of its own, which it may kill: that is a failure, and so are an exception, a broken
invariant, a guest that does not stop, and memory that grows. Prints what was run; hypothesis prints how to repeat a
failure of a state machine, and a case of `code`, `pv-code`, `ends` and `streams` is repeated by its number:
``--first NUMBER code``.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from hypervisor.host import Host
from tests.fuzz import code, pv_code
from tests.fuzz.cards import Cards
from tests.fuzz.displays import Displays
from tests.fuzz.ends import Ends
from tests.fuzz.hypercalls import Hypercalls
from tests.fuzz.pv_grants import PVGrants
from tests.fuzz.rings import Block, Rings
from tests.fuzz.services import Services
from tests.fuzz.steps import steps
from tests.fuzz.streams import Streams

GROWTH = 96
"""MiB that a target may grow after its first tenth of the time."""
_PATIENCE = 120
"""Seconds that a target may take longer than it was told."""
Report = dict[str, object]


def machine(kind: type[RuleBasedStateMachine]) -> Callable[[Callable[[], bool], int], Report]:
    """Return a target that runs a state machine until the time is over."""
    many = settings(
        max_examples=40,
        stateful_step_count=60,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )

    def run(over: Callable[[], bool], first: int) -> Report:
        examples = 0
        while not over():
            run_state_machine_as_test(kind, settings=many)
            examples += 40
        return {"cases": examples, "steps": steps()}

    return run


def numbered(prepare: Callable[[Host], Callable[[int, float], str]]) -> Callable[[Callable[[], bool], int], Report]:
    """Return a target that runs cases made from numbers, telling which, so that the one that kills us is known."""

    def run(over: Callable[[], bool], first: int) -> Report:
        case, endings, number = prepare(Host(1 << 30, 1)), Counter[str](), first
        while not over():
            print(f"case {number}", flush=True)
            endings[case(number, 0.004)] += 1
            number += 1
        return {"cases": number - first, **endings}

    return run


def ends(over: Callable[[], bool], first: int) -> Report:
    """Run cases of `Ends`."""
    cases = Ends(Host(1 << 30, 2))
    try:
        return numbered(lambda _: cases.case)(over, first) | {"steps": steps()}
    finally:
        cases.close()


def random_code(case: Callable[[Host, int, float], code.Ending]) -> Callable[[Callable[[], bool], int], Report]:
    """Return a target of random code."""
    return numbered(lambda host: lambda number, seconds: case(host, number, seconds).word)


TARGETS: Mapping[str, Callable[[Callable[[], bool], int], Report]] = {
    "code": random_code(code.case),
    "pv-code": random_code(pv_code.case),
    "hypercalls": machine(Hypercalls),
    "pv-grants": machine(PVGrants),
    "rings": machine(Rings),
    "block": machine(Block),
    "cards": machine(Cards),
    "services": machine(Services),
    "displays": machine(Displays),
    "ends": ends,
    "streams": numbered(lambda host: Streams(host).case),
}


def resident() -> int:
    """Return MiB of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20


def work(name: str, seconds: float, first: int) -> None:
    """Run one target in this process and print what was done, as JSON."""
    faulthandler.enable()
    begun, settled = time.monotonic(), 0

    def over() -> bool:
        nonlocal settled
        passed = time.monotonic() - begun
        if not settled and passed > seconds / 10:
            settled = resident()
        if settled and resident() > settled + GROWTH:
            raise MemoryError(f"{name} grew from {settled} to {resident()} MiB")
        return passed > seconds

    report = TARGETS[name](over, first)
    report |= {"seconds": round(time.monotonic() - begun), "MiB before": settled, "MiB after": resident()}
    print(json.dumps(report))


def supervise(name: str, seconds: float, first: int) -> bool:
    """Run one target in another process; tell whether it went well."""
    command = [sys.executable, "-m", "tests.fuzz", "--work", str(seconds), "--first", str(first), name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + _PATIENCE)
    except subprocess.TimeoutExpired as error:
        said = (error.stdout or b"").decode().splitlines()
        print(f"{name}: hangs, last said {said[-1:]}")
        return False
    lines = done.stdout.splitlines()
    if done.returncode:
        print(f"{name}: failed with {done.returncode}, last said {lines[-1:]}\n{done.stderr}")
        return False
    print(f"{name}: {', '.join(f'{value} {key}' for key, value in json.loads(lines[-1]).items())}", flush=True)
    return True


def main() -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--minutes", type=float, default=10, help="for all together (default: 10)")
    parser.add_argument("--first", type=int, default=int(time.time()) * 1000, help="number of the first case")
    parser.add_argument("--work", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.names or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"there is no {unknown[0]}; there are {', '.join(TARGETS)}")
    if arguments.work is not None:
        work(names[0], arguments.work, arguments.first)
        return 0
    results = [supervise(name, arguments.minutes * 60 / len(names), arguments.first) for name in names]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
