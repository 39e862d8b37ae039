"""Messages of role: which permissions the roles hold."""

from __future__ import annotations

from xapi.calls.call import Call
from xapi.calls.registry import message
from xapi.datamodel import records
from xapi.datamodel.types import Ref
from xapi.store.query import select_roles
from xapi.wire.fragments import Records, Refs


@message("role.get_permissions")
def get_permissions(call: Call, self: Ref[records.role]) -> tuple[Ref[records.role], ...]:
    """Return the permissions of a role; a permission holds itself."""
    return call.db.role[self].subroles or (self,)


@message("role.get_permissions_name_label")
def get_permissions_name_label(call: Call, self: Ref[records.role]) -> tuple[str, ...]:
    """Return the names of the permissions of a role."""
    return tuple(call.db.role[permission].name_label for permission in get_permissions(call, self))


@message("role.get_by_permission")
def get_by_permission(call: Call, permission: Ref[records.role]) -> tuple[Ref[records.role], ...]:
    """Return the roles that hold a permission."""
    _ = call.db.role[permission]
    return tuple(row._ref for row in call.db.role if permission in row.subroles)


@message("role.get_by_permission_name_label")
def get_by_permission_name_label(call: Call, label: str) -> tuple[Ref[records.role], ...]:
    """Return the roles that hold a permission of this name, whatever its case."""
    wanted = {row._ref for row in call.db.role if row.is_internal and row.name_label.lower() == label.lower()}
    return tuple(row._ref for row in call.db.role if not wanted.isdisjoint(row.subroles))


@message("role.get_all_where")
def get_all_where(call: Call, expr: str) -> Refs:
    """Return the roles, the permissions, or all: only two expressions say something here."""
    return Refs(row._ref for row in select_roles(call.db, expr))


@message("role.get_all_records_where")
def get_all_records_where(call: Call, expr: str) -> Records:
    """Return the records of the roles, the permissions, or all."""
    return Records(select_roles(call.db, expr))
