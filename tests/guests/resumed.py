"""Suspended guests that go on in another domain: what a toolstack joins to it, and the demo guest's shell there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from hypervisor.domains.domain import Domain
from hypervisor.host import Host
from hypervisor.hypercalls.hvm_op import CONSOLE_PFN, STORE_PFN
from hypervisor.memory.guest_memory import PAGE
from hypervisor.migration import resume
from hypervisor.split.console import Console
from hypervisor.split.store_ring import StoreRing
from hypervisor.xenstore.permissions import NONE, READ, Permissions
from tests.guests.demo_guest import FEATURES, DemoGuest

_GUEST_WRITES = ("data", "attr", "device", "drivers", "error", "feature", "memory/meminfo", "control/shutdown",
                 "control/sysrq", *(f"control/feature-{name}" for name in FEATURES))  # fmt: skip


@dataclass
class Joined:
    """A domain with a console and xenstore."""

    domain: Domain
    console: Console
    store: StoreRing

    @property
    def path(self) -> str:
        return f"/local/domain/{self.domain.domid}"


def join(host: Host, domain: Domain) -> Joined:
    """Give a domain that is built or renewed its home in xenstore, and new ends of its rings."""
    with host.lock:
        if not host.xenstore.is_introduced(domain.domid):
            _make_home(host, domain)
        store_port, console_port = domain.events.alloc_unbound(0), domain.events.alloc_unbound(0)
        resume.connect(domain, store_port, console_port)
        console = Console(domain, domain.params[CONSOLE_PFN], console_port)
        connection = host.xenstore.introduce(domain.domid)
        return Joined(domain, console, StoreRing(domain, connection, domain.params[STORE_PFN], store_port))


def held(domain: Domain) -> int:
    """Return KiB of its RAM that a domain holds: behind a PV domain's are frames of Xen's."""
    return (domain.memory.present * PAGE - domain.memory.size + domain.ranges[-1][1]) // 1024


def _make_home(host: Host, domain: Domain) -> None:
    store, domid = host.xenstore, domain.domid
    own, readable = Permissions(domid, NONE), Permissions(0, NONE, ((domid, READ),))
    target = str(held(domain))
    for key, value in {"": "", "name": "resumed", "domid": str(domid), "memory/target": target, "control": ""}.items():
        path = f"/local/domain/{domid}/{key}".rstrip("/")
        store.write(path, value.encode())
        store.set_perms(path, readable)
    for key in _GUEST_WRITES:
        store.write(f"/local/domain/{domid}/{key}", b"")
        store.set_perms(f"/local/domain/{domid}/{key}", own)


def leave(host: Host, domain: Domain) -> None:
    """Destroy a domain with what `join` gave it."""
    host.pause(domain)
    with host.lock:
        if host.xenstore.is_introduced(domain.domid):
            host.xenstore.release(domain.domid)
        host.xenstore.rm(f"/local/domain/{domain.domid}")
    host.destroy(domain)


class ResumedDemo(DemoGuest):
    """The demo guest in a domain that was restored, cloned or renewed; `go_on` lets it run."""

    def __init__(self, host: Host, domain: Domain) -> None:
        self.host = host
        self.devices = {}
        self._news = threading.Condition()
        self._heard = bytearray()
        self.guest = join(host, domain)  # type: ignore[assignment]
        self.guest.console.listen(self._hear)
        host.listen(self._changed)

    def go_on(self) -> ResumedDemo:
        """Let it run until it has a prompt again."""
        self.host.unpause(self.domain)
        self.prompt()
        return self


def tidy(host: Host) -> Callable[[], tuple[int, int, list[str]]]:
    """Return what tells how much there is on a host: domains, bytes set aside, homes in xenstore."""

    def look() -> tuple[int, int, list[str]]:
        with host.lock:
            return len(host.domains), host.free_memory(), sorted(host.xenstore.ls("/local/domain"))

    return look
