"""Start from a database with 100,000 VMs: how long it takes, and what a VM costs in memory."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.benchmarks.figures import Figure
from tests.benchmarks.processes import Daemon
from tests.benchmarks.stage import Login, Stage, say

BASE = 1_000
FACTOR = 100
LABEL = "name__label"
"""The column of the field name_label."""


def benchmark(stage: Stage) -> list[Figure]:
    """Make a database by copying rows, start from it, then read all records once."""
    total = BASE * FACTOR
    say(f"making a database of {total:,} VMs")
    state = stage.directory / "scale"
    with Daemon(state, "--vms", str(BASE)):
        pass
    with Daemon(state) as small:
        floor = small.memory()
    assert isinstance(small, Daemon)
    multiply(state / "xapi.db", FACTOR)
    say("starting from it")
    with Daemon(state) as first:
        assert isinstance(first, Daemon)
    with Daemon(state) as daemon:
        assert isinstance(daemon, Daemon)
        bare, peak, cpu = daemon.memory(), daemon.memory("VmHWM"), daemon.cpu
        login = Login(daemon)
        login.connection.drain(login.everything)
        read = daemon.memory()
    ready = min(first.ready_seconds, daemon.ready_seconds)
    more = total - BASE
    note = f"A VM here is also its metrics, disk, drive and network card: 5 objects. Above a daemon with {BASE:,} VMs."
    what = f"from SQLite with {total:,} VMs"
    kib = (bare - floor) / more / 1000, (read - floor) / more / 1000
    return [
        Figure(f"start {what}, the better of 2 ({cpu:.1f} s of CPU)", f"{ready:.1f} s", goal="<= 15 s",
               judged=ready, note=note),
        Figure(f"memory a VM, started {what} (peak {(peak - floor) / more / 1000:.1f} KB)", f"{kib[0]:.1f} KB",
               goal="<= 15 KB", judged=kib[0], note=note),
        Figure("the same after all records were read once", f"{kib[1]:.1f} KB", goal="<= 15 KB", judged=kib[1],
               note=note),
    ]  # fmt: skip


def multiply(path: Path, factor: int) -> None:
    """Copy each VM made for scale, with its metrics, devices and disks, until there are `factor` times as many.

    A copy's references and uuids are the original's with eight of the hexadecimal digits exchanged.
    """
    with closing(sqlite3.connect(path)) as connection, connection:
        read = connection.execute
        connection.execute("PRAGMA synchronous=OFF")
        vms = {ref for (ref,) in read(f"SELECT _ref FROM VM WHERE {LABEL} LIKE 'vm-%'")}
        tables: dict[str, list[dict[str, Any]]] = {"VM": _rows(connection, "VM", "_ref", vms)}
        for name in ("VBD", "VIF"):
            tables[name] = _rows(connection, name, "VM", vms)
        tables["VM_metrics"] = _rows(connection, "VM_metrics", "_ref", {row["metrics"] for row in tables["VM"]})
        tables["VDI"] = _rows(connection, "VDI", "_ref", {row["VDI"] for row in tables["VBD"]})
        own = {row[key] for rows in tables.values() for row in rows for key in ("_ref", "uuid")}
        for name, rows in tables.items():
            names = list(rows[0])
            columns = ", ".join(f'"{column}"' for column in names)
            statement = f'INSERT INTO "{name}" ({columns}) VALUES ({", ".join("?" * len(names))})'
            for number in range(1, factor):
                connection.executemany(statement, [_copy(row, own, number) for row in rows])


def _rows(connection: sqlite3.Connection, table: str, column: str, wanted: set[str]) -> list[dict[str, Any]]:
    found = connection.execute(f'SELECT * FROM "{table}"')
    names = [description[0] for description in found.description]
    rows = [dict(zip(names, row)) for row in found]
    return [row for row in rows if row[column] in wanted]


def _copy(row: dict[str, Any], own: set[str], number: int) -> list[Any]:
    copy = [_exchange(value, number) if value.__class__ is str and value in own else value for value in row.values()]
    if LABEL in row:
        copy[list(row).index(LABEL)] = f"{row[LABEL]}-{number:04}"
    return copy


def _exchange(text: str, number: int) -> str:
    """Return a reference or uuid with the first eight of its digits exchanged."""
    first, _, rest = text.partition("-")
    return f"{first[:-8]}{number:08x}-{rest}"
