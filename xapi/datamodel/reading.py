"""Read the files of the schema, check them against their grammar and each other. A mistake is a `SchemaError`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from lxml import etree

from xapi.datamodel.declarations import (
    Alert,
    Class,
    Enum,
    ErrorCode,
    Field,
    HTTPHandler,
    Life,
    Message,
    Model,
    Operation,
    Parameter,
    QueryParameter,
    Release,
    Role,
    Value,
)
from xapi.datamodel.implicit_messages import implicit_messages
from xapi.datamodel.lexical import parse_datetime
from xapi.datamodel.types import EnumType, MapType, SetType, StringType, Type, Types

N = TypeVar("N")


class SchemaError(Exception):
    """The schema contradicts its grammar or itself; the text begins with file:line."""


_YES = {"yes": True, "no": False}


class Reader:
    """Reads one folder of files; `model()` gives what they declare."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            self.grammar = etree.RelaxNG(etree.parse(directory / "model.rng"))
        except (OSError, etree.LxmlError) as error:
            raise SchemaError(f"{directory}/model.rng:0: {error}") from error
        self.relations: dict[str, str] = {}

    def read(self, name: str) -> etree._Element:
        path = self.directory / name
        try:
            parser = etree.XMLParser(remove_blank_text=True, resolve_entities=False, no_network=True)
            tree = etree.parse(path, parser)
        except etree.XMLSyntaxError as error:
            raise SchemaError(f"{path}:{error.lineno}: {error.msg}") from error
        except OSError as error:
            raise SchemaError(f"{path}:0: {error}") from error
        if not self.grammar.validate(tree):
            # lxml's first complaint may lack its line.
            first = next((error for error in self.grammar.error_log if error.line), self.grammar.error_log[0])
            raise SchemaError(f"{path}:{first.line}: {first.message}")
        return tree.getroot()

    def named(self, elements: Iterable[etree._Element], read: Callable[[etree._Element], N]) -> dict[str, N]:
        """Return what is declared, by name, which must not repeat."""
        found: dict[str, N] = {}
        for element in elements:
            name = element.get("name", "")
            if name in found:
                raise self.wrong(element, f"{element.tag!s} {name} is declared twice")
            found[name] = read(element)
        return found

    def wrong(self, element: etree._Element, text: str) -> SchemaError:
        return SchemaError(f"{element.base}:{element.sourceline}: {text}")

    def model(self) -> Model:
        files = sorted((self.directory / "classes").glob("*.xml"), key=lambda path: path.stem.lower())
        roots = [self.read(f"classes/{path.name}") for path in files]
        for path, root in zip(files, roots):
            if root.get("name") != path.stem:
                raise self.wrong(root, f"class {root.get('name')} in a file of another name")
        self.releases = self.named(self.read("releases.xml").iter("release"), _release)
        self.roles = self.named(self.read("roles.xml").iter("role"), _role)
        errors = self.named(self.read("errors.xml").iter("error"), _error)
        alerts = self.named(self.read("alerts.xml").iter("alert"), _alert)
        enums = self.named((element for root in roots for element in root.iter("enum")), _enum)
        self.types = Types(
            {enum.name: tuple(value.name for value in enum.values) for enum in enums.values()},
            frozenset(root.get("name", "") for root in roots),
        )
        handlers = self.read_handlers(self.read("http.xml"))
        self.check_relations(roots)
        classes = {root.get("name", ""): self.read_class(root) for root in roots}
        for cls in classes.values():
            members = {member.name: member.type for member in cls.record_fields}
            self.types.record_members.setdefault(cls.name, {}).update(members)
        for root in roots:
            self.check_references(root, errors, classes)
        return Model(classes, enums, errors, self.roles, self.releases, alerts, handlers, self.types)

    def check_relations(self, roots: Iterable[etree._Element]) -> None:
        """Each inverse must name a field that names it back; note the part that each side plays."""
        fields = {f"{r.get('name')}.{e.get('name')}": e for r in roots for e in r.iter("field")}
        for name, element in fields.items():
            other = element.get("inverse")
            if other is None:
                continue
            if other not in fields or fields[other].get("inverse") != name:
                raise self.wrong(element, f"inverse {other} of {name} does not name it back")
            here, there = (e.get("type", "").endswith(" set") for e in (element, fields[other]))
            if not here and not there:
                raise self.wrong(element, f"{name} and {other} are both single")
            if here and there:
                kind = "owner" if name < other else "mirror"
            else:
                kind = "computed" if here else "single"
            if name != other:
                self.relations[name] = kind

    def check_references(
        self,
        root: etree._Element,
        errors: Mapping[str, ErrorCode],
        classes: Mapping[str, Class],
    ) -> None:
        for element in root.iter("error"):
            if element.get("name") not in errors:
                raise self.wrong(element, f"error {element.get('name')} is not declared in errors.xml")
        for element in root.iter("message"):
            for claim in element.get("claims", "").split():
                if not _claimable(classes, claim):
                    raise self.wrong(element, f"claims {claim}, which no current_operations can hold")

    def life(self, element: etree._Element) -> Life:
        marks = {name: element.get(name, "") for name in ("prototyped", "since", "deprecated", "removed")}
        for mark in marks.values():
            if mark and mark not in self.releases:
                raise self.wrong(element, f"release {mark} is not declared in releases.xml")
        return Life(**marks)

    def role(self, element: etree._Element, attribute: str = "role") -> str:
        role = element.get(attribute, "")
        if role and role not in self.roles and role != "local-root":
            raise self.wrong(element, f"role {role} is not declared in roles.xml")
        return role

    def type(self, element: etree._Element) -> Type:
        try:
            return self.types.parse(element.get("type", "void"))
        except ValueError as error:
            raise self.wrong(element, str(error)) from error

    def default(self, element: etree._Element, kind: Type) -> object:
        text = element.get("default")
        if text is None:
            return None
        try:
            if isinstance(kind, SetType | MapType):
                return kind.from_json(json.loads(text))
            if text in ("true", "false"):
                return kind.decode(text == "true") if not isinstance(kind, StringType) else text
            if kind.name == "datetime":
                return parse_datetime(text)
            return kind.decode(text)
        except ValueError as error:
            raise self.wrong(element, f"default {text!r}: {error}") from error

    def read_class(self, root: etree._Element) -> Class:
        name = root.get("name", "")
        field_groups = {
            group.get("title", ""): tuple(self.read_field(name, element) for element in group)
            for group in root.iterchildren("fields")
        }
        self.named(root.iter("field"), _doc)
        self.named(root.iter("message"), _doc)
        fields = {member.name: member for group in field_groups.values() for member in group}
        message_groups = {
            group.get("title", ""): tuple(self.read_message(name, element) for element in group)
            for group in root.iterchildren("messages")
        }
        explicit = {message.name: message for group in message_groups.values() for message in group}
        cls = Class(
            name,
            _doc(root),
            root.get("kept", "disk"),
            _YES[root.get("events", "yes")],
            _YES[root.get("listed", "yes")],
            _YES[root.get("implicit", "yes")] and root.get("kept") != "no",
            self.role(root, "constructor"),
            self.role(root, "reader") or "read-only",
            self.life(root),
            {element.get("name", ""): _enum(element) for element in root.iterchildren("enum")},
            {element.get("name", ""): _operation(element) for element in root.iter("operation")},
            field_groups,
            message_groups,
            fields,
            explicit,
        )
        messages = {message.name: message for message in implicit_messages(cls, self.types)}
        object.__setattr__(cls, "messages", messages | explicit)
        return cls

    def read_field(self, class_name: str, element: etree._Element) -> Field:
        kind = self.type(element)
        name = element.get("name", "")
        default = self.default(element, kind)
        return Field(
            name,
            _doc(element),
            kind,
            element.get("access", ""),
            kind.empty if default is None else default,
            default is None,
            element.get("inverse", ""),
            self.role(element),
            self.role(element, "reader"),
            _YES[element.get("client_cert", "no")],
            _YES[element.get("kept", "yes")],
            _YES[element.get("internal", "no")],
            _YES[element.get("secret", "no")],
            element.get("column", name),
            {key.get("name", ""): self.role(key) for key in element.iterchildren("key")},
            self.life(element),
            self.relations.get(f"{class_name}.{name}", ""),
        )

    def read_handlers(self, root: etree._Element) -> dict[str, HTTPHandler]:
        """Return the HTTP handlers by name; a method and path have one."""
        found = self.named(root.iter("handler"), self.read_handler)
        taken: set[tuple[str, str]] = set()
        for element in root.iter("handler"):
            handler = found[element.get("name", "")]
            if (handler.method, handler.path) in taken:
                raise self.wrong(element, f"{handler.method} {handler.path} has two handlers")
            taken.add((handler.method, handler.path))
        return found

    def read_handler(self, element: etree._Element) -> HTTPHandler:
        return HTTPHandler(
            element.get("name", ""),
            element.get("method", ""),
            element.get("path", ""),
            self.role(element),
            _YES[element.get("checked", "yes")],
            _YES[element.get("client_cert", "no")],
            tuple(self.named(element.iterchildren("param"), self.read_query).values()),
            {item.get("name", ""): self.role(item) for item in element.iterchildren("also")},
            _doc(element),
            _group(element),
        )

    def read_query(self, element: etree._Element) -> QueryParameter:
        kind = self.type(element)
        default = self.default(element, kind)
        return QueryParameter(element.get("name", ""), kind, default is None, default, "given" in element.attrib)

    def read_message(self, class_name: str, element: etree._Element) -> Message:
        parameters = []
        for item in element.iterchildren("param"):
            kind = self.type(item)
            default = self.default(item, kind)
            secret = _YES[item.get("secret", "no")]
            parameters.append(Parameter(item.get("name", ""), kind, default is None, default, secret))
        result = element.find("result")
        return Message(
            class_name,
            element.get("name", ""),
            _doc(element),
            tuple(parameters),
            self.types.parse("void") if result is None else self.type(result),
            self.role(element),
            _YES[element.get("session", "yes")],
            _YES[element.get("async", "no")],
            _YES[element.get("hidden", "no")],
            _YES[element.get("internal", "no")],
            _YES[element.get("client_cert", "no")],
            claims=tuple(element.get("claims", "").split()),
            errors=tuple(item.get("name", "") for item in element.iterchildren("error")),
            key_roles={key.get("name", ""): self.role(key) for key in element.iterchildren("key")},
            also={also.get("name", ""): self.role(also) for also in element.iterchildren("also")},
            life=self.life(element),
        )


