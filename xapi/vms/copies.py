"""A VM made anew from another: what clone, copy, snapshot, checkpoint and revert share.

First the disks, several at once; then all rows in one change. So clients see a whole VM or none, and when a disk
fails, the others are destroyed again.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xapi.calls.parts import Part, all_of, undo_all
from xapi.calls.work import Work
from xapi.datamodel import errors
from xapi.datamodel.types import NULL, Ref
from xapi.networks import networks
from xapi.storage import vdis
from xapi.storage.unfinished import making
from xapi.vms import saved_record
from xapi.vms.devices import is_mac, mac_address

if TYPE_CHECKING:
    from xapi.datamodel.records import (
        SR,
        VBD,
        VDI,
        VIF,
        VM,
        VTPM,
        VM_guest_metrics,
        VM_metrics,
        enum_vm_power_state,
    )
    from xapi.store.memory import Store
    from xapi.store.rows import Row

MAC_SEED = "mac_seed"
OWNER = "owner"
"""Key of a VBD's other_config: the disk goes with its VM."""
DEFAULT_TEMPLATE = "default_template"
DROPPED_KEYS = frozenset({DEFAULT_TEMPLATE, "xensource_internal"})
BASE_TEMPLATE = "base_template_name"
ROWS = 0.95
"""How far a copy's task is when its disks are there."""


def names(text: str) -> tuple[str, ...]:
    """Return the words of a text."""
    return tuple(text.split())


KEPT = names(
    "name_description user_version affinity memory_overhead memory_target memory_static_max memory_dynamic_max "
    "memory_dynamic_min memory_static_min VCPUs_params VCPUs_max VCPUs_at_startup actions_after_softreboot "
    "actions_after_shutdown actions_after_reboot actions_after_crash HVM_boot_policy HVM_boot_params "
    "HVM_shadow_multiplier platform PV_kernel PV_ramdisk PV_args PV_bootloader PV_bootloader_args PV_legacy_args "
    "PCI_bus last_boot_CPU_flags is_control_domain last_booted_record recommendations xenstore_data "
    "ha_restart_priority tags bios_strings hardware_platform_version has_vendor_device reference_label domain_type "
    "NVRAM secureboot_certificates_state"
)
"""Fields that every copy has from its source; those that are neither here nor below begin anew."""
_VBD_KEPT = names(
    "userdevice device bootable mode type unpluggable qos_algorithm_type qos_algorithm_params other_config"
)
_VIF_KEPT = names(
    "device network MTU other_config qos_algorithm_type qos_algorithm_params locking_mode ipv4_allowed ipv6_allowed "
    "ipv4_configuration_mode ipv4_addresses ipv4_gateway ipv6_configuration_mode ipv6_addresses ipv6_gateway trunks"
)
_VGPU_KEPT = names("device GPU_group type other_config compatibility_metadata")


@dataclass(frozen=True, slots=True)
class How:
    """One way of copying a VM. `message` is what happens to each disk."""

    operation: str
    message: str
    is_snapshot: bool = False
    memory: bool = True
    """Whether the memory of a suspended VM is copied too."""
    sr: Ref[SR] = NULL
    """Where the disks of a full copy go, null for where they are."""
    ignored: Collection[str] = ()
    """VDIs that are left out."""


CLONE = How("clone", "VDI.clone")
SNAPSHOT = How("snapshot", "VDI.snapshot", is_snapshot=True, memory=False)
CHECKPOINT = How("checkpoint", "VDI.snapshot", is_snapshot=True)


async def duplicate(
    work: Work,
    vm: VM,
    name: str,
    how: How,
    *,
    info: Mapping[str, str] | None = None,
    saved: Ref[VDI] = NULL,
) -> VM:
    """Return a new VM made from a claimed one. Whatever fails is undone. Raises Fault.

    `info` is the snapshot_info where it does not follow from the VM; `saved` a VDI with the VM's memory, which becomes
    the copy's own.
    """
    db = work.db
    vbds = [vbd for vbd in drives(db, vm) if vbd.VDI not in how.ignored]
    disks = [vbd for vbd in vbds if not vbd.empty and vbd.type != "CD"]
    memory = how.memory and saved == NULL and vm.suspend_VDI != NULL
    with making(work) as unfinished:
        made = await copy_disks(work, [vbd.VDI for vbd in disks], how, vm.suspend_VDI if memory else NULL)
        try:
            images = {vbd._ref: vdi for vbd, vdi in zip(disks, made, strict=False)}
            with db.atomic():
                state = _state(vm, how, saved)
                row = _row(work, vm, name, how, state, info)
                row.suspend_VDI = made[-1] if memory else saved
                for vbd in vbds:
                    copy_drive(db, row, vbd, images.get(vbd._ref, vbd.VDI), owned=True)
                copy_devices(db, vm, row, keep_macs=how.is_snapshot)
                if how.is_snapshot:
                    vm.parent = row._ref
                unfinished.done()
        except BaseException:
            await undo_all(work, "VDI.destroy", made)
            raise
    return row


