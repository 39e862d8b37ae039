"""Runtime fields made equal to what is true of a host's domains.

A backend says "look at this domain" (`attention`); messages look themselves before they answer. Either way
`Reconciler.look` reads the domain's state and writes it into the rows, in one change, so there is one place that
says what Running means. A guest that goes down by itself, while no operation makes or ends its domain, is followed as
the VM's actions say.

Between a look and its writing others work: operations end domains and make new ones, and what several hosts' threads
have seen comes in any order. So each truth has a sequence, and an older one is never written over a newer
(`xapi.vms.truths`); and that a VM has no domain is not written while an operation holds it that makes or ends one.

The net below that is `xapi.vms.survey`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from hypervisor.api import Disk, DomainState, HostError, Power, Truth, disk_name
from xapi.calls.claim import changed
from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.datamodel.lexical import moment
from xapi.datamodel.types import NULL
from xapi.log import guests
from xapi.vms import guest_metrics
from xapi.vms.devices import card_number
from xapi.vms.domains import position
from xapi.vms.faults import told
from xapi.vms.truths import Truths

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from xapi.datamodel import records
    from xapi.datamodel.records import VBD, VIF, VM, VUSB, enum_domain_type
    from xapi.hosts.backends import Backends
    from xapi.store.memory import Store
    from xapi.vms.consoles import Consoles

log = Logger()

_LOOK = 60.0
"""Seconds between two looks whether an operation still holds a VM whose guest went down."""
DOMAIN_OPERATIONS = frozenset(
    ("start", "start_on", "resume", "resume_on", "clean_shutdown", "hard_shutdown", "shutdown", "clean_reboot",
     "hard_reboot", "suspend", "checkpoint", "pool_migrate", "migrate_send", "reverting", "power_state_reset",
     "destroy")
)  # fmt: skip
"""Those that make or end a VM's domain: what becomes of it is theirs to write."""

_KINDS: Mapping[str, enum_domain_type] = {"pv": "pv", "pvh": "pvh", "pv_in_pvh": "pv_in_pvh", "hvm": "hvm"}
"""What a host calls a kind of domain, and rows too."""

Followed = Callable[[str], Awaitable[None]]


