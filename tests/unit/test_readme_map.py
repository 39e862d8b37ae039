"""The README's map leads somewhere: its paths exist, and define what is said to be there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = (ROOT / "README.md").read_text("utf-8").partition("\n## The code\n")[2]
PLACES = re.findall(r"^\| (.+?) \| `([^`]+)`: `([^`]+)` \|$", CODE, re.M)


def mapped() -> Iterator[str]:
    """Yield the paths of the map; after the first of a row, those beside it are named without their folder."""
    for row in re.findall(r"^\| (`[^|]+`) \| (?!`)", CODE, re.M):
        first, *others = re.findall(r"`([^`]+)`", row)
        yield first
        folder = Path(first).parent
        for other in others:
            yield other if "/" in other.rstrip("/") else str(folder / other)


@pytest.mark.parametrize("path", list(mapped()))
def test_a_path_of_the_map_exists(path: str) -> None:
    """A folder where it ends so."""
    assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).exists()


def test_what_a_newcomer_looks_for_is_where_the_map_says() -> None:
    """A function or a class of that name is defined there, on its own or in a class."""
    assert [what for what, _, _ in PLACES] == [
        "VM.pause", "VDI.resize", "`/console`", "a VBD's hot-plug", "an event's token", "a domain's timer"
    ]  # fmt: skip
    for what, path, name in PLACES:
        tree = ast.walk(ast.parse((ROOT / path).read_text("utf-8")))
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        assert name in {node.name for node in tree if isinstance(node, kinds)}, what
