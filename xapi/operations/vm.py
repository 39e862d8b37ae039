"""When an operation of a VM may start.

The rules stand in the order in which they are checked, and read nothing but `Facts`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from xapi import datamodel
from xapi.datamodel import Operation, errors
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL
from xapi.operations.alike import listing
from xapi.operations.busy import Busy, busy, held_by
from xapi.operations.guest import has_drivers
from xapi.operations.pool import of, rolling_upgrade
from xapi.operations.sources import Guests, Source, own, when

if TYPE_CHECKING:
    from xapi.datamodel.records import VM, VMPP, VMSS, VM_appliance, VM_guest_metrics, VM_metrics, host, pool
    from xapi.store.memory import Store
    from xapi.store.rows import R, Table

STATES = ("Halted", "Paused", "Suspended", "Running")
MOVING = frozenset({"suspend", "checkpoint", "pool_migrate", "migrate_send"})
"""The operations that take the guest's memory somewhere else."""
FEATURES = ("feature-suspend", "feature-shutdown", "feature-poweroff", "feature-reboot", "feature-vcpu-hotplug")
_LONG_COPIES = frozenset({"clone", "copy", "export"})
_SNAPSHOTS = frozenset({"snapshot", "checkpoint"})
_READING_BOOT_RECORD = frozenset({"get_boot_record"})
_NOTHING: Mapping[str, str] = MappingProxyType({})


class Facts(NamedTuple):
    """All that decides what may be done to a VM; references only where they are `named`."""

    ref: str
    state: str
    busy: Busy
    blocked: tuple[tuple[str, str], ...]
    template: bool
    default_template: bool
    snapshot: bool
    control_domain: bool
    dom0: bool
    immobile: bool
    nested: bool
    no_suspend: str | None
    """The guest's reason why it cannot be suspended."""
    implicit: bool
    """The guest needs to announce no features."""
    features: tuple[str, ...]
    resets: bool
    resets_cached: bool
    pci: bool
    vgpus_suspendable: bool
    vusbs: bool
    vtpms: int
    appliance: str
    protection_policy: str
    snapshot_schedule: str
    system_domain: bool
    rolling: bool
    clone_suspended: bool


def refuse(db: Store, vm: VM, operation: str, *, strict: bool, called: bool) -> Fault | None:
    """Return why an operation may not start, or None; without `strict`, guests are trusted to cope."""
    return _refuse(_facts(db, vm, named=True), operation, strict)


def _operations() -> Mapping[str, Operation]:
    return datamodel.load().classes["VM"].operations


def _refuse(vm: Facts, name: str, strict: bool = True) -> Fault | None:
    operation = _operations()[name]
    return (
        _refuse_in_state(vm, operation)
        or _refuse_kind(vm, operation, strict)
        or _refuse_guest(vm, name, strict)
        or _refuse_devices(vm, name)
        or _refuse_membership(vm, operation)
    )


def _refuse_in_state(vm: Facts, operation: Operation) -> Fault | None:
    for name, reason in vm.blocked:
        if name == operation.name:
            return errors.OPERATION_BLOCKED(vm.ref, reason)
    states = _states(vm, operation)
    if vm.state not in states:
        expected = ", ".join(state.lower() for state in STATES if state in states)
        return errors.VM_BAD_POWER_STATE(vm.ref, expected, vm.state.lower())
    if vm.busy and not _beside(operation.name, [running for _, running in vm.busy]):
        return held_by("VM", vm.ref, vm.busy)
    return None


def _states(vm: Facts, operation: Operation) -> Collection[str]:
    name = operation.name
    if name in ("clone", "copy") and (vm.snapshot or vm.clone_suspended):
        return operation.states | {"Suspended"}
    if name in ("changing_VCPUs", "changing_static_range", "changing_memory_limits") and vm.control_domain:
        return operation.states | {"Running"}
    return operation.states