class Reconciler:
    """Keeps the rows of one pool's VMs true. `follow` is what happens when a guest went down by itself."""

    def __init__(self, db: Store, clock: IReactorTime, backends: Backends, consoles: Consoles) -> None:
        self._db = db
        self._consoles = consoles
        self._clock = clock
        self._backends = backends
        self.truths = Truths()
        self._waiting: set[str] = set()
        self._following: dict[str, bool] = {}
        """Guests that went down and are being followed, and whether attention was asked for meanwhile."""
        self.follow: Followed = _leave

    # News

    def attend(self, uuid: str) -> None:
        """Look at a VM soon; calls until then are one."""
        if uuid not in self._waiting:
            self._waiting.add(uuid)
            self._clock.callLater(0, self._attend, uuid)

    def _attend(self, uuid: str) -> None:
        self._waiting.discard(uuid)
        Deferred.fromCoroutine(self._look_and_follow(uuid)).addErrback(report, uuid)

    async def _look_and_follow(self, uuid: str) -> None:
        vm = self.by_uuid(uuid)
        if vm is None:
            return
        if is_up(await self.look(vm)):
            return
        if uuid in self._following:
            self._following[uuid] = True
        else:
            await self._follow_down(vm)

    async def _follow_down(self, vm: VM) -> None:
        """Write that a VM has no guest that runs, and follow one that went down by itself."""
        uuid = vm.uuid
        self._following[uuid] = False
        try:
            while self.is_held(vm):
                await changed(self._db, self._clock, lambda: not self.is_held(vm), _LOOK)
            state = await self.look(vm)
            if state is not None and state.power is Power.SHUTDOWN and vm._ref in self._db.VM:
                guests.went_down(vm, state)
                await self.follow(vm._ref)
        finally:
            if self._following.pop(uuid):
                self.attend(uuid)

    def is_held(self, vm: VM) -> bool:
        """Tell whether an operation holds a VM that makes or ends its domain."""
        return vm._ref in self._db.VM and not DOMAIN_OPERATIONS.isdisjoint(vm.current_operations.values())

    def by_uuid(self, uuid: str) -> VM | None:
        try:
            return self._db.VM.by_uuid(uuid)
        except Fault:
            return None

    async def look(self, vm: VM) -> DomainState | None:
        """Make a VM's rows true; return its domain's state. Raises Fault."""
        host = self._db.host.get(vm.resident_on)
        if host is None:
            return None
        with told(vm):
            truth = await self._backends.of(host).stat(vm.uuid)
        self.write(vm, host, truth)
        return truth.state

    # Writing

    def write(self, vm: VM, host: records.host, truth: Truth) -> None:
        """Make the rows of a VM true, unless it has ended, moved, or something newer was written meanwhile."""
        if vm._ref not in self._db.VM or vm.resident_on != host._ref or not self.truths.may_write(vm, host, truth):
            return
        if truth.state is not None:
            self._write(vm, host, truth, truth.state)
        elif not self.is_held(vm):
            lose(self._db, vm)

    def begun(self, vm: VM, host: records.host, truth: Truth) -> None:
        """Write that a VM lives on a host, whose domain the operation that holds it has made. Under `atomic`.

        A guest that is down already is followed when the operation is over. Raises HANDLE_INVALID for a VM that has
        gone, INTERNAL_ERROR for a domain that has: nothing is there to be written then.
        """
        if vm._ref not in self._db.VM:
            raise errors.HANDLE_INVALID("VM", vm._ref)
        if truth.state is None:
            raise errors.INTERNAL_ERROR(f"the domain of {vm.uuid} has vanished")
        if self.truths.may_write(vm, host, truth):
            self._write(vm, host, truth, truth.state)

    def _write(self, vm: VM, host: records.host, truth: Truth, state: DomainState) -> None:
        with self._db.atomic():
            self._lives(vm, host, state)
        self.truths.wrote(vm, host, truth)

    def _lives(self, vm: VM, host: records.host, state: DomainState) -> None:
        begins = vm.domid != state.domid or vm.power_state not in ("Running", "Paused")
        is_new = begins or not self.truths.knows(vm)
        if vm.power_state == "Halted" or not vm.last_boot_CPU_flags:
            vm.last_boot_CPU_flags = self._cpu_flags(state.kind)
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
            if is_new:  # some of it is in memory alone
                metrics.current_domain_type = _KINDS.get(state.kind, "unspecified")
                metrics.hvm = state.kind != "pv"
                metrics.start_time = moment(state.start_time)
                metrics.last_updated = moment(self._clock.seconds())
        self._devices(vm, state)
        guest_metrics.update(self._db, vm, state.guest, moment(self._clock.seconds()))

    def _cpu_flags(self, kind: str) -> dict[str, str]:
        """Return the CPU that a guest finds as it boots: what all hosts of the pool have, for its kind of domain."""
        info = next(iter(self._db.pool)).cpu_info
        features = info.get("features_pv" if kind == "pv" else "features_hvm", "")
        return {"vendor": info.get("vendor", ""), "features": features}

    def _devices(self, vm: VM, state: DomainState) -> None:
        """Make currently_attached true of each drive and card."""
        plugged = {(type(each.device) is Disk, each.device.number) for each in state.devices}
        drives = [self._db.VBD[ref] for ref in vm.VBDs]
        for vbd in sorted(drives, key=lambda row: not row.currently_attached):  # who has a number keeps it
            number = position(vbd)
            vbd.currently_attached = number is not None and (True, number) in plugged
            if number is not None and vbd.currently_attached:
                plugged.discard((True, number))
                vbd.device = disk_name(number)
        for card in vm.VIFs:
            vif = self._db.VIF[card]
            vif.currently_attached = (False, card_number(vif.device)) in plugged


def is_up(state: DomainState | None) -> bool:
    """Tell whether there is a domain, and it is not down: one that is kept to be looked at counts as up."""
    return state is not None and state.power is not Power.SHUTDOWN


def lose(db: Store, vm: VM) -> None:
    """Write that the domain of a VM has gone; a guest whose memory is saved is not lost."""
    with db.atomic():
        write_halted(db, vm, "Halted" if vm.suspend_VDI == NULL else "Suspended")


def write_halted(db: Store, vm: VM, power_state: str = "Halted") -> None:
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
    devices: list[VBD | VIF | VUSB] = [db.VBD[vbd] for vbd in vm.VBDs]
    devices += [*(db.VIF[vif] for vif in vm.VIFs), *(db.VUSB[vusb] for vusb in vm.VUSBs)]
    for device in devices:
        device.currently_attached, device.current_operations = False, {}
    for vgpu in vm.VGPUs:
        db.VGPU[vgpu].currently_attached = False
    for passed in list(vm.attached_PCIs):
        pci = db.PCI[passed]
        pci.attached_VMs = tuple(other for other in pci.attached_VMs if other != vm._ref)
    vm.requires_reboot = False


async def _leave(ref: str) -> None:
    """Follow no guest: until the daemon has said how."""


def report(failure: Failure, uuid: str) -> None:
    """Log why a look has failed."""
    if failure.check(Fault, HostError):
        log.error("{uuid} cannot be reconciled now: {fault}", uuid=uuid, fault=failure.value)
    else:
        log.failure("reconciling {uuid} failed", failure=failure, uuid=uuid)
