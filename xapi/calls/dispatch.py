"""From a method's name and wire values to its result: the one way every call takes.

The order of checks is xapi's: name, number of parameters, their types, removed messages, session,
pool-internal messages, role; then the work. Everything that can be known beforehand is prepared once
a message (`Method`), so a call looks up one dict entry and does not reflect.

Costs: a getter some 3 µs; a message that may wait also makes a task, some 20 µs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from twisted.internet.defer import CancelledError, Deferred

from xapi.access.caller import TOOLSTACK, Caller, Origin
from xapi.access.sessions import Sessions, allowed
from xapi.calls import implicit, registry
from xapi.calls.call import Call, key_permission
from xapi.calls.faults import unexpected
from xapi.calls.registry import Function
from xapi.calls.tasks import Tasks
from xapi.datamodel import Message, Model, errors
from xapi.datamodel.errors import Fault
from xapi.datamodel.lexical import DecodeError
from xapi.datamodel.types import NULL, Type
from xapi.log.calls import SLOW, Entry
from xapi.log.plan import Plan, plans
from xapi.wire.xmlrpc import Untyped

if TYPE_CHECKING:
    from xapi.calls.work import Subsystems
    from xapi.datamodel import records
    from xapi.log.calls import Calls
    from xapi.store.memory import Store


class Method:
    """One message, prepared for being called."""

    __slots__ = (
        "decode", "decoders", "function", "is_async", "key_parameter", "message", "name", "noted", "open_ended",
        "permission", "plan", "reading", "removed", "required", "result", "session", "stops_with_client", "waits",
    )  # fmt: skip

    def __init__(self, message: Message, function: Function, reading: bool, model: Model) -> None:
        self.message = message
        self.plan = plans(model)[message.full_name]
        self.noted = True
        """Each call of it is noted as it begins: for the log, or for the audit trail."""
        self.name = message.full_name
        self.function = function
        self.reading = reading
        self.stops_with_client = registry.stops_with_client(function)
        self.waits = inspect.iscoroutinefunction(function)
        self.is_async = message.is_async
        self.session = message.session
        self.required = message.required
        self.open_ended = message.open_ended
        self.decoders: list[tuple[Callable[[object], object], object]] = [
            (parameter.type.decode, parameter.default) for parameter in message.parameters
        ]
        self.permission = message.full_name.lower()
        self.removed = message.life.state == "Removed"
        self.result: Type = message.result
        self.key_parameter = 1 if message.key_roles else None

    def decode_arguments(self, params: list[object], first: int) -> list[object]:
        """Return the typed arguments. Raises INTERNAL_ERROR, as xapi does for what has the wrong type."""
        arguments = []
        at = first
        for decode, default in self.decoders:
            if at >= len(params):
                arguments.append(default)
                continue
            try:
                arguments.append(decode(params[at]))
            except DecodeError as error:
                name = self.message.parameters[at - first].name
                raise errors.INTERNAL_ERROR(f"{self.name}: parameter {name}: {error}") from None
            at += 1
        return arguments


class _Constructor(Method):
    """A `create` that takes a record: members without a default must be there."""

    __slots__ = ("members",)

    def __init__(self, message: Message, function: Function, model: Model, members: Mapping[str, bool]) -> None:
        super().__init__(message, function, False, model)
        self.members = [name for name, required in members.items() if required]

    def decode_arguments(self, params: list[object], first: int) -> list[object]:
        arguments = super().decode_arguments(params, first)
        given = arguments[0]
        assert isinstance(given, dict)
        for name in self.members:
            if name not in given:
                raise errors.INTERNAL_ERROR(f"{self.name}: the record has no {name}")
        return arguments


def not_implemented(name: str) -> Function:
    """Return the behaviour of a message that has none yet."""

    def run(call: Call, *arguments: object) -> object:
        raise errors.NOT_IMPLEMENTED(name)

    run.__name__ = "not_implemented"
    return run


def prepare(model: Model, db: Store, functions: Mapping[str, Function]) -> dict[str, Method]:
    """Return the methods of all messages, under both spellings."""
    methods = {}
    for message in model.messages:
        name = message.full_name
        table = db.tables.get(message.class_name)
        function = functions.get(name)
        reading = function is None and message.kind in implicit.READING
        if function is None and message.kind and table is not None:
            function = implicit.FACTORIES[message.kind](table, message)
        function = function or not_implemented(name)
        if message.kind == "make" and table is not None:
            method: Method = _Constructor(message, function, model, implicit.constructor_fields(table))
        else:
            method = Method(message, function, reading, model)
        methods[name] = methods[f"{message.class_name}_{message.name}"] = method
    return methods


def _reference(name: str, session: object) -> str:
    """Return a session's reference as it came over the wire; nil, which clients send after logout, is null."""
    if type(session) is str:
        return session
    if session is None:
        return NULL
    raise errors.INTERNAL_ERROR(f"{name}: the session must be a string")


