"""A request that a handler answers: work, and who asks for it by HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from xapi.calls.tasks import Tasks
from xapi.calls.work import Subsystems, Work
from xapi.http.caller import named
from xapi.http.server.exchange import Refusal

if TYPE_CHECKING:
    from xapi.access.caller import Caller
    from xapi.datamodel import HTTPHandler, records
    from xapi.http.query import Query
    from xapi.http.server.body import Body
    from xapi.http.server.exchange import Request
    from xapi.http.server.outgoing import Outgoing


class Visit(Work):
    """One request to a handler.

    Its function returns the answer: a Response, a Takeover, or what it has begun and written, see `begin`. Any time it
    may raise Refusal, or a Fault of the API.
    """

    __slots__ = ("handler", "query", "request", "result")

    def __init__(
        self, subsystems: Subsystems, handler: HTTPHandler, request: Request, query: Query, caller: Caller
    ) -> None:
        super().__init__(subsystems, handler.name, caller)
        self.handler = handler
        self.request = request
        self.query = query
        self.result = ""
        """The XML-RPC text of what the client's task is to have as its result."""

    @property
    def body(self) -> Body:
        """The body of the request, to be read. Raises Refusal if there is none."""
        if self.request.stream is None:
            raise Refusal(411, "a body is needed")
        return self.request.stream

    def begin(
        self,
        status: int,
        content_type: bytes | None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        length: int | None = None,
    ) -> Outgoing:
        """Begin the answer by its head, and return what takes its body; see `Connection.begin`. Raises ClientGone."""
        return self.request.connection.begin(status, content_type, headers, length)

    @property
    def named_task(self) -> records.task | None:
        """The task that the client has made for this, and names as `task_id`; None if there is none, or no longer."""
        task = self[Tasks].named(named(self.request, self.query, "task_id"), self.caller.session)
        return task if task is not None and task.status == "pending" else None

    def _begin(self) -> records.task:
        """Return the task that the client has named, or a new one, which goes with the visit."""
        caller = self.caller
        return self.named_task or self[Tasks].create(self.name, session=caller.session, origin=caller.origin)
