"""The XenAPI type expressions: parse them, decode what clients send, encode what they read.

A type expression is a string as the schema writes it, such as ``VM ref set`` or
``(string -> enum vm_operations) map``. `parse` turns it into a `Type`, which knows

* ``decode``: a wire value (from XML-RPC or JSON alike) to the value kept in memory;
* ``plain``: that value to what orjson prints;
* ``xml``: that value to its compact XML-RPC text, and ``xml_source``: the same as a Python
  expression, from which `xapi.wire.fragments` generates one renderer a class;
* ``stored``: that value as the text which `get_all_records_where` compares;
* ``annotation``: the Python type, for the generated stubs and the signature check.

Values in memory are immutable by convention: str, int, float, bool, aware ``datetime`` of whole
seconds in UTC, tuple for sets, dict for maps. A change replaces the value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from functools import cached_property
from typing import Any, Generic, TypeVar

from xapi.datamodel.lexical import EPOCH, DecodeError, escaped, format_datetime, format_float, parse_datetime

R_co = TypeVar("R_co", covariant=True)


class Ref(str, Generic[R_co]):
    """A reference to an object of one class, ``OpaqueRef:<uuid>``; at run time a plain str."""

    __slots__ = ()


NULL: Ref[Any] = Ref("OpaqueRef:NULL")

# Control characters have no place in XML 1.0, and PostgreSQL cannot keep NUL.
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def _is_text(value: object) -> bool:
    return type(value) is str


def _met(value: object) -> str:
    names = {str: "string", bool: "boolean", int: "int", float: "double", datetime: "dateTime"}
    names |= {list: "array", dict: "struct", bytes: "base64", type(None): "nil"}
    return names.get(type(value), type(value).__name__)


class Type:
    """One type expression. Subclasses are its constructors; instances are shared and immutable."""

    name: str
    annotation: str
    empty: object
    """The value of a field that has neither a default nor a given value."""

    def __repr__(self) -> str:
        return f"<Type {self.name}>"

    def decode(self, value: object) -> object:
        """Return the value in memory for a wire value. Raises DecodeError."""
        raise NotImplementedError

    def plain(self, value: Any) -> object:
        """Return what orjson shall print."""
        return value

    def xml_source(self, variable: str) -> str:
        """Return a Python expression for the text inside ``<value>…</value>`` of a variable."""
        raise NotImplementedError

    def xml(self, value: Any) -> str:
        """Return ``<value>…</value>``, compact."""
        return self._render(value)

    @cached_property
    def _render(self) -> Callable[[object], str]:
        source = f"lambda v: '<value>' + {self.xml_source('v')} + '</value>'"
        render: Callable[[object], str] = eval(source, SOURCE_NAMES)
        return render

    def stored(self, value: Any) -> str:
        """Return the text that query expressions compare."""
        return str(value)

    def from_json(self, value: object) -> object:
        """Return the value in memory for one read back from a JSON column or a schema default."""
        return self.decode(value)


class StringType(Type):
    name, annotation, empty = "string", "str", ""

    def decode(self, value: object) -> str:
        if type(value) is str:
            return UNPRINTABLE.sub("", value)
        if value is None:  # <nil/>: PyPI XenAPI sends it for None
            return ""
        raise DecodeError(f"expected a string, got {_met(value)}")

    def from_json(self, value: object) -> str:
        if type(value) is str:  # it was decoded before it was stored
            return value
        raise DecodeError(f"expected a string, got {_met(value)}")

    def xml_source(self, variable: str) -> str:
        return f"escaped({variable})"


class IntType(Type):
    name, annotation, empty = "int", "int", 0
    _decimal = re.compile(r"[+-]?\d{1,19}", re.ASCII)

    def decode(self, value: object) -> int:
        if type(value) is str:
            if not self._decimal.fullmatch(value.strip()):
                raise DecodeError(f"expected an int, got {value[:40]!r}")
            value = int(value)
        if type(value) is not int:
            raise DecodeError(f"expected an int, got {_met(value)}")
        if not -(2**63) <= value < 2**63:
            raise DecodeError(f"int out of range: {value}")
        return value

    def xml_source(self, variable: str) -> str:
        return f"str({variable})"  # untyped decimal digits: XML-RPC's own ints have 32 bits


class BoolType(Type):
    name, annotation, empty = "bool", "bool", False

    def decode(self, value: object) -> bool:
        if type(value) is bool:
            return value
        raise DecodeError(f"expected a boolean, got {_met(value)}")

    def xml_source(self, variable: str) -> str:
        return f"('<boolean>1</boolean>' if {variable} else '<boolean>0</boolean>')"

    def stored(self, value: object) -> str:
        return "true" if value else "false"


class FloatType(Type):
    name, annotation, empty = "float", "float", 0.0

    def decode(self, value: object) -> float:
        if type(value) is float:
            return value
        if type(value) is int or type(value) is str:
            try:
                return float(value)
            except (ValueError, OverflowError):
                raise DecodeError(f"expected a float, got {str(value)[:40]!r}") from None
        raise DecodeError(f"expected a float, got {_met(value)}")

    def xml_source(self, variable: str) -> str:
        return f"f'<double>{{{variable}:.16g}}</double>'"

    def stored(self, value: float) -> str:
        return format_float(value)

    def from_json(self, value: object) -> float:
        return math.nan if value is None else self.decode(value)  # JSON has no nan


class DateTimeType(Type):
    name, annotation, empty = "datetime", "datetime", EPOCH

    def decode(self, value: object) -> datetime:
        if type(value) is datetime:
            return value
        if type(value) is str:
            return parse_datetime(value.strip())
        raise DecodeError(f"expected a date, got {_met(value)}")

    def plain(self, value: datetime) -> str:
        return format_datetime(value)

    def xml_source(self, variable: str) -> str:
        return f"'<dateTime.iso8601>' + format_datetime({variable}) + '</dateTime.iso8601>'"

    def stored(self, value: datetime) -> str:
        return format_datetime(value)


_EXACT = frozenset({"bond_mode", "event_operation"})
"""Enums that are read as they are written; of all others xapi's readers take any case."""


