"""Messages of subject: which external users and groups may use the pool, and as what."""

from __future__ import annotations

from xapi.access.sessions import Sessions
from xapi.calls.call import Call
from xapi.calls.registry import message
from xapi.classes.auth import account_of
from xapi.datamodel import errors, records
from xapi.datamodel.types import Ref


@message("subject.create")
def create(call: Call, args: records.subject_record) -> Ref[records.subject]:
    """Let a user or group in, without a role; while external authentication is on, the directory must know it.

    In a pool whose license has no roles (`restrictions:restrict_rbac`) everybody is pool-admin, as in xapi.
    """
    identifier = args.get("subject_identifier", "")
    if any(row.subject_identifier == identifier for row in call.db.subject):
        raise errors.SUBJECT_ALREADY_EXISTS()
    other_config = dict(args.get("other_config", {}))
    if call[Sessions].directory is not None:
        other_config = {**account_of(call, identifier).information, **other_config}
    has_roles = call.pool.restrictions.get("restrict_rbac") == "false"
    roles = () if has_roles else tuple(row._ref for row in call.db.role if row.name_label == "pool-admin")
    return call.db.subject.create(subject_identifier=identifier, other_config=other_config, roles=roles)._ref


@message("subject.destroy")
def destroy(call: Call, self: Ref[records.subject]) -> None:
    """Shut a user or group out; its sessions end."""
    row = call.db.subject[self]
    for session in [session for session in call.db.session if session.subject == row._ref]:
        call[Sessions].end(session)
    call.db.subject.delete(self)


def _role(call: Call, role: Ref[records.role]) -> records.role:
    row = call.db.role.get(role)
    if row is None or row.is_internal:
        raise errors.ROLE_NOT_FOUND()
    return row


@message("subject.add_to_roles")
def add_to_roles(call: Call, self: Ref[records.subject], role: Ref[records.role]) -> None:
    """Give a subject one more role."""
    row = call.db.subject[self]
    _role(call, role)
    if role in row.roles:
        raise errors.ROLE_ALREADY_EXISTS()
    row.roles = (*row.roles, role)


@message("subject.remove_from_roles")
def remove_from_roles(call: Call, self: Ref[records.subject], role: Ref[records.role]) -> None:
    """Take a role from a subject; its sessions feel it when they are next checked."""
    row = call.db.subject[self]
    _role(call, role)
    if role not in row.roles:
        raise errors.ROLE_NOT_FOUND()
    row.roles = tuple(other for other in row.roles if other != role)


@message("subject.get_permissions_name_label")
def get_permissions_name_label(call: Call, self: Ref[records.subject]) -> tuple[str, ...]:
    """Return the names of all permissions that the subject's roles give."""
    names = {
        call.db.role[permission].name_label
        for role in call.db.subject[self].roles
        if role in call.db.role
        for permission in call.db.role[role].subroles
    }
    return tuple(sorted(names))
