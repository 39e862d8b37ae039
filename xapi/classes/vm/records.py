"""Messages of VM that make and remove its record, and turn it from a template into a VM and back."""

from __future__ import annotations

import uuid

from xapi.calls.call import Call
from xapi.calls.claim import claim, declared
from xapi.calls.implicit import constructor_fields
from xapi.calls.registry import message
from xapi.datamodel import errors, records
from xapi.datamodel.types import NULL, Ref
from xapi.storage.unfinished import making
from xapi.vms import provision
from xapi.vms.copies import (
    DEFAULT_TEMPLATE,
    MAC_SEED,
    delete_devices,
    delete_drive,
    delete_metrics,
    drives,
    forget_proxies,
)

VM = Ref[records.VM]

IGNORED = frozenset(
    {"blocked_operations", "protection_policy", "is_snapshot_from_vmpp", "snapshot_schedule", "is_vmss_snapshot"}
)
"""What clients may send to VM.create, and nobody reads."""
OF_SUSPENDED = ("suspend_VDI", "last_booted_record", "last_boot_CPU_flags")
"""What a VM that is made suspended must have; no other one has it."""
VENDOR_DEVICE_VERSION = 2
"""The hardware_platform_version that has_vendor_device asks for."""


@message("VM.create")
def create(call: Call, args: records.VM_record) -> VM:
    """Make a VM: only a record, whose settings are looked at when it starts."""
    db = call.db
    known = constructor_fields(db.VM)
    fields = {name: value for name, value in args.items() if name in known and name not in IGNORED}
    fields.pop("power_state", None)
    state = args.get("power_state", "Halted")
    _check_suspended(fields, state)
    kind = args.get("domain_type", "unspecified")
    metrics = db.VM_metrics.create(
        VCPUs_utilisation={0: 0.0}, current_domain_type=kind if state == "Suspended" else "unspecified"
    )
    if kind == "unspecified":
        fields["domain_type"] = "hvm" if args["HVM_boot_policy"] else "pv"
    fields["other_config"] = {MAC_SEED: db.uuids.draw(MAC_SEED), **args["other_config"]}
    row = db.VM.create(
        **fields, power_state="Suspended" if state == "Suspended" else "Halted", metrics=metrics._ref, domid=-1
    )
    if row.has_vendor_device:
        row.hardware_platform_version = max(row.hardware_platform_version, VENDOR_DEVICE_VERSION)
    made: VM = row._ref
    return made


def _check_suspended(fields: dict[str, object], state: str) -> None:
    """Take away what only a suspended VM has. Raises VM_BAD_POWER_STATE when such a one lacks it."""
    given = [fields.get(name) for name in OF_SUSPENDED]
    if state != "Suspended":
        for name in OF_SUSPENDED:
            fields.pop(name, None)
    elif not all(given) or NULL in given:
        raise errors.VM_BAD_POWER_STATE(f"OpaqueRef:{uuid.uuid4()}", "halted", "suspended")


@message("VM.destroy")
async def destroy(call: Call, self: VM) -> None:
    """Remove a VM's record and those of its devices; its disks stay."""
    db, row = call.db, call.db.VM[self]
    async with claim(call, "destroy", row):
        with db.atomic():
            for child in list(row.children):
                db.VM[child].parent = row.parent
            for blob in row.blobs.values():
                if blob in db.blob:
                    db.blob.delete(blob)
            if row.other_config.get(DEFAULT_TEMPLATE) == "true":
                raise errors.VM_CANNOT_DELETE_DEFAULT_TEMPLATE(self)
            for vbd in drives(db, row):
                delete_drive(db, vbd)
            delete_devices(db, row)
            delete_metrics(db, row)
            for pci in list(row.attached_PCIs):
                db.PCI[pci].attached_VMs = tuple(other for other in db.PCI[pci].attached_VMs if other != self)
            for console in list(row.consoles):
                db.console.delete(console)
            db.VM.delete(self)


@message("VM.set_is_a_template")
async def set_is_a_template(call: Call, self: VM, value: bool) -> None:
    """Make a halted VM a template, or a template a VM."""
    row = call.db.VM[self]
    if not value:
        with call.db.atomic():
            _install(call, row)
        return
    async with claim(call, "make_into_template", row):
        with call.db.atomic():
            _make_template(call, row)


def _install(call: Call, row: records.VM) -> None:
    """Make a template a VM, which is its installation. Under `atomic`."""
    metrics = call.db.VM_metrics.get(row.metrics)
    if metrics is not None:
        metrics.install_time = call.now
    row.is_a_template = False


def _make_template(call: Call, row: records.VM) -> None:
    """Make a halted VM a template: without what only VMs have. Under `atomic`. Raises VM_IS_PROTECTED."""
    db = call.db
    if call.pool.ha_enabled and row.ha_always_run and row.ha_restart_priority == "restart":
        raise errors.VM_IS_PROTECTED(row._ref)
    row.ha_always_run = False
    for vusb in list(row.VUSBs):
        db.VUSB.delete(vusb)
    for vif in list(row.VIFs):
        forget_proxies(db, vif)
    row.groups = ()
    if row.metrics in db.VM_metrics:
        db.VM_metrics.delete(row.metrics)
    row.metrics = NULL
    row.is_a_template = True


@message("VM.set_is_default_template", claims_itself=True)
async def set_is_default_template(call: Call, vm: VM, value: bool) -> None:
    """Make a VM or a template one that comes with the toolstack, or take that from it."""
    row = call.db.VM[vm]
    if value and not row.is_a_template:
        async with declared(call, row):
            with call.db.atomic():
                _make_template(call, row)
                _set_default(row, value)
        return
    with call.db.atomic():
        _set_default(row, value)


def _set_default(row: records.VM, value: bool) -> None:
    row.other_config = {**row.other_config, DEFAULT_TEMPLATE: "true" if value else "false"}
    row.is_default_template = value


@message("VM.provision")
async def provision_(call: Call, vm: VM) -> None:
    """Make a template a VM, with the disks that it asks for. A failure leaves it a template without them."""
    db, row = call.db, call.db.VM[vm]
    config = row.other_config
    disks = provision.wanted_disks(config[provision.DISKS]) if provision.DISKS in config else []
    for disk in disks:
        provision.sr_of(call, disk)
    if provision.SCRIPT in config:
        raise errors.PERMISSION_DENIED(f"illegal provision script {config[provision.SCRIPT]}")
    with making(call) as unfinished:
        if disks:
            await provision.make_disks(call, row, disks)
        kept = {key: value for key, value in row.other_config.items() if key != provision.DISKS}
        with db.atomic():
            _install(call, row)
            row.other_config = kept
            unfinished.done()
