"""A host in another process or on another machine: `Backend`, whose methods are calls on a connection.

What is under way when the connection is lost fails (LOST), and nothing is asked twice: who asked looks when the host
is up again. The connection is looked for as long as the host is wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import Deferred

from hypervisor.api import ANSWER, WORK, Backend, Code, HostError, Listener, StorageFailure
from xapi.host.wire.connection import Connection, Terms
from xapi.host.wire.errors import Errors
from xapi.host.wire.interface import interface_of
from xapi.host.wire.link import Link
from xapi.host.wire.proxy import class_of, served

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint

    from xapi.host.wire.interface import Method

TERMS = Terms(
    "xapi-host",
    1,
    Errors(
        (HostError, StorageFailure),
        lost=lambda lost: HostError(Code.LOST, str(lost)),
        late=lambda text: HostError(Code.LATE, text),
    ),
)
"""What a toolstack and a host's worker must agree on; the version is that of `hypervisor.api`."""
INSTANCE = "instance"
"""The fact by which a host is known that was restarted."""

GUESTS = frozenset({"shutdown", "suspend", "unplug", "adjust"})
"""What waits for a guest, who is waited for by the host."""
MOVES = frozenset({"copy", "copy_into", "checksum"})
"""What moves data, as long as it takes."""
WORKS = frozenset({"build", "restore", "resume", "destroy", "plug", "stop", "networks"})


def limit(method: Method) -> float | None:
    """Return in how many seconds a host must have answered."""
    if method.owner == "Storage":
        return None if method.name in MOVES else WORK
    if method.name in GUESTS:
        return None
    return WORK if method.name in WORKS else ANSWER


_Calls: Any = class_of(interface_of(Backend))


class RemoteBackend(_Calls):  # type: ignore[misc]
    """One host at an endpoint. All that is not here is called over there."""

    def __init__(self, endpoint: IStreamClientEndpoint, clock: IReactorTime) -> None:
        self._link = Link(
            endpoint,
            lambda: Connection(TERMS, clock),
            clock,
            TERMS.errors,
            greet=self._greet,
            up=self._up,
            lost=self._lost,
            limit=limit,
        )
        super().__init__(self._link, "")
        self._listener: Listener | None = None
        self._instance = ""
        self._told: Deferred[None] = Deferred()

    async def start(self, listener: Listener) -> None:
        """Look for the host; return when it was reached, or was looked for once in vain."""
        self._listener = listener
        if self._told.called:
            listener.up(restarted=False) if self._link.connected else listener.lost()
            return
        told: Deferred[None] = Deferred()
        self._told.chainDeferred(told)
        self._link.begin()
        await told

    async def leave(self) -> None:
        """Let the host go on by itself."""
        self._forget(HostError(Code.LOST, "it was left to itself"))

    async def stop(self) -> None:
        """End the host, its process too."""
        try:
            await super().stop()
        finally:
            self._forget(HostError(Code.STOPPED, "it was stopped"))

    def _forget(self, why: HostError) -> None:
        self._listener, self._told = None, Deferred()
        self._link.end(why)

    async def _greet(self, connection: Connection) -> None:
        backend = cast("Backend", served(Backend, connection.asking))
        await backend.start(cast("Listener", _Ear(self)))

    def _up(self, connection: Connection) -> None:
        assert connection.peer is not None
        instance = connection.peer.facts.get(INSTANCE, "")
        restarted, self._instance = self._instance not in ("", instance), instance
        if self._listener is not None:
            self._listener.up(restarted=restarted)
        self._tell()

    def _lost(self) -> None:
        if self._listener is not None:
            self._listener.lost()
        self._tell()

    def _tell(self) -> None:
        if not self._told.called:
            self._told.callback(None)

    def _attention(self, uuid: str) -> None:
        if self._listener is not None and self._link.connected:  # else `up` follows, which means all of it
            self._listener.attention(uuid)


class _Ear:
    """The listener that the host has: whether it is reached is known here."""

    def __init__(self, backend: RemoteBackend) -> None:
        self._backend = backend

    def attention(self, uuid: str) -> None:
        """Hear of a domain."""
        self._backend._attention(uuid)

    def up(self, *, restarted: bool) -> None:
        """Hear that the host was started, of which `Link` tells."""

    def lost(self) -> None:
        """Hear of a host beyond that host, of which there is none."""