def _beside(name: str, running: list[str]) -> bool:
    """Tell whether an operation may start while others run."""
    for friends in (_LONG_COPIES, _SNAPSHOTS, _READING_BOOT_RECORD):
        if name in friends and friends.issuperset(running):
            return True
    if name == "hard_shutdown":
        return "hard_shutdown" not in running
    if name == "hard_reboot":
        return "hard_shutdown" not in running and "hard_reboot" not in running
    if name == "snapshot":
        return running == ["snapshot_with_quiesce"]
    return name in ("metadata_export", "clean_shutdown", "clean_reboot") and running == ["migrate_send"]


def _refuse_kind(vm: Facts, operation: Operation, strict: bool) -> Fault | None:
    name = operation.name
    # Templates allow some operations always, and some unless they are default templates.
    usable = operation.template == "yes" or (
        operation.template == "if-not-default-template" and not vm.default_template
    )
    if vm.template and not vm.snapshot and not usable:
        return errors.VM_IS_TEMPLATE(vm.ref, name)
    if vm.snapshot and not operation.snapshot:
        return errors.VM_IS_SNAPSHOT(vm.ref, name)
    if name == "provision" and not vm.template:
        return errors.PROVISION_ONLY_ALLOWED_ON_TEMPLATE()
    if name == "revert" and not vm.snapshot:
        return errors.REVERT_ONLY_ALLOWED_ON_SNAPSHOT()
    if strict and vm.immobile and name in MOVING:
        return errors.VM_IS_IMMOBILE(vm.ref)
    if strict and vm.nested and name == "changing_dynamic_range":
        return errors.VM_IS_USING_NESTED_VIRT(vm.ref)
    if vm.dom0 and name in ("changing_VCPUs", "destroy"):
        return errors.OPERATION_NOT_ALLOWED("This operation is not allowed on dom0")
    if vm.control_domain and operation.control_domain == "no":
        return errors.OPERATION_NOT_ALLOWED("This operation is not allowed on a control domain")
    return None


def _refuse_guest(vm: Facts, name: str, strict: bool) -> Fault | None:
    if name in MOVING and vm.state in ("Running", "Paused"):
        if vm.no_suspend is not None:
            return errors.VM_NON_SUSPENDABLE(vm.ref, vm.no_suspend)
        if strict and _lacks(vm, "feature-suspend"):
            return errors.VM_LACKS_FEATURE(vm.ref)
    if strict and name == "clean_shutdown" and _lacks(vm, "feature-shutdown", "feature-poweroff"):
        return errors.VM_LACKS_FEATURE(vm.ref)
    if strict and name == "clean_reboot" and _lacks(vm, "feature-shutdown", "feature-reboot"):
        return errors.VM_LACKS_FEATURE(vm.ref)
    if name == "changing_VCPUs_live" and _lacks(vm, "feature-vcpu-hotplug"):
        return errors.VM_LACKS_FEATURE(vm.ref)
    if name == "snapshot_with_quiesce":
        return errors.VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED(vm.ref)
    return None


def _lacks(vm: Facts, *any_of: str) -> bool:
    return not vm.implicit and not any(feature in vm.features for feature in any_of)


def _refuse_devices(vm: Facts, name: str) -> Fault | None:
    if vm.resets and name in ("checkpoint", "snapshot", "suspend", "snapshot_with_quiesce"):
        return errors.VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION()
    if vm.resets_cached and name == "pool_migrate":
        return errors.VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION()
    if vm.pci and name in MOVING:
        return errors.VM_HAS_PCI_ATTACHED(vm.ref)
    without_domain = (name, vm.state) in (("migrate_send", "Halted"), ("checkpoint", "Suspended"))
    if not vm.vgpus_suspendable and name in MOVING and not without_domain:
        return errors.VM_HAS_VGPU(vm.ref)
    if vm.vusbs and (name in MOVING or name == "snapshot"):
        return errors.VM_HAS_VUSBS(vm.ref)
    return None


