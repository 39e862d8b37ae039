"""What a guest says of itself in xenstore, as VM_guest_metrics tells it; the keys are xapi's (xapi_guest_agent.ml)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from xapi.datamodel.types import NULL

if TYPE_CHECKING:
    from xapi.datamodel.records import VM
    from xapi.store.memory import Store

_DRIVERS = {f"attr/PVAddons/{key}Version": key.lower() for key in ("Major", "Minor", "Micro", "Build")}
_OS = {f"data/os_{key}": key for key in ("name", "uname", "distro")}
_OS |= {"data/os_majorver": "major", "data/os_minorver": "minor"}
_OS |= {"attr/os/spmajor": "spmajor", "attr/os/spminor": "spminor"}
_MEMORY = {"data/meminfo_free": "free", "data/meminfo_total": "total"}
_NEW_ADDRESS = re.compile(r"attr/vif/(\d+)/(ipv[46])/(\d+)")
_OLD_ADDRESS = re.compile(r"attr/(?:eth|xenbr|eno|ens|emp|enx)(\w+)/(?:(ip)|ipv6/(\d+)/addr)")
_TRISTATE = {"0": "no", "1": "yes"}


def update(db: Store, vm: VM, said: Mapping[str, str], now: datetime) -> None:
    """Write what the guest of a VM that lives says; an object is made when there is none. Under `atomic`."""
    fields: dict[str, object] = {
        "PV_drivers_version": drivers(said),
        "os_version": _pick(said, _OS),
        "netbios_name": host_name(said),
        "networks": networks(said),
        "memory": _pick(said, _MEMORY),
        "services": {key[13:]: value for key, value in said.items() if key.startswith("data/service/")},
        "other": other(said),
        "can_use_hotplug_vbd": _TRISTATE.get(said.get("feature/hotplug/vbd", ""), "unspecified"),
        "can_use_hotplug_vif": _TRISTATE.get(said.get("feature/hotplug/vif", ""), "unspecified"),
    }
    fields["PV_drivers_detected"] = fields["PV_drivers_up_to_date"] = bool(fields["PV_drivers_version"])
    row = db.VM_guest_metrics.get(vm.guest_metrics)
    if row is None:
        vm.guest_metrics = db.VM_guest_metrics.create(**fields, live=True, last_updated=now)._ref
    elif not row.live or any(getattr(row, name) != value for name, value in fields.items()):
        for name, value in fields.items():
            setattr(row, name, value)
        row.live, row.last_updated = True, now


def forget(db: Store, vm: VM) -> None:
    """Drop what an earlier guest of the VM said. Under `atomic`."""
    if vm.guest_metrics in db.VM_guest_metrics:
        db.VM_guest_metrics.delete(vm.guest_metrics)
    vm.guest_metrics = NULL


def _pick(said: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    return {name: said[key] for key, name in names.items() if key in said}


def drivers(said: Mapping[str, str]) -> dict[str, str]:
    """Return the versions of the PV drivers; an agent that tells no micro version has -1."""
    found = _pick(said, _DRIVERS)
    for key, value in said.items():
        words = value.split()
        if key.startswith("drivers/") and key[8:].isdecimal() and len(words) >= 3:
            found[words[1].lower()] = " ".join([words[0], *words[2:]])
    return {"micro": "-1", **found} if found else {}


def host_name(said: Mapping[str, str]) -> dict[str, str]:
    """Return the guest's name, with its domain if it has one."""
    name, domain = said.get("data/host_name_dns"), said.get("data/domain")
    if name is None:
        return {}
    return {"host_name": f"{name}.{domain}" if domain else name}


def networks(said: Mapping[str, str]) -> dict[str, str]:
    """Return addresses by card, as ``0/ip``, ``0/ipv4/0`` and ``0/ipv6/0``; the newer keys win over the older."""
    found: dict[str, str] = {}
    for key, value in sorted(said.items()):
        if (match := _NEW_ADDRESS.fullmatch(key)) is not None:
            card, version, number = match.groups()
            found[f"{card}/{version}/{number}"] = value
            if version == "ipv4":
                found.setdefault(f"{card}/ip", value)
    if found:
        return found
    for key, value in sorted(said.items()):
        if (match := _OLD_ADDRESS.fullmatch(key)) is not None:
            card, is_ipv4, number = match.groups()
            names = (f"{card}/ip", f"{card}/ipv4/0") if is_ipv4 else (f"{card}/ipv6/{number}",)
            found |= dict.fromkeys(names, value)
    return found


def other(said: Mapping[str, str]) -> dict[str, str]:
    """Return the features that the guest announces, and why it cannot be suspended if it says so."""
    found = {key[8:]: value for key, value in said.items() if key.startswith("control/feature-")}
    reason = said.get("data/cant_suspend_reason")
    if reason is not None and found.pop("feature-suspend", None) is not None:
        found["data-cant-suspend-reason"] = reason
    if "data/ts" in said:
        found["data-ts"] = said["data/ts"]
    return found
