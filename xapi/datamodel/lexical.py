"""How values are written: text in XML, moments, floating-point numbers."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""What the API says for "never"."""


class DecodeError(ValueError):
    """A wire value does not have the declared type; the text says which and what was met."""


_CONTROL = re.compile("[\r\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def escape(text: str) -> str:
    """Return text as XML character data; control characters but tab, LF and CR are dropped.

    CR is written as a character reference: bare, an XML reader would turn it into LF.
    """
    # Most texts have none of these, and these tests find that out faster than one regular expression.
    if "&" in text or "<" in text or ">" in text or '"' in text:
        text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    if text.isprintable():
        return text
    return _CONTROL.sub(lambda match: "&#13;" if match.group() == "\r" else "", text)


class _Escaped(dict[str, str]):
    """Escaped strings, remembered: records repeat a few thousand of them for ever.

    uuids and references are too many to keep, and looking them over is as cheap: of texts above 32 characters
    only those are kept that escaping changes, such as a template's recommendations.
    """

    def __missing__(self, text: str) -> str:
        escaped = escape(text)
        if len(text) <= 32 or (escaped is not text and len(text) <= 2048):
            if len(self) >= 16384:
                self.clear()
            self[text] = escaped
        return escaped


escaped = _Escaped().__getitem__


@lru_cache(maxsize=4096)
def moment(seconds: float) -> datetime:
    """Return the time of day, in whole seconds, of seconds since 1970: what fields hold."""
    return datetime.fromtimestamp(int(seconds), UTC)


def format_datetime(value: datetime) -> str:
    """Return the wire form, ``20260131T09:05:07Z``: no hyphens, whole seconds, UTC; without ``Z`` a local time."""
    zone = "" if value.tzinfo is None else "Z"
    return f"{value.year:04}{value.month:02}{value.day:02}T{value.hour:02}:{value.minute:02}:{value.second:02}{zone}"


_DATETIME = re.compile(r"(\d{4})-?(\d\d)-?(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.\d+)?(?:(Z)|([+-])(\d\d):?(\d\d))?", re.ASCII)


def parse_datetime(text: str) -> datetime:
    """Read a date with or without hyphens; without a zone it is taken as UTC.

    Raises DecodeError.
    """
    match = _DATETIME.fullmatch(text)
    if not match:
        raise DecodeError(f"not a date: {text!r}")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    try:
        if match.group(8):
            offset = timedelta(hours=int(match.group(9)), minutes=int(match.group(10)))
            zone = timezone(-offset if match.group(8) == "-" else offset)
            return datetime(year, month, day, hour, minute, second, tzinfo=zone).astimezone(UTC)
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise DecodeError(f"not a date: {text!r}") from error


def parse_number(text: str) -> int | None:
    """Return what some decimal digits stand for, at most 18 of them beside leading zeros; None for all else.

    Numbers in maps come as text. int() also takes digits of other scripts and underscores, and fails on thousands
    of digits.
    """
    match = _DIGITS.fullmatch(text)
    return int(match[1]) if match is not None else None


_DIGITS = re.compile(r"[ \t\r\n]*0*([0-9]{1,18})[ \t\r\n]*")


def format_float(value: float) -> str:
    """Print as C's ``%.16g``; nan and inf as the C library prints them."""
    return f"{value:.16g}"
