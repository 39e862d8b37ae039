"""The pages of the reference: what the schema declares, in sentences and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from xapi.datamodel import Alert, ErrorCode, HTTPHandler, QueryParameter
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
    Row,
    counted,
    joined,
)
from xapi.reference.class_pages import ClassPages

G = TypeVar("G", ErrorCode, Alert, HTTPHandler)


def tables(items: Iterable[G], head: Sequence[str], row: Callable[[G], Row]) -> Iterator[Block]:
    """Yield a heading and a table for each group of the items."""
    groups: dict[str, list[G]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    for title, members in groups.items():
        yield Heading(2, title)
        yield Grid(head, [row(member) for member in members])


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
    "Not implemented: such a message answers NOT_IMPLEMENTED with its name, after all checks of session and role.",
    "Examples: session is XenAPI.Session(url) of Python's XenAPI package after its login; references are variables; "
    "ints are strings, for XML-RPC's own have 32 bits. The JSON is posted to /jsonrpc, where ints are numbers.",
)


class Writer(ClassPages):
    """Build the pages of one model."""

    def pages(self) -> Iterator[Page]:
        """Yield all pages, the index first."""
        yield self.index()
        for cls in self.model.classes.values():
            yield self.page(cls)
        yield self.errors()
        yield self.roles()
        yield self.alerts()
        yield self.releases()
        yield self.handlers()

    def index(self) -> Page:
        model = self.model
        explicit = sum(not message.kind for message in model.messages)
        implicit = sum(bool(message.kind) for message in model.messages)
        summary = (
            f"{counted(len(model.classes), 'class')}, {counted(explicit, 'explicit message')}, "
            f"{counted(implicit, 'implicit message')}, {counted(len(model.errors), 'error')}."
        )
        alive = [message for message in model.messages if message.life.state != "Removed"]
        absent = sum(map(self.lacks, alive))
        behaving = f"{len(alive) - absent:,} of {counted(len(alive), 'message')} have behaviour."
        names = ("errors", "roles", "alerts", "releases", "http")
        titles = ("Errors", "Roles", "Alerts", "Releases", "HTTP handlers")
        rows = [
            (
                Link(cls.name, cls.name),
                cls.doc,
                str(len(cls.record_fields)),
                str(len(cls.messages)),
                str(sum(map(self.lacks, cls.messages.values())) or ""),
            )
            for cls in model.classes.values()
        ]
        page = Page("index", "XenAPI reference", [Paragraph(summary), Paragraph(behaving)], self.findable())
        page.blocks.append(Bullets([Link(title, name) for title, name in zip(titles, names)]))
        page.blocks += [Heading(2, "How to read it"), Bullets(READING)]
        page.blocks += [
            Heading(2, "Classes"),
            Grid(("Class", "Description", "Fields", "Messages", "Not implemented"), rows),
        ]
        return page

    def findable(self) -> Sequence[Link]:
        """Return a link to everything that has a name."""
        found = []
        for cls in self.model.classes.values():
            found.append(Link(cls.name, cls.name))
            found += [Link(message.full_name, cls.name, f"message-{message.name}") for message in cls.messages.values()]
            found += [Link(f"{cls.name}.{name} (field)", cls.name, f"field-{name}") for name in cls.fields]
            found += [Link(f"{name} (enum)", cls.name, f"enum-{name}") for name in cls.enums]
        found += [Link(name, "errors", name) for name in self.model.errors]
        found += [Link(f"{name} (alert)", "alerts", name) for name in self.model.alerts]
        found += [Link(f"{name} (role)", "roles", name) for name in self.model.roles]
        return found + [Link(f"{each.method} {each.path}", "http") for each in self.model.handlers.values()]

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

    def _query(self, parameter: QueryParameter) -> Inline:
        """Return a parameter of a query, optional ones with a question mark, and its type."""
        name = Code(parameter.name + ("" if parameter.required else "?"))
        return [name, " (by its name)"] if parameter.by_name else [name, " ", *self.type(parameter.type)]

    def handlers(self) -> Page:
        intro = (
            "Requests beside the API's calls. What is not checked is open to all, or checks by itself; to the rest one "
            "says who one is by session_id, in the query or a cookie, or by user and password. Parameters stand in the "
            "query; a set is one that may be repeated, a map several, NAME:KEY=VALUE; task_id names a task of one's "
            "own that follows the request. What is not implemented answers 501 with its name, to who may use it."
        )
        head = ("Request", "Name", "Parameters", "Least role", "Description")

        def row(handler: HTTPHandler) -> Row:
            least = self.role(handler.role) if handler.checked else ["not checked"]
            also = [[f"{name}: ", *self.role(role)] for name, role in handler.also.items()]
            call = Code(f"{handler.method} {handler.path}")
            name: Inline = [Code(handler.name), *self.unserved(handler)]
            parameters = joined([self._query(parameter) for parameter in handler.parameters])
            return call, name, parameters, joined([least, *also]), handler.doc

        return Page("http", "HTTP handlers", [Paragraph(intro), *tables(self.model.handlers.values(), head, row)])