def drives(db: Store, vm: VM) -> list[VBD]:
    """Return the VBDs of a VM."""
    return [db.VBD[ref] for ref in vm.VBDs]


async def copy_disks(work: Work, disks: list[Ref[VDI]], how: How, memory: Ref[VDI] = NULL) -> list[Ref[VDI]]:
    """Return new VDIs made from these, in their order; there are none when one fails. Raises Fault.

    `memory` is that of a suspended VM, null for none; its copy is the last one.
    """
    rows = [work.db.VDI[ref] for ref in disks]
    parts = [Part(how.message, _arguments(vdi, how), vdi.virtual_size) for vdi in rows]
    if memory != NULL:
        vdi = work.db.VDI[memory]
        parts.append(Part("VDI.copy", (vdi,), vdi.virtual_size, _copy_memory))
    return await all_of(work, parts, "VDI.destroy", until=ROWS) if parts else []


async def _copy_memory(work: Work, vdi: VDI) -> Ref[VDI]:
    return (await vdis.copy_suspend_image(work, vdi))._ref


def _arguments(vdi: VDI, how: How) -> tuple[object, ...]:
    if how.message == "VDI.copy":
        return (vdi._ref, vdi.SR if how.sr == NULL else how.sr, NULL, NULL)
    return (vdi._ref, {})


def _state(vm: VM, how: How, saved: str) -> enum_vm_power_state:
    """Return the power state of a copy. That of a snapshot with memory is clean: its guest needs nothing of it."""
    if how.operation == "checkpoint":
        return "Suspended" if saved != NULL or vm.power_state == "Suspended" else "Halted"
    return "Suspended" if how.memory and vm.power_state == "Suspended" else "Halted"


def _row(work: Work, vm: VM, name: str, how: How, state: enum_vm_power_state, info: Mapping[str, str] | None) -> VM:
    """Make the row of a copy, with its metrics. Under `atomic`."""
    db = work.db
    fields: dict[str, object] = {field: getattr(vm, field) for field in KEPT}
    if how.is_snapshot:
        fields |= {
            "is_a_snapshot": True,
            "snapshot_of": vm._ref,
            "snapshot_time": work.now,
            "snapshot_info": snapshot_info(vm) if info is None else info,
            "snapshot_metadata": saved_record.write(vm),
            "parent": vm.parent,
        }
    return db.VM.create(
        **fields,
        name_label=name,
        power_state=state,
        is_a_template=how.is_snapshot or vm.is_a_template,
        other_config=_other_config(db, vm, keep_seed=how.is_snapshot),
        generation_id=fresh_generation(vm.generation_id),
        domid=-1,
        metrics=copy_metrics(db, vm),
        guest_metrics=copy_guest_metrics(db, vm),
    )


def snapshot_info(vm: VM) -> dict[str, str]:
    """Return what a snapshot says of how it was made."""
    return {"disk-snapshot-type": "crash_consistent", "power-state-at-snapshot": vm.power_state}


def _other_config(db: Store, vm: VM, *, keep_seed: bool) -> dict[str, str]:
    kept = {key: value for key, value in vm.other_config.items() if key not in DROPPED_KEYS}
    if not keep_seed:
        kept[MAC_SEED] = db.uuids.draw(MAC_SEED)
    if vm.is_a_template:
        kept.setdefault(BASE_TEMPLATE, vm.name_label)
    return kept


def fresh_generation(now: str) -> str:
    """Return a new generation id in place of one; there is none where there was none."""
    return f"{secrets.randbits(62)}:{secrets.randbits(62)}" if now else ""


def copy_metrics(db: Store, vm: VM) -> Ref[VM_metrics]:
    """Make metrics like those of a VM, or empty ones if it has none. Under `atomic`."""
    row = db.VM_metrics.get(vm.metrics)
    return db.VM_metrics.create(**({"VCPUs_utilisation": {0: 0.0}} if row is None else _same(row)))._ref


