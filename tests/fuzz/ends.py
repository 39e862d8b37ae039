"""Guests that end, are saved and cloned while threads type into their consoles, look at screens and hold views.

A case is made from a number: a guest of `tests.fuzz.code` on a host whose pCPUs run, with a console, xenstore's ring
and a display that was connected for it. Whatever is under way is what its end meets, on another thread each time.
"""

from __future__ import annotations

import io
import random
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from hypervisor.domains.domain import Domain
from hypervisor.domains.life import Reason
from hypervisor.host import Host
from hypervisor.hypercalls.hvm_op import CONSOLE_PFN, STORE_PFN
from hypervisor.migration.clone import Template
from hypervisor.migration.reading import NotSuspended
from hypervisor.migration.save import save
from hypervisor.split.console import Console
from hypervisor.split.framebuffer import Framebuffer
from hypervisor.split.store_ring import StoreRing
from hypervisor.split.xenbus import Backend
from tests.fuzz import code
from tests.fuzz.lives import is_saved
from tests.fuzz.steps import counted

RECENT = 6
"""Guests that threads go on using when they have ended."""
STORE, PAGE_REF, DIRECTORY, VIDEO = 0x1A2, 0x1A4, 0x1A5, 0x1A6


class _Guest:
    """What people have of a domain."""

    def __init__(self, host: Host, number: int) -> None:
        self.domain: Domain = code.build(host, number)
        events = self.domain.events
        with host.lock:
            self.console = Console(self.domain, code.CONSOLE, events.alloc_unbound(0))
            connection = host.xenstore.introduce(self.domain.domid)
            self.store = StoreRing(self.domain, connection, STORE, events.alloc_unbound(0))
            self.screen = Framebuffer(self.domain)
            self.bus = Backend(self.domain, host.xenstore, self.screen, 0)
            self.bus.plug()
            self._connect(host, events.alloc_unbound(0))
        self.view = self.domain.memory.frame(number % 0x300)

    def _connect(self, host: Host, port: int) -> None:
        """Do what the front would: a screen of 16 x 16 pixels."""
        memory = self.domain.memory
        memory.write(PAGE_REF * 4096 + 16, (16).to_bytes(4, "little") * 2 + (64).to_bytes(4, "little"))
        memory.write(PAGE_REF * 4096 + 28, (4096).to_bytes(4, "little") + b"\x20")
        memory.write_u64(PAGE_REF * 4096 + 40, DIRECTORY)
        memory.write_u64(DIRECTORY * 4096, VIDEO)
        for key, value in (("page-ref", PAGE_REF), ("event-channel", port), ("state", 3)):
            host.xenstore.write(f"{self.bus.front}/{key}", str(value))


class Ends:
    """Cases on a host; `close` ends the threads and tells whether any of them failed."""

    def __init__(self, host: Host) -> None:
        self._host = host
        host.start()
        self._over = threading.Event()
        self._guests: deque[_Guest] = deque(maxlen=RECENT)
        self._failures: list[BaseException] = []
        work = (self._type, self._look, self._hold)
        self._threads = [threading.Thread(target=self._again, args=(each,), daemon=True) for each in work]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._host.stop()
        if self._failures:
            raise self._failures[0]

    # What people do, all the time

    def _again(self, act: Callable[[_Guest], None]) -> None:
        try:
            while not self._over.wait(0.0002):
                for guest in list(self._guests):
                    act(guest)
        except BaseException as error:
            self._failures.append(error)

    def _type(self, guest: _Guest) -> None:
        counted()
        guest.console.write(b"typed")

    def _look(self, guest: _Guest) -> None:
        follower = guest.screen.follow(lambda: None)
        follower.take()
        picture = guest.screen.picture()
        follower.close()
        assert len(picture.data) == 4 * picture.width * picture.height
        guest.console.read(0)

    def _hold(self, guest: _Guest) -> None:
        if guest.domain.memory.closed:
            guest.view[:8] = b"too late"

    # A case

    def case(self, number: int, seconds: float) -> str:
        """Make, run, perhaps save and end a guest; return how it ended."""
        rng = random.Random(number)
        guest = _Guest(self._host, number)
        domain, host = guest.domain, self._host
        self._guests.append(guest)
        host.scheduler.look(domain.domid)
        self._over.wait(rng.choice([0, 0, 0.0005, seconds]))
        way = rng.choice(["plain", "plain", "paused", "saved", "cloned", "meanwhile"])
        if way == "paused":
            host.pause(domain)
        elif way in ("saved", "cloned"):
            host.pause(domain)
            is_saved(host, domain, clone=way == "cloned", live=rng.random() < 0.5)
        elif way == "meanwhile":
            self._saved_meanwhile(domain)
        host.destroy(domain)
        with host.lock:
            host.xenstore.release(domain.domid)
            host.xenstore.rm(f"/local/domain/{domain.domid}")
        assert guest.console.write(b"x") == 0 and domain.domid not in host.domains
        assert "internal error" not in domain.life.crash, domain.life.crash
        if self._failures:
            raise self._failures[0]
        return way if domain.life.reason is None else f"{way}, {Reason(domain.life.reason).name.lower()}"

    def _saved_meanwhile(self, domain: Domain) -> None:
        """Begin to save a domain that is about to end, or to make a template of it."""
        self._host.pause(domain)
        with self._host.lock:
            domain.params |= {STORE_PFN: STORE, CONSOLE_PFN: code.CONSOLE}
            domain.life.shut_down(Reason.SUSPEND)
        saver = threading.Thread(target=self._save, args=(domain,))
        saver.start()
        self._threads.append(saver)
        self._threads = [thread for thread in self._threads if thread.is_alive()]

    def _save(self, domain: Domain) -> None:
        try:
            with suppress(NotSuspended):
                save(self._host, domain, io.BytesIO())
                Template(self._host, domain).close()
        except BaseException as error:
            self._failures.append(error)
