"""A domain's home in xenstore, /local/domain/<domid>, as the toolstack makes it (docs/misc/xenstore-paths.pandoc).

The layout is libxl's: the domain reads its own path, and writes below ``data``, ``attr``, ``control``, ``device``,
``drivers``, ``error`` and ``feature``. All under the host's lock.
"""

from __future__ import annotations

from collections.abc import Mapping

from hypervisor.api import Code, DomainConfig, HostError
from hypervisor.xenstore.client import Client
from hypervisor.xenstore.errors import XenstoreError
from hypervisor.xenstore.permissions import NONE, READ, Permissions
from hypervisor.xenstore.store import Store

_FEATURES = ("suspend", "shutdown", "poweroff", "reboot", "balloon", "vcpu-hotplug", "static-ip-setting")
_GUEST_WRITES = ("data", "attr", "device", "drivers", "error", "feature", "memory/meminfo")


def write(store: Store, domid: int, config: DomainConfig, vcpus: int) -> None:
    """Write what a new domain finds, which has so many vCPUs. Raises HostError."""
    home = f"/local/domain/{domid}"
    own, readable = Permissions(domid, NONE), Permissions(0, NONE, ((domid, READ),))
    keys = {
        "vm": f"/vm/{config.uuid}",
        "name": config.name,
        "domid": str(domid),
        "memory/static-max": str(config.memory_max >> 10),
        "memory/target": str(config.memory_target >> 10),
        "control": "",
        "control/platform-feature-multiprocessor-suspend": "1",
        "control/platform-feature-xs_reset_watches": "1",
    }
    keys |= {f"cpu/{number}/availability": _availability(number, config.vcpus) for number in range(vcpus)}
    with store.transaction() as transaction:
        transaction.write(home, b"", readable)
        for key, value in keys.items():
            transaction.write(f"{home}/{key}", value.encode())  # and has its home's permissions
        features = (f"control/feature-{name}" for name in _FEATURES)
        for key in ("control/shutdown", "control/sysrq", *features, *_GUEST_WRITES):
            transaction.write(f"{home}/{key}", b"", own)
        put(transaction, domid, config.xenstore)


def put(store: Client, domid: int, keys: Mapping[str, str]) -> None:
    """Write keys below a domain's home, which the guest may write too. Raises HostError for what is no key."""
    for key, value in keys.items():
        path = f"/local/domain/{domid}/{key}"
        try:
            store.write(path, value.encode(), Permissions(domid, NONE))
        except (XenstoreError, UnicodeEncodeError) as error:
            raise HostError(Code.FAILED, f"{key[:80]!r} cannot be put into xenstore: {error}") from error


def plug_vcpus(store: Client, domid: int, online: int, vcpus: int) -> None:
    """Ask a domain with so many vCPUs to have the first `online` of them online."""
    for number in range(vcpus):
        path, value = f"/local/domain/{domid}/cpu/{number}/availability", _availability(number, online)
        if store.read_text(path) != value:  # a guest hears of each write
            store.write(path, value)


def _availability(vcpu: int, online: int) -> str:
    return "online" if vcpu < online else "offline"


def remove(store: Store, domid: int) -> None:
    """End xenstore's service to a domain, and remove its home."""
    store.rm(f"/local/domain/{domid}")  # or each node of it would be looked at when it is released
    if store.is_introduced(domid):
        store.release(domid)
