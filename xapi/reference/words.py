"""What all pages say in the same way: types, roles, life cycles, relations, and what is not there yet."""

from __future__ import annotations

import json
import re

from xapi.datamodel import HTTPHandler, Life, Message, Model
from xapi.datamodel.types import Type
from xapi.http import registry
from xapi.reference.blocks import Code, Inline, Link, Mark, Part, joined
from xapi.tools import coverage

_WORD = re.compile(r"(?:enum )?\w+")


def signature(message: Message) -> str:
    """Return the call as a client writes it, optional parameters with a question mark."""
    names = [parameter.name + ("" if parameter.required else "?") for parameter in message.parameters]
    return f"{message.full_name}({', '.join(['session'] * message.session + names)})"


class Words:
    """The inlines of one model, its things linked."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.homes = {enum: cls.name for cls in model.classes.values() for enum in cls.enums}
        self._missing = frozenset(
            message.full_name for messages in coverage.missing(model).values() for message in messages
        )
        self._unserved = frozenset(handler.name for handler in registry.unserved(model))

    def lacks(self, message: Message) -> bool:
        """Tell whether a message answers NOT_IMPLEMENTED."""
        return message.full_name in self._missing

    def lacking(self, message: Message) -> Inline:
        """Return a warning where a message answers NOT_IMPLEMENTED."""
        return [" ", Mark("not implemented")] if self.lacks(message) else []

    def unserved(self, handler: HTTPHandler) -> Inline:
        """Return a warning where an HTTP handler answers 501."""
        return [" ", Mark("not implemented")] if handler.name in self._unserved else []

    def type(self, kind: Type) -> Inline:
        """Return a type expression with its classes and enums linked."""
        found: list[Part] = []
        at = 0
        for match in _WORD.finditer(kind.name):
            word = match.group()
            page, anchor = "", ""
            if word.startswith("enum "):
                page, anchor = self.homes.get(word[5:], ""), f"enum-{word[5:]}"
            elif kind.name[match.end() :].startswith((" ref", " record")) and word in self.model.classes:
                page = word
            if page:
                found += [kind.name[at : match.start()], Link(word, page, anchor)]
                at = match.end()
        return [part for part in [*found, kind.name[at:]] if part]

    def role(self, name: str) -> Inline:
        return [Link(name, "roles", name)] if name in self.model.roles else [name]

    def release(self, name: str) -> Inline:
        return [Link(name, "releases", name)]

    def life(self, life: Life) -> Inline:
        marks = [("prototyped in ", life.prototyped), ("since ", life.since)]
        marks += [("deprecated in ", life.deprecated), ("removed in ", life.removed)]
        return joined([[word, *self.release(name)] for word, name in marks if name])

    def relation(self, name: str) -> Inline:
        class_name, _, other = name.partition(".")
        return [Link(name, class_name, f"field-{other}")]

    def default(self, kind: Type, value: object) -> Inline:
        return [Code(json.dumps(kind.plain(value), ensure_ascii=False))]
