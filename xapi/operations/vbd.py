"""When an operation of a VBD may start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL
from xapi.operations.alike import listing
from xapi.operations.busy import Busy, busy, held
from xapi.operations.guest import Guest, look, refuse_unless_running, refuse_while_stopping, refuse_without_hotplug
from xapi.operations.sources import Guests, Source, own, when

if TYPE_CHECKING:
    from xapi.datamodel.records import VBD, VDI, VM_guest_metrics, VM_metrics
    from xapi.store.memory import Store

OPERATIONS = ("attach", "eject", "insert", "plug", "unplug", "unplug_force", "pause", "unpause")
PLUGGING = frozenset({"plug", "unplug", "unplug_force"})
ATTACHING = frozenset({"attach", "plug", "insert"})
_BESIDE = {"pause": ("pause", "unpause"), "unpause": ("attach", "pause", "unpause")}


class Facts(NamedTuple):
    """All that decides what may be done to a VBD but for the sharing of its VDI."""

    ref: str
    vm: str
    vdi: str
    guest: Guest
    busy: Busy
    unpluggable: bool
    cd: bool
    empty: bool
    plugged: bool
    managed: bool
    vdi_busy: Busy


def refuse(db: Store, vbd: VBD, operation: str, *, strict: bool, called: bool) -> Fault | None:
    """Return why an operation may not start, or None; sharing is checked only when it is `called`."""
    refused = _refuse(_facts(db, vbd, named=True), operation)
    if refused is None and called and operation in ATTACHING:
        return None if vbd.currently_attached or vbd.empty else refuse_sharing(db, vbd, db.VDI.get(vbd.VDI))
    return refused


def _refuse(vbd: Facts, operation: str) -> Fault | None:
    return (
        _refuse_itself(vbd, operation)
        or _refuse_in_state(vbd, operation)
        or _refuse_guest(vbd, operation)
        or _refuse_image(vbd, operation)
    )


def _refuse_itself(vbd: Facts, operation: str) -> Fault | None:
    for task, running in vbd.busy:
        if running not in _BESIDE.get(operation, ()):
            return held("VBD", vbd.ref, task, running)
    if operation in ("unplug", "unplug_force") and not vbd.unpluggable:
        return errors.VBD_NOT_UNPLUGGABLE(vbd.ref)
    if operation in ("insert", "eject") and not vbd.cd:
        return errors.VBD_NOT_REMOVABLE_MEDIA(vbd.ref)
    if operation == "eject" and vbd.empty:
        return errors.VBD_IS_EMPTY(vbd.ref)
    if operation == "insert" and not vbd.empty:
        return errors.VBD_NOT_EMPTY(vbd.ref)
    return None


def _refuse_in_state(vbd: Facts, operation: str) -> Fault | None:
    state = vbd.guest.state
    if operation == "plug" and state == "Running" and vbd.plugged:
        return errors.DEVICE_ALREADY_ATTACHED(vbd.ref)
    if operation in ("unplug", "unplug_force") and state == "Running" and not vbd.plugged:
        return errors.DEVICE_ALREADY_DETACHED(vbd.ref)
    if operation in PLUGGING:
        return refuse_unless_running(vbd.guest, vbd.vm)
    if operation in ("pause", "unpause") and state in ("Halted", "Suspended"):
        return refuse_unless_running(vbd.guest, vbd.vm)
    return None


def _refuse_guest(vbd: Facts, operation: str) -> Fault | None:
    if operation in ("plug", "unplug") and (refused := refuse_while_stopping(vbd.guest, vbd.vm)):
        return refused
    if operation in PLUGGING and (refused := refuse_without_hotplug(vbd.guest, vbd.vm, "VBD")):
        return refused
    if operation in PLUGGING and vbd.guest.hotplug and vbd.cd:
        return errors.OPERATION_NOT_ALLOWED("The CD drive of an HVM VM stays plugged: insert or eject instead")
    if operation in ("insert", "eject") and vbd.cd and vbd.guest.state == "Suspended":
        return errors.VM_BAD_POWER_STATE(vbd.vm, "halted, running", "suspended")
    return None


def _refuse_image(vbd: Facts, operation: str) -> Fault | None:
    if not vbd.managed:
        return errors.VDI_NOT_MANAGED(vbd.ref)
    if operation in ATTACHING:
        for task, running in vbd.vdi_busy:
            return held("VDI", vbd.vdi, task, running)
    return None


def _facts(db: Store, vbd: VBD, *, named: bool) -> Facts:
    vdi = None if vbd.empty else db.VDI.get(vbd.VDI)
    vdi_busy: Busy = ()
    if vdi is not None and vdi.current_operations:
        running = busy(vdi.current_operations, named=named)
        vdi_busy = tuple([each for each in running if each[1] not in ("mirror", "copy")])
    return Facts(
        vbd._ref if named else NULL,
        vbd.VM if named else NULL,
        vbd.VDI if named else NULL,
        look(db, db.VM.get(vbd.VM), "vbd"),
        busy(vbd.current_operations, named=named),
        vbd.unpluggable,
        vbd.type == "CD",
        vbd.empty,
        vbd.currently_attached or vbd.reserved,
        vdi is None or vdi.managed,
        vdi_busy,
    )


def refuse_sharing(db: Store, vbd: VBD, vdi: VDI | None) -> Fault | None:
    """Refuse a second user of a disk that would write to it, or would read what the first one writes."""
    if vdi is None:
        return None
    writes = vbd.mode == "RW"
    vm = db.VM.get(vbd.VM)
    if not vdi.sharable and not (vm is not None and vm.is_control_domain):
        others = list(_rivals(db, vbd, vdi))
        if (others and writes) or any(other.mode == "RW" for other in others):
            return errors.VDI_IN_USE(vdi._ref)
    if writes and vdi.read_only:
        return errors.VDI_READONLY(vdi._ref)
    return None


def _rivals(db: Store, vbd: VBD, vdi: VDI) -> Iterable[VBD]:
    for ref in vdi.VBDs:
        other = db.VBD[ref]
        vm = db.VM.get(other.VM)
        if other is vbd or (vm is not None and (vm.power_state == "Suspended" or vm.is_control_domain)):
            continue
        if other.currently_attached or other.reserved or other.current_operations:
            yield other


allowed = listing(lambda: OPERATIONS, _facts, _refuse)


def sources(db: Store, guests: Guests) -> Mapping[str, Source]:
    """Return what a VBD's list follows from."""

    def drives(metrics: VM_metrics | VM_guest_metrics) -> Iterable[str]:
        vm = guests.of(metrics)
        return () if vm is None else list(vm.VBDs)

    return {
        "VBD": own("current_operations unpluggable type empty VM VDI currently_attached reserved"),
        "VM": when("power_state current_operations metrics guest_metrics", lambda vm: list(vm.VBDs)),
        "VM_metrics": when("current_domain_type", drives),
        "VM_guest_metrics": when("can_use_hotplug_vbd PV_drivers_detected PV_drivers_version", drives),
        "VDI": when("managed current_operations", lambda vdi: list(vdi.VBDs)),
    }
