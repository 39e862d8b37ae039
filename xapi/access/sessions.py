"""Sessions: who is logged in, what they may do, and when they are dropped.

A session is a row of the memory-only class `session`; its permissions are those of its roles. Local
root has all. Other users come from a directory (`xapi.access.directory`) while the pool's external
authentication is on. Limits, expiry and delays are those of semantics known from xapi: 24 h idle;
400 unnamed root sessions, 500 an originator, 500 a user; revalidation every 30 minutes.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from xapi.access.checks import Checks, InThread
from xapi.access.passwords import NOBODY
from xapi.datamodel import errors, records
from xapi.datamodel.lexical import moment
from xapi.datamodel.quoting import quoted, trackid
from xapi.datamodel.types import NULL

if TYPE_CHECKING:
    from pathlib import Path

    from twisted.internet.interfaces import IReactorTime

    from xapi.access.caller import Origin
    from xapi.access.directory import Account, Directory
    from xapi.access.passwords import Passwords
    from xapi.datamodel import Model
    from xapi.store.memory import Store

log = Logger()

IDLE = 24 * 3600
REFRESH = 600
REVALIDATE = 1800
UNNAMED, NAMED = 400, 500
FAILED_LOGIN_DELAY = 2.0
DIRECTORY_DELAY = 5.0
"""Seconds from a login's arrival before its failure is answered, here and at the directory; the latter as in xapi."""


def allowed(session: records.session, permission: str) -> bool:
    """Tell whether a session has a permission; its case does not matter."""
    return session.is_local_superuser or permission.lower() in session.rbac_permissions


class Trail(Protocol):
    """Who is told of subjects that come and go."""

    def came(self, session: records.session, user: str) -> None: ...

    def went(self, session: records.session) -> None: ...


