"""Messages of network."""

from __future__ import annotations

from collections.abc import Mapping

from xapi.calls.call import Call
from xapi.calls.registry import message
from xapi.classes import vif
from xapi.datamodel import errors, records
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import Ref
from xapi.networks import networks
from xapi.networks.networks import Networks

Network = Ref[records.network]
Host = Ref[records.host]
VM = Ref[records.VM]
_RESERVED = ("xen", "xapi", "vif", "tap", "eth")
"""How no bridge begins that a client names."""
_LONGEST = 15
"""Characters of a Linux interface's name."""
_DEFAULT_MTU = 1500
_CONFLICTS = {"nbd": "insecure_nbd", "insecure_nbd": "nbd"}


@message("network.create")
def create(call: Call, args: records.network_record) -> Network:
    """Make a network; without a bridge's name it has the next that is free."""
    db = call.db
    bridges: set[str] = {network.bridge for network in db.network}
    bridge = args.get("bridge", "")
    if not bridge:
        bridge = next(name for name in (f"xapi{number}" for number in range(len(bridges) + 1)) if name not in bridges)
    elif not call.caller.client.pool and (len(bridge) > _LONGEST or bridge.startswith(_RESERVED)):
        raise errors.INVALID_VALUE("bridge", bridge)
    if bridge in bridges:
        raise errors.BRIDGE_NAME_EXISTS(bridge)
    mtu = args.get("MTU", _DEFAULT_MTU)
    fields = {name: value for name, value in args.items() if name in _COPIED}
    return db.network.create(**fields, bridge=bridge, MTU=mtu if mtu > 0 else _DEFAULT_MTU)._ref


_COPIED = ("name_label", "name_description", "other_config", "managed", "tags")


@message("network.pool_introduce")
def pool_introduce(
    call: Call,
    name_label: str,
    name_description: str,
    MTU: int,
    other_config: Mapping[str, str],
    bridge: str,
    managed: bool,
    purpose: tuple[records.enum_network_purpose, ...],
) -> Network:
    """Make the record of a network that a host brings along as it joins."""
    return call.db.network.create(
        name_label=name_label,
        name_description=name_description,
        MTU=MTU,
        other_config=other_config,
        bridge=bridge,
        managed=managed,
        purpose=purpose,
    )._ref


@message("network.destroy")
def destroy(call: Call, self: Network) -> None:
    """Remove a network that nothing is plugged into, with the cards that would be."""
    db = call.db
    row = db.network[self]
    cards = [db.VIF[ref] for ref in row.VIFs]
    used = [card._ref for card in cards if card.currently_attached or card.reserved or card.current_operations]
    if used:
        raise Fault("NETWORK_CONTAINS_VIF", *used)
    if row.PIFs:
        raise Fault("NETWORK_CONTAINS_PIF", *row.PIFs)
    if row.other_config.get(networks.INTERNAL, "").lower() == "true":
        raise errors.CANNOT_DESTROY_SYSTEM_NETWORK(self)
    for card in cards:
        vif.remove(call, card)
    db.network.delete(self)


@message("network.set_default_locking_mode")
def set_default_locking_mode(call: Call, network: Network, value: records.enum_network_default_locking_mode) -> None:
    """Say what cards are held to whose own mode is network_default; refused while one is plugged."""
    row = call.db.network[network]
    for ref in row.VIFs:
        if call.db.VIF[ref].currently_attached:
            raise errors.VIF_IN_USE(network, ref)
    row.default_locking_mode = value


@message("network.add_purpose")
def add_purpose(call: Call, self: Network, value: records.enum_network_purpose) -> None:
    """Give a network one more purpose; one pool has no two that contradict each other."""
    row = call.db.network[self]
    if not row.managed:
        raise errors.NETWORK_UNMANAGED(self)
    if value in row.purpose:
        return
    conflicting = _CONFLICTS.get(value)
    if any(conflicting in other.purpose for other in call.db.network):
        raise errors.NETWORK_INCOMPATIBLE_PURPOSES(value, str(conflicting))
    row.purpose = (value, *row.purpose)


@message("network.remove_purpose")
def remove_purpose(call: Call, self: Network, value: records.enum_network_purpose) -> None:
    """Take a purpose from a network."""
    row = call.db.network[self]
    row.purpose = tuple(purpose for purpose in row.purpose if purpose != value)


# On a host


@message("network.attach")
async def attach(call: Call, network: Network, host: Host) -> None:
    """Have a network on a host."""
    await call[Networks].bring_up(call.db.host[host], [call.db.network[network]])


@message("network.attach_for_vm")
async def attach_for_vm(call: Call, host: Host, vm: VM) -> None:
    """Have the networks of a VM on a host."""
    await call[Networks].join(call.db.host[host], [call.db.VIF[ref] for ref in call.db.VM[vm].VIFs])


@message("network.detach_for_vm")
async def detach_for_vm(call: Call, host: Host, vm: VM) -> None:
    """Do without the networks of a VM on a host: an emulated switch without cards costs nothing, and stays."""
    call.db.host[host], call.db.VM[vm]
