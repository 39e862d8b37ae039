"""Runtime fields made equal to what is true of a host's domains.

A backend says "look at this domain" (`attention`); messages look themselves before they answer. Either way
`Reconciler.look` reads the domain's state and writes it into the rows, in one change, so there is one place that
says what Running means. A guest that goes down by itself, while no operation holds its VM, is followed as the VM's
actions say.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from hypervisor.api import Disk, DomainState, Power, Shutdown, disk_name
from xapi.errors import Fault
from xapi.lexical import moment
from xapi.log import guests
from xapi.operations.claim import changed
from xapi.types import NULL
from xapi.vms import guest_metrics
from xapi.vms.domains import domain_kind, position

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from xapi.backends import Backends
    from xapi.records import VM
    from xapi.store.memory import Store
    from xapi.vms.consoles import Consoles

log = Logger()

_LOOK = 60.0
"""Seconds between two looks whether an operation still holds a VM whose guest went down."""

Followed = Callable[[str, Shutdown], Awaitable[None]]


class Reconciler:
    """Keeps the rows of one pool's VMs true. `follow` is what happens when a guest went down by itself."""

    def __init__(self, db: Store, clock: IReactorTime, backends: Backends, consoles: Consoles) -> None:
        self._db = db
        self._consoles = consoles
        self._clock = clock
        self._backends = backends
        self._waiting: set[str] = set()
        self._following: set[str] = set()
        self.follow: Followed = _leave

    def attend(self, uuid: str) -> None:
        """Look at a VM soon; calls until then are one."""
        if uuid not in self._waiting:
            self._waiting.add(uuid)
            self._clock.callLater(0, self._attend, uuid)

    def _attend(self, uuid: str) -> None:
        self._waiting.discard(uuid)
        Deferred.fromCoroutine(self._look_and_follow(uuid)).addErrback(_report, uuid)

    async def _look_and_follow(self, uuid: str) -> None:
        vm: Any = self._by_uuid(uuid)
        if vm is None:
            return
        state = await self.look(vm, halting=False)
        if (state is None or state.shutdown is not None) and uuid not in self._following:
            self._following.add(uuid)
            try:
                await self._follow_down(vm)
            finally:
                self._following.discard(uuid)

    async def _follow_down(self, vm: Any) -> None:
        """Write that a VM has no guest that runs, and follow one that went down by itself.

        An operation that holds the VM may be what ends its domain, or makes one: it writes what comes of that itself.
        """
        while self._is_held(vm):
            await changed(self._db, self._clock, lambda: not self._is_held(vm), _LOOK)
        state = await self.look(vm)
        if state is not None and state.shutdown is not None and vm._ref in self._db.VM:
            guests.went_down(vm, state)
            await self.follow(vm._ref, state.shutdown)

    def _is_held(self, vm: Any) -> bool:
        return vm._ref in self._db.VM and bool(vm.current_operations)

    def _by_uuid(self, uuid: str) -> VM | None:
        try:
            return self._db.VM.by_uuid(uuid)
        except Fault:
            return None

    async def look(self, vm: Any, *, halting: bool = True) -> DomainState | None:
        """Make a VM's rows true, but for one without a domain when not `halting`; return its domain's state."""
        host = self._db.host.get(vm.resident_on)
        if host is None:
            return None
        state = await self._backends.of(host).stat(vm.uuid)
        if vm._ref in self._db.VM and vm.resident_on == host._ref:  # it has not ended or moved meanwhile
            if state is not None:
                self.write(vm, host, state)
            elif halting:
                with self._db.atomic():
                    halt(self._db, vm)
        return state

    def write(self, vm: Any, host: Any, state: DomainState) -> None:
        """Make the rows of a VM true that is on a host, or expected there: its domain was in this state just now.

        A guest that is down already when its VM begins to live is followed as any other.
        """
        begins = vm.resident_on == NULL
        here = host._ref == (vm.scheduled_to_be_resident_on if begins else vm.resident_on)
        if vm._ref in self._db.VM and here and (begins or state.power is not Power.SHUTDOWN):
            with self._db.atomic():
                self._lives(vm, host, state)

    def _lives(self, vm: VM, host: Any, state: DomainState) -> None:
        begins = vm.domid != state.domid or vm.power_state not in ("Running", "Paused")
        if vm.power_state == "Halted" or not vm.last_boot_CPU_flags:
            vm.last_boot_CPU_flags = self._cpu_flags(vm)
        vm.power_state = "Paused" if state.power is Power.PAUSED else "Running"
        vm.domid, vm.resident_on = state.domid, host._ref
        if begins:
            guests.begins(vm, host, state)
            vm.scheduled_to_be_resident_on = NULL
            vm.memory_target = state.memory_target
            self._consoles.open(vm, host)
        metrics = self._db.VM_metrics.get(vm.metrics)
        if metrics is not None:
            metrics.memory_actual = state.memory_actual
            metrics.VCPUs_number = state.vcpus
            if begins:
                metrics.current_domain_type = vm.domain_type if vm.domain_type != "unspecified" else "pvh"
                metrics.start_time = moment(state.start_time)
                metrics.last_updated = moment(self._clock.seconds())
        self._devices(vm, state)
        guest_metrics.update(self._db, vm, state.guest, moment(self._clock.seconds()))

    def _cpu_flags(self, vm: VM) -> dict[str, str]:
        """Return the CPU that a guest finds as it boots: what all hosts of the pool have, for its kind of domain."""
        info = next(iter(self._db.pool)).cpu_info
        features = info.get("features_pv" if domain_kind(vm) == "pv" else "features_hvm", "")
        return {"vendor": info.get("vendor", ""), "features": features}

    def _devices(self, vm: VM, state: DomainState) -> None:
        """Make currently_attached true of each drive and card."""
        plugged = {(type(each.device) is Disk, each.device.number) for each in state.devices}
        drives: list[Any] = [self._db.VBD[ref] for ref in vm.VBDs]
        for vbd in sorted(drives, key=lambda row: not row.currently_attached):  # who has a number keeps it
            number = position(vbd)
            vbd.currently_attached = number is not None and (True, number) in plugged
            if number is not None and vbd.currently_attached:
                plugged.discard((True, number))
                vbd.device = disk_name(number)
        for card in vm.VIFs:
            vif = self._db.VIF[card]
            vif.currently_attached = (False, position(vif)) in plugged


