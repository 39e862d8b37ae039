"""A line for each call that changes something, logs in, fails or takes long; at debug for every call.

`Calls` is what dispatch tells; it takes names and values while objects are there and the reactor's thread may look,
and leaves the sentence to the writer's (`xapi.log.sentences`). At info a getter costs two looks at the clock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from xapi.datamodel.errors import Fault
from xapi.datamodel.quoting import REFERENCE, trackid
from xapi.log import sentences
from xapi.log.lines import DEBUG, ERROR, INFO, WARN, Render, Said
from xapi.log.names import Named, Names

if TYPE_CHECKING:
    from xapi.access.caller import Caller, Origin
    from xapi.datamodel import records
    from xapi.log.audit import Trail
    from xapi.log.plan import Plan
    from xapi.store.memory import Store

T = TypeVar("T")
SLOW = 0.1
"""Seconds from which on a call that only reads is worth a line."""
HIDDEN = "***"
_AGENT = b"user-agent"
_GRAVE = frozenset({
    "RBAC_PERMISSION_DENIED", "SESSION_AUTHENTICATION_FAILED", "SESSION_AUTHORIZATION_FAILED",
    "CHANGE_PASSWORD_REJECTED",
})  # fmt: skip

Put = Callable[[float, int, str, Render, tuple[object, ...]], None]
"""See `xapi.log.output.Log.put`."""


class Calls:
    """Tell of calls, to the log and the audit trail. `every` is true at debug."""

    def __init__(
        self,
        db: Store,
        seconds: Callable[[], float],
        put: Put | None = None,
        *,
        every: bool = False,
        trail: Trail | None = None,
    ) -> None:
        self.names = Names(db)
        self.seconds = seconds
        self.every = every
        self.trail = trail
        self._db = db
        self._put = put or _nothing

    def notes(self, plan: Plan) -> bool:
        """Tell whether each call of a message is noted as it begins."""
        return self.every or plan.changes or (self.trail is not None and self.trail.takes(plan.name))

    def refused(
        self, plan: Plan | None, name: str, params: list[object], origin: Origin, begun: float, fault: Fault
    ) -> None:
        """Tell of a call that did not begin: what was wrong with it, and who it was."""
        ref = params[0] if params and type(params[0]) is str and not (plan is not None and plan.is_login) else ""
        session = self.session(ref)
        own = params if plan is None or plan.is_login else params[1:]
        secrets = set() if plan is None else plan.secrets(own)
        objects = [] if plan is None else plan.objects(self.names, own)
        self.tell(plan, name, origin, session, begun, objects, "", self.masked(fault, secrets | {ref} - {""}))

    def denied(self, plan: Plan, params: list[object], session: records.session, origin: Origin) -> None:
        """Tell the audit trail of a call that its session's roles do not allow."""
        if self.trail is not None:
            self.trail.denied(plan, params, session, origin)

    def broken(self, plan: Plan, name: str, arguments: list[object]) -> None:
        """Tell of an exception that is no fault, with its traceback."""
        failure = Failure()
        traceback = self.hide(failure.getTraceback(), plan.secrets(arguments))
        self._put(self.seconds(), ERROR, __name__, _broken, (name, traceback))

    def session(self, ref: object) -> records.session | None:
        """Return a session, if there is one of that reference."""
        return self._db.session.get(ref) if isinstance(ref, str) else None

    def masked(self, fault: Fault, secrets: set[str]) -> list[str]:
        """Return a fault's description without secrets and sessions."""
        code, *texts = fault.description
        if code == "SESSION_INVALID":
            return [code, *map(trackid, texts)]
        texts = [self.names.without_sessions(text) for text in texts]
        return [code, *(HIDDEN if any(secret in text for secret in secrets) else text for text in texts)]

    def hide(self, text: str, secrets: set[str]) -> str:
        """Return a text without secrets, and without references."""
        for secret in sorted(secrets, key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        return self.names.named(text)

    def tell(
        self,
        plan: Plan | None,
        name: str,
        origin: Origin,
        session: records.session | None,
        begun: float,
        arguments: list[tuple[str, object]],
        task: str,
        fault: list[str] | None,
        *,
        user: str = "",
        originator: str | None = None,
    ) -> None:
        """Write the line of a call that has ended, if its level says so."""
        now = self.seconds()
        took = max(0.0, now - begun)
        if fault is not None:
            level = WARN if fault[0] in _GRAVE else INFO
        elif plan is not None and (plan.changes or (took >= SLOW and not plan.waits_for_events)):
            level = INFO
        else:
            level = DEBUG
        if level < INFO and not self.every:
            return
        ref = ""
        if session is not None:
            user, ref = user or session.auth_user_name or ("the pool" if session.pool else "root"), session._ref
        caller = (user, origin.peer, origin.headers.get(_AGENT, b""), ref)
        shown = None if fault is None else [self._object(text) for text in fault]
        self._put(now, level, __name__, sentences.call, (name, caller, originator, task, took, arguments, shown))

    def _object(self, text: str) -> str | Named:
        if REFERENCE.fullmatch(text):
            return self.names.find(text) or text
        return self.names.named(text)


class Called(Protocol):
    """What is told of a call: its name, who calls, and its task once there is one."""

    @property
    def name(self) -> str: ...

    @property
    def caller(self) -> Caller: ...

    @property
    def shown_task(self) -> records.task | None: ...


class Entry:
    """One call, from when it may run to how it ends; then `done` or `failed` is called, once.

    `call` has its name, session, origin and task; `params` and `arguments` are as on the wire and as decoded.
    """

    __slots__ = ("_arguments", "_audited", "_begun", "_call", "_calls", "_params", "_plan", "_shown")

    def __init__(
        self, calls: Calls, plan: Plan, call: Called, params: list[object], arguments: list[object], begun: float
    ) -> None:
        self._calls = calls
        self._plan = plan
        self._call = call
        self._params = params
        self._arguments = arguments
        self._begun = begun
        self._shown = plan.arguments(calls.names, arguments)
        self._audited = None
        trail = calls.trail
        if trail is not None and ".destroy" in plan.name and call.caller.session is not None:
            self._audited = trail.arguments(plan, params) if trail.takes(plan.name) else None

    def done(self, result: T) -> T:
        """Tell that the call has done what it should; return its result."""
        self._tell(None, result)
        return result

    def failed(self, fault: Fault) -> None:
        """Tell that the call has failed."""
        secrets = self._plan.secrets(self._arguments)
        if self._call.caller.session is not None:
            secrets.add(self._call.caller.session._ref)
        self._tell(self._calls.masked(fault, secrets), None)

    def follow(self, result: Deferred[T]) -> None:
        """Tell how a call ends that waits."""
        result.addCallbacks(self.done, self._failure)

    def _failure(self, failure: Failure) -> Failure:
        if isinstance(failure.value, Fault):
            self.failed(failure.value)
        elif isinstance(failure.value, CancelledError) and not self._plan.waits_for_events:
            self.failed(Fault("the client is gone"))
        return failure

    def _tell(self, fault: list[str] | None, result: object) -> None:
        call, calls, plan = self._call, self._calls, self._plan
        task = call.shown_task
        user, originator, session = "", None, call.caller.session
        if plan.is_login:
            given = dict(zip(plan.parameters, self._arguments, strict=False))
            user, originator = str(given.get("uname") or "the pool"), str(given.get("originator", ""))
            session = None if fault is not None else calls.session(result)
        calls.tell(
            plan, call.name, call.caller.origin, session, self._begun, self._shown,
            "" if task is None else task.uuid, fault, user=user, originator=originator,
        )  # fmt: skip
        trail = calls.trail
        if trail is not None and call.caller.session is not None and trail.takes(plan.name):
            audited = self._audited if self._audited is not None else trail.arguments(plan, self._params)
            trail.ended(plan.name, audited, call.caller.session, call.caller.origin, call.name, task, fault)


def _broken(name: str, traceback: str) -> Said:
    return f"{name} failed unexpectedly\n{traceback}", {"event": "error", "method": name, "traceback": traceback}


def _nothing(*line: object) -> None:
    """Write no line."""