class Extensions(Protocol):
    """Messages of the administrator's own, which are none of the schema's."""

    def has_extension(self, name: str) -> bool:
        """Tell whether there is one of this name."""

    async def call_extension(self, name: str, params: list[object]) -> object:
        """Run one with all parameters as they came, and return its result."""


class Dispatcher:
    """Call messages by name. `kept` renders a result as a task keeps it, `calls` is told of each call."""

    def __init__(
        self,
        model: Model,
        subsystems: Subsystems,
        functions: Mapping[str, Function],
        extensions: Extensions,
        kept: Callable[[Method, object], str],
        calls: Calls,
    ) -> None:
        self.db = subsystems.db
        self.methods = prepare(model, self.db, functions)
        self._subsystems = subsystems
        self._tasks = subsystems[Tasks]
        self._logins = subsystems[Sessions]
        self._sessions = self.db.session.rows
        self._extensions = extensions
        self._kept = kept
        self._calls = calls
        self._seconds = calls.seconds

        async def extend(call: Call, name: str, params: list[object]) -> object:
            return await extensions.call_extension(name, params)

        self._extension = Method(self.methods["host.call_extension"].message, extend, False, model)
        self._extension.result = Untyped()
        for method in self.methods.values():
            method.noted = self._calls.notes(method.plan)

    def own(self, name: str) -> tuple[Call, Function]:
        """Return a call that the toolstack makes itself, with a task of its own, and the message's function."""
        method = self.methods[name]
        return Call(self._subsystems, method.message, name, TOOLSTACK), method.function

    def call(self, name: str, params: list[object], origin: Origin) -> tuple[Method, object]:
        """Run a call and return its method and result, or a Deferred of it where it waits.

        A change is durable when the result is there. Raises Fault; the Deferred fails with nothing else.
        """
        calls = self._calls
        begun = self._seconds()
        try:
            method, call, params, arguments, is_async = self._accept(name, params, origin)
        except Fault as fault:
            calls.refused(self._plan(name), name, params, origin, begun, fault)
            raise
        entry = Entry(calls, method.plan, call, params, arguments, begun) if method.noted or is_async else None
        if is_async and entry is not None:
            return method, self._start(method, call, arguments, entry)
        try:
            result = self._run(method, call, arguments)
        except Fault as fault:
            (entry or Entry(calls, method.plan, call, params, arguments, begun)).failed(fault)
            raise
        if type(result) is Deferred:
            (entry or Entry(calls, method.plan, call, params, arguments, begun)).follow(result)
        elif entry is not None:
            entry.done(result)
        elif self._seconds() - begun >= SLOW:
            Entry(calls, method.plan, call, params, arguments, begun).done(result)
        return method, result

    def _accept(
        self, name: str, params: list[object], origin: Origin
    ) -> tuple[Method, Call, list[object], list[object], bool]:
        """Check a call; return its method, the call, its parameters as they came and typed, and whether it is Async."""
        is_async = internal = False
        if name.startswith("Async."):
            is_async, name = True, name[6:]
        elif name.startswith("InternalAsync."):
            is_async, internal, name = True, True, name[14:]
        method = self.methods.get(name)
        if method is None or (is_async and "." not in name):
            return self._other(name, params, origin, is_async)
        if is_async and not method.is_async:
            raise Fault("Fault", f"No async mode for this operation (rpc: Async.{method.name})")
        first = 1 if method.session else 0
        received = len(params) - first
        if received < method.required or (received > method.required and not method.open_ended):
            raise errors.MESSAGE_PARAMETER_COUNT_MISMATCH(method.name, str(method.required), str(received))
        reference = _reference(method.name, params[0]) if first else ""
        arguments = method.decode_arguments(params, first)
        session = self._authorise(method, reference, arguments, params, origin) if first else None
        shown = f"Async.{method.name}" if is_async else method.name
        own = self._tasks.create(shown, session=session, origin=origin) if internal else None
        call = Call(self._subsystems, method.message, shown, Caller(session, origin), own)
        return method, call, params[1:] if first else params, arguments, is_async

    def _plan(self, name: str) -> Plan | None:
        """Return what may be said of a message that a client has named in whatever way."""
        method = self.methods.get(name.removeprefix("Async.").removeprefix("InternalAsync."))
        return None if method is None else method.plan

    def _other(
        self, name: str, params: list[object], origin: Origin, is_async: bool
    ) -> tuple[Method, Call, list[object], list[object], bool]:
        """Check a call of what is no message of the API: an extension of the administrator's, if there is one."""
        if not params:
            raise errors.MESSAGE_METHOD_UNKNOWN(name)
        session = self._session(_reference(name, params[0]))
        extension = self._extension
        if not allowed(session, extension.permission):
            self._calls.denied(extension.plan, [], session, origin)
            raise self._denied(extension.permission)
        if is_async or not self._extensions.has_extension(name):
            raise errors.MESSAGE_METHOD_UNKNOWN(name)
        self._logins.used(session)
        call = Call(self._subsystems, extension.message, name, Caller(session, origin))
        return extension, call, [], [name, params], False

    def _session(self, ref: str) -> records.session:
        session = self._sessions.get(ref)
        if session is None:
            raise errors.SESSION_INVALID(ref)
        return session

    def _authorise(
        self, method: Method, ref: str, arguments: list[object], params: list[object], origin: Origin
    ) -> records.session:
        session = self._session(ref)
        if method.removed:
            raise errors.MESSAGE_REMOVED()
        if method.message.internal and not session.pool:
            raise errors.INTERNAL_ERROR(f'Internal API "{method.name}" call attempted with non-pool (external) session')
        if not session.is_local_superuser:
            permission = method.permission
            if method.key_parameter is not None:
                permission = key_permission(method.message, str(arguments[1])) or permission
            if not allowed(session, permission):
                self._calls.denied(method.plan, params[1:], session, origin)
                raise self._denied(permission)
        self._logins.used(session)
        return session

    def _denied(self, permission: str) -> Fault:
        roles = self._logins.roles_with(permission)
        return errors.RBAC_PERMISSION_DENIED(
            permission.lower(), f"No permission in user session. (Roles with this permission: {', '.join(roles)})"
        )

    def _run(self, method: Method, call: Call, arguments: list[object]) -> object:
        if method.reading:
            return self._guard(method, call, arguments)
        if method.waits:
            if method.is_async:
                _ = call.task  # visible while the call lasts
            return self._finish(method, call, arguments)
        before = self.db.last_written
        try:
            with self.db.atomic():
                result = self._guard(method, call, arguments)
        finally:
            call.done()
        if self.db.last_written == before:
            return result
        return self._flushed(result)

    def _guard(self, method: Method, call: Call, arguments: list[object]) -> object:
        """Call a plain function; what is no Fault is logged and becomes one."""
        try:
            return method.function(call, *arguments)
        except Fault:
            raise
        except Exception as error:
            self._calls.broken(method.plan, call.name, arguments)
            raise unexpected(error) from error

    def _finish(self, method: Method, call: Call, arguments: list[object]) -> Deferred[object]:
        """Run a message that waits; its task is there as long as it runs."""

        async def run() -> object:
            try:
                result = await self._waiting(method, call, arguments)
            finally:
                call.done()
            return await self._flushed(result)

        deferred = Deferred.fromCoroutine(run())
        if call.shown_task is not None:
            self._tasks.running(call.shown_task, deferred)
        return deferred

    async def _waiting(self, method: Method, call: Call, arguments: list[object]) -> object:
        try:
            return await method.function(call, *arguments)
        except (Fault, GeneratorExit):
            raise
        except CancelledError:
            if call.shown_task is not None:
                raise errors.TASK_CANCELLED(call.shown_task._ref) from None
            raise
        except Exception as error:
            self._calls.broken(method.plan, call.name, arguments)
            raise unexpected(error) from error

    def _start(self, method: Method, call: Call, arguments: list[object], entry: Entry) -> str:
        """Make the task of an Async call, let the work begin in a later turn, and return the reference."""
        tasks = self._tasks
        task = call.task
        ref = task._ref

        async def work() -> str:
            if method.waits:
                result = await self._waiting(method, call, arguments)
            else:
                with self.db.atomic():
                    result = self._guard(method, call, arguments)
            return self._kept(method, await self._flushed(result))

        async def run() -> None:
            fault = None
            try:
                result = await work()
            except Fault as error:
                fault = error
            except CancelledError:
                fault = errors.TASK_CANCELLED(ref)
            if fault is not None:
                entry.failed(fault)
            else:
                entry.done(None)
            if call.borrowed:
                return
            if fault is not None:
                tasks.fail(task, fault)
            else:
                tasks.succeed(task, result)

        def begin() -> None:
            tasks.running(task, Deferred.fromCoroutine(run()))

        self._subsystems.clock.callLater(0, begin)
        return ref

    def _flushed(self, result: object) -> Deferred[object]:
        """Return a Deferred of the result, fired when all changes so far are durable."""
        done: Deferred[object] = Deferred()

        def tell(fault: Fault | None) -> None:
            if done.called:
                return
            if fault is None:
                done.callback(result)
            else:
                done.errback(fault)

        self.db.when_flushed(self.db.last_written, tell)
        return done