def _refuse_membership(vm: Facts, operation: Operation) -> Fault | None:
    name = operation.name
    if name == "make_into_template":
        if vm.appliance:
            return errors.VM_IS_PART_OF_AN_APPLIANCE(vm.ref, vm.appliance)
        if vm.protection_policy:
            return errors.VM_ASSIGNED_TO_PROTECTION_POLICY(vm.ref, vm.protection_policy)
        if vm.snapshot_schedule:
            return errors.VM_ASSIGNED_TO_SNAPSHOT_SCHEDULE(vm.ref, vm.snapshot_schedule)
    if name == "query_services" and not vm.system_domain:
        return errors.NOT_SYSTEM_DOMAIN(vm.ref)
    if vm.rolling and not operation.rolling_upgrade:
        return errors.NOT_SUPPORTED_DURING_UPGRADE()
    if name == "create_vtpm" and vm.vtpms:
        return errors.VTPM_MAX_AMOUNT_REACHED(str(vm.vtpms))
    return None


def _facts(db: Store, vm: VM, *, named: bool) -> Facts:
    config, platform = vm.other_config, vm.platform
    metrics = db.VM_metrics.get(vm.metrics)
    live = vm.power_state in ("Running", "Paused")
    guest = db.VM_guest_metrics.get(vm.guest_metrics) if live else None
    announced = _NOTHING if guest is None else guest.other
    pool = of(db)
    nested = _is_true(platform.get("nested-virt")) if metrics is None else metrics.nested_virt
    resets, resets_cached = _resets(db, vm)
    return Facts(
        vm._ref if named else NULL,
        vm.power_state,
        busy(vm.current_operations, named=named),
        tuple(vm.blocked_operations.items()) if vm.blocked_operations else (),
        vm.is_a_template,
        vm.is_default_template or _is_true(config.get("default_template")),
        vm.is_a_snapshot,
        vm.is_control_domain,
        vm.is_control_domain and is_dom0(db, vm),
        nested or (_is_true(platform.get("nomigrate")) if metrics is None else metrics.nomigrate),
        nested,
        announced.get("data-cant-suspend-reason") if announced else None,
        not live or _implicit(metrics, guest),
        tuple([key for key in FEATURES if announced.get(key) == "1"]) if announced else (),
        resets,
        resets_cached,
        bool(vm.attached_PCIs) and _has_pci(db, vm),
        not vm.VGPUs or _suspendable(db, vm),
        bool(vm.VUSBs),
        len(vm.VTPMs),
        _valid(db.VM_appliance, vm.appliance, named),
        _valid(db.VMPP, vm.protection_policy, named),
        _valid(db.VMSS, vm.snapshot_schedule, named),
        _is_true(config.get("is_system_domain")),
        rolling_upgrade(pool),
        pool is not None and pool.other_config.get("allow_clone_suspended_vm") == "true",
    )


def _advertised() -> Iterable[str]:
    return [operation.name for operation in _operations().values() if operation.advertised]


allowed = listing(_advertised, _facts, _refuse)


def _valid(table: Table[R], ref: str, named: bool) -> str:
    """Return a reference, '' where it leads to nothing."""
    if ref == NULL or ref not in table.rows:
        return ""
    return ref if named else NULL


def _is_true(value: str | None) -> bool:
    return value is not None and value.lower() in ("true", "1")


def is_dom0(db: Store, vm: VM) -> bool:
    """Tell whether a VM is the control domain of the host it is on."""
    host = db.host.get(vm.resident_on) if vm.is_control_domain else None
    return host is not None and host.control_domain == vm._ref


def _implicit(metrics: VM_metrics | None, guest: VM_guest_metrics | None) -> bool:
    if metrics is not None and metrics.current_domain_type in ("pv", "pv_in_pvh", "pvh"):
        return True
    return guest is not None and has_drivers(guest.PV_drivers_version)


