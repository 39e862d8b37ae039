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
from hashlib import md5
from typing import Any

import orjson

LEVELS = {"debug": 10, "info": 20, "warn": 30, "error": 40, "critical": 50}
"""debug: what is read, and steps; info: what changes, who comes and goes, what was refused; warn: a failed login, a
permission that lacks, a guest that crashed; error: what should not happen; critical: the daemon cannot go on."""
DEBUG, INFO, WARN, ERROR, CRITICAL = LEVELS.values()
NAMES = {number: name for name, number in LEVELS.items()}

LONGEST = 200
"""Characters of one value that are written."""
MOST = 16 * 1024
"""Characters of one line or traceback."""

REFERENCE = re.compile("OpaqueRef:[0-9A-Fa-f-]{8,}")

Said = tuple[str, Mapping[str, Any]]
"""A sentence, and the fields that JSON has besides."""
Render = Callable[..., Said]
Line = tuple[float, int, str, Render, tuple[Any, ...]]
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


def trackid(session: str) -> str:
    """Return what stands for a session's reference: xapi's hash of it."""
    return f"trackid={md5(session.encode('utf-8', 'surrogatepass'), usedforsecurity=False).hexdigest()}"


def without_references(text: str) -> str:
    """Return a text with hashes in place of references."""
    return REFERENCE.sub(lambda match: trackid(match.group()), text) if "OpaqueRef:" in text else text


def stamp(seconds: float) -> str:
    """Return a moment as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def shortened(value: str, most: int = LONGEST) -> str:
    """Return a text, or its beginning and how much is missing."""
    return value if len(value) <= most else f"{value[:most]}... ({len(value) - most:,} more)"


def quoted(value: str) -> str:
    """Return what somebody has chosen, shortened and in quotes, on one line."""
    return '"' + escape(shortened(value)).replace('"', r"\"") + '"'


def escape(value: str) -> str:
    r"""Return a text with ``\n``, ``\x1b``, ``\u202e`` and the like for what is not printable."""
    return value if value.isprintable() else "".join(map(_shown, value))


def _shown(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


_HIDDEN = re.compile("[\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")
"""What terminals heed or do not show, and JSON does not escape."""


def _as_json(match: re.Match[str]) -> str:
    return f"\\u{ord(match.group()):04x}"