def copy_guest_metrics(db: Store, vm: VM) -> Ref[VM_guest_metrics]:
    """Make guest metrics like those of a VM, or return null if it has none. Under `atomic`."""
    row = db.VM_guest_metrics.get(vm.guest_metrics)
    return NULL if row is None else db.VM_guest_metrics.create(**_same(row))._ref


def _same(row: Row) -> dict[str, object]:
    fields = row._table.cls.fields.values()
    return {field.name: getattr(row, field.name) for field in fields if not field.derived and field.name != "uuid"}


def copy_drive(db: Store, vm: VM, vbd: VBD, vdi: Ref[VDI], *, owned: bool = False) -> None:
    """Give a VM a drive like another VM's with an image of its own; with `owned` a disk goes with it."""
    fields: dict[str, object] = {field: getattr(vbd, field) for field in _VBD_KEPT}
    if owned and vbd.type == "Disk":
        fields["other_config"] = {OWNER: "", **vbd.other_config}
    db.VBD.create(
        **fields,
        VM=vm._ref,
        VDI=vdi,
        empty=vbd.empty or vdi == NULL,
        currently_attached=vbd.currently_attached and vm.power_state == "Suspended",
        metrics=db.VBD_metrics.create()._ref,
    )


def copy_devices(db: Store, source: VM, vm: VM, *, keep_macs: bool) -> None:
    """Give a VM cards, GPUs and TPMs like another's. Under `atomic`. Raises MAC_INVALID."""
    for ref in source.VIFs:
        _copy_card(db, vm, db.VIF[ref], keep_macs)
    for gpu in source.VGPUs:
        row = db.VGPU[gpu]
        fields = {field: getattr(row, field) for field in _VGPU_KEPT}
        attached = row.currently_attached and vm.power_state == "Suspended"
        db.VGPU.create(**fields, VM=vm._ref, currently_attached=attached)
    for tpm in source.VTPMs:
        _copy_tpm(db, vm, db.VTPM[tpm])


def _copy_card(db: Store, vm: VM, vif: VIF, keep_mac: bool) -> None:
    mac = vif.MAC if keep_mac else mac_address(vm.other_config[MAC_SEED], int(vif.device))
    if not is_mac(mac):
        raise errors.MAC_INVALID(mac)
    db.VIF.create(
        **{field: getattr(vif, field) for field in _VIF_KEPT},
        VM=vm._ref,
        MAC=mac,
        MAC_autogenerated=not keep_mac,
        currently_attached=vif.currently_attached and vm.power_state == "Suspended",
        metrics=db.VIF_metrics.create()._ref,
    )


def _copy_tpm(db: Store, vm: VM, tpm: VTPM) -> None:
    """Give a VM a TPM like another's; one that must be unique begins empty."""
    contents = db.secret.get(tpm.contents)
    value = "" if contents is None or tpm.is_unique else contents.value
    db.VTPM.create(
        VM=vm._ref,
        is_unique=tpm.is_unique,
        persistence_backend=tpm.persistence_backend,
        contents=db.secret.create(value=value)._ref,
    )


def delete_drive(db: Store, vbd: VBD) -> None:
    """Remove a VBD with its metrics. Under `atomic`."""
    _delete(db, "VBD_metrics", vbd.metrics)
    db.VBD.delete(vbd._ref)


def delete_devices(db: Store, vm: VM) -> None:
    """Remove a VM's cards, GPUs, USB devices and TPMs with what hangs on them. Under `atomic`."""
    for vif in list(vm.VIFs):
        forget_proxies(db, vif)
        networks.release(db, db.VIF[vif])
        _delete(db, "VIF_metrics", db.VIF[vif].metrics)
        db.VIF.delete(vif)
    for vgpu in list(vm.VGPUs):
        db.VGPU.delete(vgpu)
    for vusb in list(vm.VUSBs):
        db.VUSB.delete(vusb)
    for vtpm in list(vm.VTPMs):
        _delete(db, "secret", db.VTPM[vtpm].contents)
        db.VTPM.delete(vtpm)


def forget_proxies(db: Store, vif: str) -> None:
    """Remove the PVS proxies of a card. Under `atomic`."""
    for proxy in [row for row in db.PVS_proxy if vif == row.VIF]:
        db.PVS_proxy.delete(proxy._ref)


def delete_metrics(db: Store, vm: VM) -> None:
    """Remove a VM's metrics, its guest's too. Under `atomic`."""
    _delete(db, "VM_metrics", vm.metrics)
    _delete(db, "VM_guest_metrics", vm.guest_metrics)


def _delete(db: Store, table: str, ref: str) -> None:
    if ref in db.tables[table]:
        db.tables[table].delete(ref)
