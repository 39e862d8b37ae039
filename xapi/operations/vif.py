"""When an operation of a VIF may start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL
from xapi.operations.alike import listing
from xapi.operations.busy import Busy, busy, held_by_set
from xapi.operations.guest import Guest, look, refuse_unless_running, refuse_while_stopping, refuse_without_hotplug
from xapi.operations.sources import Guests, Source, own, when
from xapi.operations.vm import control_domains, is_dom0

if TYPE_CHECKING:
    from xapi.datamodel.records import PIF, VIF, VM_guest_metrics, VM_metrics
    from xapi.store.memory import Store

OPERATIONS = ("attach", "plug", "unplug")


class Facts(NamedTuple):
    """All that decides what may be done to a VIF."""

    ref: str
    vm: str
    guest: Guest
    busy: Busy
    dom0: bool
    sriov: bool
    plugged: bool


def refuse(db: Store, vif: VIF, operation: str, *, strict: bool, called: bool) -> Fault | None:
    """Return why an operation may not start, or None."""
    return _refuse(_facts(db, vif, named=True), operation)


def _refuse(vif: Facts, operation: str) -> Fault | None:
    if vif.busy:
        return held_by_set("VIF", vif.ref, vif.busy)
    if operation == "attach":
        return None
    if operation == "plug" and vif.dom0:
        return errors.OPERATION_NOT_ALLOWED("Control domain does not support hotplug")
    if vif.sriov:
        return errors.OPERATION_NOT_ALLOWED("Network SR-IOV VIF plug/unplug not allowed")
    if operation == "plug" and vif.guest.state == "Running" and vif.plugged:
        return errors.DEVICE_ALREADY_ATTACHED(vif.ref)
    if operation == "unplug" and vif.guest.state == "Running" and not vif.plugged:
        return errors.DEVICE_ALREADY_DETACHED(vif.ref)
    return (
        refuse_unless_running(vif.guest, vif.vm)
        or refuse_while_stopping(vif.guest, vif.vm)
        or refuse_without_hotplug(vif.guest, vif.vm, "VIF")
    )


def _facts(db: Store, vif: VIF, *, named: bool) -> Facts:
    vm = db.VM.get(vif.VM)
    return Facts(
        vif._ref if named else NULL,
        vif.VM if named else NULL,
        look(db, vm, "vif"),
        busy(vif.current_operations, named=named),
        vm is not None and is_dom0(db, vm),
        _is_sriov(db, vif.network),
        vif.currently_attached or vif.reserved,
    )


def _is_sriov(db: Store, ref: str) -> bool:
    """Tell whether a network is on SR-IOV cards, directly or by a VLAN."""
    if not len(db.network_sriov):
        return False
    network = db.network.get(ref)
    return network is not None and any(_is_virtual_function(db, db.PIF[pif]) for pif in network.PIFs)


def _is_virtual_function(db: Store, pif: PIF) -> bool:
    if pif.sriov_logical_PIF_of:
        return True
    vlan = db.VLAN.get(pif.VLAN_master_of)
    tagged = db.PIF.get(vlan.tagged_PIF) if vlan is not None else None
    return tagged is not None and bool(tagged.sriov_logical_PIF_of)


allowed = listing(lambda: OPERATIONS, _facts, _refuse)


def sources(db: Store, guests: Guests) -> Mapping[str, Source]:
    """Return what a VIF's list follows from. The network matters only while the VM runs."""

    def cards(metrics: VM_metrics | VM_guest_metrics) -> Iterable[str]:
        vm = guests.of(metrics)
        return () if vm is None else list(vm.VIFs)

    def running(refs: Iterable[str]) -> list[str]:
        cards = ((ref, db.VIF.get(ref)) for ref in refs)
        return [ref for ref, vif in cards if vif and (vm := db.VM.get(vif.VM)) and vm.power_state == "Running"]

    return {
        "VIF": own("current_operations VM network currently_attached reserved"),
        "VM": when(
            "power_state current_operations metrics guest_metrics is_control_domain resident_on",
            lambda vm: list(vm.VIFs),
        ),
        "VM_metrics": when("current_domain_type", cards),
        "VM_guest_metrics": when("can_use_hotplug_vif PV_drivers_detected PV_drivers_version", cards),
        "host": when("control_domain", lambda host: [v for vm in control_domains(db, host) for v in db.VM[vm].VIFs]),
        "network": when("PIFs", lambda network: running(network.VIFs)),
        "PIF": when("sriov_logical_PIF_of VLAN_master_of", lambda pif: running(db.VIF.rows)),
        "VLAN": when("tagged_PIF", lambda vlan: running(db.VIF.rows)),
    }
