"""Calls of the API: XML-RPC and JSON-RPC requests in, answers out.

Any POST that no other handler takes is XML-RPC, as with xapi; ``/jsonrpc`` is JSON-RPC, and so is ``/json`` when the
body is JSON. Big answers are rendered over several turns of the reactor, so that no turn is long, and are then sent
with their length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import orjson
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from xapi.calls.dispatch import Dispatcher
from xapi.calls.faults import Veil
from xapi.datamodel import Model, errors
from xapi.datamodel.errors import Fault
from xapi.datamodel.lexical import DecodeError
from xapi.datamodel.types import STRING
from xapi.events.batch import Batch, NextEvents, json_event, xml_event
from xapi.http.caller import origin_of
from xapi.http.registry import answers
from xapi.http.server.exchange import Intake, Request, Response
from xapi.turns import Turns
from xapi.wire import jsonrpc, xmlrpc
from xapi.wire.fragments import Fragments, RecordOf, Records, Refs

if TYPE_CHECKING:
    from xapi.calls.dispatch import Method
    from xapi.calls.work import Subsystems

BODY_LIMIT = 300 * 1024
"""Bytes of an RPC request, as with xapi."""

_CORS = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-headers", b"X-Requested-With"),
)
_PREFLIGHT = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-headers", b"X-Requested-With, Content-Type"),
    (b"access-control-allow-methods", b"POST, OPTIONS"),
)
_ASYNC = ("Async.", "InternalAsync.")
"""What such a call answers is a task's reference, whatever the message's own result."""

SHORT = 50
"""Up to this many records are rendered within one turn."""

Answer = Response | Deferred[Response]


@answers(
    Intake(BODY_LIMIT), post_root="xml", post_RPC2="xml", post_json="either", post_jsonrpc="json",
    post_root_options="preflight", post_json_options="preflight", post_jsonrpc_options="preflight",
)  # fmt: skip
class RPC:
    """Answer RPC requests with the messages of the API."""

    def __init__(self, subsystems: Subsystems) -> None:
        self._dispatcher = subsystems[Dispatcher]
        self._fragments = subsystems[Fragments]
        self._veil = subsystems[Veil]
        self._turns = subsystems[Turns]
        self.names = ["system.listMethods"]
        self.names += [each.full_name for each in subsystems[Model].messages if each.life.state != "Removed"]

    def preflight(self, request: Request) -> Response:
        """Let pages of other origins call."""
        return Response(200, b"", b"text/plain", _PREFLIGHT)

    def either(self, request: Request) -> Answer:
        """Answer XML-RPC under an old path, or what looks like JSON-RPC."""
        return self.json(request) if request.body.lstrip()[:1] == b"{" else self.xml(request)

    # XML-RPC

    def xml(self, request: Request) -> Answer:
        """Answer XML-RPC."""
        try:
            name, params = xmlrpc.parse_call(request.body)
            if name == "system.listMethods":
                return _xml_response(self._list_methods_xml())
            if name.startswith("system.isAlive:"):
                return _xml_response(xmlrpc.success(self._is_alive(name, params)))
            method, result = self._dispatcher.call(name, params, origin_of(request))
            if name.startswith(_ASYNC):
                return _xml_response(xmlrpc.success(xmlrpc.encode(STRING, result)))
            if type(result) is Deferred:
                return self._later(method, result, self._xml_answer, self._xml_failure)
            answer = self._xml_answer(method, result)
        except Fault as fault:
            return self._xml_failure(fault)
        return answer

    def _xml_answer(self, method: Method, result: Any) -> Answer:
        kind = type(result)
        fragments = self._fragments
        if result is None:
            return _xml_response(xmlrpc.VOID)
        if kind is RecordOf:
            return _xml_response(xmlrpc.success(fragments.xml_record(result.row)))
        if kind is Refs:
            return _xml_response(xmlrpc.success(result.xml()))
        if kind is Records:
            start, end = xmlrpc.SUCCESS + b"<value><struct>", b"</struct></value>" + xmlrpc.SUCCESS_END
            return self._whole(len(result), chain((start,), map(fragments.xml, result), (end,)), _xml_response)
        if kind is Batch:
            return self._batch(result, "xml", lambda parts: _xml_response([xmlrpc.SUCCESS, *parts, xmlrpc.SUCCESS_END]))
        if kind is NextEvents:
            items = [part for event in result for part in xml_event(event, result.timestamp, fragments)]
            ends = (xmlrpc.SUCCESS + b"<value><array><data>", b"</data></array></value>" + xmlrpc.SUCCESS_END)
            return _xml_response([ends[0], *items, ends[1]])
        return _xml_response(xmlrpc.success(xmlrpc.encode(method.result, result)))

    def _xml_failure(self, fault: Fault) -> Response:
        return _xml_response(xmlrpc.failure(self._veil.over(fault)))

    def _list_methods_xml(self) -> bytes:
        names = "".join(f"<value>{name}</value>" for name in self.names)
        return xmlrpc.bare(f"<value><array><data>{names}</data></array></value>".encode())

    def _is_alive(self, name: str, params: list[object]) -> bytes:
        try:
            text = STRING.decode(params[0])
        except (IndexError, DecodeError) as error:
            raise errors.INTERNAL_ERROR(f"{name}: {error}") from None
        return xmlrpc.encode(STRING, text)

    # JSON-RPC

    def json(self, request: Request) -> Answer:
        """Answer JSON-RPC."""
        call = jsonrpc.UNREAD
        try:
            message = jsonrpc.read(request.body)
            call = jsonrpc.addressed(message)
            call = jsonrpc.parse_call(message)
            if call.method == "system.listMethods":
                return _json_response(jsonrpc.success(call, orjson.dumps(self.names)))
            method, result = self._dispatcher.call(call.method, call.params, origin_of(request))
            if call.method.startswith(_ASYNC):
                return _json_response(jsonrpc.success(call, jsonrpc.encode(STRING, result)))

            def answer(method: Method, result: Any) -> Answer:
                return self._json_answer(call, method, result)

            if type(result) is Deferred:
                return self._later(method, result, answer, lambda fault: self._json_failure(call, fault))
            return answer(method, result)
        except Fault as fault:
            return self._json_failure(call, fault)

    def _json_answer(self, call: jsonrpc.JSONCall, method: Method, result: Any) -> Answer:
        kind = type(result)
        fragments = self._fragments
        start, end = jsonrpc.success_parts(call)
        if kind is RecordOf:
            return _json_response(start + fragments.json_record(result.row) + end)
        if kind is Records:
            members = _between(b"{", map(fragments.json, result), b"}")
            return self._whole(len(result), chain((start,), members, (end,)), _json_response)
        if kind is Batch:
            return self._batch(result, "json", lambda parts: _json_response([start, *parts, end]))
        if kind is NextEvents:
            items = (b"".join(json_event(event, b"", fragments)) for event in result)
            return _json_response([start, *_between(b"[", items, b"]"), end])
        return _json_response(start + jsonrpc.encode(method.result, result) + end)

    def _json_failure(self, call: jsonrpc.JSONCall, fault: Fault) -> Response:
        return _json_response(jsonrpc.failure(call, self._veil.over(fault)))

    # Waiting and rendering

    def _later(
        self,
        method: Method,
        result: Deferred[Any],
        answer: Callable[[Method, object], Answer],
        failed: Callable[[Fault], Response],
    ) -> Deferred[Response]:
        """Answer when the result is there. Cancelled (the client is gone), a wait for events stops;
        other work goes on, as with xapi."""
        if not method.stops_with_client:
            waited: Deferred[object] = Deferred(lambda _: None)

            def pass_on(outcome: object) -> None:
                if not waited.called:
                    waited.callback(outcome)

            result.addBoth(pass_on)
            result = waited

        def fail(failure: Failure) -> Response:
            if isinstance(failure.value, Fault):
                return failed(failure.value)
            failure.trap(CancelledError)
            return failed(errors.INTERNAL_ERROR("cancelled"))

        result.addCallback(lambda value: answer(method, value))
        result.addErrback(fail)
        return result

    def _batch(self, batch: Batch, codec: str, respond: Callable[[list[bytes]], Response]) -> Answer:
        encoded = batch.encoded.get(codec)
        if encoded is not None:
            return respond(encoded)
        fragments = self._fragments
        parts = batch.xml(fragments) if codec == "xml" else batch.json(fragments)
        if len(batch.events) <= SHORT:
            encoded = batch.encoded[codec] = list(parts)
            return respond(encoded)
        return self._whole(len(batch.events), parts, respond)

    def _whole(self, count: int, parts: Iterator[bytes], respond: Callable[[list[bytes]], Response]) -> Answer:
        """Render `count` records, over as many turns as they take if they are not few, and respond with all parts."""
        if count <= SHORT:
            return respond(list(parts))

        async def run() -> Response:
            return respond(await self._turns.take(parts))

        return Deferred.fromCoroutine(run())


def _between(start: bytes, items: Iterator[bytes], end: bytes) -> Iterator[bytes]:
    """Yield JSON items with commas between and brackets around them."""
    separator = start
    for item in items:
        yield separator
        yield item
        separator = b","
    yield start + end if separator is start else end


def _xml_response(body: bytes | list[bytes]) -> Response:
    return Response(200, body, xmlrpc.CONTENT_TYPE, _CORS)


def _json_response(body: bytes | list[bytes]) -> Response:
    return Response(200, body, jsonrpc.CONTENT_TYPE, _CORS)
