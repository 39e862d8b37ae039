"""Facts of the query language of get_all_where."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.journal import store_at_once
from xapi.datamodel import errors, records
from xapi.store import query
from xapi.store.memory import Store
from xapi.store.query import select
from xapi.store.rows import Table


@pytest.fixture
def store() -> Store:
    """An empty pool."""
    return store_at_once()


def vm(store: Store, label: str, **values: Any) -> records.VM:
    return store.VM.create(name_label=label, **values)


def labels(store: Store, expression: str) -> list[str]:
    return sorted(row.name_label for row in select(store.VM, expression))


def fails(table: Table[Any], expression: str) -> list[str]:
    with pytest.raises(errors.Fault) as caught:
        select(table, expression)
    return caught.value.description


def test_true_selects_every_row_and_false_none(store: Store) -> None:
    """The constants."""
    vm(store, "a"), vm(store, "b")
    assert labels(store, "true") == ["a", "b"]
    assert labels(store, "false") == []


def test_a_name_is_compared_by_its_database_name(store: Store) -> None:
    """Namespaces are joined by two underscores; nova writes no blanks."""
    vm(store, "web"), vm(store, "db")
    assert labels(store, 'field "name__label"="web"') == ["web"]


def test_the_wire_name_of_a_namespaced_field_is_unknown(store: Store) -> None:
    """The database knows name__label only."""
    assert fails(store.VM, 'field "name_label" = "web"') == ["INTERNAL_ERROR", "missing field", "name_label", ""]


def test_an_unknown_field_fails_even_where_nothing_is_compared(store: Store) -> None:
    """A mistake shows before there is data that would reveal it."""
    assert fails(store.VM, 'false and field "nope" = "x"')[0] == "INTERNAL_ERROR"


def test_blanks_are_optional_everywhere(store: Store) -> None:
    """Keywords end where the next token begins."""
    vm(store, "a", is_a_template=True), vm(store, "b")
    assert labels(store, 'field"is_a_template"="true"andfield"is_a_snapshot"="false"') == ["a"]
    assert labels(store, ' \t\n( not\n field "is_a_template"\t= "true" ) \n') == ["b"]


def test_keywords_are_lower_case(store: Store) -> None:
    """The lexer knows no other spelling."""
    assert fails(store.VM, "TRUE") == ["INVALID_VALUE", "TRUE", "no word of the language at character 0"]


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "   ",
        "()",
        "(true",
        "true)",
        "true true",
        "not",
        "and true",
        "true or",
        'field "uuid"',
        'field = "x"',
        '"x" = ',
        '"x" = true',
        "field 'uuid' = 'x'",
        "field uuid = x",
        '"x" == "x"',
        '"x" <> "y"',
        '"x" = "y',
        "true\r",
        '"a" = "b" = "c"',
        "subroles=[]",
        "\x00",
    ],
)
def test_what_is_no_expression_is_an_invalid_value(store: Store, expression: str) -> None:
    """The whole text comes back with the reason."""
    code, value, reason = fails(store.VM, expression)
    assert (code, value) == ("INVALID_VALUE", expression)
    assert reason


def test_a_literal_may_stand_on_either_side(store: Store) -> None:
    """Both sides of = are values of the same kind."""
    vm(store, "a"), vm(store, "b")
    assert labels(store, '"a" = field "name__label"') == ["a"]


def test_two_literals_compare(store: Store) -> None:
    """Clients build such expressions mechanically."""
    vm(store, "a")
    assert labels(store, '"x" = "x"') == ["a"]
    assert labels(store, '"x" = "y"') == []


def test_two_fields_compare_by_their_stored_texts(store: Store) -> None:
    """Types need not agree: a name may spell the number."""
    vm(store, "7", memory_static_max=7), vm(store, "07", memory_static_max=7)
    assert labels(store, 'field "name__label" = field "memory__static_max"') == ["7"]


def test_and_and_or_have_one_strength_and_group_to_the_left(store: Store) -> None:
    """`true or true and false` is false; conventional precedence would make it true."""
    vm(store, "a")
    assert labels(store, "true or true and false") == []
    assert labels(store, "false and false or true") == ["a"]
    assert labels(store, "true or (true and false)") == ["a"]


def test_not_takes_all_that_follows(store: Store) -> None:
    """`not a and b` is `not (a and b)`, also behind another operator."""
    vm(store, "a")
    assert labels(store, "not false and false") == ["a"]
    assert labels(store, "not true or true") == []
    assert labels(store, "true and not false and false") == ["a"]
    assert labels(store, "(not false) and false") == []
    assert labels(store, "not not true") == ["a"]


def test_a_string_has_no_escapes(store: Store) -> None:
    """A backslash is a backslash, and a newline may stand inside."""
    vm(store, "a\\n"), vm(store, "a\nb")
    assert labels(store, 'field "name__label" = "a\\n"') == ["a\\n"]
    assert labels(store, 'field "name__label" = "a\nb"') == ["a\nb"]


def test_numbers_compare_as_their_stored_text(store: Store) -> None:
    """Nothing is stored as 007 or +7."""
    vm(store, "a", memory_static_max=7), vm(store, "b", memory_static_max=-1)
    assert labels(store, 'field "memory__static_max" = "7"') == ["a"]
    assert labels(store, 'field "memory__static_max" = "-1"') == ["b"]
    assert labels(store, 'field "memory__static_max" = "007"') == []
    assert labels(store, 'field "memory__static_max" = " 7"') == []
    assert labels(store, 'field "memory__static_max" = "' + "9" * 9999 + '"') == []


def test_bools_enums_references_and_dates_compare_as_their_stored_text(store: Store) -> None:
    """One of each."""
    row = vm(store, "a", is_a_template=True, power_state="Halted")
    assert labels(store, 'field "is_a_template" = "true"') == ["a"]
    assert labels(store, 'field "is_a_template" = "1"') == []
    assert labels(store, 'field "power_state" = "Halted"') == ["a"]
    assert labels(store, 'field "power_state" = "halted"') == []
    assert labels(store, 'field "resident_on" = "OpaqueRef:NULL"') == ["a"]
    assert labels(store, 'field "resident_on" = ""') == []
    assert labels(store, 'field "snapshot_time" = "19700101T00:00:00Z"') == ["a"]
    assert labels(store, 'field "snapshot_time" = "1970-01-01T00:00:00Z"') == []
    assert labels(store, f'field "_ref" = "{row._ref}"') == ["a"]


def test_floats_compare_as_printed(store: Store) -> None:
    """A whole number has no point."""
    store.task.create(name_label="half", progress=0.5)
    store.task.create(name_label="done", progress=1.0)
    assert [row.name_label for row in select(store.task, 'field "progress" = "1"')] == ["done"]
    assert select(store.task, 'field "progress" = "1.0"') == []


def test_sets_and_maps_compare_as_stored(store: Store) -> None:
    """The s-expressions of the database."""
    vm(store, "a", tags=("x", "y"), other_config={"k": "v"}), vm(store, "b")
    assert labels(store, "field \"tags\" = \"('x' 'y')\"") == ["a"]
    assert labels(store, "field \"other_config\" = \"(('k' 'v'))\"") == ["a"]
    assert labels(store, 'field "tags" = "()"') == ["b"]


def test_the_derived_side_of_a_relation_can_be_queried(store: Store) -> None:
    """The database keeps it beside the other columns."""
    owner = vm(store, "a")
    drive = store.VBD.create(VM=owner._ref)
    vm(store, "b")
    assert labels(store, f'field "VBDs" = "(\'{drive._ref}\')"') == ["a"]
    assert labels(store, 'field "VBDs" = "()"') == ["b"]


def test_internal_fields_can_be_queried(store: Store) -> None:
    """They are on no wire, but in the database."""
    store.VBD.create(userdevice="0", reserved=True)
    assert [row.userdevice for row in select(store.VBD, 'field "reserved" = "true"')] == ["0"]


@pytest.mark.parametrize(
    "expression",
    [
        'field "uuid" = "u"',
        '"u" = field "uuid"',
        'field "is_a_template" = "false" and field "uuid" = "u"',
        'false or true and (field "power_state" = "Halted" and field "uuid" = "u")',
    ],
)
def test_a_demanded_uuid_uses_the_index(store: Store, monkeypatch: pytest.MonkeyPatch, expression: str) -> None:
    """The table is not walked; no other row could match."""
    vm(store, "a", uuid="u"), vm(store, "b")
    monkeypatch.setattr(Table, "__iter__", lambda table: pytest.fail("the table was walked"))
    assert labels(store, expression) == ["a"]


def test_demanded_names_and_references_use_the_index(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names may repeat; an unknown reference is no error."""
    row = vm(store, "a")
    vm(store, "a", is_a_template=True), vm(store, "b")
    monkeypatch.setattr(Table, "__iter__", lambda table: pytest.fail("the table was walked"))
    assert labels(store, 'field "name__label" = "a"') == ["a", "a"]
    assert labels(store, 'field "name__label" = "a" and field "is_a_template" = "true"') == ["a"]
    assert labels(store, f'field "_ref" = "{row._ref}"') == ["a"]
    assert labels(store, 'field "_ref" = "OpaqueRef:NULL"') == []
    assert labels(store, 'field "uuid" = "unknown"') == []


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('field "uuid" = "u" or true', ["a", "b"]),
        ('field "uuid" = "u" and false or true', ["a", "b"]),
        ('field "uuid" = "u" or field "uuid" = "v"', ["a", "b"]),
        ('not field "uuid" = "u"', ["b"]),
        ('field "uuid" = "u" and field "uuid" = "v"', []),
        ('field "uuid" = field "name__label"', []),
    ],
)
def test_an_index_never_hides_a_row(store: Store, expression: str, expected: list[str]) -> None:
    """Only what the whole expression demands may narrow."""
    vm(store, "a", uuid="u"), vm(store, "b", uuid="v")
    assert labels(store, expression) == expected


