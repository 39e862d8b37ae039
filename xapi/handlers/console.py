"""Consoles over HTTP: ``CONNECT /console?uuid=…&session_id=…``, then the bytes of a terminal both ways.

The query names a console by `uuid` or `ref`; a VM's reference means its text console. Screens (protocol rfb) have no
server yet, and there is no WebSocket form.

The connection ends with the VM's domain: when the VM is shut down, suspended, migrated or rebooted, by whomever. So it
does on XenServer, where the server of a console is a process of the domain's; clients connect anew, to the console
that the rebooted VM has then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IProtocol, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from hypervisor.api import ByteStream, HostError
from xapi.datamodel.errors import Fault
from xapi.hosts.backends import Backends
from xapi.http.registry import handler
from xapi.http.server.exchange import Refusal, Takeover
from xapi.http.server.sending import send
from xapi.http.visit import Visit

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable

    from xapi.datamodel import records
    from xapi.store.memory import Store

PATIENCE = 60.0
"""Seconds that a guest may take to read anything of what is typed, and a client to read the last of the output."""
log = Logger()


@handler("connect_console")
async def connect_console(visit: Visit, ref: str, uuid: str) -> Takeover:
    """Connect to a console, or say why not."""
    console = _console(visit.db, ref, uuid)
    if console is None:
        raise Refusal(404, "there is no such console")
    if console.protocol != "vt100":
        raise Refusal(501, f"consoles of protocol {console.protocol} are not served yet")
    vm = visit.db.VM[console.VM]
    host = visit.db.host.get(vm.resident_on)
    if host is None or vm.is_control_domain:
        raise Refusal(404, "the VM has no terminal: it does not run, or is the control domain")
    try:
        stream = await visit[Backends].of(host).console(vm.uuid)
    except (HostError, Fault) as error:
        raise Refusal(404, str(error)) from error
    return Takeover(lambda: Terminal(stream, visit.clock))


def _console(db: Store, ref: str, uuid: str) -> records.console | None:
    if uuid:
        return _first(row for row in db.console if row.uuid == uuid)
    if ref in db.VM:
        return _first(db.console[one] for one in db.VM[ref].consoles if db.console[one].protocol == "vt100")
    return db.console.get(ref)


def _first(rows: Iterable[records.console]) -> records.console | None:
    return next(iter(rows), None)


@implementer(IProtocol, IPushProducer)
class Terminal(Protocol):
    """One client at a guest's terminal, until either goes.

    A client that reads too slowly misses output. One that types faster than the guest reads is read no further until
    the guest has room, and is cut when it has had none for `PATIENCE`.
    """

    def __init__(self, stream: ByteStream, clock: IReactorTime) -> None:
        self._stream = stream
        self._clock = clock
        self._wire: Any = None
        self._working: list[Deferred[None]] = []
        self._drained: Deferred[None] | None = None
        """While the client has not read what it was sent: fires when it has."""
        self._typed = b""
        """What the guest has no room for yet."""
        self._timer: IDelayedCall | None = None
        self._closing = False

    def connectionMade(self) -> None:
        """Show what was written lately, then follow."""
        self._wire = self.transport
        self._wire.registerProducer(self, True)
        self._work(self._show())

    def _work(self, work: Coroutine[Any, Any, None]) -> None:
        working = Deferred.fromCoroutine(work)
        self._working.append(working)
        working.addErrback(self._failed)
        working.addBoth(lambda _: self._working.remove(working))

    def _failed(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        if not failure.check(HostError):  # its host is lost
            log.failure("a console failed", failure=failure)
        if not self._closing:
            self._close()

    async def _show(self) -> None:
        async for data in self._stream.follow():
            send(self._wire, data)
            if self._drained is not None:
                await self._drained
        self._close()

    def _close(self) -> None:
        """Let the client have what it was sent, if it reads that soon, and no more."""
        self._closing = True
        self._wire.unregisterProducer()
        self._wire.resumeProducing()  # TLS closes only when it reads the peer's part of the closing
        self._wire.loseConnection()
        self._within(PATIENCE)

    def _within(self, seconds: float) -> None:
        """Cut the connection if it takes longer than this."""
        self._in_time()
        self._timer = self._clock.callLater(seconds, self._wire.abortConnection)

    def _in_time(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def dataReceived(self, data: bytes) -> None:
        """Type."""
        if self._closing:
            return
        was_typing = bool(self._typed)  # then it came before the transport was paused
        self._typed += data
        if not was_typing:
            self._work(self._type())
            if self._typed:
                self._wire.pauseProducing()
                self._within(PATIENCE)

    async def _type(self) -> None:
        """Type as the guest has room for it, then read on."""
        while taken := await self._stream.write(self._typed):
            self._typed = self._typed[taken:]
            if not self._typed:
                break
            self._within(PATIENCE)
        if self._timer is not None and not self._typed:
            self._in_time()
            self._wire.resumeProducing()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Stop."""
        self._in_time()
        for working in list(self._working):
            working.cancel()

    def pauseProducing(self) -> None:
        """Show no more: the client has not read what it was sent."""
        if self._drained is None:
            self._drained = Deferred()

    def resumeProducing(self) -> None:
        """Show the rest of the output."""
        drained, self._drained = self._drained, None
        if drained is not None and not drained.called:
            drained.callback(None)

    def stopProducing(self) -> None:
        """The connection is being lost, which `connectionLost` tells."""
