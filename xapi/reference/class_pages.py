"""The page of each class: its messages, fields, enums and operations."""

from __future__ import annotations

from collections.abc import Iterator

from xapi.datamodel import Class, Field, Message, Model, Parameter
from xapi.reference.blocks import (
    Anchor,
    Block,
    Break,
    Bullets,
    Code,
    Grid,
    Heading,
    Inline,
    Link,
    Listing,
    Page,
    Paragraph,
    Part,
    Row,
    joined,
)
from xapi.reference.examples import Examples
from xapi.reference.words import Words, signature


def _section(title: str) -> str:
    return f"section-{title.lower().replace(' ', '-')}"


def _heading(title: str) -> Heading:
    return Heading(2, title, _section(title))


class ClassPages(Words):
    """Builds the page of any class of a model."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.examples = Examples(model)

    def page(self, cls: Class) -> Page:
        """Return the page: what it is, what is on the page, messages, fields, and what they are made of."""
        page = Page(cls.name, f"Class {cls.name}")
        kept = {"disk": "kept over a restart of the daemon", "memory": "gone after a restart of the daemon"}
        facts: list[Inline] = [["Life cycle: ", *self.life(cls.life), "."]]
        facts.append([f"Objects: {kept.get(cls.kept, 'none; its records and messages stand alone')}."])
        facts.append(["Events: changes are told to clients." if cls.events else "Events: none."])
        if cls.constructor:
            facts.append(["Clients may create and destroy objects; least role ", *self.role(cls.constructor), "."])
        page.blocks += [Paragraph(cls.doc), Bullets(facts), *self.contents(cls)]
        for make in (self.messages, self.implicit, self.fields, self.enums, self.operations):
            page.blocks += make(cls)
        return page

    def contents(self, cls: Class) -> Iterator[Block]:
        """Yield a line for each part of the page, with a link to each thing in it."""
        lines: list[Inline] = []
        for title, prefix, names in (
            ("Messages", "message", [message.name for message in cls.explicit]),
            ("Implicit messages", "message", [message.name for message in cls.messages.values() if message.kind]),
            ("Fields", "field", list(cls.fields)),
            ("Enums", "enum", list(cls.enums)),
        ):
            if names:
                links: list[Inline] = [[Link(name, cls.name, f"{prefix}-{name}")] for name in names]
                lines.append([Link(title, cls.name, _section(title)), ": ", *joined(links)])
        if cls.operations:
            lines.append([Link("Operations", cls.name, _section("Operations"))])
        yield Heading(2, "Contents")
        yield Bullets(lines)

    def messages(self, cls: Class) -> Iterator[Block]:
        """Yield the explicit messages, group by group."""
        if cls.message_groups:
            yield _heading("Messages")
        for title, messages in cls.message_groups.items():
            yield Heading(3, title)
            for message in messages:
                yield from self.message(message)

    def fields(self, cls: Class) -> Iterator[Block]:
        """Yield a table for each group of fields."""
        if cls.field_groups:
            yield _heading("Fields")
        for title, members in cls.field_groups.items():
            yield Heading(3, title)
            yield Grid(("Name", "Type", "Access", "Description"), [self.field(cls, member) for member in members])

    def enums(self, cls: Class) -> Iterator[Block]:
        if cls.enums:
            yield _heading("Enums")
        for enum in cls.enums.values():
            yield Heading(3, enum.name, f"enum-{enum.name}")
            yield Paragraph(enum.doc)
            rows = [(Code(value.name) if value.name else "(empty string)", value.doc) for value in enum.values]
            yield Grid(("Value", "Meaning"), rows)

    def operations(self, cls: Class) -> Iterator[Block]:
        if not cls.operations:
            return
        yield _heading("Operations")
        yield Paragraph("In which power states an operation may start, and on what besides plain objects.")
        rows = [
            (
                Code(operation.name),
                ", ".join(sorted(operation.states)) or "none",
                operation.template,
                "yes" if operation.snapshot else "no",
                operation.control_domain,
            )
            for operation in cls.operations.values()
        ]
        yield Grid(("Operation", "Power states", "Templates", "Snapshots", "Control domains"), rows)

    def field(self, cls: Class, member: Field) -> Row:
        about: list[Part] = [member.doc]
        if member.inverse:
            about += [" Other side: ", *self.relation(member.inverse), "."]
        if member.column != member.name:
            about += [" In query expressions: ", Code(member.column), "."]
        if member.internal:
            about.append(" Internal: never on the wire.")
        if member.secret:
            about.append(" Secret.")
        reader = member.reader or cls.reader
        facts: list[Inline] = []
        if not member.required:
            facts.append(["default ", *self.default(member.type, member.default)])
        elif cls.constructor and member.access != "RO/runtime":
            facts.append(["required"])
        if member.access == "RW":
            facts.append(["write: ", *self.role(member.role)])
            facts += [[f"key {key}: ", *self.role(role)] for key, role in member.key_roles.items()]
        if reader != "read-only":
            facts.append(["read: ", *self.role(reader)])
        facts.append(self.life(member.life))
        name = Anchor(member.name, f"field-{member.name}")
        return name, self.type(member.type), member.access, [*about, Break(), *joined(facts, "; ")]

    def message(self, message: Message) -> Iterator[Block]:
        yield Heading(4, message.name, f"message-{message.name}")
        yield Paragraph([Code(signature(message)), *self.lacking(message)])
        yield Paragraph(message.doc)
        if message.parameters:
            rows = [self.parameter(parameter) for parameter in message.parameters]
            yield Grid(("Parameter", "Type", "Default", ""), rows)
        facts: list[Inline] = [
            ["Result: ", *self.type(message.result)],
            ["Least role: ", *self.role(message.role), ", also client-cert" if message.client_cert else ""],
            ["Async: yes" if message.is_async else "Async: no"],
            ["Life cycle: ", *self.life(message.life)],
        ]
        keys = [[f"key {key}: ", *self.role(role)] for key, role in message.key_roles.items()]
        also = [[f"{name}: ", *self.role(role)] for name, role in message.also.items()]
        raised = [[Link(error, "errors", error)] for error in message.errors]
        for title, items in (
            ("Roles of keys", keys),
            ("Further permissions", also),
            ("Operations recorded", [[Code(claim)] for claim in message.claims]),
            ("Errors", raised),
        ):
            if items:
                facts.append([f"{title}: ", *joined(items)])
        if message.hidden:
            facts.append(["Hidden: not part of the published API"])
        if message.internal:
            facts.append(["Internal: only for sessions between the hosts of a pool"])
        yield Bullets(facts)
        example = self.examples.of(message)
        yield Listing("python", example.python)
        yield Listing("json", example.json)

    def parameter(self, parameter: Parameter) -> Row:
        default = [] if parameter.required else self.default(parameter.type, parameter.default)
        return Code(parameter.name), self.type(parameter.type), default, "secret" * parameter.secret

    def implicit(self, cls: Class) -> Iterator[Block]:
        messages = [message for message in cls.messages.values() if message.kind]
        if not messages:
            return
        yield _heading("Implicit messages")
        yield Paragraph("These follow from the class and its fields.")
        yield Grid(("Message", "Result", "Least role", "Example"), [self.implied(message) for message in messages])

    def implied(self, message: Message) -> Row:
        """Return the row of an implicit message."""
        example = self.examples.of(message)
        notes = [note for note, holds in (("hidden", message.hidden), ("async", message.is_async)) if holds]
        name = Anchor(message.name, f"message-{message.name}")
        called: Inline = [name, Break(), Code(signature(message)), f" ({', '.join(notes)})" if notes else ""]
        called = [*called, *self.lacking(message)]
        shown: Inline = [Code(example.python), Break(), Code(example.json)]
        return called, self.type(message.result), self.role(message.role), shown
