"""What a field may hold: what SQLite and PostgreSQL both keep and give back equal.

The store looks at each value where it is assigned, whoever assigns it, so no change reaches the journal that a
database cannot hold: one number would take a whole batch with it. Numbers and dates out of range are refused;
text loses what XML and the databases have no place for, as the wire's does (xapi cuts it off there). A value of
another Python type than the field's is a fault of ours, hence a TypeError. Costs: 0.1 us for a text or a number, 1 us
for a map of twenty texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from xapi.datamodel.types import (
    NULL,
    UNPRINTABLE,
    BoolType,
    DateTimeType,
    EnumType,
    FloatType,
    IntType,
    MapType,
    RefType,
    SetType,
    StringType,
    Type,
)

Fit = Callable[[Any], object]
"""Returns a value as a field holds it. Raises Unfit, TypeError."""


class Unfit(ValueError):
    """No field of this type can hold the value; the text says why."""


def fitting(kind: Type) -> Fit:
    """Return what looks at the values of a type."""
    if isinstance(kind, SetType):
        return _set(kind.item)
    if isinstance(kind, MapType):
        return _map(kind.key, kind.value)
    if isinstance(kind, EnumType):
        return _enum(kind)
    return _SCALARS.get(type(kind), _anything)


def _wrong(value: object, kind: str) -> TypeError:
    return TypeError(f"{value!r:.80} is no {kind}")


def _anything(value: object) -> object:
    return value


def _text(value: str) -> str:
    if str.isprintable(value) or UNPRINTABLE.search(value) is None:  # TypeError for what is no str
        return value
    return UNPRINTABLE.sub("", value)


def _ref(value: str) -> str:
    return _text(value) or NULL


def _int(value: int) -> int:
    if type(value) is not int:
        raise _wrong(value, "int")
    if -(2**63) <= value < 2**63:
        return value
    raise Unfit("the number does not fit into 64 bits")


def _bool(value: bool) -> bool:
    if type(value) is not bool:
        raise _wrong(value, "bool")
    return value


def _float(value: float) -> float:
    if type(value) is not float:
        if type(value) is not int:
            raise _wrong(value, "float")
        value = _int(value) * 1.0
    if math.isfinite(value):
        return value
    raise Unfit("the number is not finite")


def _datetime(value: datetime) -> datetime:
    if value.tzinfo is UTC:
        return value
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise Unfit("the date is not within the years 1 to 9999") from None


_SCALARS: Mapping[type[Type], Fit] = {
    StringType: _text,
    RefType: _ref,
    IntType: _int,
    BoolType: _bool,
    FloatType: _float,
    DateTimeType: _datetime,
}


def _enum(kind: EnumType) -> Fit:
    values = kind.values

    def fit(value: str) -> str:
        if value in values:
            return value
        raise _wrong(value, kind.name)

    return fit


def _set(item: Type) -> Fit:
    if isinstance(item, StringType | RefType):
        return lambda value: value if "".join(value).isprintable() else tuple(map(_text, value))
    fit = fitting(item)
    return lambda value: tuple(map(fit, value))


def _map(key: Type, item: Type) -> Fit:
    if isinstance(key, StringType) and isinstance(item, StringType):
        return _texts
    fit_key, fit_item = fitting(key), fitting(item)
    return lambda value: {fit_key(k): fit_item(v) for k, v in value.items()}


def _texts(value: Mapping[str, str]) -> Mapping[str, str]:
    if "".join(value).isprintable() and "".join(value.values()).isprintable():
        return value
    return {_text(k): _text(v) for k, v in value.items()}
