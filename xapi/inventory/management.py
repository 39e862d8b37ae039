"""The coordinator's address in its rows: that at which this daemon is reached, and not what a pool began with.

Other hosts of a pool keep the addresses that they were declared with: nothing listens there.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Network, ip_address

from xapi.datamodel import records
from xapi.hosts import addresses
from xapi.hosts.addresses import Interface
from xapi.store.memory import Store
from xapi.store.rows import Row


def reached_at(
    store: Store,
    address: str,
    listening: str,
    *,
    interface: Callable[[str], Interface | None] = addresses.interface,
    gateway: Callable[[Interface], str] = addresses.gateway,
) -> None:
    """Have the coordinator and its management card say where the daemon is reached: at an address or by a name.

    The card has the address itself, or, where that is none of this machine's, the one that is listened at.
    """
    host = store.host[next(iter(store.pool)).master]
    with store.atomic():
        _write(host, address=address)
        for ref in host.PIFs:
            pif = store.PIF[ref]
            if pif.management:
                own = (interface(address) if _is_address(address) else None) or interface(listening)
                _write(pif, **_settings(pif, own, listening, gateway))


def _settings(
    pif: records.PIF, own: Interface | None, listening: str, gateway: Callable[[Interface], str]
) -> dict[str, object]:
    """Return what a card says of an address; what a declaration says beside the same address stays."""
    ip = listening if own is None else own.address
    if ":" in ip:
        prefix = 128 if own is None else own.prefix
        return {
            "IPv6": (f"{ip}/{prefix}",),
            "ipv6_configuration_mode": "Static",
            "ipv6_gateway": "" if own is None else gateway(own),
            "primary_address_type": "IPv6",
            "ip_configuration_mode": "None",
            **dict.fromkeys(("IP", "netmask", "gateway"), ""),
        }
    common: dict[str, object] = {
        "IPv6": (),
        "ipv6_configuration_mode": "None",
        "ipv6_gateway": "",
        "primary_address_type": "IPv4",
        "ip_configuration_mode": "Static",
    }
    if ip == pif.IP:
        return common
    prefix = 24 if own is None else own.prefix
    netmask = str(IPv4Network(f"0.0.0.0/{prefix}").netmask)
    return {**common, "IP": ip, "netmask": netmask, "gateway": "" if own is None else gateway(own)}


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _write(row: Row, **fields: object) -> None:
    """Change what differs, so that a start that changes nothing writes nothing."""
    for name, value in fields.items():
        if getattr(row, name) != value:
            setattr(row, name, value)
