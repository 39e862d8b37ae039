"""The rules of the architecture that a test can check, besides the layers: time, transactions, what is generated."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

from tests.journal import store_at_once
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


ANY: Mapping[str, int] = {
    "access": 1, "calls": 4, "cancelling.py": 2, "classes": 1, "datamodel": 7, "handlers": 7, "host": 25, "hosts": 2,
    "http": 14, "inventory": 3, "log": 2, "operations": 3, "plugin_modules": 6, "process": 20, "reference": 1,
    "storage": 1, "store": 13, "testing": 18, "vms": 2,
}  # fmt: skip
"""How often each room of `xapi` says Any, where a type cannot be said. Lower a number when it shrinks; none grows."""


def untyped(tree: ast.AST) -> Iterator[int]:
    """Yield the lines that say Any, in a text too, or give it another name."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Name | ast.Attribute)
            and (node.id if isinstance(node, ast.Name) else node.attr) == "Any"
        ):
            yield node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield from (node.lineno for alias in node.names if alias.name == "Any" and alias.asname)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "Any" in node.value:
            with suppress(SyntaxError):
                yield from (node.lineno for _ in untyped(ast.parse(node.value.strip(), mode="eval")))


def test_what_is_untyped_shrinks() -> None:
    """`records.pyi` says what rows hold, and mypy refuses `power_state = "Runing"`: but not through Any."""
    found = Counter(path.relative_to(ROOT / "xapi").parts[0] for path, tree in trees().items()
                    if path.is_relative_to(ROOT / "xapi") for _ in untyped(tree))  # fmt: skip
    assert found == ANY


@pytest.mark.parametrize(
    "source",
    ["x: Any", "x: typing.Any", "from typing import Any as A", "cast('Any', x)", "x: 'list[Any]'", "f: C[[Any], None]"],
)
def test_every_way_to_leave_a_type_open_is_seen(source: str) -> None:
    assert list(untyped(ast.parse(source)))


def test_a_table_a_field_or_a_value_that_there_is_not_is_refused() -> None:
    """By mypy too, to which `__getattr__` and `__setattr__` are no leave: an error ignored here must be one."""
    db = store_at_once()
    vm = db.VM.create()
    with pytest.raises(AttributeError):
        _ = db.VN  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        _ = vm.power_stat  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        vm.power_stat = "Running"  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        vm.power_state = "Runing"  # type: ignore[assignment]


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
