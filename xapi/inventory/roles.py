"""The roles and permissions of the schema as rows, which are in memory alone: the same in every pool.

A permission is a role without subroles; a role's subroles are all that it permits. Their uuids are made from their
names.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from xapi.datamodel import Model, permission_uuid
from xapi.store.memory import Store


def load(store: Store) -> None:
    """Give them to an empty store: some 2,300 rows, 10 ms."""
    table = store.role
    store.load(table, [table.make(ref, values) for ref, values in _values(store.model).items()])
    store.loaded()


@cache
def _values(model: Model) -> Mapping[str, Mapping[str, object]]:
    """Return the fields of each by its reference."""
    ranks = {role: rank for rank, role in enumerate(model.roles)}
    held: dict[str, list[str]] = {role: [] for role in ranks}
    values: dict[str, Mapping[str, object]] = {}
    for permission, (least, everyone) in model.permissions.items():
        label = permission.lower()
        uuid = permission_uuid(label)
        ref = f"OpaqueRef:{uuid}"
        values[ref] = {
            "uuid": uuid,
            "name_label": label,
            "name_description": "A basic permission",
            "is_internal": True,
        }
        for role, rank in ranks.items():
            mighty = rank <= ranks.get(least, -1) and role != "client-cert"
            if mighty or (role == "client-cert" and everyone):
                held[role].append(ref)
    for made in model.roles.values():
        values[made.ref] = {
            "uuid": made.uuid,
            "name_label": made.name,
            "name_description": made.doc,
            "is_internal": made.internal,
            "subroles": tuple(held[made.name]),
        }
    return values
