"""S-expressions as xapi writes them into its database: lists in parentheses, texts in single quotes."""

from __future__ import annotations

import re
from collections.abc import Iterable

DEEPEST = 20
"""How deep lists may nest; what is read may be of anybody's making."""

_ESCAPED = str.maketrans({"\\": "\\\\", "'": "\\'"})
_TOKEN = re.compile(
    r"""(?:[ \t\r\n]|;[^\n]*\n)*(?:([()])|'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([^'" \t\r\n()][^" \t\r\n()]*)|\Z)""",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def quote(text: str) -> str:
    """Return a text as an atom."""
    return f"'{text.translate(_ESCAPED)}'"


def listing(items: Iterable[str]) -> str:
    """Return a list of what is written already."""
    return f"({' '.join(items)})"


def parse(text: str) -> object:
    """Return what a text says: str for an atom, list for a list. Raises ValueError."""
    root: list[object] = []
    stack = [root]
    at = 0
    while True:
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"no S-expression at character {at}")
        bracket, single, double, symbol = match.groups()
        if bracket == "(":
            inner: list[object] = []
            stack[-1].append(inner)
            stack.append(inner)
            if len(stack) > DEEPEST:
                raise ValueError("lists nest too deep")
        elif bracket == ")":
            stack.pop()
            if not stack:
                raise ValueError(f"nothing to close at character {match.start(1)}")
        elif symbol is not None:
            stack[-1].append(symbol)
        elif single is not None or double is not None:
            stack[-1].append(_ESCAPE.sub(r"\1", single if single is not None else double))
        else:
            break
        at = match.end()
    if len(stack) != 1 or len(root) != 1:
        raise ValueError("not one whole S-expression")
    return root[0]
