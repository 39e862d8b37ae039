"""Messages of VM that only keep settings; what acts on a hypervisor comes with it."""

from __future__ import annotations

from collections.abc import Mapping

from xapi.calls.call import Call
from xapi.calls.implicit import add_to_map_field, remove_from_map_field
from xapi.calls.registry import message
from xapi.datamodel import records
from xapi.datamodel.types import Ref

VM = Ref[records.VM]


@message("VM.set_other_config")
def set_other_config(call: Call, self: VM, value: Mapping[str, str]) -> None:
    """Replace the map; keys with a role of their own ask for it."""
    row = call.db.VM[self]
    call.require_keys("other_config", row.other_config, value)
    row.other_config = value


@message("VM.add_to_other_config")
def add_to_other_config(call: Call, self: VM, key: str, value: str) -> None:
    """Add a new key."""
    add_to_map_field(call.db.VM, self, "other_config", key, value)


@message("VM.remove_from_other_config")
def remove_from_other_config(call: Call, self: VM, key: str) -> None:
    """Remove a key, if it is there."""
    remove_from_map_field(call.db.VM, self, "other_config", key)


@message("VM.set_platform")
def set_platform(call: Call, self: VM, value: Mapping[str, str]) -> None:
    """Replace the settings of the virtual machine's platform; keys with a role of their own ask for it."""
    row = call.db.VM[self]
    call.require_keys("platform", row.platform, value)
    row.platform = value


@message("VM.add_to_platform")
def add_to_platform(call: Call, self: VM, key: str, value: str) -> None:
    """Add a new key."""
    add_to_map_field(call.db.VM, self, "platform", key, value)


@message("VM.remove_from_platform")
def remove_from_platform(call: Call, self: VM, key: str) -> None:
    """Remove a key, if it is there."""
    remove_from_map_field(call.db.VM, self, "platform", key)


@message("VM.set_blocked_operations")
def set_blocked_operations(call: Call, self: VM, value: Mapping[records.enum_vm_operations, str]) -> None:
    """Say which operations are refused, and why."""
    call.db.VM[self].blocked_operations = value


@message("VM.add_to_blocked_operations")
def add_to_blocked_operations(call: Call, self: VM, key: records.enum_vm_operations, value: str) -> None:
    """Refuse one more operation."""
    add_to_map_field(call.db.VM, self, "blocked_operations", key, value)


@message("VM.remove_from_blocked_operations")
def remove_from_blocked_operations(call: Call, self: VM, key: records.enum_vm_operations) -> None:
    """Allow an operation again."""
    remove_from_map_field(call.db.VM, self, "blocked_operations", key)
