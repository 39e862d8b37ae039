"""The pool's hosts, from the daemon's start to its end: what acts for each, and what an earlier end has left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from xapi.host.machine import Site, load, make_host, why_no_guests
from xapi.hosts import availability
from xapi.inventory import processors, product
from xapi.process.stages import Stage
from xapi.vms import lifecycle

if TYPE_CHECKING:
    from hypervisor.api import Backend
    from xapi.host.storage import LocalStorage
    from xapi.host.threads import Threads
    from xapi.process.config import Config
    from xapi.process.daemon import Daemon
    from xapi.store.memory import Store

log = Logger()


class Hosts(Stage):
    """The hosts of a daemon: what they are when it starts, and what it leaves: no guests in this process."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    async def start(self) -> None:
        """Say of the hosts what is so now, take up the guests that live, and clean up behind operations that do not."""
        _look_at_the_machine(self._daemon.db)
        await self._daemon.reconciler.adopt()
        availability.started(self._daemon.db)
        await lifecycle.undo_unfinished(self._daemon.subsystems)

    async def stop(self) -> None:
        """End the work that is under way, then leave the hosts."""
        self._daemon.tasks.end_all()
        for backend in self._daemon.backends.made():
            await backend.leave()


def _look_at_the_machine(db: Store) -> None:
    """Have the hosts say whether guests can run, which differs when the state comes from another machine."""
    why = why_no_guests()
    if why:
        log.warn("guests cannot run here: {why}; all else is served", why=why)
    else:
        load()
    product.offer_guests(db, not why)
    processors.tell(db)


def make_backend(
    store: Store, host: Any, threads: Threads, storage: LocalStorage, site: Site, config: Config
) -> Backend:
    """Return an emulated host of a site with the memory that its record says."""
    metrics = store.host_metrics.get(host.metrics)
    memory = metrics.memory_total if metrics is not None else 0
    return make_host(memory, threads, storage, config.network_boot, host.cpu_info.get("modelname", ""), site)
