"""Every type of the schema goes over the wire and comes back, in XML and in JSON."""

from __future__ import annotations

import xmlrpc.client
from datetime import UTC
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.journal import store_at_once
from xapi import datamodel
from xapi.datamodel.errors import Fault
from xapi.datamodel.lexical import DecodeError
from xapi.datamodel.types import (
    BoolType,
    DateTimeType,
    EnumType,
    FloatType,
    IntType,
    MapType,
    OptionType,
    RecordType,
    RefType,
    SetType,
    StringType,
    Type,
)
from xapi.wire import jsonrpc
from xapi.wire import xmlrpc as codec
from xapi.wire.fragments import Fragments

MODEL = datamodel.load()
FIELDS = [field for cls in MODEL.classes.values() for field in cls.record_fields]
PARAMETERS = [parameter for message in MODEL.messages for parameter in message.parameters]
TYPES = {kind.name: kind for kind in [*(field.type for field in FIELDS), *(p.type for p in PARAMETERS)]}

# What a row may hold: control characters, surrogates and the like are dropped on the way in.
TEXT = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff") | st.sampled_from("\t\n\r")
)
DATES = st.datetimes(timezones=st.just(UTC)).map(lambda date: date.replace(microsecond=0))
# 16 significant digits are what the wire has room for.
FLOATS = st.floats(-1e308, 1e308).map(lambda number: float(f"{number:.16g}"))
REFS = st.uuids().map("OpaqueRef:{}".format) | st.just("OpaqueRef:NULL")


def values(kind: Type) -> st.SearchStrategy[Any]:
    """Return a strategy for the values in memory of a type."""
    if isinstance(kind, EnumType):
        return st.sampled_from(list(kind.values))
    if isinstance(kind, RefType):
        return REFS
    if isinstance(kind, SetType):
        return st.lists(values(kind.item), max_size=4).map(tuple)
    if isinstance(kind, MapType):
        return st.dictionaries(values(kind.key), values(kind.value), max_size=4)
    if isinstance(kind, OptionType):
        return st.none() | values(kind.item)
    if isinstance(kind, RecordType):
        return st.fixed_dictionaries({}, optional={name: values(member) for name, member in kind.members.items()})
    return {
        StringType: TEXT,
        IntType: st.integers(-(2**63), 2**63 - 1),
        BoolType: st.booleans(),
        FloatType: FLOATS,
        DateTimeType: DATES,
    }[type(kind)]


def through_xml(kind: Type, value: Any) -> Any:
    encoded = codec.encode(kind, value).decode()
    body = f"<methodCall><methodName>x.y</methodName><params><param>{encoded}</param></params></methodCall>"
    _, params = codec.parse_call(body.encode())
    return kind.decode(params[0])


def through_json(kind: Type, value: Any) -> Any:
    body = b'{"jsonrpc":"2.0","method":"x.y","id":1,"params":[%b]}' % jsonrpc.encode(kind, value)
    return kind.decode(jsonrpc.parse_call(jsonrpc.read(body)).params[0])


def with_options(kind: Type) -> bool:
    return isinstance(kind, RecordType) and any(isinstance(member, OptionType) for member in kind.members.values())


# An option inside a record is there or is left out, so these two read otherwise than they write; nothing reads them.
ANSWERED_ONLY = ("sr_stat", "probe_result")
SENT = {
    name: kind
    for name, kind in TYPES.items()
    if not isinstance(kind, RecordType) and not any(part in name for part in ANSWERED_ONLY)
}


@settings(deadline=None)
@given(st.data())
def test_values_come_back(data: st.DataObject) -> None:
    """Every type but records, which have a test of their own."""
    kind = SENT[data.draw(st.sampled_from(sorted(SENT)))]
    value = data.draw(values(kind))
    for found in (through_xml(kind, value), through_json(kind, value)):
        assert found == value
        assert isinstance(found, type(value))
        assert isinstance(found, bool) == isinstance(value, bool)


RECORDS = {
    cls.name: kind
    for cls in MODEL.classes.values()
    if not with_options(kind := MODEL.types.parse(f"{cls.name} record"))
}


ENUMS = [kind for kind in TYPES.values() if isinstance(kind, EnumType)]
EXACT = ("bond_mode", "event_operation")


@given(st.sampled_from(ENUMS), st.data())
def test_enum_values_are_read_in_any_case_and_kept_in_the_schemas(kind: EnumType, data: st.DataObject) -> None:
    """nova and old scripts write `User`, `disk` and `rw`; two enums xapi reads by hand, as they are written."""
    value = data.draw(values(kind))
    written = "".join(data.draw(st.sampled_from((each.lower(), each.upper()))) for each in value)
    if written == value or kind.enum not in EXACT:
        assert kind.decode(written) == value
        assert MapType(kind, kind).decode({written: written}) == {value: value}
    else:
        with pytest.raises(DecodeError):
            kind.decode(written)


@pytest.mark.parametrize("kind", [kind for kind in ENUMS if kind.enum not in EXACT], ids=lambda kind: kind.enum)
def test_no_two_values_of_an_enum_differ_by_case(kind: EnumType) -> None:
    """So each word that is read has one meaning."""
    assert len({value.lower() for value in kind.values}) == len(kind.values)


