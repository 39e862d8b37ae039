"""What pages are made of: headings, paragraphs, lists and tables of text, code and links."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Link:
    text: str
    page: str
    """Name of the page, without its suffix."""
    anchor: str = ""


@dataclass(frozen=True)
class Anchor:
    """Text that links lead to."""

    text: str
    name: str


@dataclass(frozen=True)
class Mark:
    """A word that warns."""

    text: str


@dataclass(frozen=True)
class Break:
    """A new line."""


Part = str | Code | Link | Anchor | Mark | Break
Inline = Sequence[Part]
Cell = Part | Inline
Row = Sequence[Cell]


@dataclass(frozen=True)
class Heading:
    level: int
    text: str
    anchor: str = ""


@dataclass(frozen=True)
class Paragraph:
    content: Cell


@dataclass(frozen=True)
class Bullets:
    items: Sequence[Cell]


@dataclass(frozen=True)
class Grid:
    """A table."""

    head: Sequence[str]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Listing:
    """Source text, as it stands."""

    language: str
    text: str


Block = Heading | Paragraph | Bullets | Grid | Listing


@dataclass
class Page:
    name: str
    title: str
    blocks: list[Block] = field(default_factory=list)
    findable: Sequence[Link] = ()
    """What the page's search box finds; on pages without, it leads to the index's."""


def parts(content: Cell) -> Inline:
    """Return the parts of what may be one part by itself."""
    return [content] if isinstance(content, Part) else content


def joined(items: Iterable[Inline], separator: str = ", ") -> Inline:
    """Return the items as one inline, with the separator between them."""
    whole: list[Part] = []
    for item in items:
        if whole:
            whole.append(separator)
        whole.extend(item)
    return whole


def counted(number: int, noun: str) -> str:
    """Return ``1 class`` or ``3 classes``: the number and the noun in the form that it asks for."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"
