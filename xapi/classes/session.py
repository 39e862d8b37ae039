"""Messages of session: logging in and out."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from xapi.access.sessions import Sessions
from xapi.calls.call import Call
from xapi.calls.registry import message
from xapi.datamodel import errors, records
from xapi.datamodel.types import Ref


@message("session.login_with_password", stops_with_client=True)
async def login_with_password(call: Call, uname: str, pwd: str, version: str, originator: str) -> Ref[records.session]:
    """Log in; `version` is ignored, as xapi does."""
    session = await call[Sessions].login(uname, pwd, originator, call.caller.origin)
    return session._ref


@message("session.slave_local_login_with_password", stops_with_client=True)
async def slave_local_login_with_password(call: Call, uname: str, pwd: str) -> Ref[records.session]:
    """Log in at this very host, with a local account."""
    session = await call[Sessions].login_local(uname, pwd, "", call.caller.origin)
    return session._ref


@message("session.slave_login")
def slave_login(call: Call, host: Ref[records.host], psecret: str) -> Ref[records.session]:
    """Log in as another host of the pool."""
    _ = call.db.host[host]
    return call[Sessions].login_pool(psecret)._ref


@message("session.slave_local_login")
def slave_local_login(call: Call, psecret: str) -> Ref[records.session]:
    """Log in as another host of the pool, without the coordinator's database."""
    return call[Sessions].login_pool(psecret)._ref


@message("session.logout", "session.local_logout")
def logout(call: Call) -> None:
    """End the session that calls."""
    call[Sessions].end(call.caller.client)


@message("session.change_password")
async def change_password(call: Call, old_pwd: str, new_pwd: str) -> None:
    """Give local root a new password; through the local socket the old one is not asked for."""
    sessions = call[Sessions]
    if not call.caller.client.is_local_superuser:
        raise errors.USER_IS_NOT_LOCAL_SUPERUSER("Only local root can change its password")
    user = call.caller.client.auth_user_name or "root"
    origin = call.caller.origin
    if not origin.trusted and not await sessions.fits(sessions.passwords.stored(user), old_pwd, origin):
        raise errors.CHANGE_PASSWORD_REJECTED("The old password is wrong")
    if not new_pwd:
        raise errors.CHANGE_PASSWORD_REJECTED("The new password is empty")
    done: Deferred[None] = sessions.in_thread(sessions.passwords.set, user, new_pwd)
    await done


@message("session.get_all_subject_identifiers")
def get_all_subject_identifiers(call: Call) -> tuple[str, ...]:
    """Return the external users that are logged in."""
    return tuple(dict.fromkeys(row.auth_user_sid for row in call.db.session if row.auth_user_sid))


@message("session.logout_subject_identifier")
def logout_subject_identifier(call: Call, subject_identifier: str) -> None:
    """End all sessions of an external user, but that of the caller."""
    for row in list(call.db.session):
        if row.auth_user_sid == subject_identifier and row._ref != call.caller.session_ref:
            call[Sessions].end(row)
