"""What the schema declares: classes, fields, enums, operations, messages, errors, roles, releases, alerts, handlers."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as attribute
from functools import cache, cached_property

from xapi.datamodel.types import Type, Types


@dataclass(frozen=True, slots=True)
class Life:
    """The releases in which something was prototyped, published, deprecated and removed ('' = not)."""

    prototyped: str = ""
    since: str = ""
    deprecated: str = ""
    removed: str = ""

    @property
    def state(self) -> str:
        if self.removed:
            return "Removed"
        if self.deprecated:
            return "Deprecated"
        return "Published" if self.since or not self.prototyped else "Prototyped"


@dataclass(frozen=True, slots=True)
class Value:
    name: str
    doc: str


@dataclass(frozen=True, slots=True)
class Enum:
    name: str
    doc: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a class.

    `access`: RW (constructor argument and setters), RO/constructor, RO/runtime. `inverse`: the other
    side of a relation, ``Class.field``. `column`: the name in the database and in query expressions.
    `kept`: survives a restart. `default` is None when the constructor requires the field.
    """

    name: str
    doc: str
    type: Type
    access: str
    default: object
    required: bool
    inverse: str
    role: str
    reader: str
    client_cert: bool
    kept: bool
    internal: bool
    secret: bool
    column: str
    key_roles: Mapping[str, str]
    life: Life

    relation: str
    """How it takes part in a relation: ``single`` (a reference whose target has the set side),
    ``computed`` (that set side: derived, never assigned), ``owner`` and ``mirror`` (the assigned
    and the derived side where both are sets), or '' for none."""

    @property
    def derived(self) -> bool:
        """True for a set of references that follows from the other side of the relation."""
        return self.relation in ("computed", "mirror")


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    type: Type
    required: bool
    default: object
    secret: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """When an operation of `allowed_operations` may start: power states, templates, snapshots, dom0."""

    name: str
    states: frozenset[str]
    template: str
    snapshot: bool
    control_domain: str
    advertised: bool
    rolling_upgrade: bool


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `kind` is '' for an explicit one, else how it follows from class and field."""

    class_name: str
    name: str
    doc: str
    parameters: tuple[Parameter, ...]
    result: Type
    role: str
    session: bool = True
    is_async: bool = False
    hidden: bool = False
    internal: bool = False
    client_cert: bool = False
    kind: str = ""
    field: Field | None = None
    claims: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    key_roles: Mapping[str, str] = attribute(default_factory=dict)
    also: Mapping[str, str] = attribute(default_factory=dict)
    life: Life = Life()

    @property
    def full_name(self) -> str:
        return f"{self.class_name}.{self.name}"

    @property
    def required(self) -> int:
        """Number of parameters that a caller must give, the session not counted."""
        return sum(parameter.required for parameter in self.parameters)

    @property
    def open_ended(self) -> bool:
        """True with optional parameters: then surplus ones are ignored, as xapi does."""
        return any(not parameter.required for parameter in self.parameters)


@dataclass(frozen=True, eq=False)
class Class:
    """One class. `kept`: ``disk``, ``memory`` (gone after a restart) or ``no`` (values only)."""

    name: str
    doc: str
    kept: str
    events: bool
    listed: bool
    implicit: bool
    constructor: str
    reader: str
    life: Life
    enums: Mapping[str, Enum]
    operations: Mapping[str, Operation]
    field_groups: Mapping[str, tuple[Field, ...]]
    message_groups: Mapping[str, tuple[Message, ...]]
    fields: Mapping[str, Field]
    messages: Mapping[str, Message]
    """All messages, explicit and implicit, by name."""

    @property
    def record_fields(self) -> list[Field]:
        """The fields that a record on the wire has."""
        return [member for member in self.fields.values() if not member.internal]

    @property
    def explicit(self) -> list[Message]:
        return [message for message in self.messages.values() if not message.kind]


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """One error. Names in `parameters` that end in ``?`` may be missing, in ``*`` may repeat."""

    name: str
    parameters: tuple[str, ...]
    doc: str
    published: bool
    group: str


@dataclass(frozen=True, slots=True)
class Role:
    name: str
    uuid: str
    doc: str
    internal: bool

    @property
    def ref(self) -> str:
        return f"OpaqueRef:{self.uuid}"


@dataclass(frozen=True, slots=True)
class Release:
    name: str
    api: str
    product: str
    date: str
    schema: str


@dataclass(frozen=True, slots=True)
class Alert:
    name: str
    priority: int
    doc: str
    group: str


@dataclass(frozen=True, slots=True)
class QueryParameter:
    """A parameter in a request's query. A set may be repeated; a map is several, ``name:key=value``."""

    name: str
    type: Type
    required: bool
    default: object
    by_name: bool
    """True where its name is there, whatever it says."""


@dataclass(frozen=True, slots=True)
class HTTPHandler:
    name: str
    method: str
    path: str
    role: str
    checked: bool
    client_cert: bool
    parameters: tuple[QueryParameter, ...]
    also: Mapping[str, str]
    doc: str
    group: str


@dataclass(frozen=True, eq=False)
class Model:
    """The whole schema."""

    classes: Mapping[str, Class]
    enums: Mapping[str, Enum]
    errors: Mapping[str, ErrorCode]
    roles: Mapping[str, Role]
    releases: Mapping[str, Release]
    alerts: Mapping[str, Alert]
    handlers: Mapping[str, HTTPHandler]
    types: Types

    @property
    def messages(self) -> Iterator[Message]:
        for cls in self.classes.values():
            yield from cls.messages.values()

    @property
    def stored(self) -> list[Class]:
        """The classes whose objects live in the store."""
        return [cls for cls in self.classes.values() if cls.kept != "no"]

    @cached_property
    def permissions(self) -> Mapping[str, tuple[str, bool]]:
        """Permission to (least role, whether client-cert has it too), in the schema's order."""
        permissions = {}
        for message in self.messages:
            everyone = message.client_cert or message.role == "read-only"
            permissions[message.full_name] = (message.role, everyone)
            for key, role in message.key_roles.items():
                permissions[f"{message.full_name}/key:{key}"] = (role, False)
            for name, role in message.also.items():
                permissions[f"{message.full_name}/{name}"] = (role, False)
        for handler in self.handlers.values():
            everyone = handler.client_cert or handler.role == "read-only"
            permissions[f"http/{handler.name}"] = (handler.role, everyone)
            for name, role in handler.also.items():
                permissions[f"http/{handler.name}/{name}"] = (role, False)
        return permissions


@cache
def permission_uuid(permission: str) -> str:
    """Return the uuid of a role record: the MD5 of its name, laid out as a uuid."""
    return str(uuid.UUID(bytes=hashlib.md5(permission.encode(), usedforsecurity=False).digest()))