class EnumType(Type):
    """One of some words; what is kept and shown is the schema's spelling, whatever case came."""

    def __init__(self, enum: str, values: tuple[str, ...]) -> None:
        self.name = f"enum {enum}"
        self.enum = enum
        self.values = dict.fromkeys(values)
        self._spelt = {} if enum in _EXACT else {value.lower(): value for value in values}
        self.empty = values[0]
        self.annotation = f"enum_{enum}"

    def decode(self, value: object) -> str:
        if type(value) is not str:
            raise DecodeError(f"expected a value of {self.enum}, got {_met(value)}")
        if value in self.values:
            return value
        spelt = self._spelt.get(value.lower())
        if spelt is None:
            raise DecodeError(f"{value[:80]!r} is no value of {self.enum}")
        return spelt

    def xml_source(self, variable: str) -> str:
        return f"escaped({variable})"


class RefType(Type):
    empty = NULL

    def __init__(self, target: str) -> None:
        self.name = f"{target} ref"
        self.target = target
        self.annotation = f"Ref[{target}]"

    def decode(self, value: object) -> str:
        if isinstance(value, str):
            return NULL if value in ("", NULL) else value  # clients send '' for null
        if value is None:
            return NULL
        raise DecodeError(f"expected a reference to a {self.target}, got {_met(value)}")

    def xml_source(self, variable: str) -> str:
        return f"escaped({variable})"


