"""What the devices of a VM have to know of it: its state, and whether its guest can follow a hot plug."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from xapi.datamodel import errors

if TYPE_CHECKING:
    from xapi.datamodel.errors import Fault
    from xapi.datamodel.records import VM, VM_guest_metrics
    from xapi.store.memory import Store

STOPPING = frozenset({"clean_shutdown", "hard_shutdown", "suspend", "pause"})
"""VM operations during which no device is plugged or unplugged."""

_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)


class Guest(NamedTuple):
    """A VM as its devices see it."""

    state: str
    stopping: str
    """The operation that is about to stop it, or ''."""
    hotplug: str
    """For a running HVM guest: can, cannot, or drivers (that it lacks); '' for all others."""


ABSENT = Guest("Halted", "", "")
"""How a VM looks that does not exist."""


def look(db: Store, vm: VM | None, device: Literal["vbd", "vif", ""]) -> Guest:
    """Return what matters of a VM to one of its devices; '' is for devices that need no drivers."""
    if vm is None:
        return ABSENT
    stopping = ""
    if vm.current_operations:
        stopping = next((operation for operation in vm.current_operations.values() if operation in STOPPING), "")
    hotplug = ""
    if vm.power_state == "Running" and device:
        metrics = db.VM_metrics.get(vm.metrics)
        if metrics is not None and metrics.current_domain_type == "hvm":
            hotplug = _hotplug(db.VM_guest_metrics.get(vm.guest_metrics), device)
    return Guest(vm.power_state, stopping, hotplug)


def _hotplug(guest: VM_guest_metrics | None, device: Literal["vbd", "vif"]) -> str:
    if guest is None:
        return "drivers"
    claim = guest.can_use_hotplug_vbd if device == "vbd" else guest.can_use_hotplug_vif
    if claim == "unspecified":
        return "can" if guest.PV_drivers_detected or has_drivers(guest.PV_drivers_version) else "drivers"
    return "can" if claim == "yes" else "cannot"


def has_drivers(version: Mapping[str, str]) -> bool:
    """Tell whether the guest has told an integer major and minor version of its PV drivers."""
    return all(_INTEGER.fullmatch(version.get(part, "")) for part in ("major", "minor"))


def refuse_unless_running(guest: Guest, vm: str) -> Fault | None:
    """Refuse to plug or unplug a device of a VM that does not run."""
    if guest.state == "Running":
        return None
    return errors.VM_BAD_POWER_STATE(vm, "running", guest.state.lower())


def refuse_while_stopping(guest: Guest, vm: str) -> Fault | None:
    """Refuse to plug or unplug a device of a VM that is about to stop."""
    if not guest.stopping:
        return None
    return errors.OPERATION_NOT_ALLOWED(f"Current operation on VM:{vm} is {guest.stopping}")


def refuse_without_hotplug(guest: Guest, vm: str, device: str) -> Fault | None:
    """Refuse to plug or unplug a device where the guest cannot take part."""
    if guest.hotplug == "cannot":
        return errors.OPERATION_NOT_ALLOWED(f"VM states it does not support {device} hotplug.")
    return errors.VM_MISSING_PV_DRIVERS(vm) if guest.hotplug == "drivers" else None
