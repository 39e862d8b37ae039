"""The process's reactor, running: the one that runs already, or else one on a thread that never ends.

A reactor cannot be started twice, so it is begun once, by the first who needs it, and serves all after that.
"""

from __future__ import annotations

import atexit
import os
import threading
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

from twisted.internet import process
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.internet.threads import blockingCallFromThread
from twisted.logger import STDLibLogObserver, globalLogBeginner
from twisted.python.threadable import isInIOThread

from xapi.process.reactor import install

T = TypeVar("T")

REAP = 0.1
"""Seconds between two looks for programs that have ended: signals reach no thread but the main one."""
END = 10.0
"""Seconds that the reactor may take to end when the process does."""

_lock = threading.Lock()
_begun_in = 0


def running_reactor() -> Any:
    """Return the reactor. Raises RuntimeError where nothing can wait for it."""
    global _begun_in
    install()
    from twisted.internet import reactor

    the_reactor: Any = reactor
    with _lock:
        if not the_reactor.running:
            _begin(the_reactor)
            _begun_in = os.getpid()
        elif _begun_in not in (0, os.getpid()):
            raise RuntimeError("the reactor's thread stayed in the process that this one was forked from")
    if isInIOThread():
        raise RuntimeError("running() waits for the reactor, so it cannot be used on the reactor's own thread")
    return the_reactor


def wait_for(reactor: Any, work: Callable[[], Deferred[T]]) -> T:
    """Do work on the reactor's thread; return its result or raise its error."""
    result: T = blockingCallFromThread(reactor, cast("Any", work))
    return result


def _begin(reactor: Any) -> None:
    # Twisted would keep what is said until somebody wants it; pytest shows it with the test that it belongs to.
    globalLogBeginner.beginLoggingTo([STDLibLogObserver("xapi")], redirectStandardIO=False)
    begun = threading.Event()

    def first() -> None:
        LoopingCall(process.reapAllProcesses).start(REAP)
        begun.set()

    reactor.callWhenRunning(first)
    thread = threading.Thread(
        target=reactor.run, kwargs={"installSignalHandlers": False}, name="kronos reactor", daemon=True
    )
    thread.start()
    begun.wait()
    atexit.register(_end, reactor, thread)


def _end(reactor: Any, thread: threading.Thread) -> None:
    """End the reactor before Python takes apart what it uses."""
    if thread.is_alive():
        reactor.callFromThread(reactor.stop)
        thread.join(END)
    # Twisted keeps a descriptor for when there is none left, to the very end.
    warnings.filterwarnings("ignore", "unclosed file .*/dev/null", ResourceWarning)
