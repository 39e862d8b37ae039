"""Up to where a listener knows what has happened."""

from __future__ import annotations

import re
from typing import NamedTuple

from xapi.datamodel import errors

_TOKEN = re.compile(r"(\d{1,20}),(\d{1,20})", re.ASCII)


class Token(NamedTuple):
    """Generations up to which a listener knows the objects and the alerts."""

    objects: int
    messages: int

    def __str__(self) -> str:
        return f"{self.objects:020},{self.messages:020}"

    @classmethod
    def parse(cls, text: str) -> Token:
        """Read a token; '' knows nothing. Raises EVENT_FROM_TOKEN_PARSE_FAILURE."""
        if text == "":
            return cls(0, 0)
        match = _TOKEN.fullmatch(text)
        if match is None:
            raise errors.EVENT_FROM_TOKEN_PARSE_FAILURE(text)
        return cls(int(match.group(1)), int(match.group(2)))
