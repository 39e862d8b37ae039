"""The requests in the bytes of one HTTP connection, each judged before its body is read.

One whose body is streamed is given by its head, another when all of it has come. httptools (llhttp, strict) does the
framing: one parser a connection, reused, since a new one per request costs more than all callbacks of a small call. A
head that comes again to the byte, as from a client that polls, means what it meant: it is not parsed again, which saves
a third of a small call.

A PUT without a length is delimited by the close, as xe and others send it, where its body is streamed; the parser knows
no such requests. So where a PUT may be among them, bytes are parsed head by head, and what follows such a one is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol
from urllib.parse import unquote_to_bytes

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser
from twisted.logger import Logger

from xapi.http.server.body import Body, BodyError, Sender
from xapi.http.server.exchange import Application, Connection, Limits, Request, Response, error_response

IDLE, HEAD, BODY = range(3)
"""How far the request being received has come."""
_USUAL = 2048
"""Bytes of a head that is remembered."""
_HEAD_END = b"\r\n\r\n"
_log = Logger()


class _Refused(Exception):
    """Stop the parser: the refusal is already there."""


class Carrier(Connection, Sender, Protocol):
    """The connection that is read."""


class Incoming:
    """Read what a connection brings: requests into `waiting`, an error into `refusal`, which comes after them."""

    def __init__(self, application: Application, limits: Limits, connection: Carrier) -> None:
        self._application = application
        self._limits = limits
        self._connection = connection
        self._parser = HttpRequestParser(self)
        self._fed = 0  # upper bound of the bytes of the request being received
        self._silent = 0  # bytes that the parser took without telling: part of a line, a chunk extension
        self._url = b""
        self._fields: list[tuple[bytes, bytes]] = []  # header lines; once the head is complete, trailers
        self._request: tuple[Request, bool] | None = None  # the request being received, keep-alive
        self._body: bytes | bytearray = b""
        self._body_limit: int | None = 0
        self._to_the_close = False  # the stream ends with the connection
        self._tail = b""  # the last bytes of a part of a head, which may have begun to end
        self._skipped = b""  # head that makes a new parser read the body which an upgrade made this one skip
        self._replaying = False
        self._usual: tuple[int, bytes, Request] | None = None
        """Length of the last request, which came whole and alone, its head, and what that said."""
        self.stage = IDLE
        self.waiting: deque[tuple[Request, bool]] = deque()
        """Requests, and whether the connection may be kept after each."""
        self.refusal: Response | None = None
        """The last answer, after all that are waiting."""
        self.ending = False
        """Nothing more is read."""
        self.unread = False
        """The client may be sending what nobody reads, so it may not have looked for the answer yet."""
        self.continuing = False
        """The client waits for 100 before it sends a whole body."""
        self.stream: Body | None = None
        """The body that is being received, if it is streamed: of the last request that was given."""
        self.behind: bytearray | None = None
        """What came behind a request that may take the connection over, until it is answered; else None."""
        self.room = limits.head_bytes
        """Bytes that may be held back while an answer is being made."""

    def end(self) -> None:
        """Forget all: the connection is gone."""
        self.ending = True
        self.waiting.clear()
        self._body = b""
        self.behind = self.stream = self._usual = self._request = None
        del self._parser, self._connection  # they know us, and nothing else ends that

    def settled(self) -> None:
        """Hear that all that was complete is answered."""
        if self.stage != BODY:
            self.room = self._limits.head_bytes

    def go_on(self) -> None:
        """Take what came behind a request for more of them: the connection was not taken over."""
        behind, self.behind = self.behind, None
        if behind:
            self.receive(bytes(behind))

    def receive(self, data: bytes) -> bool:
        """Parse, and bound what is incomplete. Return whether a request has got on, but not to its end."""
        if self._to_the_close:
            if self.stream is not None:
                self._streamed(data)
            return True
        usual = self._usual
        if usual is not None and len(data) == usual[0] and data.startswith(usual[1]):
            self.waiting.append((_with_body(usual[2], data[len(usual[1]) :]), True))
            return False
        self._usual = None
        if self.behind is not None:
            self.behind += data
            return False
        if self.stage:
            fields, known = self._fields, self._known()
            self._fed += len(data)
        else:
            fields, known = None, 0
            self._fed = len(data)
        waiting = len(self.waiting)
        self._feed(data)
        if not self.stage or self.ending:
            if fields is None and len(self.waiting) == waiting + 1 and not self.ending and self.behind is None:
                self._remember(data, self.waiting[-1][0])
            return False
        same = fields is self._fields
        self._silent = self._silent + len(data) if same and known == self._known() else 0
        if self._overlong():
            self.refuse(431)
            return False
        return self.stage == BODY or not same

    def _remember(self, data: bytes, request: Request) -> None:
        """Remember the head of a request if it came in these bytes alone, and may come again with another body."""
        size = data.find(b"\r\n\r\n") + 4
        if len(data) == size + len(request.body) and size <= _USUAL and request.stream is None:
            self._usual = len(data), data[:size], _with_body(request, b"")

    def _feed(self, data: bytes) -> None:
        # `rfind` takes a third of the time of `in`.
        if self.stage != HEAD and (self._is_all_of_a_stream(data) or data.rfind(b"PUT") < 0):
            self._parse(data)
            if self.stage == HEAD:
                self._tail = data[-3:]
            return
        for piece in self._by_heads(data):
            if self.ending:
                break
            if self.behind is not None:
                self.behind += piece
            elif self._to_the_close:
                self._streamed(piece)
            else:
                self._parse(piece)
        self._tail = (self._tail + data)[-3:] if self.stage == HEAD else b""

    def _is_all_of_a_stream(self, data: bytes) -> bool:
        stream = self.stream
        return stream is not None and stream.left is not None and stream.left >= len(data)

    def _by_heads(self, data: bytes) -> Iterator[bytes]:
        """Cut bytes wherever a head may end."""
        seen = self._tail + data
        begin = len(self._tail)
        end = seen.find(_HEAD_END)
        while end >= 0:
            end += len(_HEAD_END)
            yield seen[begin:end]
            begin, end = end, seen.find(_HEAD_END, end)
        if begin < len(seen):
            yield seen[begin:]

    def _parse(self, data: bytes | memoryview) -> None:
        while True:
            try:
                return self._parser.feed_data(data)
            except HttpParserUpgrade as upgrade:
                data = memoryview(data)[upgrade.args[0] :]
                self._parser = HttpRequestParser(self)
                if self._skipped:
                    self._replaying = True
                    head, self._skipped = self._skipped, b""
                    self._parser.feed_data(head)
                elif self.behind is not None:
                    self.behind += data
                    return None
                if self.ending or not data:
                    return None
            except HttpParserCallbackError:
                if not self.ending:
                    _log.failure("receiving a request failed")
                    self.refuse(500)
                return None
            except HttpParserError as error:
                if not self.ending:  # llhttp also complains about bytes after the last request
                    self.refuse(400, str(error))
                return None

    def _known(self) -> int:
        return len(self._url) + len(self._fields) + self.received()

    def _overlong(self) -> bool:
        """Tell whether the head, or the trailers, are above the limits, as far as the parser told them."""
        size = len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._fields)
        return size + self._silent > self._limits.head_bytes or len(self._fields) > self._limits.head_lines

    def refuse(self, status: int, text: str = "") -> _Refused:
        """Let an error be the last answer; if it is of a stream, its reader gets it."""
        self.ending = self.unread = True
        self.continuing = False
        self.stage = IDLE
        self._body = b""
        stream, self.stream = self.stream, None
        if stream is None:
            self.refusal = error_response(status, text)
        else:
            stream.end(partial(BodyError, status, text))
        return _Refused()

    def received(self) -> int:
        """Return how many bytes of a body have come."""
        return len(self._body) if self.stream is None else self.stream.received

    def closed(self, error: Callable[[], Exception] | None) -> None:
        """Hear that nothing more comes: the end of a stream that the close delimits, if there is no error."""
        self.ending = True
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.end(error)

    @property
    def ends_with_the_close(self) -> bool:
        """The stream that is being received has no other end."""
        return self._to_the_close and self.stream is not None

    # Called by the parser

    def on_message_begin(self) -> None:
        """Begin a request at its first byte."""
        self.stage = HEAD
        self._url = b""
        self._fields = []
        self._silent = 0

    def on_url(self, url: bytes) -> None:
        """Take a part of the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header or trailer line."""
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """Judge the head; raise _Refused to stop the parser."""
        self.stage = BODY
        fields, self._fields = self._fields, []
        if self._replaying:
            self._replaying = False
            return
        if self._fed > self._limits.head_bytes or len(fields) > self._limits.head_lines:
            self._fields, self._silent = fields, 0
            if self._overlong():
                raise self.refuse(431)
            self._fields = []
        headers = {name.lower(): value for name, value in fields}
        if len(headers) != len(fields):
            headers = self._joined(fields)
        parser = self._parser
        method = parser.get_method().decode()
        version = parser.get_http_version()
        if version != "1.1" and version != "1.0":
            raise self.refuse(400, "Unsupported HTTP version")
        target = self._url
        path, _, query = target.partition(b"?")
        text = path.decode() if path[:1] == b"/" and b"%" not in path else self._path(method, path)
        route = self._application.route(method, text)
        request = Request(method, target, text, query, headers, b"", version, self._connection, route)
        self._request = request, parser.should_keep_alive()
        if b"expect" in headers and version == "1.1":
            if headers[b"expect"].lower() != b"100-continue":
                raise self.refuse(417)
            self.continuing = True
        if b"content-length" in headers or b"transfer-encoding" in headers or method == "PUT":
            self._judge_body(request)

    def _joined(self, fields: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
        values: dict[bytes, list[bytes]] = {}
        for name, value in fields:
            values.setdefault(name.lower(), []).append(value)
        if len(values.get(b"host", ())) > 1 or len(values.get(b"content-length", ())) > 1:
            raise self.refuse(400, "Repeated Host or Content-Length")
        return {name: b", ".join(several) for name, several in values.items()}

    def _path(self, method: str, path: bytes) -> str:
        """Decode a path that is not plain: escapes, or the absolute form, of which the origin is dropped."""
        if path[:1] != b"/" and method != "CONNECT" and path != b"*":
            path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
        try:
            return unquote_to_bytes(path).decode()
        except UnicodeDecodeError:
            raise self.refuse(400, "Path is not UTF-8") from None

    def _judge_body(self, request: Request) -> None:
        """Refuse a body by its framing or declared length, before any of it is read; begin to give a stream."""
        coding = request.headers.get(b"transfer-encoding")
        if coding is not None and (coding.lower() != b"chunked" or request.version == "1.0"):
            raise self.refuse(400, "Unsupported Transfer-Encoding")
        declared = request.headers.get(b"content-length")
        length = int((declared or b"").lstrip(b"0") or b"0")  # int() refuses thousands of digits
        intake = request.route.intake
        if intake.limit is not None and length > intake.limit:
            raise self.refuse(413)
        self._body_limit = intake.limit
        if self._parser.should_upgrade() and (length or coding):
            framing = b"transfer-encoding: chunked" if coding else b"content-length: %d" % length
            self._skipped = b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing
        if intake.streamed:
            left = length if declared else None
            self.stream = request.stream = Body(self._connection, left, intake.rest_seconds, self.continuing)
            self.continuing = False
            assert self._request is not None
            self._to_the_close = not declared and not coding
            self.waiting.append((request, self._request[1] and not self._to_the_close))
        elif intake.limit is not None:
            self.room = max(intake.limit, self._limits.head_bytes)

    def _streamed(self, data: bytes) -> bool:
        """Give a part of a stream; tell whether it was within the limit."""
        assert self.stream is not None
        if self._body_limit is not None and self.stream.received + len(data) > self._body_limit:
            self.refuse(413)
            return False
        self.stream.take(data)
        return True

    def on_body(self, data: bytes) -> None:
        """Take a part of the body; raise _Refused beyond the limit."""
        if self.stream is not None:
            if not self._streamed(data):
                raise _Refused
            return
        if self._body_limit is not None and len(self._body) + len(data) > self._body_limit:
            raise self.refuse(413)
        if not self._body:
            self._body = data
        elif isinstance(self._body, bytearray):
            self._body += data
        else:
            self._body = bytearray(self._body) + data

    def on_message_complete(self) -> None:
        """Queue the request, or end its stream."""
        if self._skipped or self._to_the_close:
            return
        self.stage = IDLE
        self.continuing = False
        assert self._request is not None
        request, keep = self._request
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.end()
            self.ending = not keep
            return
        if self._body:
            request.body = bytes(self._body)
            self._body = b""
        self.waiting.append(self._request)
        if self._parser.should_upgrade():
            self.behind = bytearray()
        elif not keep:
            self.ending = True


def _with_body(like: Request, body: bytes) -> Request:
    """Return the same request with another body, in a quarter of the time of `dataclasses.replace`."""
    return Request(
        like.method, like.target, like.path, like.query, like.headers, body, like.version, like.connection, like.route
    )
