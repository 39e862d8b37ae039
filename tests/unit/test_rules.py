"""The rules of the architecture that a test can check, besides the layers: time, transactions, what is generated."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from xapi import datamodel
from xapi.calls import registry
from xapi.calls.claim import own
from xapi.tools import coverage, stubs

ROOT = Path(__file__).parent.parent.parent
SOURCES = sorted([*ROOT.glob("xapi/**/*.py"), *ROOT.glob("hypervisor/**/*.py")])


@cache
def trees() -> Mapping[Path, ast.Module]:
    """Return the sources of both packages."""
    return {path: ast.parse(path.read_text("utf-8")) for path in SOURCES}


def real_times(tree: ast.AST) -> Iterator[int]:
    """Yield the lines that sleep or read the time of day, however they have come by the function."""
    names = {"time"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name for alias in node.names if alias.name == "time"}
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (node.lineno for alias in node.names if alias.name in ("sleep", "time", "*"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("sleep", "time") and ast.unparse(node.value) in names:
            yield node.lineno


def test_time_comes_from_the_clock() -> None:
    assert [f"{path.name}:{line}" for path, tree in trees().items() for line in real_times(tree)] == []


@pytest.mark.parametrize(
    "source",
    ["import time\ntime.sleep(1)", "from time import sleep", "import time as t\nt.time()", "from time import *"],
)
def test_every_way_to_real_time_is_seen(source: str) -> None:
    assert list(real_times(ast.parse(source)))


def atomic_blocks(tree: ast.AST) -> Iterator[ast.With | ast.AsyncWith]:
    for node in ast.walk(tree):
        if isinstance(node, ast.With | ast.AsyncWith) and any(
            isinstance(item.context_expr, ast.Call)
            and isinstance(item.context_expr.func, ast.Attribute)
            and item.context_expr.func.attr == "atomic"
            for item in node.items
        ):
            yield node


def waits(tree: ast.AST) -> Iterator[int]:
    """Yield the lines inside transactions at which something else may run."""
    waiting = (ast.Await, ast.Yield, ast.YieldFrom, ast.AsyncWith, ast.AsyncFor)
    for block in atomic_blocks(tree):
        yield from (inner.lineno for inner in ast.walk(block) if isinstance(inner, waiting))


def test_nothing_waits_inside_a_transaction() -> None:
    """Between the first and the last change of an atomic nothing else may run."""
    assert [f"{path.name}:{line}" for path, tree in trees().items() for line in waits(tree)] == []


@pytest.mark.parametrize(
    "inside",
    [
        "with db.atomic():\n  await x",
        "with db.atomic():\n  async with x: pass",
        "with db.atomic():\n  async for x in y: pass",
        "async with db.atomic(): pass",
    ],
)
def test_every_way_to_wait_is_seen(inside: str) -> None:
    assert list(waits(ast.parse(f"async def f():\n {inside}".replace("\n", "\n "))))


def test_the_stubs_are_current() -> None:
    model = datamodel.load()
    assert {path: path.read_text("utf-8") for path in stubs.texts(model)} == stubs.texts(model)


def test_every_registered_function_fits_its_message() -> None:
    functions = registry.functions(datamodel.load())
    assert "session.login_with_password" in functions


def test_what_a_message_claims_of_its_own_object_is_said_in_the_schema_alone() -> None:
    """Dispatch holds it; a function that does so itself asks what is declared. Two share a step of several."""
    model = datamodel.load()
    quoted, silent = [], []
    for path in sorted((ROOT / "xapi" / "classes").rglob("*.py")):
        for function in ast.parse(path.read_text("utf-8")).body:
            if not isinstance(function, ast.AsyncFunctionDef):
                continue
            for register in [each for each in function.decorator_list if isinstance(each, ast.Call)]:
                names = [ast.literal_eval(each) for each in register.args]
                inside = ast.unparse(function.body)  # type: ignore[arg-type]
                for name in names:
                    cls, _, short = name.partition(".")
                    operations = [operation for _, operation in own(model.classes[cls].messages[short])]
                    quoted += [name for operation in operations if f"claim(call, {operation!r}, row" in inside]
                    itself = any(each.arg == "claims_itself" for each in register.keywords)
                    silent += [name for _ in operations[:1] if itself and "declared(call, row" not in inside]
    assert quoted == []
    assert silent == ["VM.set_memory_static_range", "VM.set_memory_dynamic_range"]


def test_no_message_has_lost_its_behaviour() -> None:
    """`not_implemented.txt` lists all that have none; whoever gives one its behaviour takes it from there."""
    listed = (Path(__file__).parent / "not_implemented.txt").read_text("ascii").split()
    lacking = coverage.missing(datamodel.load())
    assert [message.full_name for messages in lacking.values() for message in messages] == listed


def test_a_function_with_other_parameters_than_its_message_is_refused() -> None:
    declared = datamodel.load().classes["VM"].messages["start"]
    with pytest.raises(registry.RegistryError, match=r"VM.start takes \['vm', 'start_paused', 'force'\]"):
        registry.check_signature(declared, lambda call, vm: None)


def test_the_top_level_is_as_agreed() -> None:
    agreed = {"pyproject.toml", "xapi", "hypervisor", "schema", "tests", "deploy", "README.md", "Makefile", "LICENSE"}
    seen = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert seen - {"reference", "dist", "build"} <= agreed
