"""The pool's hosts, from the daemon's start to its end: what acts for each, and what an earlier end has left."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from twisted.internet.defer import TimeoutError as LateError
from twisted.logger import Logger

from hypervisor.api import HostError
from xapi.datamodel import records
from xapi.host.machine import Site, load, make_host, why_no_guests
from xapi.host.remote import RemoteBackend
from xapi.host.workers import WorkerEndpoint, server_of, socket_of
from xapi.hosts import availability
from xapi.inventory import processors, product
from xapi.process.config import ConfigError
from xapi.process.stages import Stage
from xapi.process.state import SOCKET_PATH
from xapi.vms import lifecycle

if TYPE_CHECKING:
    from hypervisor.api import Backend
    from xapi.host.storage import LocalStorage
    from xapi.host.threads import Threads
    from xapi.process.config import Config
    from xapi.process.daemon import Daemon
    from xapi.store.memory import Store

log = Logger()

UNDONE = 20.0
"""Seconds that work has to undo what it had begun when the daemon stops."""
ALONE = 10.0
"""Seconds that the workers of an ephemeral daemon wait for one."""


class Hosts(Stage):
    """The hosts of a daemon: what they are when it starts, and what it leaves: no guests in this process.

    Those in workers go on, unless they are to stop with it.
    """

    def __init__(self, daemon: Daemon, config: Config) -> None:
        self._daemon = daemon
        self._stops = config.stop_workers or config.ephemeral

    async def start(self) -> None:
        """Say of the hosts what is so now, take up the guests that live, and clean up behind operations that do not."""
        _look_at_the_machine(self._daemon.db)
        await self._daemon.survey.adopt()
        availability.started(self._daemon.db)
        await lifecycle.undo_unfinished(self._daemon.subsystems)

    async def stop(self) -> None:
        """End the work that is under way, then leave or stop the hosts.

        Work that is not undone by then goes on without the daemon where hosts do, and leaves rows without images.
        """
        ended = self._daemon.tasks.end_all()
        try:
            await ended.addTimeout(UNDONE, self._daemon.clock)
        except LateError:
            log.warn("work goes on that was cancelled {seconds} s ago: what it has begun may stay", seconds=UNDONE)
        for backend in self._daemon.backends.made():
            try:
                await (backend.stop() if self._stops else backend.leave())
            except HostError as error:
                log.warn("a host cannot be stopped: {error}", error=error)


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
    store: Store, host: records.host, threads: Threads, storage: LocalStorage, site: Site, config: Config
) -> Backend:
    """Return an emulated host of a site with the memory that its record says."""
    return make_host(_memory(store, host), threads, storage, config.network_boot, _cpu_name(host), site)


def make_worker(store: Store, host: records.host, reactor: Any, kept_free: Sequence[Path], config: Config) -> Backend:
    """Return such a host in a worker, which is started where there is none.

    Disks leave `config.reserve` bytes of the file systems of `kept_free`.
    """
    options = ["--memory", str(_memory(store, host)), "--cpu-name", _cpu_name(host)]
    options += ["--network-boot", config.network_boot, "--storage", str(config.storage)]
    options += ["--site", str(config.workers_directory / "site"), "--log-level", config.log_level]
    options += ["--reserve", str(config.reserve)]
    if config.ephemeral:
        options += ["--patience", str(ALONE)]  # it may be killed, and nobody comes after it
    for path in kept_free:
        options += ["--reserve-for", str(path)]
    return cast("Backend", RemoteBackend(WorkerEndpoint(reactor, _place(config, host.uuid), options), reactor))


def check_workers(config: Config) -> None:
    """Raises ConfigError where the state directory's path is too long for workers' sockets, or workers are not wanted
    that serve there: each of their guests would run a second time.
    """
    socket = socket_of(_place(config, str(UUID(int=0))))
    if config.workers and len(os.fsencode(socket)) > SOCKET_PATH:
        raise ConfigError(
            f"{config.state}: is too long a path: those of workers' sockets in it would have more than {SOCKET_PATH} "
            "bytes; name a shorter one with --state"
        )
    for directory in () if config.workers else sorted(config.workers_directory.glob("*")):
        if process := server_of(directory):
            raise ConfigError(
                f"{directory}: process {process} serves a host of this pool; start with --workers, or end that "
                "process and its guests first"
            )


def _place(config: Config, uuid: str) -> Path:
    return config.workers_directory / uuid


def _memory(store: Store, host: records.host) -> int:
    metrics = store.host_metrics.get(host.metrics)
    return metrics.memory_total if metrics is not None else 0


def _cpu_name(host: records.host) -> str:
    name: str = host.cpu_info.get("modelname", "")
    return name
