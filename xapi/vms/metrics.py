"""Looking at what lives, every few seconds: what the metrics rows say, and what the data sources are.

Rows change only where what they say has changed; shares of a core are told in hundredths and rates in whole KiB a
second, so that an idle guest is silent. Costs for each domain some 0.2 ms not on the reactor's thread, all of a host's
in one go there and back, and some 30 us on it, in turns. Data sources are made when somebody asks for them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from hypervisor.api import Disk, HostError, Power
from xapi.datamodel.errors import Fault
from xapi.datamodel.lexical import moment
from xapi.vms.data_sources import Look, Source, of_domain, of_host, rate, shares

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from hypervisor.api import Device, Truth
    from xapi.datamodel import records
    from xapi.hosts.backends import Backends
    from xapi.store.memory import Store
    from xapi.turns import Turns
    from xapi.vms.truths import Truths

    Measured = records.VM_metrics | records.VBD_metrics | records.VIF_metrics | records.host_metrics

log = Logger()

EVERY = 5.0
"""Seconds between two looks."""


class Sampler:
    """Looks at the domains of all hosts, and keeps what the last two looks have shown."""

    def __init__(self, db: Store, clock: IReactorTime, turns: Turns, backends: Backends, truths: Truths) -> None:
        self._db = db
        self._clock = clock
        self._turns = turns
        self._backends = backends
        self._truths = truths
        self._looks: dict[str, tuple[Look | None, Look]] = {}
        """The last two at each VM, by its uuid."""
        self._hosts: dict[str, dict[str, Source]] = {}
        """What was measured of each host, by its uuid and then by name."""
        self._chosen: dict[str, dict[str, bool]] = {}
        """What somebody has asked to be recorded, or not to be."""

    # Looking

    def tick(self) -> Deferred[None]:
        """Look at everything; the Deferred fires afterwards and never fails."""
        return Deferred.fromCoroutine(self.look()).addErrback(_report)

    async def look(self) -> None:
        """Look at everything once."""
        live: set[str] = set()
        for host in list(self._db.host):
            truths = await self._asked(host)
            looked = await self._turns.take(self._looks_at(host, truths, self._clock.seconds()))
            live.update(uuid for uuid, _ in looked)
            if host._ref in self._db.host:
                self._write_host(host, [self._looks[uuid] for uuid, on_it in looked if on_it])
        self._forget(live)

    def _looks_at(self, host: records.host, truths: Mapping[str, Truth], now: float) -> Iterator[tuple[str, bool]]:
        """Note what is true of a host's VMs; yield the uuid of each that lives, and whether it is on the host yet."""
        for ref in list(host.resident_VMs):
            vm = self._db.VM.get(ref)
            if vm is None or not _has_domain(vm) or (truth := truths.get(vm.uuid)) is None:
                continue
            if (look := self._look(host, vm, truth, now)) is None:
                continue
            if vm.resident_on == host._ref:
                self._note(vm, look)
            yield vm.uuid, vm.resident_on == host._ref

    async def _asked(self, host: records.host) -> Mapping[str, Truth]:
        """Return what a host says of its domains; nothing if nobody acts for it, or it does not answer."""
        try:
            return await self._backends.of(host).truths()
        except (Fault, HostError):
            return {}

    def _look(self, host: records.host, vm: records.VM, truth: Truth, now: float) -> Look | None:
        """Return what was true of a VM's domain, if it is what the rows are about."""
        state = truth.state
        if state is None or state.power is Power.SHUTDOWN or vm._ref not in self._db.VM:
            return None
        if state.domid != vm.domid or not self._truths.may_write(vm, host, truth):
            return None  # of another domain than the rows are, or of an earlier time
        return Look(now, state)

    def _forget(self, live: set[str]) -> None:
        """Drop what is not live any more; a VM that is not uses no processor."""
        for uuid in self._hosts.keys() - {host.uuid for host in self._db.host}:
            del self._hosts[uuid]
        gone = self._looks.keys() - live
        with self._db.atomic():
            for uuid in gone:
                del self._looks[uuid]
                metrics = self._metrics_of(uuid)
                if metrics is not None:
                    metrics.VCPUs_utilisation, metrics.state = {}, ()

    def _metrics_of(self, uuid: str) -> records.VM_metrics | None:
        try:
            return self._db.VM_metrics.get(self._db.VM.by_uuid(uuid).metrics)
        except Fault:
            return None

    # Writing

    def _note(self, vm: records.VM, look: Look) -> None:
        """Keep a look at a VM, and write what is new."""
        before = self._looks.get(vm.uuid, (None, None))[1]
        self._looks[vm.uuid] = before, look
        with self._db.atomic():
            self._write_vm(vm, before, look)
            self._write_devices(vm, before, look)

    def _write_vm(self, vm: records.VM, before: Look | None, look: Look) -> None:
        metrics = self._db.VM_metrics.get(vm.metrics)
        if metrics is None:
            return
        _update(
            metrics,
            moment(self._clock.seconds()),
            memory_actual=look.state.memory_actual,
            VCPUs_utilisation={number: round(share, 2) for number, share in enumerate(shares(before, look))},
            state=(_condition(before, look),),
        )

    def _write_devices(self, vm: records.VM, before: Look | None, look: Look) -> None:
        """Write the rates of drives and cards where they have rows for them."""
        rows: dict[tuple[str, str], records.VBD_metrics | records.VIF_metrics] = {}
        for ref in vm.VBDs:
            vbd = self._db.VBD[ref]
            if (drive := self._db.VBD_metrics.get(vbd.metrics)) is not None:
                rows["VBD", vbd.userdevice] = drive
        for plugged in vm.VIFs:
            vif = self._db.VIF[plugged]
            if (card := self._db.VIF_metrics.get(vif.metrics)) is not None:
                rows["VIF", vif.device] = card
        if not rows:
            return
        per_second = rate(before, look)
        known = {} if before is None else {_key(each.device): each.counters for each in before.state.devices}
        for each in look.state.devices:
            metrics = rows.get(_key(each.device))
            old = known.get(_key(each.device))
            if metrics is None or old is None:
                continue
            names = ("read_bytes", "written_bytes") if isinstance(each.device, Disk) else ("rx_bytes", "tx_bytes")
            read, written = (per_second(old.get(name, 0), each.counters.get(name, 0)) for name in names)
            if not math.isnan(read + written):
                _update(
                    metrics,
                    moment(self._clock.seconds()),
                    io_read_kbs=float(read // 1024),
                    io_write_kbs=float(written // 1024),
                )

    def _write_host(self, host: records.host, looks: list[tuple[Look | None, Look]]) -> None:
        metrics = self._db.host_metrics.get(host.metrics)
        if metrics is None:
            return
        states = [look.state for _, look in looks]
        here = [self._db.VM[ref] for ref in host.resident_VMs]
        own = [vm for vm in here if vm.is_control_domain]
        # Our hosts set aside all that a guest may grow to, wherever its balloon is.
        held = sum([state.memory_max for state in states]) + sum([vm.memory_static_max for vm in own])
        held += sum([vm.memory_overhead for vm in here])
        left = max(0, metrics.memory_total - host.memory_overhead - held)
        with self._db.atomic():
            _update(metrics, moment(self._clock.seconds()), memory_free=left)
        running = len(own) + sum(state.power is Power.RUNNING for state in states)
        busy = sum(sum(shares(before, look)) for before, look in looks)
        busy /= max(1, int(host.cpu_info.get("cpu_count", "1")))
        sources = of_host(metrics.memory_total, left, running, min(1.0, busy), _load())
        self._hosts[host.uuid] = _by_name(sources)

    # Data sources

    async def sources(self, vm: records.VM) -> Mapping[str, Source]:
        """Return what is measured of a VM that lives, as of the last look, or of one now if there was none."""
        if vm.is_control_domain:
            return {"memory": Source("memory", "Memory currently allocated to VM", "B", vm.memory_static_max)}
        host = self._db.host.get(vm.resident_on)
        if vm.uuid not in self._looks and host is not None:
            truth = (await self._asked(host)).get(vm.uuid)
            if truth is not None and (look := self._look(host, vm, truth, self._clock.seconds())) is not None:
                self._looks[vm.uuid] = None, look
        return _by_name(of_domain(*self._looks[vm.uuid])) if vm.uuid in self._looks else {}

    def host_sources(self, host: records.host) -> Mapping[str, Source]:
        """Return what is measured of a host, as of the last look."""
        return self._hosts.get(host.uuid, {})

    def recorded(self, uuid: str, source: Source) -> bool:
        """Tell whether a source is recorded."""
        return self._chosen.get(uuid, {}).get(source.name, source.standard)

    def record(self, uuid: str, name: str, *, wanted: bool) -> None:
        """Have a source recorded from now on, or not."""
        self._chosen.setdefault(uuid, {})[name] = wanted


def _update(row: Measured, now: datetime, **fields: object) -> None:
    """Write what has changed, and then when."""
    if any(getattr(row, name) != value for name, value in fields.items()):
        for name, value in fields.items():
            setattr(row, name, value)
        row.last_updated = now


def _has_domain(vm: records.VM) -> bool:
    return vm.power_state in ("Running", "Paused") and not vm.is_control_domain


def _key(device: Device) -> tuple[str, str]:
    return ("VBD" if isinstance(device, Disk) else "VIF", str(device.number))


def _condition(before: Look | None, look: Look) -> str:
    """Return whether a domain mostly ran since the last look."""
    if look.state.power is Power.PAUSED:
        return "paused"
    now, old = look.state.run_times, {} if before is None else before.state.run_times
    spent = {name: seconds - old.get(name, 0.0) for name, seconds in now.items()}
    ran = spent.get("running", 0.0) + spent.get("runnable", 0.0)
    return "running" if ran >= spent.get("blocked", 0.0) else "blocked"


def _by_name(sources: Iterable[Source]) -> dict[str, Source]:
    return {source.name: source for source in sources}


def _load() -> float:
    try:
        return os.getloadavg()[0]
    except OSError:
        return math.nan


def _report(failure: Failure) -> None:
    log.failure("looking at the domains failed", failure)