def halt(db: Store, vm: VM, power_state: str = "Halted") -> None:
    """Write what is true of a VM without a domain: Halted, or Suspended, which keeps what resume needs."""
    guests.ends(vm, power_state)
    vm.power_state = "Suspended" if power_state == "Suspended" else "Halted"
    vm.domid, vm.resident_on, vm.scheduled_to_be_resident_on = -1, NULL, NULL
    for console in list(vm.consoles):
        db.console.delete(console)
    if power_state == "Suspended":
        return
    metrics = db.VM_metrics.get(vm.metrics)
    if metrics is not None:
        metrics.current_domain_type = "unspecified"
    for name in ("VBD", "VIF", "VGPU", "VUSB"):
        for ref in getattr(vm, f"{name}s"):
            device: Any = db.tables[name][ref]
            device.currently_attached = False
            if name != "VGPU":
                device.current_operations = {}
    for passed in list(vm.attached_PCIs):
        pci = db.PCI[passed]
        pci.attached_VMs = tuple(other for other in pci.attached_VMs if other != vm._ref)
    vm.requires_reboot = False


async def _leave(ref: str, reason: Shutdown) -> None:
    """Follow no guest: until the daemon has said how."""


def _report(failure: Any, uuid: str) -> None:
    log.failure("reconciling {uuid} failed", failure=failure, uuid=uuid)