def _claimable(classes: Mapping[str, Class], claim: str) -> bool:
    class_name, _, operation = claim.partition(".")
    member = classes[class_name].fields.get("current_operations") if class_name in classes else None
    if member is None or not isinstance(member.type, MapType):
        return False
    operations = member.type.value
    return isinstance(operations, EnumType) and operation in operations.values


def _doc(element: etree._Element) -> str:
    text = element.findtext("doc")
    return " ".join((element.text or "" if text is None else text).split())


def _group(element: etree._Element) -> str:
    parent = element.getparent()
    return parent.get("title", "") if parent is not None else ""


def _enum(element: etree._Element) -> Enum:
    values = tuple(Value(value.get("name", ""), _doc(value)) for value in element.iterchildren("value"))
    return Enum(element.get("name", ""), _doc(element), values)


def _operation(element: etree._Element) -> Operation:
    return Operation(
        element.get("name", ""),
        frozenset(element.get("from", "").split()) - {"none"},
        element.get("template", "no"),
        _YES[element.get("snapshot", "no")],
        element.get("control_domain", "no"),
        _YES[element.get("advertised", "yes")],
        _YES[element.get("rolling_upgrade", "yes")],
    )


def _release(element: etree._Element) -> Release:
    return Release(*(element.get(name, "") for name in ("name", "api", "product", "date", "schema")))


def _role(element: etree._Element) -> Role:
    internal = _YES[element.get("internal", "no")]
    return Role(element.get("name", ""), element.get("uuid", ""), _doc(element), internal)


def _error(element: etree._Element) -> ErrorCode:
    parameters = tuple(element.get("params", "").split())
    published = _YES[element.get("published", "yes")]
    return ErrorCode(element.get("name", ""), parameters, _doc(element), published, _group(element))


def _alert(element: etree._Element) -> Alert:
    return Alert(element.get("name", ""), int(element.get("priority", "")), _doc(element), _group(element))
