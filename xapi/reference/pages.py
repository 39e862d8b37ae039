"""The pages of the reference: what the schema declares, in sentences and tables."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from xapi.datamodel import Alert, Class, ErrorCode, Field, HTTPHandler, Life, Message, Model, Parameter
from xapi.reference.blocks import (
    Anchor,
    Block,
    Bullets,
    Code,
    Grid,
    Heading,
    Inline,
    Link,
    Page,
    Paragraph,
    Part,
    Row,
    counted,
    joined,
)
from xapi.types import Type

G = TypeVar("G", ErrorCode, Alert, HTTPHandler)


def tables(items: Iterable[G], head: Sequence[str], row: Callable[[G], Row]) -> Iterator[Block]:
    """Yield a heading and a table for each group of the items."""
    groups: dict[str, list[G]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    for title, members in groups.items():
        yield Heading(2, title)
        yield Grid(head, [row(member) for member in members])


def signature(message: Message) -> str:
    """Return the call as a client writes it, optional parameters with a question mark."""
    names = [parameter.name + ("" if parameter.required else "?") for parameter in message.parameters]
    return f"{message.full_name}({', '.join(['session'] * message.session + names)})"


READING = (
    "Parameters are positional. Where a signature begins with session, the session reference comes first.",
    "Types: VM ref is a reference to a VM, VM ref set a set of such, VM record a struct of its fields, "
    "(string -> int) map a struct whose members are ints.",
    "Access: RW fields are arguments of the constructor and have setters (for maps also add_to_ and "
    "remove_from_, for sets add_ and remove_); RO/constructor fields are arguments of the constructor only; "
    "RO/runtime fields are set by the server.",
    "Least role: that role and every role with more rights may call. Fields without a role are readable by all.",
    "Async: the message can also be called as Async.Class.message, which answers with a task at once.",
    "Hidden messages and internal fields are not part of the published API.",
    "Life cycle: names of releases; what is removed still has its place in records.",
)

_WORD = re.compile(r"(?:enum )?\w+")


class Writer:
    """Build the pages of one model."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.homes = {enum: cls.name for cls in model.classes.values() for enum in cls.enums}

    def pages(self) -> Iterator[Page]:
        """Yield all pages, the index first."""
        yield self.index()
        for cls in self.model.classes.values():
            yield self.class_page(cls)
        yield self.errors()
        yield self.roles()
        yield self.alerts()
        yield self.releases()
        yield self.handlers()

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

    # The page of a class.

    def class_page(self, cls: Class) -> Page:
        page = Page(cls.name, f"Class {cls.name}")
        kept = {"disk": "kept over a restart of the daemon", "memory": "gone after a restart of the daemon"}
        facts: list[Inline] = [["Life cycle: ", *self.life(cls.life), "."]]
        facts.append([f"Objects: {kept.get(cls.kept, 'none; its records and messages stand alone')}."])
        facts.append(["Events: changes are told to clients." if cls.events else "Events: none."])
        if cls.constructor:
            facts.append(["Clients may create and destroy objects; least role ", *self.role(cls.constructor), "."])
        page.blocks += [Paragraph(cls.doc), Bullets(facts), *self.enums(cls), *self.operations(cls)]
        if cls.field_groups:
            page.blocks.append(Heading(2, "Fields"))
        for title, members in cls.field_groups.items():
            head = ("Name", "Type", "Access", "Default", "Life cycle", "Role", "Description")
            rows = [self.field(cls, member) for member in members]
            page.blocks += [Heading(3, title), Grid(head, rows)]
        if cls.message_groups:
            page.blocks.append(Heading(2, "Messages"))
        for title, messages in cls.message_groups.items():
            page.blocks.append(Heading(3, title))
            for message in messages:
                page.blocks += self.message(message)
        page.blocks += self.implicit(cls)
        return page

    def enums(self, cls: Class) -> Iterator[Block]:
        if cls.enums:
            yield Heading(2, "Enums")
        for enum in cls.enums.values():
            yield Heading(3, enum.name, f"enum-{enum.name}")
            yield Paragraph(enum.doc)
            rows = [(Code(value.name) if value.name else "(empty string)", value.doc) for value in enum.values]
            yield Grid(("Value", "Meaning"), rows)

    def operations(self, cls: Class) -> Iterator[Block]:
        if not cls.operations:
            return
        yield Heading(2, "Operations")
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
        roles: list[Inline] = []
        if member.access == "RW":
            roles += [["write: ", *self.role(member.role)]]
            roles += [[f"key {key}: ", *self.role(role)] for key, role in member.key_roles.items()]
        reader = member.reader or cls.reader
        if reader != "read-only":
            roles.append(["read: ", *self.role(reader)])
        if not member.required:
            default = self.default(member.type, member.default)
        else:
            default = ["required"] if cls.constructor and member.access != "RO/runtime" else []
        name = Anchor(member.name, f"field-{member.name}")
        life = self.life(member.life)
        return name, self.type(member.type), member.access, default, life, joined(roles), about

    def message(self, message: Message) -> Iterator[Block]:
        yield Heading(4, message.name, f"message-{message.name}")
        yield Paragraph(Code(signature(message)))
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
        alerts = [[Link(alert, "alerts", alert)] for alert in message.alerts]
        raised = [[Link(error, "errors", error)] for error in message.errors]
        for title, items in (
            ("Roles of keys", keys),
            ("Further permissions", also),
            ("Operations recorded", [[Code(claim)] for claim in message.claims]),
            ("Alerts", alerts),
            ("Errors", raised),
        ):
            if items:
                facts.append([f"{title}: ", *joined(items)])
        if message.hidden:
            facts.append(["Hidden: not part of the published API"])
        if message.internal:
            facts.append(["Internal: only for sessions between the hosts of a pool"])
        yield Bullets(facts)

    def parameter(self, parameter: Parameter) -> Row:
        default = [] if parameter.required else self.default(parameter.type, parameter.default)
        return Code(parameter.name), self.type(parameter.type), default, "secret" * parameter.secret

    def implicit(self, cls: Class) -> Iterator[Block]:
        messages = [message for message in cls.messages.values() if message.kind]
        if not messages:
            return
        yield Heading(2, "Implicit messages")
        yield Paragraph("These follow from the class and its fields.")
        rows = [
            (
                [Code(signature(message)), " (hidden)" if message.hidden else ""],
                self.type(message.result),
                self.role(message.role),
                "async" if message.is_async else "",
            )
            for message in messages
        ]
        yield Grid(("Message", "Result", "Least role", ""), rows)

    # The other pages.

    def index(self) -> Page:
        model = self.model
        explicit = sum(not message.kind for message in model.messages)
        implicit = sum(bool(message.kind) for message in model.messages)
        summary = (
            f"{counted(len(model.classes), 'class')}, {counted(explicit, 'explicit message')}, "
            f"{counted(implicit, 'implicit message')}, {counted(len(model.errors), 'error')}."
        )
        names = ("errors", "roles", "alerts", "releases", "http")
        titles = ("Errors", "Roles", "Alerts", "Releases", "HTTP handlers")
        rows = [
            (Link(cls.name, cls.name), cls.doc, str(len(cls.record_fields)), str(len(cls.messages)))
            for cls in model.classes.values()
        ]
        page = Page("index", "XenAPI reference", [Paragraph(summary)])
        page.blocks.append(Bullets([Link(title, name) for title, name in zip(titles, names)]))
        page.blocks += [Heading(2, "How to read it"), Bullets(READING)]
        page.blocks += [Heading(2, "Classes"), Grid(("Class", "Description", "Fields", "Messages"), rows)]
        return page

    def errors(self) -> Page:
        intro = "A failure is a code and its parameters. A parameter with ? may be missing, one with * may repeat."
        head = ("Code", "Parameters", "Meaning")

        def row(error: ErrorCode) -> Row:
            unpublished = "" if error.published else " Not in the published list."
            return Anchor(error.name, error.name), Code(" ".join(error.parameters)), error.doc + unpublished

        return Page("errors", "Errors", [Paragraph(intro), *tables(self.model.errors.values(), head, row)])

    def roles(self) -> Page:
        intro = (
            "From most rights to least: each role may do all that the roles after it may. What needs local-root "
            "is only for root on the host itself and for the other hosts of the pool."
        )
        least = [role for role, _ in self.model.permissions.values()]
        rows = [
            (
                Anchor(role.name, role.name),
                role.doc,
                "yes" if role.internal else "",
                str(least.count(role.name)),
                Code(role.uuid),
            )
            for role in self.model.roles.values()
        ]
        head = ("Role", "Description", "Internal", "Permissions that need it", "uuid")
        return Page("roles", "Roles", [Paragraph(intro), Grid(head, rows)])

    def alerts(self) -> Page:
        intro = "Messages that the server makes by itself. Priority 1 is the worst, 5 is information."
        head = ("Name", "Priority", "Meaning")

        def row(alert: Alert) -> Row:
            return Anchor(alert.name, alert.name), str(alert.priority), alert.doc

        return Page("alerts", "Alerts", [Paragraph(intro), *tables(self.model.alerts.values(), head, row)])

    def releases(self) -> Page:
        rows = [
            (
                Anchor(release.name, release.name) if release.name else "",
                release.api,
                release.product,
                release.date,
                release.schema,
            )
            for release in self.model.releases.values()
        ]
        head = ("Release", "API", "Product", "Date", "Database schema")
        return Page("releases", "Releases", [Grid(head, rows)])

    def handlers(self) -> Page:
        intro = "Requests beside the API's calls. What is not checked is open to all, or checks by itself."
        head = ("Request", "Name", "Least role", "Description")

        def row(handler: HTTPHandler) -> Row:
            least = self.role(handler.role) if handler.checked else ["not checked"]
            also = [[f"{name}: ", *self.role(role)] for name, role in handler.also.items()]
            call = Code(f"{handler.method} {handler.path}")
            return call, Code(handler.name), joined([least, *also]), handler.doc

        return Page("http", "HTTP handlers", [Paragraph(intro), *tables(self.model.handlers.values(), head, row)])
