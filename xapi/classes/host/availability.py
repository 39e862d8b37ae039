"""Messages of host: whether it takes VMs, and its settings."""

from __future__ import annotations

from collections.abc import Mapping

from xapi.calls.call import Call
from xapi.calls.claim import SHORT
from xapi.calls.registry import message
from xapi.datamodel import errors, records
from xapi.datamodel.types import Ref
from xapi.hosts import availability
from xapi.hosts.plugins import Plugins
from xapi.storage.device_config import forget_secrets
from xapi.vms import evacuation

Host = Ref[records.host]
PIF = Ref[records.PIF]
VM = Ref[records.VM]
Reasons = Mapping[VM, tuple[str, ...]]
_POWER_ON = "power-on-host"
"""The plugin that switches a host on."""


# Whether it takes VMs


@message("host.disable")
def disable(call: Call, host: Host, auto_enable: bool) -> None:
    """Have a host take no more VMs; those that are there stay."""
    row = call.db.host[host]
    availability.assert_live(call.db, row)
    availability.disable(row, auto_enable=auto_enable)


@message("host.enable", patience=SHORT)
async def enable(call: Call, host: Host) -> None:
    """Have a host take VMs again."""
    row = call.db.host[host]
    availability.assert_live(call.db, row)
    with call.db.atomic():
        availability.enable(row)


@message("host.get_vms_which_prevent_evacuation")
def get_vms_which_prevent_evacuation(call: Call, self: Host) -> Reasons:
    """Return the guests of a host that cannot go to another one, each with the error."""
    reasons = evacuation.staying(call.db, call.db.host[self])
    return {vm: tuple(fault.description) for vm, fault in reasons.items()}  # type: ignore[misc]


@message("host.assert_can_evacuate")
def assert_can_evacuate(call: Call, host: Host) -> None:
    """Raise CANNOT_EVACUATE_HOST when a guest cannot leave."""
    reasons = evacuation.staying(call.db, call.db.host[host]).values()
    if reasons:
        raise errors.CANNOT_EVACUATE_HOST("|".join(",".join(fault.description) for fault in reasons))


@message("host.get_uncooperative_resident_VMs", "host.get_uncooperative_domains")
def get_uncooperative(call: Call, self: Host) -> tuple[VM, ...]:
    """Return nothing, as xapi does: it no longer watches how balloons behave."""
    _ = call.db.host[self]
    return ()


# Settings


@message("host.set_hostname_live")
def set_hostname_live(call: Call, host: Host, hostname: str) -> None:
    """Give a host another name."""
    availability.rename(call.db, call.db.host[host], hostname)


@message("host.get_management_interface")
def get_management_interface(call: Call, host: Host) -> PIF:
    """Return the card by which a host is reached."""
    for ref in call.db.host[host].PIFs:
        if call.db.PIF[ref].management:
            return ref
    raise errors.INTERNAL_ERROR("Not_found")


@message("host.set_iscsi_iqn")
def set_iscsi_iqn(call: Call, host: Host, value: str) -> None:
    """Say by which name a host introduces itself to iSCSI targets."""
    if not value:
        raise errors.INVALID_VALUE("value", value)
    row = call.db.host[host]
    row.iscsi_iqn, row.other_config = value, {**row.other_config, "iscsi_iqn": value}


@message("host.set_multipathing")
def set_multipathing(call: Call, host: Host, value: bool) -> None:
    """Say whether a host is to use several paths to block storage; of ours there is one to each."""
    row = call.db.host[host]
    row.multipathing, row.other_config = value, {**row.other_config, "multipathing": str(value).lower()}


@message("host.set_power_on_mode")
def set_power_on_mode(call: Call, self: Host, power_on_mode: str, power_on_config: Mapping[str, str]) -> None:
    """Say how a host is switched on; secrets that only the old settings name go with them."""
    row = call.db.host[self]
    kept = set(power_on_config.values())
    forget_secrets(call.db, {key: value for key, value in row.power_on_config.items() if value not in kept})
    row.power_on_mode, row.power_on_config = power_on_mode, power_on_config


@message("host.power_on")
async def power_on(call: Call, host: Host) -> None:
    """Have a plugin switch a host on that is not there."""
    row = call.db.host[host]
    answer = await call[Plugins].call(_POWER_ON, "main", call.caller.session_ref, {"remote_host_uuid": row.uuid})
    if answer != "True":
        raise errors.INTERNAL_ERROR("The host failed to power on.")


@message("host.get_sched_gran")
def get_sched_gran(call: Call, self: Host) -> str:
    """Return what is scheduled together: nothing beyond one vCPU."""
    _ = call.db.host[self]
    return "cpu"


@message("host.set_sched_gran")
def set_sched_gran(call: Call, self: Host, value: str) -> None:
    """Refuse, as xapi does unless its configuration allows it."""
    _ = call.db.host[self]
    raise errors.OPERATION_NOT_ALLOWED("Disabled by xapi.conf")


@message("host.set_ssl_legacy")
def set_ssl_legacy(call: Call, self: Host, value: bool) -> None:
    """Refuse to serve old kinds of TLS; not to is how it is."""
    _ = call.db.host[self]
    if value:
        raise errors.VALUE_NOT_SUPPORTED("value", "true", "Legacy SSL support has been removed")


@message("host.set_uefi_certificates")
def set_uefi_certificates(call: Call, host: Host, value: str) -> None:
    """Refuse: the pool has them."""
    _ = call.db.host[host]
    raise errors.OPERATION_NOT_ALLOWED("To set UEFI certificates use: `Pool.set_custom_uefi_certificates`")
