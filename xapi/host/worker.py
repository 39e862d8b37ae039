"""`xapi-host`: a process that serves one host to a toolstack, and outlives it.

It has a session, a log and a directory of its own, and no pipe to whoever started it. Who may open its socket, or has
a certificate of the same authority where it listens for TLS, may do everything. SIGTERM ends its guests, then itself.

When it serves it says ``Ready: `` and where on standard output, which it closes then. A second one for the same socket
says why not, and ends with status 1.
"""

from __future__ import annotations

import argparse
import fcntl
import gc
import logging
import logging.handlers
import os
import secrets
import signal
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import SSL4ServerEndpoint, UNIXServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.threads import deferToThreadPool
from twisted.logger import STDLibLogObserver, globalLogBeginner
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from xapi.host.machine import Site, make_host
from xapi.host.served import Served
from xapi.host.storage import LocalStorage
from xapi.host.threads import Threads
from xapi.host.wire.tls import mutual
from xapi.host.workers import lock_of

if TYPE_CHECKING:
    from hypervisor.api import Backend

THREADS = 8
SWITCH_INTERVAL = 0.0005
"""Seconds that another thread may keep the reactor's from Python."""
LOG_SIZE, LOG_FILES = 16 << 20, 5


class Unfit(Exception):
    """The worker cannot serve; the text is one line for people."""


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    options = argparse.ArgumentParser(prog="xapi-host", description="Serves one host with its guests to a toolstack.")
    add = options.add_argument
    where = options.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", type=Path, metavar="PATH", help="serve at a Unix socket, in a directory that is the "
        "user's alone (it is made where it is not there)")  # fmt: skip
    where.add_argument("--listen", metavar="ADDRESS:PORT", help="serve there by TLS")
    add("--certificate", type=Path, metavar="FILE", help="key and certificate for TLS, in PEM")
    add("--authority", type=Path, metavar="FILE", help="certificate by which those of clients are signed")
    add("--memory", type=int, required=True, metavar="BYTES", help="memory of the host")
    add("--pcpus", type=int, metavar="N", help="CPUs of the host (default: as many as the machine has)")
    add("--cpu-name", default="", metavar="NAME", help="what guests find their CPUs called")
    add("--network-boot", default="demo", metavar="KERNEL", help="what boots from a network: a kernel's path, demo, or "
        "an empty text for none")  # fmt: skip
    add("--storage", type=Path, default=Path("."), metavar="DIR", help="directory of local storage")
    add("--site", type=Path, metavar="DIR", help="directory in which it meets the other hosts of its LANs (default: "
        "it is alone)")  # fmt: skip
    add("--reserve", type=int, default=0, metavar="BYTES", help="what disks leave free, if they are on the same "
        "file system as a --reserve-for")  # fmt: skip
    add("--reserve-for", type=Path, action="append", default=[], metavar="PATH", help="see --reserve; repeatable")
    add("--patience", type=float, metavar="SECONDS", help="end when nobody has been connected for so long (default: "
        "never)")  # fmt: skip
    add("--log-file", type=Path, metavar="FILE", help="write the log there, 16 MiB and five older files of it, and "
        "not to standard error")  # fmt: skip
    add("--log-level", choices=("debug", "info", "warn", "error", "critical"), default="info", metavar="L")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; return 0 after a clean end, 1 when it could not begin."""
    given = parser().parse_args(arguments)
    if given.listen and not (given.certificate and given.authority):
        parser().error("--listen wants --certificate and --authority")
    try:
        return _serve(given)
    except (Unfit, OSError, ValueError, CannotListenError) as error:
        print(f"xapi-host: {error}", file=sys.stderr)
        return 1


def _serve(given: argparse.Namespace) -> int:
    lock = None if given.socket is None else take(given.socket)
    _log(given.log_file, given.log_level)
    if os.getpid() != os.getsid(0):
        os.setsid()
    sys.setswitchinterval(SWITCH_INTERVAL)
    from twisted.internet import reactor

    worker = Worker(given, reactor)
    problems: list[str] = []

    def refused(failure: Failure) -> None:
        problems.append(str(failure.value))
        worker.reactor.stop()

    def begin() -> None:
        Deferred.fromCoroutine(worker.begin()).addErrback(refused)

    worker.reactor.callWhenRunning(begin)
    worker.reactor.addSystemEventTrigger("before", "shutdown", lambda: Deferred.fromCoroutine(worker.end()))
    worker.reactor.run()
    if lock is not None:
        lock.close()
    for problem in problems:
        print(f"xapi-host: {problem}", file=sys.stderr)
    return 1 if problems else 0


def take(path: Path) -> TextIO:
    """Return the lock of a socket, held until it is closed, with this process's id in it; the directory is made.

    Raises Unfit.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = path.parent.stat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise Unfit(f"{path.parent}: is not this user's alone, as the socket's directory must be (mode 0700)")
    name = lock_of(path)
    lock = name.open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = name.read_text("utf-8", "replace").strip()
        raise Unfit(f"{path}: another process ({owner or 'unknown'}) serves there") from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    path.unlink(missing_ok=True)
    return lock


