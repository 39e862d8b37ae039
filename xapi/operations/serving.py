"""Which messages serve an operation, and whether any of them has behaviour yet.

An operation that nothing serves is refused with NOT_IMPLEMENTED wherever it is asked for, and so it is never listed:
a client that asks first is told no. The schema says what serves what: the message of the operation's own name, and
where there is none, those that claim it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache

from xapi import datamodel
from xapi.calls import registry
from xapi.datamodel.types import EnumType, SetType

BESIDE: Mapping[str, str] = {
    "SR.vdi_create": "VDI.create",
    "SR.vdi_destroy": "VDI.destroy",
    "SR.pbd_create": "PBD.create",
    "SR.pbd_destroy": "PBD.destroy",
    "host.provision": "VM.provision",
}
"""What serves an operation besides what the schema says: constructors and destructors declare no claims."""


AMONG_HOSTS: Mapping[str, frozenset[str]] = {"VM": frozenset({"pool_migrate"}), "host": frozenset({"vm_migrate"})}
"""Operations that are not listed in a pool of several hosts: so far a guest only moves to the host that it is on."""


@cache
def unserved() -> Mapping[str, Mapping[str, str]]:
    """Return, by class, the operations that nothing serves, each with the message that is to come.

    One without any message, as the exports by HTTP have none, stands for itself.
    """
    model = datamodel.load()
    claiming: dict[str, list[str]] = {operation: [name] for operation, name in BESIDE.items()}
    for message in model.messages:
        for operation in message.claims:
            claiming.setdefault(operation, []).append(message.full_name)
    functions = registry.functions(model)
    names = {message.full_name for message in model.messages}
    there = {message.full_name for message in model.messages if message.kind or message.full_name in functions}
    found: dict[str, dict[str, str]] = {}
    for cls in model.classes.values():
        field = cls.fields.get("allowed_operations")
        if field is None:
            continue
        assert isinstance(field.type, SetType) and isinstance(field.type.item, EnumType)
        found[cls.name] = {}
        for name in field.type.item.values:
            operation = f"{cls.name}.{name}"
            servants = [operation] if operation in names else claiming.get(operation, [operation])
            if there.isdisjoint(servants):
                found[cls.name][name] = servants[0]
    return found


@lru_cache(maxsize=4096)
def served(listed: tuple[str, ...], absent: frozenset[str]) -> tuple[str, ...]:
    """Return a list without what is absent; equal lists give the same one, which many objects share."""
    return tuple([operation for operation in listed if operation not in absent])