@settings(deadline=None)
@given(st.data())
def test_records_come_back(data: st.DataObject) -> None:
    """Whole or in part, with members of all types."""
    kind = RECORDS[data.draw(st.sampled_from(sorted(RECORDS)))]
    value = data.draw(values(kind))
    assert through_xml(kind, value) == value
    assert through_json(kind, value) == value


def test_records_with_options_are_only_answered() -> None:
    """Nothing reads the two that the round trip leaves out."""
    left_out = set(MODEL.classes) - set(RECORDS)
    assert left_out == set(ANSWERED_ONLY)
    taken = {parameter.type.name for parameter in PARAMETERS}
    assert not {kind for kind in taken if any(name in kind for name in left_out)}


@settings(deadline=None)
@given(st.data())
def test_every_type_is_seen_by_other_readers(data: st.DataObject) -> None:
    """Python's own XML-RPC reads what is sent: ints as strings, dates as dates."""
    kind = SENT[data.draw(st.sampled_from(sorted(SENT)))]
    encoded = codec.encode(kind, data.draw(values(kind))).decode()
    ((value,), _) = xmlrpc.client.loads(f"<params><param>{encoded}</param></params>")
    if isinstance(kind, SetType | MapType):
        assert isinstance(value, list if isinstance(kind, SetType) else dict)
    assert "<i8>" not in encoded and "<string>" not in encoded


STORE = store_at_once()
FRAGMENTS = Fragments(STORE, 1 << 20)


@settings(deadline=None)
@given(st.data())
def test_rendered_records_are_encoded_values(data: st.DataObject) -> None:
    """The renderers made for speed say what the types say."""
    table = STORE.tables[data.draw(st.sampled_from(["VM", "pool", "host_cpu", "message", "VBD", "PIF", "task", "SR"]))]
    fields = [field for field in table.cls.record_fields if not field.derived and field.name != "uuid"]
    chosen = data.draw(st.lists(st.sampled_from(fields), unique_by=lambda field: field.name, max_size=6))
    row = table.create(**{field.name: data.draw(values(field.type)) for field in chosen})
    kind = MODEL.types.parse(f"{table.name} record")
    record = {field.name: getattr(row, field.name) for field in table.cls.record_fields}
    assert FRAGMENTS.xml_record(row).decode() == kind.xml(record)
    assert orjson.loads(FRAGMENTS.json_record(row)) == orjson.loads(jsonrpc.encode(kind, record))
    table.delete(row._ref)


# Anything at all


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.data(), JUNK)
def test_decoding_raises_nothing_but_its_own_error(data: st.DataObject, junk: Any) -> None:
    """Whatever a client sends in place of a value."""
    kind = TYPES[data.draw(st.sampled_from(sorted(TYPES)))]
    try:
        kind.decode(junk)
    except ValueError as error:
        assert type(error).__name__ == "DecodeError"


PARTS = [
    b"<?xml version='1.0'?>", b'<?xml version="1.0" encoding="utf-8"?>', b"<methodCall>", b"</methodCall>",
    b"<methodName>pool.get_all</methodName>", b"<params>", b"</params>", b"<params/>", b"<param>", b"</param>",
    b"<value>", b"</value>", b"<value/>", b"<string>", b"</string>", b"<int>1</int>", b"text", b" ", b"\n", b"a.b_c-1",
    b"&amp;", b"]]>", b"<!-- -->", b"\xc3\xa9", b"\xff", b"\t", b"\0",
]  # fmt: skip


def outcome(body: bytes) -> Any:
    try:
        return codec.parse_call(body)
    except Fault as fault:
        return fault.code


@settings(deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=6), st.lists(st.sampled_from(PARTS), max_size=6))
@example([b" x "], [])
def test_short_way_reads_what_the_long_way_reads(value: list[bytes], more: list[bytes]) -> None:
    """Plain calls are read without lxml, and no body is read differently for that."""
    inner = b"".join(value)
    body = (
        b"<?xml version='1.0'?>\n<methodCall><methodName>x.y</methodName><params><param><value><string>" + inner
        + b"</string></value></param><param><value>" + inner + b"</value></param>" + b"".join(more)
        + b"</params></methodCall>"
    )  # fmt: skip
    # A comment at the end changes nothing but the way that is taken.
    assert outcome(body) == outcome(body + b"<!-- -->")


@settings(deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=14))
def test_any_arrangement_of_parts(parts: list[bytes]) -> None:
    """A call or a Fault, nothing else."""
    body = b"".join(parts)
    assert outcome(body) == outcome(body + b"<!-- -->")


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(body: bytes) -> None:
    """Neither reader raises anything but a Fault."""
    assert outcome(body) is not None
    try:
        jsonrpc.parse_call(jsonrpc.read(body))
    except Fault as fault:
        assert fault.code in ("INTERNAL_ERROR", "INVALID_VALUE")


@pytest.mark.parametrize("name", sorted(TYPES))
def test_empty_value_has_the_type(name: str) -> None:
    """What a new object's field holds goes over the wire as well."""
    kind = TYPES[name]
    assert through_xml(kind, kind.empty) == kind.empty
    assert through_json(kind, kind.empty) == kind.empty