def _log(file: Path | None, level: str) -> None:
    """Send what is said in this process, by `logging` and by Twisted, to a file or to standard error."""
    handler: logging.Handler = logging.StreamHandler()
    if file is not None:
        handler = logging.handlers.RotatingFileHandler(file, maxBytes=LOG_SIZE, backupCount=LOG_FILES)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    globalLogBeginner.beginLoggingTo([STDLibLogObserver("xapi.host")], redirectStandardIO=False)


class Worker:
    """The host of this process, and who serves it."""

    def __init__(self, given: argparse.Namespace, reactor: Any) -> None:
        self.reactor = reactor
        self._given = given
        self._pool = ThreadPool(0, THREADS, "xapi-host")
        self._ended = False

        def in_thread(function: Any, *arguments: object) -> Deferred[Any]:
            return deferToThreadPool(reactor, self._pool, function, *arguments)

        storage = LocalStorage(given.storage, in_thread, reactor.callFromThread, lambda: int(reactor.seconds() * 1e9))
        for path in given.reserve_for:
            storage.keep_back(path, given.reserve)
        threads = Threads(in_thread, reactor.callFromThread, reactor.callLater)
        self._site = Site(given.site)
        self._backend: Backend = make_host(
            given.memory, threads, storage, given.network_boot, given.cpu_name, self._site, pcpus=given.pcpus
        )
        self._served = Served(self._backend, reactor, secrets.token_hex(8), self._stop, given.patience)
        self._port: IListeningPort | None = None

    async def begin(self) -> None:
        """Serve. Raises CannotListenError."""
        self._pool.start()
        self._port = await self._endpoint().listen(self._served)
        gc.freeze()
        where = self._given.listen or f"unix:{self._given.socket}"
        logging.getLogger(__name__).info("ready: %s, process %d", where, os.getpid())
        print(f"Ready: {where}", flush=True)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())

    def _endpoint(self) -> IStreamServerEndpoint:
        if self._given.socket is not None:
            return UNIXServerEndpoint(self.reactor, str(self._given.socket), mode=0o600, wantPID=False)
        host, _, port = self._given.listen.rpartition(":")
        options = mutual(self._given.certificate, self._given.authority)
        return SSL4ServerEndpoint(self.reactor, int(port), options, interface=host.strip("[]"))

    def _stop(self) -> None:
        self.reactor.callLater(0, self.reactor.stop)

    async def end(self) -> None:
        """End guests, then connections and threads."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self._port is not None:
            await maybeDeferred(self._port.stopListening)
        await self._backend.stop()
        self._served.close("the host goes down")
        self._site.close()
        self._pool.stop()


if __name__ == "__main__":
    sys.exit(main())