@pytest.mark.parametrize("opening", ["(", "not ", "(not "])
def test_deep_nesting_is_refused(store: Store, opening: str) -> None:
    """A hundred thousand parentheses neither recurse nor take long."""
    code, _, reason = fails(store.VM, opening * 50_000 + "true")
    assert (code, reason) == ("INVALID_VALUE", "more than 100 nested parentheses or negations")


def test_a_hundred_levels_are_accepted(store: Store) -> None:
    """The limit is far beyond what clients write."""
    vm(store, "a")
    assert labels(store, "(" * 100 + "true" + ")" * 100) == ["a"]


def test_a_long_chain_is_evaluated_without_nesting(store: Store) -> None:
    """Clients join hundreds of uuids with or."""
    row = vm(store, "a")
    others = 'field "uuid" = "x" or ' * 10_000
    assert labels(store, f'{others}field "uuid" = "{row.uuid}"') == ["a"]


def test_an_overlong_expression_is_refused(store: Store) -> None:
    """No longer than one XML-RPC call may be."""
    assert fails(store.VM, " " * query.LONGEST + "true")[2] == f"longer than {query.LONGEST} characters"


def test_expressions_are_compiled_once_per_class(store: Store) -> None:
    """The second use reads no text; another class has other columns."""
    query._compiled.cache_clear()
    expression = 'field "name__label" = "a"'
    select(store.VM, expression), select(store.VM, expression), select(store.SR, expression)
    assert (query._compiled.cache_info().misses, query._compiled.cache_info().hits) == (2, 1)


def test_messages_are_queried_by_their_wire_names(store: Store) -> None:
    """Their class has no namespaces."""
    store.message.create(name="VM_STARTED", priority=5)
    assert len(select(store.message, 'field "name" = "VM_STARTED" and field "priority" = "5"')) == 1


def test_roles_know_two_expressions_only() -> None:
    """Whatever else is asked, all roles and permissions come."""
    permission = SimpleNamespace(subroles=())
    role = SimpleNamespace(subroles=("OpaqueRef:permission",))
    pool: Any = SimpleNamespace(role=[permission, role])
    assert query.select_roles(pool, "subroles<>[]") == [role]
    assert query.select_roles(pool, "subroles=[]") == [permission]
    assert query.select_roles(pool, "subroles <> []") == [permission, role]
    assert query.select_roles(pool, "no expression at all (") == [permission, role]
