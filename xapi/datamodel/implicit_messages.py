"""The messages that follow from a class and its fields, as declarations; `xapi.calls.implicit` gives them behaviour."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from xapi.datamodel.declarations import Class, Field, Message, Parameter
from xapi.datamodel.types import MapType, SetType, Types


def implicit_messages(cls: Class, types: Types) -> Iterator[Message]:
    """Derive the messages that follow from a class and its fields, in the order of the reference."""
    if not cls.implicit:
        return
    me = Parameter("self", types.parse(f"{cls.name} ref"), True, None)
    ref, record = types.parse(f"{cls.name} ref"), types.parse(f"{cls.name} record")
    string, void = types.parse("string"), types.parse("void")
    records = types.parse(f"({cls.name} ref -> {cls.name} record) map")

    def message(name: str, kind: str, doc: str, *parameters: Parameter, **given: Any) -> Message:
        more: dict[str, Any] = {"role": cls.reader, "result": void, "life": cls.life} | given
        return Message(cls.name, name, doc, parameters, kind=kind, **more)

    uuid_, label = Parameter("uuid", string, True, None), Parameter("label", string, True, None)
    expression = Parameter("expr", string, True, None)
    yield message("get_record", "get_record", "Return all fields of one object.", me, result=record)
    yield message("get_by_uuid", "get_by_uuid", "Return the object with this uuid.", uuid_, result=ref)
    if cls.constructor:
        making = {"role": cls.constructor, "is_async": True}
        arguments = Parameter("args", record, True, None)
        yield message("create", "make", "Make an object of a record.", arguments, result=ref, **making)
        yield message("destroy", "delete", "Remove the object.", me, **making)
    if "name_label" in cls.fields and cls.fields["name_label"].column == "name__label":
        found = types.parse(f"{cls.name} ref set")
        yield message("get_by_name_label", "get_by_label", "Return all objects of this name.", label, result=found)
    for member in cls.record_fields:
        yield from _field_messages(message, me, member, types)
    if cls.listed:
        yield message("get_all", "get_all", "Return all references.", result=types.parse(f"{cls.name} ref set"))
        where = "Return the {{}} that an expression selects."
        refs = types.parse(f"{cls.name} ref set")
        for name, found, noun in (
            ("get_all_where", refs, "objects"),
            ("get_all_records_where", records, "records"),
        ):
            yield message(name, name, where.format(noun), expression, result=found, hidden=True)
        yield message("get_all_records", "get_all_records", "Return all records, keyed by reference.", result=records)


def _field_messages(message: Callable[..., Message], me: Parameter, member: Field, types: Types) -> Iterator[Message]:
    about = {"field": member, "life": member.life}
    reader = {"role": member.reader} if member.reader else {}
    yield message(f"get_{member.name}", "getter", f"Return {member.name}.", me, result=member.type, **about, **reader)
    if member.access != "RW":
        return
    about |= {"role": member.role, "client_cert": member.client_cert}
    value = Parameter("value", member.type, True, None)
    yield message(f"set_{member.name}", "setter", f"Set {member.name}.", me, value, **about)
    if isinstance(member.type, MapType):
        about |= {"key_roles": member.key_roles}
        key = Parameter("key", member.type.key, True, None)
        item = Parameter("value", member.type.value, True, None)
        yield message(f"add_to_{member.name}", "add", f"Add a new key to {member.name}.", me, key, item, **about)
        yield message(f"remove_from_{member.name}", "remove", f"Remove a key from {member.name}.", me, key, **about)
    elif isinstance(member.type, SetType):
        value = Parameter("value", member.type.item, True, None)
        yield message(f"add_{member.name}", "add", f"Add a value to {member.name}.", me, value, **about)
        yield message(f"remove_{member.name}", "remove", f"Remove a value from {member.name}.", me, value, **about)
