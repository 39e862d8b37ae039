"""Messages of VM that change a setting by a rule: order and delays, domain type, BIOS strings, NVRAM, HA, groups."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from hypervisor.api import Change
from xapi.calls.call import Call
from xapi.calls.dispatch import Dispatcher
from xapi.calls.implicit import add_to_map_field, remove_from_map_field
from xapi.calls.registry import message
from xapi.datamodel import errors, records
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL, Ref
from xapi.hosts.availability import is_live
from xapi.vms.domains import xenstore
from xapi.vms.faults import told
from xapi.vms.placement import unseen_srs
from xapi.vms.power import backend

VM = Ref[records.VM]
BIOS_ORDER = "BIOS order"
"""The boot policy of every VM with firmware."""
VENDOR_DEVICE_PLATFORM = 2
"""The first version of the virtual hardware that has the vendor device."""
_LONGEST = 512
_SETTABLE = {
    "bios-vendor": "Xen", "bios-version": "", "system-manufacturer": "Xen", "system-product-name": "HVM domU",
    "system-version": "", "system-serial-number": "", "baseboard-manufacturer": "", "baseboard-product-name": "",
    "baseboard-version": "", "baseboard-serial-number": "", "baseboard-asset-tag": "",
    "baseboard-location-in-chassis": "", "enclosure-asset-tag": "",
}  # fmt: skip
"""The BIOS strings that may be set, with what they are otherwise."""
_FIXED = {"hp-rombios": "", "oem-1": "Xen", "oem-2": "MS_VM_CERT/SHA1/bdbeb6e0a816d43fa6d3fe8aaef04c2bad9d3e3d"}


# Order and delays


@message("VM.set_order")
def set_order(call: Call, self: VM, value: int) -> None:
    """Set when the VM starts among those of its appliance."""
    _set_natural(call, self, "order", value)


@message("VM.set_start_delay")
def set_start_delay(call: Call, self: VM, value: int) -> None:
    """Set how many seconds pass after the VM has started until those after it do."""
    _set_natural(call, self, "start_delay", value)


@message("VM.set_shutdown_delay")
def set_shutdown_delay(call: Call, self: VM, value: int) -> None:
    """Set how many seconds pass after the VM is down until those after it go down."""
    _set_natural(call, self, "shutdown_delay", value)


def _set_natural(call: Call, ref: VM, name: str, value: int) -> None:
    row = call.db.VM[ref]
    if value < 0:
        raise errors.INVALID_VALUE(f"{name} must be non-negative", str(value))
    setattr(row, name, value)


# What it is


@message("VM.set_domain_type")
def set_domain_type(call: Call, self: VM, value: records.enum_domain_type) -> None:
    """Set what the VM is when it starts next; the boot policy of old clients follows."""
    row = call.db.VM[self]
    if value == "unspecified":
        raise errors.INVALID_VALUE("domain_type", value)
    row.domain_type = value
    row.HVM_boot_policy = BIOS_ORDER if value == "hvm" else ""


@message("VM.set_HVM_boot_policy")
def set_HVM_boot_policy(call: Call, self: VM, value: str) -> None:
    """Set the boot policy as old clients do; the domain type follows."""
    row = call.db.VM[self]
    row.domain_type = "hvm" if value else "pv"
    row.HVM_boot_policy = value


@message("VM.set_actions_after_crash")
def set_actions_after_crash(call: Call, self: VM, value: records.enum_on_crash_behaviour) -> None:
    """Set what is done when the guest crashes; whether it can be is looked at when the VM starts."""
    call.db.VM[self].actions_after_crash = value


@message("VM.set_has_vendor_device")
def set_has_vendor_device(call: Call, self: VM, value: bool) -> None:
    """Give a halted VM the device by which Windows finds its drivers, or take it away."""
    row = call.db.VM[self]
    if row.power_state != "Halted":
        raise errors.VM_BAD_POWER_STATE(self, "halted", row.power_state.lower())
    row.has_vendor_device = value
    if value and row.hardware_platform_version < VENDOR_DEVICE_PLATFORM:
        row.hardware_platform_version = VENDOR_DEVICE_PLATFORM


@message("VM.set_xenstore_data")
async def set_xenstore_data(call: Call, self: VM, value: Mapping[str, str]) -> None:
    """Replace what the guest finds in xenstore below vm-data; one that runs finds it at once.

    A key that is no more stays there until the guest starts again.
    """
    row = call.db.VM[self]
    before, row.xenstore_data = row.xenstore_data, value
    if row.power_state != "Running" or row.is_control_domain:
        return
    keys = {key: text for key, text in xenstore(row).items() if not key.startswith("platform/")}
    try:
        with told(row):
            await backend(call, row).adjust(row.uuid, Change(xenstore=keys))
    except BaseException:
        if self in call.db.VM and row.xenstore_data == value:
            row.xenstore_data = before
        raise


# BIOS strings


@message("VM.set_bios_strings")
def set_bios_strings(call: Call, self: VM, value: Mapping[str, str]) -> None:
    """Set the BIOS strings of a VM that has none yet; those not given are generic."""
    row = call.db.VM[self]
    if row.bios_strings:
        raise errors.VM_BIOS_STRINGS_ALREADY_SET()
    for key, text in value.items():
        if key not in _SETTABLE:
            raise errors.INVALID_VALUE(key, "Unknown key")
        if not text:
            raise errors.INVALID_VALUE(key, "Value provided is empty")
        if len(text.encode()) > _LONGEST:
            raise errors.INVALID_VALUE(key, f"{text} has length more than {_LONGEST} characters")
        if not (text.isascii() and text.isprintable()):
            raise errors.INVALID_VALUE(key, f"{text} has non-printable ASCII characters")
    row.bios_strings = {**_SETTABLE, **_FIXED, **value}


@message("VM.copy_bios_strings")
def copy_bios_strings(call: Call, vm: VM, host: Ref[records.host]) -> None:
    """Give a VM that has none the BIOS strings of a host, and prefer that host."""
    row, source = call.db.VM[vm], call.db.host[host]
    if row.bios_strings:
        raise errors.VM_BIOS_STRINGS_ALREADY_SET()
    row.bios_strings, row.affinity = source.bios_strings, host


# NVRAM and secure boot


@message("VM.set_NVRAM")
async def set_NVRAM(call: Call, self: VM, value: Mapping[str, str]) -> None:
    """Replace what the firmware keeps of a halted VM."""
    row = call.db.VM[self]
    row.NVRAM = value


@message("VM.add_to_NVRAM")
async def add_to_NVRAM(call: Call, self: VM, key: str, value: str) -> None:
    """Add a key to what the firmware keeps of a halted VM."""
    add_to_map_field(call.db.VM, self, "NVRAM", key, value)


@message("VM.remove_from_NVRAM")
async def remove_from_NVRAM(call: Call, self: VM, key: str) -> None:
    """Remove a key, if it is there, from what the firmware keeps of a halted VM."""
    remove_from_map_field(call.db.VM, self, "NVRAM", key)


@message("VM.update_secureboot_certificates_on_boot")
def update_secureboot_certificates_on_boot(call: Call, self: VM, mark: bool) -> None:
    """Have the certificates for secure boot brought up to date at the next start, or not."""
    row = call.db.VM[self]
    if row.secureboot_certificates_state not in ("update_available", "update_on_boot"):
        doing = "set" if mark else "clear"
        raise errors.OPERATION_NOT_ALLOWED(
            f"Cannot {doing} update_on_boot: VM.secureboot_certificates_state is not in a valid state"
        )
    row.secureboot_certificates_state = "update_on_boot" if mark else "update_available"


# High availability, groups, appliances, schedules


@message("VM.set_ha_restart_priority")
def set_ha_restart_priority(call: Call, self: VM, value: str) -> None:
    """Say whether the VM is started again when its host is lost."""
    row = call.db.VM[self]
    if value not in ("restart", "best-effort", ""):
        raise errors.INVALID_VALUE("ha_restart_priority", value)
    if row.ha_restart_priority != value:
        row.ha_restart_priority = value
        if row.power_state == "Running":
            row.ha_always_run = value == "restart"


@message("VM.set_ha_always_run")
def set_ha_always_run(call: Call, self: VM, value: bool) -> None:
    """Say the same as very old clients do."""
    set_ha_restart_priority(call, self, "restart" if value else "")


@message("VM.set_groups")
def set_groups(call: Call, self: VM, value: tuple[Ref[records.VM_group], ...]) -> None:
    """Put the VM into a group, of which it may have one."""
    row = call.db.VM[self]
    if row.is_control_domain or row.is_a_template or row.is_a_snapshot:
        raise errors.OPERATION_NOT_ALLOWED("Control domains, templates, and snapshots cannot be added to VM groups.")
    if len(value) > 1:
        raise errors.TOO_MANY_GROUPS()
    for ref in value:
        _ = call.db.VM_group[ref]
    row.groups = value


@message("VM.set_appliance")
def set_appliance(call: Call, self: VM, value: Ref[records.VM_appliance]) -> None:
    """Make the VM a part of an appliance, or, with null, of none."""
    row = call.db.VM[self]
    if row.is_control_domain or row.is_a_template or row.is_a_snapshot:
        raise errors.OPERATION_NOT_ALLOWED("Control domains, templates and snapshots cannot be assigned to appliances.")
    row.appliance = value


@message("VM.set_snapshot_schedule")
def set_snapshot_schedule(call: Call, self: VM, value: Ref[records.VMSS]) -> None:
    """Put the VM under a schedule of snapshots, or, with null, under none."""
    row = call.db.VM[self]
    if value in (NULL, ""):
        row.snapshot_schedule = NULL
        return
    schedule = call.db.VMSS.get(value)
    if schedule is None or row.is_control_domain:
        raise Fault("INVALID_VALUE", value)
    if row.is_a_template:
        raise errors.VM_IS_TEMPLATE(self, "set_snapshot_schedule")
    if schedule.type == "snapshot_with_quiesce":
        raise errors.VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED(self)
    row.snapshot_schedule = value


# The image of a suspended VM


@message("VM.set_suspend_VDI")
async def set_suspend_VDI(call: Call, self: VM, value: Ref[records.VDI]) -> None:
    """Have a suspended VM resume from another image, which must be the same byte for byte."""
    row, image = call.db.VM[self], call.db.VDI[value]
    if row.power_state != "Suspended":
        raise errors.VM_BAD_POWER_STATE(self, "suspended", row.power_state.lower())
    if image.type == "cbt_metadata":
        raise errors.VDI_INCOMPATIBLE_TYPE(self, image.type)
    if row.suspend_VDI == value:
        return
    needed = [call.db.VDI[vbd.VDI].SR for ref in row.VBDs if not (vbd := call.db.VBD[ref]).empty]
    if not any(is_live(call.db, host) and not unseen_srs(call.db, host, [*needed, image.SR]) for host in call.db.host):
        raise errors.NO_HOSTS_AVAILABLE()
    old = call.db.VDI[row.suspend_VDI]
    sums = [await _checksum(call, vdi) for vdi in (old, image)]
    if sums[0] != sums[1]:
        pairs = [f"{vdi.uuid} : {found}" for vdi, found in zip((old, image), sums, strict=True)]
        raise errors.SUSPEND_VDI_REPLACEMENT_IS_NOT_IDENTICAL(*pairs)
    row.suspend_VDI = value


async def _checksum(call: Call, vdi: records.VDI) -> str:
    """Return the checksum of an image, by the message of VDI."""
    found = call[Dispatcher].methods["VDI.checksum"].function(call, vdi._ref)
    return str(await found if inspect.isawaitable(found) else found)
