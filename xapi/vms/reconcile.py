"""Runtime fields made equal to what is true of a host's domains.

A backend says "look at this domain" (`attention`); messages look themselves before they answer. Either way
`Reconciler.look` reads the domain's state and writes it into the rows, in one change, so there is one place that
says what Running means. A guest that goes down by itself, while no operation makes or ends its domain, is followed as
the VM's actions say.

Between a look and its writing others work: operations end domains and make new ones, and what several hosts' threads
have seen comes in any order. So each truth has a sequence, and an older one is never written over a newer
(`xapi.vms.truths`); and that a VM has no domain is not written while an operation holds it that makes or ends one.

The net below that is `survey`: it looks at every VM and ends domains that no VM claims. It runs when changes have been
undone that were accepted already, when changes are accepted again after that, when a host is reached again that was
lost, and every minute. When the daemon starts `adopt` does the same for all: domains may have lived on without it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from hypervisor.api import Disk, DomainState, HostError, Power, Shutdown, Truth, disk_name
from xapi.calls.claim import changed
from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.datamodel.lexical import moment
from xapi.datamodel.types import NULL
from xapi.log import guests
from xapi.log.guests import named
from xapi.vms import guest_metrics
from xapi.vms.devices import card_number
from xapi.vms.domains import position
from xapi.vms.truths import Truths

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from hypervisor.api import Backend
    from xapi.datamodel import records
    from xapi.datamodel.records import VBD, VIF, VM, VUSB, enum_domain_type
    from xapi.hosts.backends import Backends
    from xapi.store.memory import Store
    from xapi.turns import Turns
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

    def __init__(self, db: Store, clock: IReactorTime, turns: Turns, backends: Backends, consoles: Consoles) -> None:
        self._db = db
        self._consoles = consoles
        self._clock = clock
        self._turns = turns
        self._backends = backends
        self.truths = Truths()
        self._waiting: set[str] = set()
        self._following: dict[str, bool] = {}
        """Guests that went down and are being followed, and whether attention was asked for meanwhile."""
        self._surveying = False
        self._reach: dict[str, bool] = {}
        """Hosts that were lost, and whether they are reached again, which is to be written then."""
        self.follow: Followed = _leave

    # News

    def attend(self, uuid: str) -> None:
        """Look at a VM soon; calls until then are one."""
        if uuid not in self._waiting:
            self._waiting.add(uuid)
            self._clock.callLater(0, self._attend, uuid)

    def _attend(self, uuid: str) -> None:
        self._waiting.discard(uuid)
        Deferred.fromCoroutine(self._look_and_follow(uuid)).addErrback(_report, uuid)

    async def _look_and_follow(self, uuid: str) -> None:
        vm = self._by_uuid(uuid)
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
            while self._is_held(vm):
                await changed(self._db, self._clock, lambda: not self._is_held(vm), _LOOK)
            state = await self.look(vm)
            if state is not None and state.power is Power.SHUTDOWN and vm._ref in self._db.VM:
                guests.went_down(vm, state)
                await self.follow(vm._ref)
        finally:
            if self._following.pop(uuid):
                self.attend(uuid)

    def _is_held(self, vm: VM) -> bool:
        """Tell whether an operation holds a VM that makes or ends its domain."""
        return vm._ref in self._db.VM and not DOMAIN_OPERATIONS.isdisjoint(vm.current_operations.values())

    def _by_uuid(self, uuid: str) -> VM | None:
        try:
            return self._db.VM.by_uuid(uuid)
        except Fault:
            return None

    async def look(self, vm: VM) -> DomainState | None:
        """Make a VM's rows true; return its domain's state."""
        host = self._db.host.get(vm.resident_on)
        if host is None:
            return None
        truth = await self._backends.of(host).stat(vm.uuid)
        self.write(vm, host, truth)
        return truth.state

    # Hosts

    def lost(self, host: str) -> None:
        """Write that a host is not reached; its VMs stay as they were last known."""
        row = self._db.host.get(host)
        if row is not None:
            log.warn("{host} is not reached: its VMs are as they were last known", host=named(row))
        self._reaches(host, False)

    def reached(self, host: str) -> None:
        """Write that a host is reached again, and look at all that is on it."""
        row = self._db.host.get(host)
        if row is not None:
            log.info("{host} is reached again", host=named(row))
        self._reaches(host, True)
        Deferred.fromCoroutine(self._survey_host(host, thorough=True)).addErrback(_report, host)

    def _reaches(self, host: str, reached: bool) -> None:
        self._reach[host] = reached
        try:
            self._write_reach()
        except Fault as fault:  # it is written when changes are accepted again
            log.error("whether {host} is reached cannot be written now: {fault}", host=host, fault=fault)

    def _write_reach(self) -> None:
        for ref, reached in list(self._reach.items()):
            host = self._db.host.get(ref)
            metrics = None if host is None else self._db.host_metrics.get(host.metrics)
            if metrics is not None and metrics.live != reached:
                metrics.live = reached
            if reached:
                del self._reach[ref]

    # Writing

    def write(self, vm: VM, host: records.host, truth: Truth) -> None:
        """Make the rows of a VM true, unless it has ended, moved, or something newer was written meanwhile."""
        if vm._ref not in self._db.VM or vm.resident_on != host._ref or not self.truths.may_write(vm, host, truth):
            return
        if truth.state is not None:
            self._write(vm, host, truth, truth.state)
        elif not self._is_held(vm):
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

    # The net

    def unsettled(self) -> None:
        """Look at everything soon: rows have changed behind the operations that wrote them, or can again."""
        self._clock.callLater(0, self._survey, True)

    def sweep(self) -> None:
        """Look for VMs without a domain, and domains without a VM."""
        self._survey(False)

    def _survey(self, thorough: bool) -> None:
        Deferred.fromCoroutine(self.survey(thorough)).addErrback(_report, "all domains")

    async def adopt(self) -> None:
        """Make rows and hosts agree when the daemon starts, before anything is asked of it.

        A VM whose domain lives goes on, one whose domain has gone is halted, domains that no VM claims are ended. VMs
        of a host that is not reached stay as they were. Costs a call a host, and some 0.2 ms a domain.
        """
        for ref, vms in self._living().items():
            host = self._db.host.get(ref)
            truths: Mapping[str, Truth] = {}
            if host is not None:
                try:
                    truths = await self._truths(host)
                except (Fault, HostError) as error:
                    log.warn("{host} cannot be looked at: {error}", host=named(host), error=error)
                    continue
            with self._db.atomic():
                for vm in vms:
                    self._adopt(vm, host, truths.get(vm.uuid))
            if host is not None and truths:
                await self._end_unclaimed(host, self._backends.of(host), truths)

    async def _truths(self, host: records.host) -> Mapping[str, Truth]:
        """Return what is on a host, which is written to be reached. Raises HOST_OFFLINE and HostError."""
        backend = await self._backends.start(host)
        self._reach[host._ref] = True
        self._write_reach()
        return await backend.truths()

    def _adopt(self, vm: VM, host: records.host | None, truth: Truth | None) -> None:
        """Write what has become of a VM that lived; one whose memory was saved by then is suspended."""
        state = None if truth is None else truth.state
        if (
            host is None
            or truth is None
            or state is None
            or (vm.suspend_VDI != NULL and state.shutdown is Shutdown.SUSPEND)
        ):
            lose(self._db, vm)
            return
        self.write(vm, host, truth)
        guests.goes_on(vm, host)
        if not is_up(state):
            self.attend(vm.uuid)

    def _living(self) -> dict[str, list[VM]]:
        """Return the VMs that lived by host, with hosts to which others were coming, which they do not any more."""
        living: dict[str, list[VM]] = {ref: [] for ref in self._backends.by_host()}
        with self._db.atomic():
            for vm in self._db.VM:
                if vm.power_state in ("Running", "Paused") and not vm.is_control_domain:
                    living.setdefault(vm.resident_on, []).append(vm)
                elif vm.scheduled_to_be_resident_on != NULL:
                    living.setdefault(vm.scheduled_to_be_resident_on, [])
                    vm.scheduled_to_be_resident_on = NULL
        return living

    async def survey(self, thorough: bool = True) -> None:
        """Look at all VMs with a domain, or only at those whose domain is lost, and end the domains of none.

        Costs some 0.5 µs a domain, and where it is `thorough` 0.2 ms.
        """
        if self._surveying and not thorough:
            return
        self._surveying = True
        try:
            self._write_reach()
            for ref in self._backends.by_host():
                await self._survey_host(ref, thorough)
        finally:
            self._surveying = False
        self.truths.keep(lambda ref: (vm := self._db.VM.get(ref)) is not None and vm.resident_on != NULL)
        if thorough:
            await self._turns.take(self._give_back())

    async def _survey_host(self, ref: str, thorough: bool) -> None:
        backend, host = self._backends.by_host().get(ref), self._db.host.get(ref)
        if backend is None or host is None:
            return
        try:
            truths = await backend.truths() if thorough else dict.fromkeys(await backend.domains())
            await self._end_unclaimed(host, backend, truths)
        except HostError as error:
            log.error("{host} cannot be looked at: {error}", host=named(host), error=error)
            return
        vms = [vm for ref in host.resident_VMs if not (vm := self._db.VM[ref]).is_control_domain]
        if thorough:
            await self._turns.take(self._written(vms, host, truths))
        for vm in vms:
            if vm.uuid not in truths:
                await self._look_for(vm)

    def _written(self, vms: Iterable[VM], host: records.host, truths: Mapping[str, Truth | None]) -> Iterator[None]:
        """Write what is true of VMs, one a step."""
        for vm in vms:
            truth = truths.get(vm.uuid)
            if truth is not None:
                with self._noting(vm):
                    self.write(vm, host, truth)
                    if not is_up(truth.state):
                        self.attend(vm.uuid)
            yield

    async def _look_for(self, vm: VM) -> None:
        with self._noting(vm):
            if not is_up(await self.look(vm)):
                self.attend(vm.uuid)

    @contextmanager
    def _noting(self, vm: VM) -> Iterator[None]:
        """Log what hinders a look at a VM; the next survey comes."""
        try:
            yield
        except (Fault, HostError) as error:
            log.error("{vm} cannot be looked at: {error}", vm=named(vm), error=error)

    async def _end_unclaimed(self, host: records.host, backend: Backend, uuids: Iterable[str]) -> None:
        for uuid in uuids:
            # What is asked of a domain is done in order: an operation that makes one from now on does so after this.
            if not self._is_claimed(uuid, host):
                log.error("domain {uuid} on {host} is no VM's: it is ended", uuid=uuid, host=named(host))
                await backend.destroy(uuid)

    def _is_claimed(self, uuid: str, host: records.host) -> bool:
        """Tell whether a VM is on a host, or an operation may be bringing it there or taking it away."""
        vm = self._by_uuid(uuid)
        return vm is not None and (vm.resident_on == host._ref or self._is_held(vm))

    def _give_back(self) -> Iterator[None]:
        """Drop the reservations that operations could not give back, looking at a VM a step."""
        for vm in list(self._db.VM):
            if vm.scheduled_to_be_resident_on != NULL and not self._is_held(vm) and self._db.refusal is None:
                vm.scheduled_to_be_resident_on = NULL
            yield


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


def _report(failure: Failure, uuid: str) -> None:
    if failure.check(Fault, HostError):
        log.error("{uuid} cannot be reconciled now: {fault}", uuid=uuid, fault=failure.value)
    else:
        log.failure("reconciling {uuid} failed", failure=failure, uuid=uuid)
