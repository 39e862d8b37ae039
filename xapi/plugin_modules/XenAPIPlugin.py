"""Run a plugin written for XCP: call `dispatch` with its functions, as `if __name__ == "__main__"`.

Every function gets a session of the XenAPI package, logged in as the caller is, and a dict of strings; it returns a
string, or raises `Failure`. The session goes through the daemon's own socket, whose path is in XAPI_SOCKET; so does
`XenAPI.xapi_local()` in a plugin.
"""

from __future__ import annotations

import http.client
import os
import socket
import sys
import xmlrpc.client
from collections.abc import Callable, Mapping
from typing import Any

import XenAPI


class Failure(Exception):
    """An error of the API: a code and a list of parameters."""

    def __init__(self, code: str, params: list[str]) -> None:
        super().__init__(code, params)
        self.params = [code, *params]

    def __str__(self) -> str:
        return str(self.params)


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(os.environ["XAPI_SOCKET"])


class _Transport(xmlrpc.client.Transport):
    def make_connection(self, host: object) -> _Connection:
        return _Connection("localhost")

    def add_extra_header(self, key: str, value: str) -> None:
        """Be called as the transports of the XenAPI package are."""


def _xapi_local() -> Any:
    return XenAPI.Session("http://local/", transport=_Transport())


if "XAPI_SOCKET" in os.environ:
    XenAPI.xapi_local = _xapi_local


def success_message(result: object) -> str:
    """Return the answer that has a result."""
    return xmlrpc.client.dumps(({"Status": "Success", "Value": result},), "", True)


def failure_message(description: list[str]) -> str:
    """Return the answer that has an error: its code and parameters."""
    return xmlrpc.client.dumps(({"Status": "Failure", "ErrorDescription": description},), "", True)


def dispatch(fn_table: Mapping[str, Callable[[Any, dict[str, str]], str]]) -> None:
    """Answer the call of the command line with the function of its name."""
    if len(sys.argv) != 2:
        raise SystemExit("a plugin takes one argument: an XML-RPC call")
    parameters, name = xmlrpc.client.loads(sys.argv[1])
    session_ref: Any = parameters[0]
    arguments: Any = parameters[1]
    sys.stdout.write(_answer(fn_table, str(name), session_ref, arguments))


def _answer(
    fn_table: Mapping[str, Callable[[Any, dict[str, str]], str]], name: str, session_ref: str, args: Any
) -> str:
    if name not in fn_table:
        return failure_message(["UNKNOWN_XENAPI_PLUGIN_FUNCTION", name])
    session = XenAPI.xapi_local()
    session._session = session_ref
    try:
        return success_message(fn_table[name](session, args))
    except Failure as failure:
        return failure_message(failure.params)
    except Exception as error:
        return failure_message(["XENAPI_PLUGIN_FAILURE", name, type(error).__name__, str(error)])
