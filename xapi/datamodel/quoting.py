"""How a text that others have chosen, and a reference, stand in what people read: logs, traces, errors.

What others have chosen can neither begin a line of its own nor reach a terminal: whatever is not printable is escaped.
And a reference may be a session's, which is as good as a password: a hash stands for it.
"""

from __future__ import annotations

import re
from hashlib import md5

LONGEST = 200
"""Characters of one value that are written."""
REFERENCE = re.compile("OpaqueRef:[0-9A-Fa-f-]{8,}")


def trackid(session: str) -> str:
    """Return what stands for a session's reference: xapi's hash of it."""
    return f"trackid={md5(session.encode('utf-8', 'surrogatepass'), usedforsecurity=False).hexdigest()}"


def without_references(text: str) -> str:
    """Return a text with hashes in place of references."""
    return REFERENCE.sub(lambda match: trackid(match.group()), text) if "OpaqueRef:" in text else text


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
