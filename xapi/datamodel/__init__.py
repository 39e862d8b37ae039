"""The API as data: read `schema/`, check it, and derive what follows from it.

`load()` gives the `Model`: frozen classes, fields, enums, operations, messages, errors, roles,
releases, alerts and HTTP handlers, in the order of the files. The implicit messages (getters,
setters, ``get_all_records`` …) are derived here too, as declarations; `xapi.calls.implicit` gives them
their behaviour. A mistake in a file is a `SchemaError` that names file and line.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

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
    permission_uuid,
)
from xapi.datamodel.reading import Reader, SchemaError

__all__ = [
    "Alert",
    "Class",
    "Enum",
    "ErrorCode",
    "Field",
    "HTTPHandler",
    "Life",
    "Message",
    "Model",
    "Operation",
    "Parameter",
    "QueryParameter",
    "Release",
    "Role",
    "SchemaError",
    "Value",
    "load",
    "permission_uuid",
    "schema_directory",
]


def schema_directory() -> Path:
    """Return the folder of the schema: beside the packages in a checkout, inside `xapi` when installed."""
    inside = Path(__file__).parent.parent / "schema"
    return inside if inside.is_dir() else Path(__file__).parent.parent.parent / "schema"


@cache
def load(directory: Path | None = None) -> Model:
    """Read, check and return the schema. Raises SchemaError."""
    return Reader(directory or schema_directory()).model()
