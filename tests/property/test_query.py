"""The query language against a naive evaluator, and against any text."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.journal import store_at_once
from xapi.datamodel import errors, records
from xapi.store.memory import Store
from xapi.store.query import select

Side = tuple[str, str]
"""What it is, and its text."""
Tree = tuple[Any, ...]
"""Its kind, then what it is made of: trees, sides, or a constant."""


def make_store() -> Store:
    store = store_at_once()
    host = store.host.create(uuid="h", name_label="7")
    sr = store.SR.create(uuid="s", name_label="true")
    for number, label in enumerate(["7", "true", "Halted", "('x')", ""]):
        guest = store.VM.create(
            f"r{number % 3}" if number < 3 else None,
            uuid=f"u{number}",
            name_label=label,
            tags=("x",) * (number % 2),
            is_a_template=number % 2 == 0,
            power_state=("Halted", "Running")[number % 2],
            memory_static_max=number + 5,
            resident_on=host._ref,
            suspend_SR=sr._ref,
        )
        if number % 2:
            store.VBD.create(f"d{number}", VM=guest._ref)
    return store


STORE = make_store()
COLUMNS = {field.column: field for field in STORE.VM.cls.fields.values()}
ASKED = [
    "uuid",
    "name__label",
    "tags",
    "is_a_template",
    "power_state",
    "memory__static_max",
    "snapshot_time",
    "resident_on",
    "VBDs",
    "other_config",
    "_ref",
]
TEXTS = ["7", "07", "true", "false", "Halted", "('x')", "('d1')", "()", "", "u1", "u2", "r1", "19700101T00:00:00Z"]


def stored(row: records.VM, column: str) -> str:
    if column == "_ref":
        return row._ref
    field = COLUMNS[column]
    return field.type.stored(getattr(row, field.name))


def side(row: records.VM, value: Side) -> str:
    return stored(row, value[1]) if value[0] == "field" else value[1]


def evaluate(row: records.VM, tree: Tree) -> bool:
    """Evaluate a tree with the conventional meaning of its parts, by nothing but stored texts."""
    kind = tree[0]
    if kind == "constant":
        return tree[1] is True
    if kind == "=":
        return side(row, tree[1]) == side(row, tree[2])
    if kind == "not":
        return not evaluate(row, tree[1])
    left, right = evaluate(row, tree[1]), evaluate(row, tree[2])
    return (left and right) if kind == "and" else (left or right)


def value_text(value: Side) -> str:
    return f'field "{value[1]}"' if value[0] == "field" else f'"{value[1]}"'


def written(tree: Tree, tight: bool) -> str:
    """Write a tree with no more parentheses than the grammar needs."""
    kind = tree[0]
    blank = "" if tight else " "
    if kind == "constant":
        return "true" if tree[1] else "false"
    if kind == "=":
        return f"{value_text(tree[1])}{blank}={blank}{value_text(tree[2])}"
    if kind == "not":
        return f"not{blank}{written(tree[1], tight)}"
    left, right = written(tree[1], tight), written(tree[2], tight)
    if ends_open(tree[1]):
        left = f"({left})"
    if tree[2][0] in ("and", "or"):
        right = f"({right})"
    return f"{left}{blank}{kind}{blank}{right}"


def ends_open(tree: Tree) -> bool:
    """Tell whether a tree ends in a `not` that would take what is written after it."""
    return tree[0] == "not" or (tree[0] in ("and", "or") and tree[2][0] == "not")


values = st.one_of(
    st.tuples(st.just("field"), st.sampled_from(ASKED)), st.tuples(st.just("literal"), st.sampled_from(TEXTS))
)
trees = st.recursive(
    st.one_of(
        st.tuples(st.just("constant"), st.booleans()),
        st.tuples(st.just("="), values, values),
    ),
    lambda inner: st.one_of(st.tuples(st.just("not"), inner), st.tuples(st.sampled_from(["and", "or"]), inner, inner)),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(trees, st.booleans())
def test_select_agrees_with_a_naive_evaluator(tree: Tree, tight: bool) -> None:
    """Typed comparison, narrowing by index and flat chains never change the answer."""
    expected = {row._ref for row in STORE.VM if evaluate(row, tree)}
    assert {row._ref for row in select(STORE.VM, written(tree, tight))} == expected


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_selects_or_faults(text: str) -> None:
    """Nothing but a Fault comes out, whatever a client sends."""
    check(text)


words = st.sampled_from(
    ["field", "and", "or", "not", "true", "false", "(", ")", "=", " ", '"', '"uuid"', '"nope"', '"_ref"', "x"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(words, max_size=30).map("".join))
def test_any_row_of_words_selects_or_faults(text: str) -> None:
    """Text that nearly is an expression reaches the parser's corners."""
    check(text)


def check(text: str) -> None:
    try:
        rows = select(STORE.VM, text)
    except errors.Fault as fault:
        assert fault.code in ("INVALID_VALUE", "INTERNAL_ERROR")
        assert fault.code == "INTERNAL_ERROR" or fault.parameters[0] == text
    else:
        assert {row._ref for row in rows} <= {row._ref for row in STORE.VM}