def _resets(db: Store, vm: VM) -> tuple[bool, bool]:
    """Tell whether a disk forgets its changes at boot, and whether such a one is cached too."""
    resets = cached = False
    for ref in vm.VBDs:
        vdi = db.VDI.get(db.VBD[ref].VDI)
        if vdi is not None and vdi.sm_config and vdi.sm_config.get("on_boot") == "reset":
            resets = True
            cached = cached or _is_true(vdi.sm_config.get("caching"))
    return resets, cached


def _has_pci(db: Store, vm: VM) -> bool:
    """Tell whether a PCI device is passed through that is not part of a virtual GPU which can move."""
    movable = set()
    for ref in vm.VGPUs:
        vgpu = db.VGPU[ref]
        kind = db.VGPU_type.get(vgpu.type)
        if kind is not None and kind.implementation == "nvidia_sriov":
            movable.add(vgpu.PCI)
    return not movable.issuperset(vm.attached_PCIs)


def _suspendable(db: Store, vm: VM) -> bool:
    for ref in vm.VGPUs:
        vgpu = db.VGPU[ref]
        kind, gpu = db.VGPU_type.get(vgpu.type), db.PGPU.get(vgpu.resident_on)
        if kind is None or kind.implementation not in ("nvidia", "nvidia_sriov"):
            return False
        if gpu is None or "nvidia" not in gpu.compatibility_metadata:
            return False
    return True


def sources(db: Store, guests: Guests) -> Mapping[str, Source]:
    """Return what a VM's list follows from."""
    relevant = own(
        "power_state current_operations blocked_operations is_a_template is_default_template is_a_snapshot "
        "is_control_domain other_config platform resident_on metrics guest_metrics VBDs attached_PCIs VGPUs VUSBs "
        "VTPMs appliance protection_policy snapshot_schedule"
    )

    def itself(vm: VM, names: Collection[str]) -> Iterable[str]:
        guests.note(vm, names)
        return relevant(vm, names)

    def owner(metrics: VM_metrics | VM_guest_metrics) -> Iterable[str]:
        vm = guests.of(metrics)
        return () if vm is None else (vm._ref,)

    refused = frozenset(each.name for each in _operations().values() if not each.rolling_upgrade)

    def concerned(pool: pool) -> Iterator[str]:
        """Find the lists that were made under other conditions: with what an upgrade refuses, or without any of it."""
        rolling = rolling_upgrade(pool)
        for vm in db.VM:
            stale = refused.isdisjoint(vm.allowed_operations) != rolling
            if stale or vm.power_state == "Suspended":
                yield vm._ref

    def members(group: VM_appliance | VMPP | VMSS) -> Iterable[str]:
        return list(group.VMs)

    return {
        "VM": itself,
        "VM_metrics": when("current_domain_type nested_virt nomigrate", owner),
        "VM_guest_metrics": when("other PV_drivers_version", owner),
        "VBD": when("VDI", lambda vbd: (vbd.VM,)),
        "VDI": when("sm_config", lambda vdi: [vbd.VM for ref in vdi.VBDs if (vbd := db.VBD.get(ref))]),
        "VGPU": when("type resident_on PCI", lambda vgpu: (vgpu.VM,)),
        "VGPU_type": when("implementation", lambda kind: [db.VGPU[ref].VM for ref in kind.VGPUs if ref in db.VGPU]),
        "PGPU": when(
            "compatibility_metadata", lambda gpu: [db.VGPU[ref].VM for ref in gpu.resident_VGPUs if ref in db.VGPU]
        ),
        "host": when("control_domain", lambda host: control_domains(db, host)),
        "VM_appliance": when("", members),
        "VMPP": when("", members),
        "VMSS": when("", members),
        "pool": when("other_config", concerned),
    }


def control_domains(db: Store, host: host) -> list[str]:
    """Return the control domains on a host."""
    return [ref for ref in host.resident_VMs if (vm := db.VM.get(ref)) is not None and vm.is_control_domain]
