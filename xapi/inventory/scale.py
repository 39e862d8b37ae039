"""Grow a pool to many hosts and VMs, to see what size does to it.

`grow` is a generator: each step makes one host or a batch of VMs in one change of its own, so that
the daemon hands it to `twisted.internet.task.cooperate` and goes on serving between the steps.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterator
from datetime import datetime
from itertools import count
from typing import NamedTuple

from xapi.datamodel import records
from xapi.inventory.declaration import Host
from xapi.inventory.hosts import add_host
from xapi.inventory.processors import pool_cpu_info
from xapi.inventory.storage import add_host_storage, add_pbd
from xapi.inventory.templates import Rows, add_card, add_drive, add_image, create_vm, default_templates
from xapi.store.memory import Store

BATCH = 500
DISK = 10 * 2**30
_MODELS = ("Debian Bookworm 12", "Rocky Linux 9", "Ubuntu Noble Numbat 24.04", "Windows Server 2022 (64-bit)")


class _Place(NamedTuple):
    """Where a VM goes: its host, and an SR and a network that the host has."""

    host: records.host
    sr: records.SR
    network: records.network


def grow(store: Store, *, hosts: int, vms: int, rng: random.Random, now: datetime) -> Iterator[int]:
    """Bring the pool to `hosts` hosts in all, and add `vms` halted VMs; yield how many are made so far.

    Each VM has one disk of 10 GiB on its host's local storage, else on a shared SR, and one network
    card. Raises ValueError when no host has an SR for disks.
    """
    rows = Rows(store, rng)
    made = 0
    while len(store.host) < hosts:
        with store.atomic():
            _add_host(rows, now)
        made += 1
        yield made
    first_number = 1 + sum(vm.name_label.startswith("vm-") for vm in store.VM)
    places = [place for host in store.host if (place := _place(store, host)) is not None]
    if vms and not places:
        raise ValueError("no host has an SR for disks")
    for first in range(first_number, first_number + vms, BATCH):
        batch = range(first, min(first + BATCH, first_number + vms))
        with store.atomic():
            _add_vms(rows, places, batch)
        made += len(batch)
        yield made


def _add_host(rows: Rows, now: datetime) -> None:
    """Make one more host: like a fresh one, on the networks of the first, with the shared SRs."""
    store = rows.store
    names = {host.name_label for host in store.host}
    addresses = {host.address for host in store.host}
    number = next(number for number in count(len(names) + 1) if f"host-{number}" not in names)
    loopback = ipaddress.IPv4Address("127.0.0.0")
    address = next(text for n in count(number) if (text := str(loopback + n)) not in addresses)
    networks = {network.name_label: network for network in store.network}
    coordinator = store.host[next(iter(store.pool)).master]
    management = next(pif for ref in coordinator.PIFs if (pif := store.PIF[ref]).management)
    declared = Host(name=f"host-{number}", address=address)
    networks["Pool-wide network associated with eth0"] = store.network[management.network]
    host = add_host(rows, declared, networks, now)
    add_host_storage(rows, host, declared)
    for sr in store.SR:
        if sr.shared and sr.PBDs:
            add_pbd(rows, sr, host, store.PBD[next(iter(sr.PBDs))].device_config)
    pool = next(iter(store.pool))
    pool.cpu_info = pool_cpu_info(store)


def _place(store: Store, host: records.host) -> _Place | None:
    attached = [store.SR[pbd.SR] for ref in host.PBDs if (pbd := store.PBD[ref]).currently_attached]
    srs = sorted((sr for sr in attached if sr.content_type == "user"), key=lambda sr: sr.shared)
    pifs = sorted((store.PIF[ref] for ref in host.PIFs), key=lambda pif: not pif.management)
    return _Place(host, srs[0], store.network[pifs[0].network]) if srs and pifs else None


def _add_vms(rows: Rows, places: list[_Place], batch: range) -> None:
    settings = {name: default_templates()[name].settings() for name in _MODELS}
    grown: dict[records.SR, int] = {}
    for number in batch:
        place = places[number % len(places)]
        name = _MODELS[number % len(_MODELS)]
        label = f"vm-{number:06}"
        vm = create_vm(
            rows,
            **settings[name],
            name_label=label,
            affinity=place.host._ref,
            tags=("scale",),
            other_config=default_templates()[name].passed_on,
        )
        image = add_image(rows, place.sr, f"{label} 0", DISK)
        add_drive(rows, vm, 0, image, bootable=True, other_config={"owner": ""})
        add_card(rows, vm, 0, place.network)
        grown[place.sr] = grown.get(place.sr, 0) + DISK
    for sr, size in grown.items():
        sr.virtual_allocation += size
