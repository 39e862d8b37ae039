"""The RPC face of the daemon: XML-RPC and JSON-RPC requests in, answers out.

`RPC` is the `Application` of the HTTP server. Any POST that no other handler takes is XML-RPC, as with
xapi; ``/jsonrpc`` is JSON-RPC, and so is ``/json`` when the body is JSON. Big answers are rendered over
several turns of the reactor, so that no turn is long, and are then sent with their length.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from os import getuid
from typing import TYPE_CHECKING, Any

import orjson
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import CancelledError, Deferred

from xapi.access.caller import Origin
from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.datamodel.lexical import DecodeError
from xapi.datamodel.types import STRING
from xapi.events.batch import Batch, NextEvents, json_event, xml_event
from xapi.http import console
from xapi.http.server.exchange import UNREAD, Intake, Request, Response, Route
from xapi.http.unserved import Unserved
from xapi.wire import jsonrpc, xmlrpc
from xapi.wire.fragments import RecordOf, Records, Refs

if TYPE_CHECKING:
    from xapi.calls.dispatch import Method
    from xapi.datamodel import HTTPHandler
    from xapi.process.daemon import Daemon

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
_JSON_PATHS = frozenset({"/jsonrpc", "/jsonrpc/", "/json", "/json/"})
_CALLED = _JSON_PATHS | {"/", "/RPC2"}
"""Where clients call; other paths that nobody declares are XML-RPC too."""
_UNREAD = Response(404, b"there is nothing here; XenAPI calls are POST requests\n", b"text/plain")
_NOT_ALLOWED = Response(501, b"this method is not implemented for this path\n", b"text/plain")
_ASYNC = ("Async.", "InternalAsync.")
"""What such a call answers is a task's reference, whatever the message's own result."""

SHORT = 50
"""Up to this many records are rendered within one turn."""

Answer = Response | Deferred[Response]


@dataclass(frozen=True)
class Declared:
    """A route of the table."""

    intake: Intake
    answer: Callable[[Request], Any]


class RPC:
    """Answer RPC requests with the messages of a daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._consoles = console.Consoles(daemon)
        self._unserved = Unserved(daemon)
        calls = Intake(BODY_LIMIT)
        self._routes = {
            "json": Declared(calls, self._either),
            "POST": Declared(calls, self._xml),
            "OPTIONS": Declared(calls, lambda request: Response(200, b"", b"text/plain", _PREFLIGHT)),
            "GET": Declared(UNREAD, lambda request: _UNREAD),
            "HEAD": Declared(UNREAD, lambda request: _UNREAD),
            "console": Declared(UNREAD, self._console),
            "other": Declared(UNREAD, lambda request: _NOT_ALLOWED),
        }

    def route(self, method: str, path: str) -> Route:
        """Return what answers a request."""
        if method == "POST" and path in _JSON_PATHS:
            return self._routes["json"]
        if path in _CALLED and method in ("POST", "OPTIONS"):
            return self._routes[method]
        handler = self._unserved.find(method, path)
        if handler is not None:
            return Declared(UNREAD, partial(self._turned_away, handler))
        if method == "CONNECT" and path in console.PATHS:
            return self._routes["console"]
        return self._routes.get(method) or self._routes["other"]

    def _turned_away(self, handler: HTTPHandler, request: Request) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._unserved.respond(request, handler, origin_of(request)))

    def _console(self, request: Request) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._consoles.respond(request, origin_of(request)))

    def _either(self, request: Request) -> Answer:
        as_json = request.path.startswith("/jsonrpc") or request.body.lstrip()[:1] == b"{"
        return self._json(request) if as_json else self._xml(request)

    # XML-RPC

    def _xml(self, request: Request) -> Answer:
        try:
            name, params = xmlrpc.parse_call(request.body)
            if name == "system.listMethods":
                return _xml_response(self._list_methods_xml())
            if name.startswith("system.isAlive:"):
                return _xml_response(xmlrpc.success(self._is_alive(name, params)))
            method, result = self.daemon.dispatcher.call(name, params, origin_of(request))
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
        fragments = self.daemon.fragments
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
        return _xml_response(xmlrpc.failure(self.daemon.veil.over(fault)))

    def _list_methods_xml(self) -> bytes:
        names = "".join(f"<value>{name}</value>" for name in self.daemon.method_names)
        return xmlrpc.bare(f"<value><array><data>{names}</data></array></value>".encode())

    def _is_alive(self, name: str, params: list[Any]) -> bytes:
        try:
            text = STRING.decode(params[0])
        except (IndexError, DecodeError) as error:
            raise errors.INTERNAL_ERROR(f"{name}: {error}") from None
        return xmlrpc.encode(STRING, text)

    # JSON-RPC

    def _json(self, request: Request) -> Answer:
        call = jsonrpc.UNREAD
        try:
            message = jsonrpc.read(request.body)
            call = jsonrpc.addressed(message)
            call = jsonrpc.parse_call(message)
            if call.method == "system.listMethods":
                return _json_response(jsonrpc.success(call, orjson.dumps(self.daemon.method_names)))
            method, result = self.daemon.dispatcher.call(call.method, call.params, origin_of(request))
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
        fragments = self.daemon.fragments
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
        return _json_response(jsonrpc.failure(call, self.daemon.veil.over(fault)))

    # Waiting and rendering

    def _later(self, method: Method, result: Deferred[Any], answer: Any, failed: Any) -> Deferred[Response]:
        """Answer when the result is there. Cancelled (the client is gone), a wait for events stops;
        other work goes on, as with xapi."""
        if not method.stops_with_client:
            waited: Deferred[Any] = Deferred(lambda _: None)

            def pass_on(outcome: Any) -> None:
                if not waited.called:
                    waited.callback(outcome)

            result.addBoth(pass_on)
            result = waited

        def fail(failure: Any) -> Response:
            if failure.check(Fault):
                response: Response = failed(failure.value)
                return response
            failure.trap(CancelledError)
            response = failed(errors.INTERNAL_ERROR("cancelled"))
            return response

        result.addCallback(lambda value: answer(method, value))
        result.addErrback(fail)
        return result

    def _batch(self, batch: Batch, codec: str, respond: Callable[[list[bytes]], Response]) -> Answer:
        encoded = batch.encoded.get(codec)
        if encoded is not None:
            return respond(encoded)
        fragments = self.daemon.fragments
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
            return respond(await self.daemon.turns.take(parts))

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


def origin_of(request: Request) -> Origin:
    """Return where a request comes from; a local socket of root or our own user is trusted."""
    local = isinstance(request.connection.peer, UNIXAddress)
    return Origin(
        local and _peer_uid(request.connection.wire) in (0, getuid()), request.headers, request.connection.peer
    )


def _peer_uid(transport: Any) -> int:
    """Return the uid of the process at the other end of a Unix socket (SO_PEERCRED of unix(7)), or -1."""
    try:
        credentials = transport.getHandle().getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError:
        return -1
    return int(struct.unpack("3i", credentials)[1])
