"""What each message type asks for (docs/misc/xenstore.txt), parsed and done.

A function takes the connection, what the request's transaction id names, and the payload, and returns the payload of
the reply, or the new watch whose first event is to follow an OK.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hypervisor.xenstore import permissions
from hypervisor.xenstore.errors import Invalid, NotAllowed, Unsupported
from hypervisor.xenstore.operations import View
from hypervisor.xenstore.paths import FIRST_RESERVED_DOMID, home, number, resolve
from hypervisor.xenstore.transactions import Transaction
from hypervisor.xenstore.watches import Watch
from hypervisor.xenstore.wire import OK, PAYLOAD_MAX, Type, single, strings

if TYPE_CHECKING:
    from hypervisor.xenstore.connection import Connection

_Scope = View | Transaction
_DOMID_SELF = 0x7FF0


def serve(connection: Connection, kind: int, transaction: int, payload: bytes) -> bytes | Watch:
    """Do one request and return the reply's payload; raise `XenstoreError`."""
    if kind in _privileged and not connection.caller.privileged:
        raise NotAllowed("for the control domain only")
    function = _functions.get(kind)
    if function is None:
        raise Unsupported("no such message type")
    if kind == Type.TRANSACTION_START or kind == Type.TRANSACTION_END:
        return function(connection, connection.scope(transaction), payload, transaction)
    return function(connection, connection.scope(0 if kind in _apart else transaction), payload, 0)


def _read(connection: Connection, scope: _Scope, payload: bytes, _: int) -> bytes:
    return scope.read(resolve(single(payload), connection.home))


def _write(connection: Connection, scope: _Scope, payload: bytes, _: int) -> bytes:
    path, nul, value = payload.partition(b"\0")
    if not nul:
        raise Invalid("no path")
    scope.write(resolve(path, connection.home), value)
    return OK


def _mkdir(connection: Connection, scope: _Scope, payload: bytes, _: int) -> bytes:
    scope.mkdir(resolve(single(payload), connection.home))
    return OK


def _rm(connection: Connection, scope: _Scope, payload: bytes, _: int) -> bytes:
    scope.rm(resolve(single(payload), connection.home))
    return OK


def _directory(connection: Connection, scope: _Scope, payload: bytes, _: int) -> bytes:
    names = scope.ls(resolve(single(payload), connection.home))
    return _joined(names)


def _directory_part(connection: Connection, scope: _Scope, payload: bytes, _: int) -> bytes:
    path, text = strings(payload, 2, 2)
    generation, names = scope.listing(resolve(path, connection.home))
    offset = number(text, 0xFFFFFFFF)
    listed = _joined(names)
    head = b"%d\0" % generation
    # Whole names only, and an empty one after the last.
    rest = listed[offset : offset + PAYLOAD_MAX - len(head) - 1]
    if offset + len(rest) >= len(listed):
        return head + rest + b"\0"
    return head + rest[: rest.rfind(b"\0") + 1]


def _joined(names: tuple[str, ...]) -> bytes:
    return ("\0".join(names) + "\0").encode() if names else b""


def _get_perms(connection: Connection, scope: _Scope, payload: bytes, _: int) -> bytes:
    return scope.get_perms(resolve(single(payload), connection.home, special=True)).encode()


def _set_perms(connection: Connection, scope: _Scope, payload: bytes, _: int) -> bytes:
    path, *items = strings(payload, 2, PAYLOAD_MAX)
    scope.set_perms(resolve(path, connection.home, special=True), permissions.decode(items))
    return OK


def _watch(connection: Connection, scope: _Scope, payload: bytes, _: int) -> Watch:
    path, token, *depth = strings(payload, 2, 3)
    return connection.watch(path, token, number(depth[0], 0x7FFFFFFF) if depth else None)


def _unwatch(connection: Connection, scope: _Scope, payload: bytes, _: int) -> bytes:
    path, token = strings(payload, 2, 2)
    connection.unwatch(path, token)
    return OK


def _reset_watches(connection: Connection, scope: _Scope, payload: bytes, _: int) -> bytes:
    connection.drop_watches()
    connection.drop_transactions()
    return OK


def _transaction_start(connection: Connection, scope: _Scope, payload: bytes, transaction: int) -> bytes:
    return b"%d\0" % connection.start_transaction(transaction)


def _transaction_end(connection: Connection, scope: _Scope, payload: bytes, transaction: int) -> bytes:
    answer = single(payload)
    if answer not in (b"T", b"F"):
        raise Invalid("neither T nor F")
    connection.end_transaction(transaction, commit=answer == b"T")
    return OK


def _get_domain_path(connection: Connection, scope: _Scope, payload: bytes, _: int) -> bytes:
    return home(number(single(payload), 0xFFFF)).encode() + b"\0"


def _is_domain_introduced(connection: Connection, scope: _Scope, payload: bytes, _: int) -> bytes:
    domid = number(single(payload), 0xFFFF)
    return b"T\0" if domid in (0, _DOMID_SELF) or connection.store.is_introduced(domid) else b"F\0"


def _introduce(connection: Connection, scope: _Scope, payload: bytes, _: int) -> bytes:
    domid, frame, port = strings(payload, 3, PAYLOAD_MAX)[:3]
    negative = frame.startswith(b"-")  # the frame is in signed decimal
    place = number(frame[negative:], 0x7FFFFFFF)
    channel = number(port, 0x7FFFFFFF)
    if not channel:
        raise Invalid("no event channel")
    connection.store.introduce_ring(_domid(domid), -place if negative else place, channel)
    return OK


def _release(connection: Connection, scope: _Scope, payload: bytes, _: int) -> bytes:
    connection.store.release(_domid(single(payload)))
    return OK


def _resume(connection: Connection, scope: _Scope, payload: bytes, _: int) -> bytes:
    connection.store.resume(_domid(single(payload)))
    return OK


def _set_target(connection: Connection, scope: _Scope, payload: bytes, _: int) -> bytes:
    domid, target = strings(payload, 2, 2)
    connection.store.set_target(_domid(domid), _domid(target))
    return OK


def _domid(text: bytes) -> int:
    domid = number(text, FIRST_RESERVED_DOMID - 1)
    if domid == 0:
        raise Invalid("not for the control domain")
    return domid


_functions: dict[int, Callable[[Connection, _Scope, bytes, int], bytes | Watch]] = {
    Type.DIRECTORY: _directory,
    Type.READ: _read,
    Type.GET_PERMS: _get_perms,
    Type.WATCH: _watch,
    Type.UNWATCH: _unwatch,
    Type.TRANSACTION_START: _transaction_start,
    Type.TRANSACTION_END: _transaction_end,
    Type.INTRODUCE: _introduce,
    Type.RELEASE: _release,
    Type.GET_DOMAIN_PATH: _get_domain_path,
    Type.WRITE: _write,
    Type.MKDIR: _mkdir,
    Type.RM: _rm,
    Type.SET_PERMS: _set_perms,
    Type.IS_DOMAIN_INTRODUCED: _is_domain_introduced,
    Type.RESUME: _resume,
    Type.SET_TARGET: _set_target,
    Type.RESET_WATCHES: _reset_watches,
    Type.DIRECTORY_PART: _directory_part,
}
_privileged = frozenset(
    {Type.CONTROL, Type.INTRODUCE, Type.RELEASE, Type.IS_DOMAIN_INTRODUCED, Type.RESUME, Type.SET_TARGET}
)
_apart = frozenset({Type.WATCH, Type.UNWATCH})  # their transaction id is ignored