class Sessions:
    """Log in and out. `in_thread(function, *args)` runs a slow function and gives a Deferred."""

    def __init__(
        self,
        db: Store,
        model: Model,
        clock: IReactorTime,
        passwords: Passwords,
        in_thread: InThread,
        pool_secret: str,
    ) -> None:
        self.db = db
        self.clock = clock
        self.passwords = passwords
        self.directory: Directory | None = None
        self.directory_path: Path | None = None
        """The directory file that the configuration names, for who turns external authentication on."""
        self.trail: Trail | None = None
        self.pool_secret = pool_secret
        self.in_thread = in_thread
        self._checks = Checks(in_thread)
        self._ended: dict[str, dict[Callable[[], None], None]] = {}
        self._role_permissions = _role_permissions(model)
        self._rank = {role: rank for rank, role in enumerate(model.roles)}
        self._permissions = {name.lower(): least for name, (least, _) in model.permissions.items()}
        self._shared: dict[frozenset[str], tuple[str, ...]] = {}

    # Logging in.

    async def login(self, user: str, password: str, originator: str, origin: Origin) -> records.session:
        """Return a new session. Raises SESSION_AUTHENTICATION_FAILED and its kin."""
        if origin.trusted or user == "root" or self.directory is None:
            return await self.login_local(user, password, originator, origin)
        return await self._external(user, password, originator, origin)

    async def login_local(self, user: str, password: str, originator: str, origin: Origin) -> records.session:
        """Return a new session of a local account. Raises SESSION_AUTHENTICATION_FAILED, as late for any name."""
        if origin.trusted:
            return self._local(user or "root", originator)
        began = self.clock.seconds()
        if not await self.fits(self.passwords.stored(user), password, origin):
            await self._until(began + FAILED_LOGIN_DELAY)
            raise errors.SESSION_AUTHENTICATION_FAILED(user, "Authentication failure")
        return self._local(user, originator)

    async def fits(self, stored: str, password: str, origin: Origin) -> bool:
        """Tell whether a password fits a hash; "", which none fits, takes as long as any."""
        return await self._checks.check(origin.address, password, stored or NOBODY) and bool(stored)

    def _until(self, moment: float) -> Deferred[None]:
        return deferLater(self.clock, max(0, moment - self.clock.seconds()))

    async def _external(self, user: str, password: str, originator: str, origin: Origin) -> records.session:
        assert self.directory is not None
        began = self.clock.seconds()
        account = self.directory.find(user)
        known = await self.fits("" if account is None else account.password_hash, password, origin)
        try:
            if account is None or not known:
                raise errors.SESSION_AUTHENTICATION_FAILED(user, "Authentication failure")
            subject = self._subject_of(account)
            if subject is None:
                raise errors.SESSION_AUTHORIZATION_FAILED(user, "Subject not found in the pool")
            permissions = self._permissions_of(account)
            if not permissions:
                raise errors.RBAC_PERMISSION_DENIED("session.login_with_password", "The subject has no role")
        except errors.Fault:
            await self._until(began + DIRECTORY_DELAY)
            raise
        self._make_room(lambda row: row.auth_user_name == account.name, NAMED)
        session = self._create(
            is_local_superuser=False,
            subject=subject._ref,
            auth_user_sid=account.sid,
            auth_user_name=account.name,
            rbac_permissions=permissions,
            originator=originator,
            validation_time=moment(self.clock.seconds()),
        )
        if self.trail is not None:
            self.trail.came(session, user)
        return session

    def _subjects(self, account: Account) -> list[records.subject]:
        """Return the pool's subjects that an account is, or is in as a group."""
        identities = {account.sid, *account.group_sids}
        return [row for row in self.db.subject if row.subject_identifier in identities]

    def _subject_of(self, account: Account) -> records.subject | None:
        subjects = self._subjects(account)
        own = [row for row in subjects if row.subject_identifier == account.sid]
        return next(iter(own + subjects), None)

    def _permissions_of(self, account: Account) -> tuple[str, ...]:
        roles = {
            role.name_label
            for subject in self._subjects(account)
            for ref in subject.roles
            if (role := self.db.role.get(ref)) is not None
        }
        return self.permissions_of(frozenset(roles))

    def permissions_of(self, roles: frozenset[str]) -> tuple[str, ...]:
        """Return the lower-case permissions of some roles together."""
        known = self._shared.get(roles)
        if known is None:
            union: dict[str, None] = {}
            for role in sorted(roles, key=lambda name: self._rank.get(name, 99)):
                union |= dict.fromkeys(self._role_permissions.get(role, ()))
            known = self._shared[roles] = _Permissions(union)
        return known

    def roles_with(self, permission: str) -> list[str]:
        """Return the published roles that have a permission, least first."""
        permission = permission.lower()
        names = [name for name, permissions in self._role_permissions.items() if permission in permissions]
        return [name for name in reversed(names) if name != "client-cert"]

    def _local(self, user: str, originator: str) -> records.session:
        if originator:
            self._make_room(lambda row: row.originator == originator, NAMED)
        else:
            self._make_room(lambda row: row.is_local_superuser and not row.originator and not row.pool, UNNAMED)
        return self._create(is_local_superuser=True, auth_user_name=user, originator=originator)

    def login_pool(self, secret: str) -> records.session:
        """Return a session between hosts of the pool. Raises SESSION_AUTHENTICATION_FAILED."""
        if not self.pool_secret or not hmac.compare_digest(secret.encode(), self.pool_secret.encode()):
            raise errors.SESSION_AUTHENTICATION_FAILED("", "The pool secret is wrong")
        return self._create(is_local_superuser=True, pool=True)

    def _create(self, **fields: object) -> records.session:
        now = moment(self.clock.seconds())
        master = next(iter(self.db.pool)).master
        return self.db.session.create(this_host=master, last_active=now, **fields)

    def _make_room(self, same: Callable[[records.session], bool], limit: int) -> None:
        """Drop the longest unused sessions of a group, so that one more stays within the limit."""
        group = [row for row in self.db.session if same(row)]
        group.sort(key=lambda row: row.last_active)
        for row in group[: max(0, len(group) - limit + 1)]:
            self.end(row, "its user has too many")

    # Living and ending.

    def used(self, session: records.session) -> None:
        """Note that a session is in use."""
        if self.clock.seconds() - session.last_active.timestamp() >= REFRESH:
            session.last_active = moment(self.clock.seconds())

    def end(self, session: records.session, why: str = "") -> None:
        """Log a session out; calls that wait on it hear of it. `why` is for the log, where no call asked for it."""
        ref = session._ref
        if ref in self.db.session:
            self.db.session.delete(ref)
            if self.trail is not None:
                self.trail.went(session)
            if why:
                log.info("{user}'s session ends, {session}: {why}",
                         user=quoted(session.auth_user_name), session=trackid(ref), why=why)  # fmt: skip
        for heard in list(self._ended.pop(ref, ())):
            heard()

    def when_ended(self, session: records.session, heard: Callable[[], None]) -> Callable[[], None]:
        """Call `heard` when the session ends; return a function that stops that."""
        waiting = self._ended.setdefault(session._ref, {})
        waiting[heard] = None

        def forget() -> None:
            waiting.pop(heard, None)
            if not waiting and self._ended.get(session._ref) is waiting:
                del self._ended[session._ref]

        return forget

    def sweep(self) -> None:
        """Drop idle sessions, and external ones whose user or roles are gone. Call every few minutes."""
        now = self.clock.seconds()
        working = {task.session for task in self.db.task if task.status == "pending"}
        for row in list(self.db.session):
            if now - row.last_active.timestamp() >= IDLE and row._ref not in working:
                self.end(row, "idle")
            elif row.subject != NULL and now - row.validation_time.timestamp() >= REVALIDATE:
                self._revalidate(row)

    def _revalidate(self, row: records.session) -> None:
        account = None if self.directory is None else self.directory.find(row.auth_user_name)
        if account is None or account.sid != row.auth_user_sid or self._subject_of(account) is None:
            self.end(row, "its subject is gone")
            return
        with self.db.atomic():
            row.validation_time = moment(self.clock.seconds())
            row.rbac_permissions = self._permissions_of(account)


class _Permissions(tuple[str, ...]):
    """Permissions in order, with a fast `in`; one object serves all sessions of the same roles."""

    _set: frozenset[str]

    def __new__(cls, permissions: Iterable[str]) -> _Permissions:
        made = super().__new__(cls, permissions)
        made._set = frozenset(made)
        return made

    def __contains__(self, permission: object) -> bool:
        return permission in self._set


@cache
def _role_permissions(model: Model) -> dict[str, frozenset[str]]:
    """Return the lower-case permissions of each role, mightiest role first."""
    ranks = {role.name: rank for rank, role in enumerate(role for role in model.roles.values() if not role.internal)}
    found: dict[str, set[str]] = {name: set() for name in model.roles}
    for permission, (least, certificate) in model.permissions.items():
        for role, rank in ranks.items():
            if least in ranks and rank <= ranks[least]:
                found[role].add(permission.lower())
        if certificate and "client-cert" in found:
            found["client-cert"].add(permission.lower())
    return {role: frozenset(permissions) for role, permissions in found.items()}
