"""Write `records.pyi` and `errors.pyi`, the typed views of the schema, for mypy and editors.

``python -m xapi.tools.stubs`` writes them into `xapi.datamodel`; ``--check`` only tells whether they are current.
Run it after every change of a field, an enum or an error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from xapi import datamodel
from xapi.datamodel import Class, ErrorCode, Field, Model, load
from xapi.datamodel.types import RecordType, RefType, SetType, Type

_RECORDS_HEAD = '''\
"""The objects of the store, one class each. Written by `python -m xapi.tools.stubs`; do not edit."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Literal, TypedDict

from xapi.datamodel.types import Ref
from xapi.store.rows import Row, Table

'''

_CLAIMABLE = '''\
class Claimable(Row):
    """An object of a class with operations, whichever; `current_operations` has them by the task that holds each."""
    allowed_operations: tuple[str, ...]
    current_operations: Mapping[str, str]

'''

_ERRORS_HEAD = '''\
"""The errors of the API. Written by `python -m xapi.tools.stubs`; do not edit."""

class Fault(Exception):
    code: str
    parameters: tuple[str, ...]
    def __init__(self, code: str, *parameters: str) -> None: ...
    @property
    def description(self) -> list[str]: ...

'''


def records(model: Model) -> str:
    """Return the text of records.pyi."""
    parts = [_RECORDS_HEAD]
    for enum in model.enums.values():
        values = ", ".join(json.dumps(value.name) for value in enum.values)
        parts.append(f"enum_{enum.name} = Literal[{values}]\n")
    parts.append("\n" + _CLAIMABLE)
    for cls in model.stored:
        base = "Claimable" if "current_operations" in cls.fields else "Row"
        fields = "\n".join(f"    {field.name}: {_annotation(field)}" for field in cls.fields.values())
        parts.append(f"class {cls.name}({base}):\n    _ref: Ref[_{cls.name}]\n{fields}\n\n")
    for cls in _made_of_records(model):
        fields = "\n".join(f"    {field.name}: {_annotation(field)}" for field in cls.record_fields)
        parts.append(f"class {cls.name}_record(TypedDict, total=False):\n{fields}\n\n")
    # Fields named like classes (PIF.VLAN, VTPM.VM) would hide them inside a class body.
    parts += [f"_{cls.name} = {cls.name}\n" for cls in model.stored]
    parts += [f"class _{name}(Row): ...\n" for name in _values_referred_to(model)]
    parts.append("\nclass Tables:\n")
    parts += [f"    {cls.name}: Table[_{cls.name}]\n" for cls in model.stored]
    return "".join(parts)


def _made_of_records(model: Model) -> list[Class]:
    """Return the classes of which a client may give a record."""
    parameters = (parameter.type for message in model.messages for parameter in message.parameters)
    taken = {kind.target for kind in parameters if isinstance(kind, RecordType)}
    return [cls for cls in model.stored if cls.name in taken]


def _values_referred_to(model: Model) -> list[str]:
    stored = {cls.name for cls in model.stored}
    found = {
        kind.target
        for cls in model.stored
        for field in cls.fields.values()
        for kind in (field.type, getattr(field.type, "item", field.type))
        if isinstance(kind, RefType)
    }
    return sorted(found - stored)


def _annotation(field: Field) -> str:
    if field.derived and isinstance(field.type, SetType):
        return f"Collection[{_private(field.type.item)}]"
    return _private(field.type)


def _private(kind: Type) -> str:
    return kind.annotation.replace("Ref[", "Ref[_")


def errors(model: Model) -> str:
    """Return the text of errors.pyi."""
    return _ERRORS_HEAD + "".join(map(_error, model.errors.values()))


def _error(error: ErrorCode) -> str:
    parameters = []
    for name in error.parameters:
        if name.endswith("*"):
            parameters.append(f"*{name[:-1]}: str")
        elif name.endswith("?"):
            parameters.append(f"{_python(name[:-1])}: str = ...")
        else:
            parameters.append(f"{_python(name)}: str")
    return f"def {error.name}({', '.join(parameters)}) -> Fault: ...\n"


def _python(name: str) -> str:
    return name + "_" if name in ("class", "from", "import") else name


def texts(model: Model) -> dict[Path, str]:
    """Return the stubs by the file that they belong in."""
    here = Path(datamodel.__file__).parent
    return {here / "records.pyi": records(model), here / "errors.pyi": errors(model)}


def main(arguments: list[str]) -> int:
    """Write the stubs, or with --check return 1 when they are not current."""
    for path, text in texts(load()).items():
        if "--check" in arguments:
            if not path.exists() or path.read_text("utf-8") != text:
                print(f"{path} is not current: run python -m xapi.tools.stubs")
                return 1
        else:
            path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
