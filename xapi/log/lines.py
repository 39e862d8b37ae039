"""What a line looks like: as text for people, or as one JSON object.

Everything here runs on the writer's thread. What others have chosen (names, errors, headers) can neither begin a line
of its own nor reach a terminal: whatever is not printable is escaped, in both forms. And no reference is ever written,
since any may be a session's, which is as good as a password: objects have names, and where somebody has left a
reference in a text, a hash stands for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import orjson

from xapi.datamodel.quoting import escape, shortened, without_references

LEVELS = {"debug": 10, "info": 20, "warn": 30, "error": 40, "critical": 50}
"""debug: what is read, and steps; info: what changes, who comes and goes, what was refused; warn: a failed login, a
permission that lacks, a guest that crashed; error: what should not happen; critical: the daemon cannot go on."""
DEBUG, INFO, WARN, ERROR, CRITICAL = LEVELS.values()
NAMES = {number: name for name, number in LEVELS.items()}

MOST = 16 * 1024
"""Characters of one line or traceback."""

Said = tuple[str, Mapping[str, object]]
"""A sentence, and the fields that JSON has besides."""
Render = Callable[..., Said]
Line = tuple[float, int, str, Render, tuple[object, ...]]
"""Seconds since 1970, level, who says it, and what makes the sentence of which values."""


def text(line: Line) -> bytes:
    """Return a line as text; further lines of a traceback are set off, so that none can pass for a line."""
    seconds, level, _, render, values = line
    sentence, _ = render(*values)
    first, *more = shortened(without_references(sentence), MOST).split("\n")
    whole = f"{stamp(seconds)} {NAMES[level]:8} {escape(first)}\n" + "".join(f"  | {escape(each)}\n" for each in more)
    return whole.encode()


def json(line: Line) -> bytes:
    """Return a line as JSON: `time`, `level`, `logger`, `message`, and what else is known."""
    seconds, level, name, render, values = line
    sentence, fields = render(*values)
    start = {"time": stamp(seconds), "level": NAMES[level], "logger": name, "message": shortened(sentence, MOST)}
    known = {**start, **fields}
    try:
        whole = orjson.dumps(known, default=str)
    except orjson.JSONEncodeError:  # a lone surrogate, or a number beyond 64 bits
        whole = orjson.dumps({key: escape(str(value)) for key, value in known.items()})
    shown = without_references(whole.decode())
    return (shown if shown.isascii() else _HIDDEN.sub(_as_json, shown)).encode() + b"\n"


FORMAT: Mapping[str, Callable[[Line], bytes]] = {"text": text, "json": json}


def stamp(seconds: float) -> str:
    """Return a moment as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_HIDDEN = re.compile("[\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")
"""What terminals heed or do not show, and JSON does not escape."""


def _as_json(match: re.Match[str]) -> str:
    return f"\\u{ord(match.group()):04x}"
