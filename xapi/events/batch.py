"""What a listener is told, and what that is on the wire."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import orjson

from xapi.datamodel.lexical import escape
from xapi.events.token import Token

if TYPE_CHECKING:
    from xapi.store.rows import Row, Table
    from xapi.wire.fragments import Fragments


class Event(NamedTuple):
    """One change: `row` is the object, or None when it is gone."""

    generation: int
    operation: str
    table: Table[Row]
    ref: str
    row: Row | None

    @property
    def id(self) -> int:
        """The generation; alerts always have 0."""
        return 0 if self.table.name == "message" else self.generation


class Batch:
    """The answer of event.from; what all who get the same share is encoded once."""

    def __init__(self, events: list[Event], counts: dict[str, int], token: Token) -> None:
        self.events = events
        self.counts = counts
        self.token = token
        self.encoded: dict[str, list[bytes]] = {}
        """Finished encodings, by the name of the codec."""

    @property
    def rows(self) -> list[Row]:
        return [event.row for event in self.events if event.row is not None]

    def xml(self, fragments: Fragments) -> Iterator[bytes]:
        """Yield the XML-RPC value in parts."""
        yield b"<value><struct><member><name>events</name><value><array><data>"
        for event in self.events:
            yield from xml_event(event, "0.0", fragments)
        counts = "".join(
            f"<member><name>{name}</name><value><i4>{count}</i4></value></member>"
            for name, count in self.counts.items()
        )
        yield (
            "</data></array></value></member><member><name>valid_ref_counts</name><value><struct>"
            f"{counts}</struct></value></member><member><name>token</name><value>{self.token}</value></member>"
            "</struct></value>"
        ).encode()

    def json(self, fragments: Fragments) -> Iterator[bytes]:
        """Yield the JSON object in parts."""
        yield b'{"events":['
        for number, event in enumerate(self.events):
            yield from json_event(event, b"," if number else b"", fragments)
        yield b"]," + orjson.dumps({"valid_ref_counts": self.counts, "token": str(self.token)})[1:]


def xml_event(event: Event, timestamp: str, fragments: Fragments) -> list[bytes]:
    """Return one event as an XML-RPC value in parts, the record a part of its own."""
    head = (
        f"<value><struct><member><name>id</name><value>{event.id}</value></member>"
        f"<member><name>timestamp</name><value>{timestamp}</value></member>"
        f"<member><name>class</name><value>{event.table.name.lower()}</value></member>"
        f"<member><name>operation</name><value>{event.operation}</value></member>"
        f"<member><name>ref</name><value>{escape(event.ref)}</value></member>"
    ).encode()
    if event.row is None:
        return [head + b"</struct></value>"]
    return [
        head + b"<member><name>snapshot</name>",
        fragments.xml_record(event.row),
        b"</member></struct></value>",
    ]


def json_event(event: Event, before: bytes, fragments: Fragments) -> list[bytes]:
    """Return one event as JSON in parts; the id is a string, as xapi sends it."""
    head = {
        "id": str(event.id),
        "timestamp": "0.0",
        "class": event.table.name.lower(),
        "operation": event.operation,
        "ref": event.ref,
    }
    text = before + orjson.dumps(head)
    if event.row is None:
        return [text]
    return [text[:-1] + b',"snapshot":', fragments.json_record(event.row), b"}"]


class NextEvents(list[Event]):
    """The answer of event.next."""

    timestamp: str = "0.0"
