"""The rules of the architecture that a test can check: layers, generated files, no wait inside a transaction."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from xapi import datamodel, registry, stubs

ROOT = Path(__file__).parent.parent.parent
SOURCES = sorted([*ROOT.glob("xapi/**/*.py"), *ROOT.glob("hypervisor/**/*.py")])


def imported(path: Path) -> set[str]:
    """Return the top-level packages and full names that a module imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def importers(name: str, under: str) -> set[str]:
    """Return the modules below a folder that import a package or anything of it."""
    return {
        str(path.relative_to(ROOT))
        for path in ROOT.glob(f"{under}/**/*.py")
        if any(found == name or found.startswith(f"{name}.") for found in imported(path))
    }


@pytest.mark.parametrize("name", ["xapi", "twisted", "sqlalchemy"])
def test_the_hypervisor_imports_nothing_of_the_toolstack(name: str) -> None:
    assert importers(name, "hypervisor") == set()


def test_only_the_store_imports_sqlalchemy() -> None:
    assert {path.split("/")[1] for path in importers("sqlalchemy", "xapi")} == {"store"}


def test_the_toolstack_sees_of_the_hypervisor_only_its_face() -> None:
    seen = {
        path: found for path in ROOT.glob("xapi/**/*.py") for found in imported(path) if found.startswith("hypervisor")
    }
    allowed = {
        path: name
        for path, name in seen.items()
        if name.startswith("hypervisor.api") or path.match("backends/local*.py")
    }
    assert seen == allowed


@pytest.mark.parametrize("name", ["time.sleep", "time.time"])
def test_time_comes_from_the_clock(name: str) -> None:
    uses = [
        f"{path.name}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == name
    ]
    assert uses == []


def test_the_server_does_not_use_the_standard_library_s_xml_rpc() -> None:
    """It is slow, and expands entities. What plugins import runs in processes of their own; tests are clients."""
    assert importers("xmlrpc", "xapi") == {"xapi/plugin_modules/XenAPIPlugin.py", "xapi/testing/session.py"}


THREADS = {
    "xapi/store/writer.py": "commits take their time",
    "xapi/store/sqlite.py": "so does a look over a whole database",
    "xapi/backends/local_storage.py": "disks are attached in the pool of threads; it locks",
    "xapi/log/output.py": "what ends a thread is written",
    "xapi/log/writer.py": "lines are formatted and written beside the reactor",
    "xapi/testing/reactor_thread.py": "tests wait on theirs while the reactor runs on its own",
}
"""The modules of the toolstack that know of threads, and why; all else runs on the reactor's."""


def test_threads_are_only_where_they_are_needed() -> None:
    assert importers("threading", "xapi") == set(THREADS)


def atomic_blocks(tree: ast.AST) -> Iterator[ast.With]:
    for node in ast.walk(tree):
        if isinstance(node, ast.With) and any(
            isinstance(item.context_expr, ast.Call)
            and isinstance(item.context_expr.func, ast.Attribute)
            and item.context_expr.func.attr == "atomic"
            for item in node.items
        ):
            yield node


def test_nothing_waits_inside_a_transaction() -> None:
    """Between the first and the last change of an atomic nothing else may run."""
    waits = [
        f"{path.name}:{inner.lineno}"
        for path in SOURCES
        for block in atomic_blocks(ast.parse(path.read_text("utf-8")))
        for inner in ast.walk(block)
        if isinstance(inner, ast.Await | ast.Yield | ast.YieldFrom)
    ]
    assert waits == []


def test_the_stubs_are_current() -> None:
    model = datamodel.load()
    assert {path: path.read_text("utf-8") for path in stubs.texts(model)} == stubs.texts(model)


def test_every_registered_function_fits_its_message() -> None:
    functions = registry.functions(datamodel.load())
    assert "session.login_with_password" in functions


def test_a_function_with_other_parameters_than_its_message_is_refused() -> None:
    declared = datamodel.load().classes["VM"].messages["start"]
    with pytest.raises(registry.RegistryError, match=r"VM.start takes \['vm', 'start_paused', 'force'\]"):
        registry.check_signature(declared, lambda call, vm: None)


def test_the_top_level_is_as_agreed() -> None:
    agreed = {"pyproject.toml", "xapi", "hypervisor", "schema", "tests", "deploy", "README.md", "Makefile", "LICENSE"}
    seen = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert seen - {"reference", "dist", "build"} <= agreed