class SetType(Type):
    empty: tuple[object, ...] = ()

    def __init__(self, item: Type) -> None:
        self.name = f"{item.name} set"
        self.item = item
        self.annotation = f"tuple[{item.annotation}, ...]"

    def decode(self, value: object) -> tuple[object, ...]:
        if type(value) is list or type(value) is tuple:
            decode = self.item.decode
            return tuple([decode(item) for item in value])
        raise DecodeError(f"expected an array, got {_met(value)}")

    def from_json(self, value: object) -> tuple[object, ...]:
        if type(value) is not list:
            raise DecodeError(f"expected an array, got {_met(value)}")
        if isinstance(self.item, StringType | RefType):
            if all(map(_is_text, value)):
                return tuple(value)
            raise DecodeError("expected an array of strings")
        read = self.item.from_json
        return tuple([read(item) for item in value])

    def plain(self, value: Collection[object]) -> list[object]:
        plain = self.item.plain
        return [plain(item) for item in value]

    def xml_source(self, variable: str) -> str:
        item = f"x{len(self.name)}"  # nested sets have shorter names, so no variable is reused
        value = self.item.xml_source(item)
        return (
            "('<array><data><value>' + '</value><value>'.join(["
            f"{value} for {item} in {variable}]) + '</value></data></array>'"
            f" if {variable} else '<array><data></data></array>')"
        )

    def stored(self, value: Collection[object]) -> str:
        return "(" + " ".join(f"'{self.item.stored(item)}'" for item in value) + ")"


class MapType(Type):
    empty: Mapping[object, object] = {}

    def __init__(self, key: Type, value: Type) -> None:
        self.name = f"({key.name} -> {value.name}) map"
        self.key = key
        self.value = value
        self.annotation = f"Mapping[{key.annotation}, {value.annotation}]"

    def decode(self, value: object) -> dict[object, object]:
        if type(value) is dict:
            key, item = self.key.decode, self.value.decode
            return {key(k): item(v) for k, v in value.items()}
        raise DecodeError(f"expected a struct, got {_met(value)}")

    def from_json(self, value: object) -> dict[object, object]:
        if type(value) is not dict:
            raise DecodeError(f"expected a struct, got {_met(value)}")
        if isinstance(self.key, StringType) and isinstance(self.value, StringType):
            if all(map(_is_text, value.values())):
                return value
            raise DecodeError("expected a struct of strings")
        key, item = self.key.decode, self.value.from_json
        return {key(k): item(v) for k, v in value.items()}

    def plain(self, value: Mapping[object, object]) -> dict[str, object]:
        plain = self.value.plain
        return {self.key.stored(k): plain(v) for k, v in value.items()}

    def xml_source(self, variable: str) -> str:
        key, item = f"k{len(self.name)}", f"v{len(self.name)}"
        name = f"escaped({key})" if isinstance(self.key, StringType | EnumType | RefType) else f"str({key})"
        value = self.value.xml_source(item)
        return (
            "('<struct><member><name>' + '</value></member><member><name>'.join(["
            f"{name} + '</name><value>' + {value} for {key}, {item} in {variable}.items()])"
            " + '</value></member></struct>'"
            f" if {variable} else '<struct></struct>')"
        )

    def stored(self, value: Mapping[object, object]) -> str:
        pairs = (f"('{self.key.stored(k)}' '{self.value.stored(v)}')" for k, v in value.items())
        return "(" + " ".join(pairs) + ")"


class OptionType(Type):
    """None, or a value. Inside a record none is left out; elsewhere it is an array of 0 or 1."""

    empty = None

    def __init__(self, item: Type) -> None:
        self.name = f"{item.name} option"
        self.item = item
        self.annotation = f"{item.annotation} | None"

    def decode(self, value: object) -> object:
        if type(value) is list and len(value) <= 1:
            return self.item.decode(value[0]) if value else None
        raise DecodeError(f"expected an array of at most one value, got {_met(value)}")

    def plain(self, value: object) -> list[object]:
        return [] if value is None else [self.item.plain(value)]

    def xml_source(self, variable: str) -> str:
        value = self.item.xml_source(variable)
        return (
            "('<array><data></data></array>' if "
            f"{variable} is None else '<array><data><value>' + {value} + '</value></data></array>')"
        )


def _inside(kind: Type) -> Type:
    """Return the type as it stands inside a record, where an option is there or is left out."""
    return kind.item if isinstance(kind, OptionType) else kind


