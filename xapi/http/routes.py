"""Which handler answers which requests: the table made of the schema and of the functions behind it.

As with xapi the longest path counts that a request's path begins with, among the handlers of its method; so a slash
behind it changes nothing. Who may not use a handler is told so, before its parameters are looked at, and its task, if
it has named one, fails with the same error as the request. A handler without a function says so, to who may use it,
with 501 and its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred

from xapi.access.sessions import Sessions
from xapi.calls.faults import Veil, unexpected
from xapi.calls.tasks import Tasks
from xapi.datamodel import HTTPHandler, Model, errors
from xapi.datamodel.errors import Fault
from xapi.http import registry
from xapi.http.caller import Stranger, admitted, origin_of
from xapi.http.query import Query
from xapi.http.server.body import ClientGone
from xapi.http.server.exchange import UNREAD, Answer, Intake, Refusal, Request, Route, error_response
from xapi.http.visit import Visit

if TYPE_CHECKING:
    from xapi.calls.work import Subsystems
    from xapi.datamodel import records

_STATUS = {"RBAC_PERMISSION_DENIED": 403, "HANDLE_INVALID": 404, "UUID_INVALID": 404, "NOT_IMPLEMENTED": 501}
"""What errors of the API are in HTTP; others are 500, as with xapi."""


@dataclass(frozen=True)
class Plain:
    """A route that answers requests as they are."""

    intake: Intake
    answer: Callable[[Request], Answer | Deferred[Any]]


class Visited:
    """A route to a handler's function: finds the caller, checks what he may and asks, and ties his task to the work."""

    def __init__(self, subsystems: Subsystems, declared: HTTPHandler, registered: registry.Registered | None) -> None:
        self._subsystems = subsystems
        self._declared = declared
        self._function = None if registered is None else registered.function
        self.intake = UNREAD if registered is None else registered.intake

    def answer(self, request: Request) -> Deferred[Answer]:
        return Deferred.fromCoroutine(self._answer(request))

    async def _answer(self, request: Request) -> Answer:
        query = Query(request.query)
        declared = self._declared
        if not declared.checked:
            stranger = Stranger(origin_of(request))
            return await self._work(Visit(self._subsystems, declared, request, query, stranger))
        async with admitted(self._subsystems[Sessions], request, query, declared.name) as caller:
            return await self._work(Visit(self._subsystems, declared, request, query, caller))

    async def _work(self, visit: Visit) -> Answer:
        tasks, task = visit[Tasks], visit.named_task
        work = Deferred.fromCoroutine(self._run(visit))
        if task is not None:
            tasks.running(task, work)
            visit.shown_task = task
        try:
            answer = await work
        except Exception as error:
            fault = _fault_of(error, task)
            if task is not None:
                tasks.fail(task, fault)
            if isinstance(error, Fault | CancelledError):
                raise _refusal(fault.code, visit[Veil].over(fault)) from error
            raise
        finally:
            if task is None:
                visit.done()
        if task is not None:
            tasks.succeed(task, visit.result)
        return answer

    async def _run(self, visit: Visit) -> Answer:
        if self._declared.checked:
            visit.caller.require(f"http/{self._declared.name}")
        if self._function is None:
            raise errors.NOT_IMPLEMENTED(self._declared.name)
        answer: Answer = await self._function(visit, *visit.query.arguments(self._declared))
        return answer


def _fault_of(error: Exception, task: records.task | None) -> Fault:
    """Return what an error is for a task."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, CancelledError) and task is not None and "cancel" in task.current_operations.values():
        return errors.TASK_CANCELLED(task._ref)
    if isinstance(error, CancelledError | ClientGone):
        return errors.INTERNAL_ERROR("the client is gone")
    return errors.INTERNAL_ERROR(str(error)) if isinstance(error, Refusal) else unexpected(error)


def _refusal(code: str, description: Sequence[str]) -> Refusal:
    """Return what an error of the API is in HTTP."""
    status = _STATUS.get(code, 500)
    if code == "NOT_IMPLEMENTED":
        return Refusal(status, f"{description[1]} is not implemented")
    return Refusal(status, "" if status == 403 else " ".join(description))


class Routes:
    """The application of the HTTP server."""

    def __init__(self, subsystems: Subsystems) -> None:
        """Raises RegistryError where a function and the schema do not fit."""
        model = subsystems[Model]
        found = registry.functions(model)
        made: dict[type[object], object] = {}
        self._exact: dict[tuple[str, str], Route] = {}
        self._by_method: dict[str, list[tuple[str, Route]]] = {}
        """Paths and routes, the longest path first."""
        for declared in sorted(model.handlers.values(), key=lambda each: len(each.path), reverse=True):
            registered = found.get(declared.name)
            if registered is None or registered.function is not None:
                route: Route = Visited(subsystems, declared, registered)
            else:
                if registered.cls not in made:
                    made[registered.cls] = registered.cls(subsystems)
                route = Plain(registered.intake, getattr(made[registered.cls], registered.method))
            self._exact[declared.method, declared.path] = route
            self._by_method.setdefault(declared.method, []).append((declared.path, route))
        self._by_method["HEAD"] = self._by_method["GET"]

    def route(self, method: str, path: str) -> Route:
        """Return what answers a request."""
        return self._exact.get((method, path)) or self._find(method, "/" if path == "*" else path)

    def _find(self, method: str, path: str) -> Route:
        route = self._longest(method, path)
        if route is not None:
            return route
        allowed = ", ".join(sorted(each for each in self._by_method if self._longest(each, path) is not None))
        answer = error_response(405, headers=((b"allow", allowed.encode()),)) if allowed else error_response(404)
        return Plain(UNREAD, lambda request: answer)

    def _longest(self, method: str, path: str) -> Route | None:
        found = (route for begin, route in self._by_method.get(method, ()) if path.startswith(begin))
        return next(found, None)
