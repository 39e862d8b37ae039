"""Write the API reference from the schema: ``python -m xapi.reference [--output DIR] [--format html]``.

The pages are built once as blocks (headings, paragraphs, lists, tables) and printed as Markdown or as
HTML. Pages of a class are named for it; links between pages are relative, so the folder may lie
anywhere. A marker file lists what was written: only those files are ever replaced or removed.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from xapi import datamodel
from xapi.datamodel import (
    Alert,
    Class,
    ErrorCode,
    Field,
    HTTPHandler,
    Life,
    Message,
    Model,
    Parameter,
    SchemaError,
)
from xapi.types import Type

MARKER = ".kronos-reference"
"""The file that marks a folder as ours; its lines are the names of the pages."""


class OutputError(Exception):
    """The reference cannot be written where it was asked for; the text says why."""


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


Part = str | Code | Link | Anchor
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


Block = Heading | Paragraph | Bullets | Grid


@dataclass
class Page:
    name: str
    title: str
    blocks: list[Block] = field(default_factory=list)


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


# Printing.

_MARKS = re.compile(r"[\\`*_\[\]<>|&]")


class Markdown:
    suffix = ".md"

    def text(self, text: str) -> str:
        return _MARKS.sub(lambda match: "\\" + match.group(), text)

    def part(self, part: Part) -> str:
        if isinstance(part, Code):
            return f"`{part.text}`".replace("|", "\\|") if part.text else ""
        if isinstance(part, Link):
            anchor = f"#{part.anchor}" if part.anchor else ""
            return f"[{self.text(part.text)}]({part.page}{self.suffix}{anchor})"
        if isinstance(part, Anchor):
            return f'<a id="{part.name}"></a>{self.text(part.text)}'
        return self.text(part)

    def inline(self, content: Cell) -> str:
        return "".join(self.part(part) for part in parts(content)).strip()

    def block(self, block: Block) -> str:
        if isinstance(block, Heading):
            anchor = f'<a id="{block.anchor}"></a>' if block.anchor else ""
            return f"{'#' * block.level} {anchor}{self.text(block.text)}"
        if isinstance(block, Paragraph):
            return self.inline(block.content)
        if isinstance(block, Bullets):
            return "\n".join(f"- {self.inline(item)}" for item in block.items)
        rows = [list(block.head), ["---"] * len(block.head)]
        rows += [[self.inline(cell) for cell in row] for row in block.rows]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def page(self, page: Page) -> str:
        top = "" if page.name == "index" else f"[Index](index{self.suffix})\n\n"
        blocks = [self.block(block) for block in [Heading(1, page.title), *page.blocks]]
        return top + "\n\n".join(blocks) + "\n"


STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:75em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.5em 0 1.5em}div{overflow-x:auto}
th,td{border:1px solid #ccc;padding:.25em .6em;text-align:left;vertical-align:top}th{background:#f3f3f3}
code{font:.9em monospace;background:#f3f3f3;padding:0 .2em}a{color:#05c}:target{background:#ffd}
h4{margin-bottom:.2em;border-top:1px solid #ddd;padding-top:.6em}"""


class HTML:
    suffix = ".html"

    def part(self, part: Part) -> str:
        if isinstance(part, Code):
            return f"<code>{html.escape(part.text)}</code>" if part.text else ""
        if isinstance(part, Link):
            target = html.escape(f"{part.page}{self.suffix}{'#' * bool(part.anchor)}{part.anchor}")
            return f'<a href="{target}">{html.escape(part.text)}</a>'
        if isinstance(part, Anchor):
            return f'<span id="{html.escape(part.name)}">{html.escape(part.text)}</span>'
        return html.escape(part)

    def inline(self, content: Cell) -> str:
        return "".join(self.part(part) for part in parts(content)).strip()

    def block(self, block: Block) -> str:
        if isinstance(block, Heading):
            anchor = f' id="{html.escape(block.anchor)}"' if block.anchor else ""
            return f"<h{block.level}{anchor}>{html.escape(block.text)}</h{block.level}>"
        if isinstance(block, Paragraph):
            return f"<p>{self.inline(block.content)}</p>"
        if isinstance(block, Bullets):
            items = "\n".join(f"<li>{self.inline(item)}</li>" for item in block.items)
            return f"<ul>\n{items}\n</ul>"
        head = "".join(f"<th>{html.escape(title)}</th>" for title in block.head)
        rows = "\n".join(
            "<tr>" + "".join(f"<td>{self.inline(cell)}</td>" for cell in row) + "</tr>" for row in block.rows
        )
        return f"<div><table>\n<tr>{head}</tr>\n{rows}\n</table></div>"

    def page(self, page: Page) -> str:
        top = "" if page.name == "index" else '<p><a href="index.html">Index</a></p>\n'
        body = "\n".join(self.block(block) for block in [Heading(1, page.title), *page.blocks])
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(page.title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n"
            f"<body>\n{top}{body}\n</body>\n</html>\n"
        )


FORMATS: dict[str, Markdown | HTML] = {"markdown": Markdown(), "html": HTML()}


def write(model: Model, directory: Path, form: Markdown | HTML) -> int:
    """Write all pages and return their number; pages of an earlier run that are no more are removed.

    Raises OutputError when the folder holds things that this program did not write.
    """
    pages = {page.name + form.suffix: form.page(page) for page in Writer(model).pages()}
    marker = directory / MARKER
    try:
        directory.mkdir(parents=True, exist_ok=True)
        earlier = marker.read_text("utf-8").splitlines() if marker.is_file() else []
        if not marker.is_file() and any(directory.iterdir()):
            raise OutputError(f"{directory} is not empty and was not written by this program; nothing changed")
        for name in pages.keys() - set(earlier):
            if (directory / name).exists():
                raise OutputError(f"{directory / name} was not written by this program; nothing changed")
        # The marker comes first: a run that was cut short can be repeated.
        marker.write_text("".join(f"{name}\n" for name in sorted({*earlier, *pages})), "utf-8")
        for name in earlier:
            if name not in pages and Path(name).name == name:
                (directory / name).unlink(missing_ok=True)
        for name, text in pages.items():
            (directory / name).write_text(text, "utf-8")
        marker.write_text("".join(f"{name}\n" for name in sorted(pages)), "utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {error.filename or directory}: {error.strerror}") from error
    return len(pages)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m xapi.reference",
        description="Write the XenAPI reference, made from the schema: an index, a page for each class, and "
        "pages for errors, roles, alerts, releases and HTTP handlers.",
        epilog="A folder that this program wrote before is brought up to date; any other folder must be "
        "empty or absent. The exit status is 1 when nothing could be written.",
    )
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=Path("reference"), help="where to (default: %(default)s)"
    )
    parser.add_argument(
        "--format", choices=list(FORMATS), default="markdown", help="what to write (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        number = write(datamodel.load(), options.output, FORMATS[options.format])
    except (OutputError, SchemaError) as error:
        print(f"xapi.reference: {error}", file=sys.stderr)
        return 1
    print(f"{options.output}: {counted(number, 'page')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
