"""The text of a whole record, as xapi writes and reads it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from tests.conftest import in_memory
from xapi import datamodel
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL
from xapi.vms import saved_record, sexpr

VM = datamodel.load().classes["VM"]
texts = st.text(max_size=20)


def row(**fields: Any) -> Any:
    return in_memory(Clock()).VM.create(**fields)


@given(texts)
def test_an_atom_reads_back(text: str) -> None:
    """Whatever it holds."""
    assert sexpr.parse(sexpr.quote(text)) == text


@given(st.recursive(texts, lambda inner: st.lists(inner, max_size=4), max_leaves=12))
def test_a_list_reads_back(value: Any) -> None:
    """Nested as it was."""

    def write(item: Any) -> str:
        return sexpr.quote(item) if isinstance(item, str) else sexpr.listing(map(write, item))

    assert sexpr.parse(write(value)) == value


@pytest.mark.parametrize("text", ["", "(", ")", "()()", "'open", '("a" \'b)', "(" * 30 + ")" * 30])
def test_what_is_no_expression_is_refused(text: str) -> None:
    """Never an endless loop, never a guess."""
    with pytest.raises(ValueError, match=r"."):
        sexpr.parse(text)


def test_other_spellings_are_read() -> None:
    """Symbols, double quotes, comments and all blanks, as xapi's reader takes them."""
    assert sexpr.parse('; comment\n(a\t"b \\" c"\r\n\'\')') == ["a", 'b " c', ""]


def test_the_text_is_xapis() -> None:
    """Names of the database, from the last to the first, values as stored, quoted once more."""
    text = saved_record.write(
        row(uuid="u", name_label="it's", other_config={"a": "b'c"}, tags=("x",), is_a_template=True)
    )
    pairs = sexpr.parse(text)
    assert isinstance(pairs, list)
    names = [name for name, _ in pairs]
    assert names == sorted(names, reverse=True)
    assert "('name__label' 'it\\'s')" in text
    assert "('tags' '(\\'x\\')')" in text
    assert "('other_config' '((\\'a\\' \\'b\\\\\\'c\\'))')" in text
    assert "('is_a_template' 'true')" in text
    assert "('snapshot_time' '19700101T00:00:00Z')" in text
    assert {"_ref", "VBDs", "memory__static_max", "HVM__boot_policy"} <= set(names)
    assert "is_snapshot_from_vmpp" not in names


@given(texts, st.dictionaries(texts, texts, max_size=3), st.lists(texts, max_size=3), st.integers(0, 2**62))
def test_a_record_reads_back(label: str, config: dict[str, str], tags: list[str], memory: int) -> None:
    """Every field that can be assigned, whatever its type."""
    made = row(
        name_label=label, other_config=config, tags=tuple(tags), memory_static_max=memory, HVM_shadow_multiplier=1.5
    )
    read = saved_record.read(saved_record.write(made), VM)
    assert read == {name: getattr(made, name) for name in read}
    missing = {field.name for field in VM.fields.values() if not field.derived} - read.keys()
    assert missing == {"is_snapshot_from_vmpp", "recommended_guidances"}


def test_what_is_unknown_is_left_out() -> None:
    """A record of another release is read as far as it is known."""
    assert saved_record.read("(('no_such_field' 'x') ('affinity' 'OpaqueRef:NULL'))", VM) == {"affinity": NULL}


@pytest.mark.parametrize(
    "text", ["", "x", "((a))", "((a b c))", "(('domid' 'x'))", "(('is_a_template' '1'))", "(('tags' 'x'))",
             "(('other_config' '(a)'))", "(('power_state' 'Dead'))"],
)  # fmt: skip
def test_a_damaged_record_is_refused(text: str) -> None:
    """By the error that xapi has for it."""
    with pytest.raises(Fault) as caught:
        saved_record.read(text, VM)
    assert caught.value.code == "INVALID_VALUE"
