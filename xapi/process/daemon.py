"""The toolstack over a loaded store: its parts, made and joined, with no input or output of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from xapi.access.checks import InThread
from xapi.access.sessions import Sessions
from xapi.calls import registry
from xapi.calls.claim import Refusals
from xapi.calls.dispatch import Dispatcher, Method
from xapi.calls.faults import Veil
from xapi.calls.tasks import Tasks
from xapi.calls.work import Subsystems
from xapi.datamodel import records
from xapi.events.listeners import Events
from xapi.hosts.backends import Backends
from xapi.hosts.certificate import Certificate
from xapi.hosts.plugins import Plugins
from xapi.inventory import roles
from xapi.log.calls import Calls
from xapi.networks.networks import Networks
from xapi.operations import refusal
from xapi.storage.repository import Storage
from xapi.store.memory import Store
from xapi.turns import Turns
from xapi.vms import lifecycle, memory
from xapi.vms.consoles import Consoles
from xapi.vms.domains import Kernels
from xapi.vms.metrics import Sampler
from xapi.vms.reconcile import Reconciler
from xapi.vms.schedules import Schedules
from xapi.vms.survey import Survey
from xapi.wire.fragments import Fragments, RecordOf, Records, Refs

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from hypervisor.api import Backend
    from xapi.access.passwords import Passwords
    from xapi.datamodel import Model
    from xapi.store.memory import Journal

SWEEP = 60.0
"""Seconds between two looks for sessions and tasks that are over, and for snapshots that are due."""


def make_store(
    model: Model, journal: Journal, call_soon: Callable[[Callable[[], None]], object], generation: int = 1
) -> Store:
    """Return a store with nothing but roles, which keeps the derived fields of the toolstack's objects."""
    store = Store(model, journal, call_soon, generation)
    refusal.register(store)
    memory.register(store)
    roles.load(store)
    return store


class Daemon:
    """All parts of a running toolstack, over a loaded store; it does no input or output of its own."""

    def __init__(
        self,
        model: Model,
        db: Store,
        clock: IReactorTime,
        passwords: Passwords,
        in_thread: InThread,
        *,
        pool_secret: str,
        directory_path: Path | None,
        fragment_budget: int,
        make_backend: Callable[[records.host], Backend],
        guest_directory: Path,
        storage_directory: Path,
        plugins: Plugins,
        calls: Calls,
    ) -> None:
        self.model = model
        self.db = db
        self.clock = clock
        self.subsystems = Subsystems(db, clock)
        add = self.subsystems.add
        add(model)
        turns = add(Turns(clock))
        self.fragments = add(Fragments(db, fragment_budget))
        veil = add(Veil((guest_directory, storage_directory)))
        self.sessions = add(Sessions(db, model, clock, passwords, in_thread, pool_secret))
        self.sessions.directory_path = directory_path
        self.tasks = add(Tasks(db, clock, veil))
        self.events = add(Events(db, self.sessions, clock))
        self.certificate = add(Certificate())
        add(Kernels(guest_directory))
        add(Refusals(refusal.refusal))
        self.backends = add(Backends(make_backend, lambda: self.survey))
        self.consoles = Consoles(db)
        self.reconciler = add(Reconciler(db, clock, self.backends, self.consoles))
        self.reconciler.follow = lambda vm: lifecycle.follow(self.subsystems, vm)
        self.survey = add(Survey(db, clock, turns, self.backends, self.reconciler))
        db.unsettled = self.survey.unsettled
        self.networks = add(Networks(db, self.backends))
        self.schedules = add(Schedules(self.subsystems))
        self.metrics = add(Sampler(db, clock, turns, self.backends, self.reconciler.truths))
        self.storage = add(Storage())
        self.backends.forgetting += [
            self.reconciler.truths.forget, lambda host: self.storage.forget(db.host[host].PBDs),
        ]  # fmt: skip
        self.plugins = add(plugins)
        self.calls = calls
        self.sessions.trail = self.calls.trail
        self.dispatcher = add(
            Dispatcher(model, self.subsystems, registry.functions(model), self.plugins, self.task_result, self.calls)
        )

    def task_result(self, method: Method, result: object) -> str:
        """Return the XML-RPC text of a result, as a task keeps it."""
        if result is None:
            return "<value></value>"
        if isinstance(result, RecordOf):
            return self.fragments.xml_record(result.row).decode()
        if isinstance(result, Refs):
            return result.xml().decode()
        if isinstance(result, Records):
            records = b"".join(map(self.fragments.xml, result)).decode()
            return f"<value><struct>{records}</struct></value>"
        return method.result.xml(result)

    def sweep(self) -> None:
        """Forget what is over, and begin what is due."""
        self.sessions.sweep()
        self.tasks.sweep()
        self.schedules.look()
        self.survey.sweep()