class RecordType(Type):
    """A struct of a class's fields; in memory a dict of the given or all of them.

    `members` is filled in by `xapi.datamodel` when all classes are known: records may hold
    references to classes that come later.
    """

    empty: Mapping[str, object] = {}

    def __init__(self, target: str, members: Mapping[str, Type]) -> None:
        self.name = f"{target} record"
        self.target = target
        self.members = members
        self.annotation = "Mapping[str, Any]"

    def decode(self, value: object) -> dict[str, object]:
        if type(value) is not dict:
            raise DecodeError(f"expected a struct, got {_met(value)}")
        members = self.members
        record = {}
        for name, item in value.items():
            if name in members:  # unknown members are ignored: clients send fields of other versions
                try:
                    record[name] = members[name].decode(item)
                except DecodeError as error:
                    raise DecodeError(f"{self.target}.{name}: {error}") from None
        return record

    def plain(self, value: Mapping[str, object]) -> dict[str, object]:
        return {name: _inside(self.members[name]).plain(item) for name, item in value.items() if item is not None}

    def _members_xml(self, value: Mapping[str, object]) -> str:
        parts = []
        for name, item in value.items():
            if item is not None:
                parts.append(f"<member><name>{name}</name>{_inside(self.members[name]).xml(item)}</member>")
        return "<struct>" + "".join(parts) + "</struct>"

    def xml(self, value: Mapping[str, object]) -> str:
        return f"<value>{self._members_xml(value)}</value>"

    def xml_source(self, variable: str) -> str:
        name = f"_record_{self.target}"
        SOURCE_NAMES[name] = self._members_xml
        return f"{name}({variable})"


class VoidType(Type):
    name, annotation, empty = "void", "None", None

    def decode(self, value: object) -> None:
        raise DecodeError("nothing has this type")

    def plain(self, value: object) -> str:
        return ""

    def xml_source(self, variable: str) -> str:
        return "''"


SOURCE_NAMES: dict[str, object] = {"escaped": escaped, "format_datetime": format_datetime}
"""The names that expressions from `Type.xml_source` use."""

STRING = StringType()
INT = IntType()
BOOL = BoolType()
FLOAT = FloatType()
DATETIME = DateTimeType()
VOID = VoidType()


class Types:
    """Parse type expressions against one schema's enums and classes; equal ones are one object."""

    def __init__(self, enums: Mapping[str, tuple[str, ...]], classes: frozenset[str]) -> None:
        self._enums = enums
        self._classes = classes
        self._known: dict[str, Type] = {kind.name: kind for kind in (STRING, INT, BOOL, FLOAT, DATETIME, VOID)}
        self.record_members: dict[str, dict[str, Type]] = {}

    def parse(self, text: str) -> Type:
        """Return the type of an expression. Raises ValueError naming the part that is unknown."""
        known = self._known.get(text)
        if known is None:
            known = self._known[text] = self._parse(text)
        return known

    def _parse(self, text: str) -> Type:
        if text.endswith(" set"):
            return SetType(self.parse(text[:-4]))
        if text.endswith(" option"):
            return OptionType(self.parse(text[:-7]))
        if text.startswith("(") and text.endswith(") map"):
            key, value = split_map(text)
            return MapType(self.parse(key), self.parse(value))
        if text.startswith("enum ") and text[5:] in self._enums:
            return EnumType(text[5:], self._enums[text[5:]])
        if text.endswith(" ref") and text[:-4] in self._classes:
            return RefType(text[:-4])
        if text.endswith(" record") and (text[:-7] in self._classes or text == "<class> record"):
            return RecordType(text[:-7], self.record_members.setdefault(text[:-7], {}))
        if text == "event batch":  # what event.from answers; `xapi.events.batch` writes it whole
            batch = RecordType(text, {})
            batch.name = text
            return batch
        raise ValueError(f"unknown type {text!r}")


def split_map(text: str) -> tuple[str, str]:
    """Return key and value of ``(key -> value) map``, split at the arrow of the outermost level."""
    inner = text[1:-5]
    depth = 0
    for at, character in enumerate(inner):
        depth += (character == "(") - (character == ")")
        if depth == 0 and inner.startswith(" -> ", at):
            return inner[:at], inner[at + 4 :]
    raise ValueError(f"map without an arrow: {text!r}")
