"""Who may import whom: one table for each package, and one for what of outside is used where, and why.

A row is a package, or a module beside them, and what it may import, type-only imports too; nothing else is in order.
Rows say what is, not all that could be: whoever needs another arrow writes it here, and thinks about its direction.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def rows(text: str) -> Mapping[str, str]:
    """Read a table: a room, a colon and what it may import, in as many lines as that takes."""
    joined = re.sub(r"\n {8,}", " ", text)
    return dict(line.strip().partition(": ")[::2] for line in joined.replace(":\n", ": \n").strip().splitlines())


HYPERVISOR = rows(
    """
    __main__: api arch command
    api:
    arch: api domid errors memory
    bootloader: disks guests loader
    command: api domains guests host split toolstack
    console_ring:
    disks:
    domains: arch domid errors memory platform
    domid:
    errors:
    guests:
    host: arch console_ring domains domid hypercalls memory scheduling xenstore
    hypercalls: arch domains domid errors memory
    loader: arch domains hypercalls memory
    memory:
    migration: arch domains host hypercalls loader memory
    network:
    platform:
    scheduling: domains
    split: api disks domains errors memory network xenstore
    storage: api disks
    toolstack: api arch bootloader disks domains host hypercalls loader memory migration network split storage
        xenstore
    xenstore:
    """
)
XAPI = rows(
    """
    __main__: process
    access: datamodel store
    calls: access cancelling datamodel log store wire
    cancelling:
    classes: access calls cancelling datamodel events hosts log networks operations storage store vms wire
        hypervisor.api
    datamodel:
    events: access datamodel store wire
    handlers: calls datamodel events hosts http store turns wire hypervisor.api
    host: cancelling hypervisor.api hypervisor.arch hypervisor.disks hypervisor.guests hypervisor.host
        hypervisor.network hypervisor.split hypervisor.storage hypervisor.toolstack
    hosts: access calls datamodel store wire hypervisor.api
    http: access calls datamodel
    inventory: datamodel host hosts store vms hypervisor.api
    log: access datamodel store hypervisor.api
    networks: datamodel hosts store hypervisor.api
    operations: calls datamodel store
    plugin_modules:
    process: access calls datamodel events host hosts http inventory log networks operations storage store turns
        vms wire hypervisor.api
    reference: datamodel http tools
    storage: calls cancelling datamodel hosts log operations store hypervisor.api
    store: datamodel
    testing: access process
    tools: calls datamodel http
    turns:
    vms: calls cancelling datamodel events hosts log networks operations storage store turns hypervisor.api
    wire: datamodel store
    """
)

OUTSIDE: Mapping[str, Mapping[str, str]] = {
    "twisted": {"xapi/": "the toolstack turns with its reactor"},
    "sqlalchemy": {"xapi/store/": "durability"},
    "lxml": {
        "xapi/datamodel/reading.py": "the schema",
        "xapi/wire/xmlrpc.py": "calls",
        "xapi/vms/provision.py": "what a template says of its disks",
    },
    "msgspec": {
        "hypervisor/api/": "values that are one of several kinds tell which",
        "hypervisor/toolstack/devices/drive.py": "such a value with a field changed",
        "xapi/host/": "likewise; and the wire",
    },
    "unicorn": {
        "hypervisor/arch/": "vCPUs",
    },
    "xmlrpc": {
        "xapi/plugin_modules/XenAPIPlugin.py": "runs in plugins, in processes of their own",
        "xapi/testing/session.py": "a client",
    },
    "threading": {
        "hypervisor/": "pCPUs and backends run on threads",
        "xapi/host/storage.py": "disks are attached in the pool of threads; it locks",
        "xapi/log/output.py": "what ends a thread is written",
        "xapi/log/writer.py": "lines are formatted and written beside the reactor",
        "xapi/store/sqlite.py": "a look over a whole database takes its time",
        "xapi/store/writer.py": "so do commits",
        "xapi/testing/reactor_thread.py": "the reactor of a test's process",
    },
    "time": {
        "hypervisor/arch/x86_64/cpu/tsc.py": "the counter that guests read",
        "hypervisor/host.py": "the machine's clock, which tests replace",
        "hypervisor/network/site.py": "how long a peer is silent, and a name that no other has",
        "hypervisor/network/ticker.py": "the machine's clock, which tests replace",
        "hypervisor/scheduling/alarm.py": "likewise",
        "hypervisor/scheduling/scheduler.py": "likewise",
        "hypervisor/migration/live.py": "likewise",
        "hypervisor/toolstack/networks.py": "likewise",
        "xapi/host/console.py": "how long a turn has lasted",
        "xapi/process/garbage.py": "how long a collection has lasted",
        "xapi/process/reactor.py": "how long a turn has lasted",
        "xapi/store/writer.py": "when it may look at the disk again, on its own thread",
    },
}
"""Libraries and modules of Python's that are used in few places, which are named by how their paths begin, and why."""


@cache
def imports(package: str) -> Mapping[str, frozenset[str]]:
    """Return the full names of all that each module of a package imports, wherever in it, by its path."""
    return {
        path.relative_to(ROOT).as_posix(): frozenset(_imports(ast.parse(path.read_text("utf-8"))))
        for path in sorted(ROOT.glob(f"{package}/**/*.py"))
    }


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows(package: str) -> set[tuple[str, str]]:
    """Return which rooms of a package import which of ours."""
    found = set()
    for path, names in imports(package).items():
        here = path.removesuffix(".py").split("/")[1]
        for name in names:
            parts = name.split(".")
            if parts[0] not in ("xapi", "hypervisor") or (parts[0] == package and parts[1:2] in ([], [here])):
                continue
            there = parts[1] if parts[0] == package else ".".join(parts[:2])
            found.add((here, there))
    return {(here, there) for here, there in found if here != "__init__"}


@pytest.mark.parametrize(("package", "table"), [("hypervisor", HYPERVISOR), ("xapi", XAPI)])
def test_rooms_import_what_the_table_says_and_nothing_else(package: str, table: Mapping[str, str]) -> None:
    """Every import of every module counts; and an arrow that is gone leaves the table."""
    written = {(here, there) for here, line in table.items() for there in line.split()}
    assert arrows(package) - written == set()
    assert written - arrows(package) == set()


def circles(table: Mapping[str, str]) -> set[frozenset[str]]:
    """Return the sets of rooms that reach each other."""
    reached = {here: set(line.split()) & table.keys() for here, line in table.items()}
    while True:
        wider = {here: there.union(*(reached[each] for each in there)) for here, there in reached.items()}
        if wider == reached:
            break
        reached = wider
    return {
        frozenset(each for each in table if each in there and here in reached[each])
        for here, there in reached.items()
        if here in there
    }


def test_no_rooms_know_each_other_in_circles() -> None:
    """Neither two, nor by others."""
    assert circles(HYPERVISOR) == set()
    assert circles(XAPI) == set()


def test_what_is_outside_is_used_only_where_the_table_says() -> None:
    """And every place of the table uses it."""
    for name, places in OUTSIDE.items():
        users = {
            path
            for package in ("xapi", "hypervisor")
            for path, names in imports(package).items()
            if any(found == name or found.startswith(f"{name}.") for found in names)
        }
        assert {path for path in users if not path.startswith(tuple(places))} == set(), name
        assert [place for place in places if not any(path.startswith(place) for path in users)] == [], name
