"""Fill an empty store with a new pool: what an installation leaves, and what is declared.

The same seed and the same declaration give the same uuids, references and records everywhere: all
randomness is the given `rng`, all time is the given `now`, and the order of creation is fixed.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from datetime import datetime
from itertools import count

from xapi.datamodel import records
from xapi.datamodel.types import NULL
from xapi.host.driver import types
from xapi.inventory.declaration import (
    SR,
    VM,
    Declaration,
    Disk,
    Host,
    Network,
    default_sr,
    nic_device,
    nic_network,
    sr_names,
)
from xapi.inventory.hosts import add_host
from xapi.inventory.processors import pool_cpu_info
from xapi.inventory.product import RESTRICTIONS
from xapi.inventory.storage import NO_SPACE, account, add_drivers, add_host_storage, add_sr, add_tools_sr
from xapi.inventory.templates import (
    Rows,
    add_card,
    add_drive,
    add_image,
    create_vm,
    default_templates,
    import_templates,
    newest_set,
)
from xapi.store.memory import Store


def populate(store: Store, declaration: Declaration, *, rng: random.Random, now: datetime) -> None:
    """Make all objects of a new pool in one change of an empty store."""
    with store.atomic():
        _Builder(store, declaration, rng, now).build()


def upgrade(store: Store, *, rng: random.Random) -> list[str]:
    """Give an older pool the default templates that have come since it was made; return their names."""
    had = next(iter(store.pool)).template_set
    if had >= newest_set():
        return []
    with store.atomic():
        return import_templates(Rows(store, rng), had + 1)


class _Builder:
    """The steps of `populate`, and what later ones look up by name."""

    def __init__(self, store: Store, declaration: Declaration, rng: random.Random, now: datetime) -> None:
        self.store = store
        self.declaration = declaration
        self.rng = rng
        self.rows = Rows(store, rng)
        self.now = now
        self.networks: dict[str, records.network] = {}
        self.hosts: dict[str, records.host] = {}
        self.storage: dict[str, records.SR] = {}
        """By what the declaration calls an SR, see `sr_names`."""
        self.images: dict[str, records.VDI] = {}

    def build(self) -> None:
        """Make everything, what is referred to before what refers to it."""
        self.rows.create(self.store.user, short_name="root", fullname="superuser")
        self.add_networks()
        for host in self.declaration.hosts:
            self.hosts[host.name] = add_host(self.rows, host, self.networks, self.now)
        kinds = {sr.type for sr in self.declaration.srs}
        add_drivers(self.rows, kinds | {host.local_storage_type for host in self.declaration.hosts})
        self.add_storage()
        self.add_pool()
        import_templates(self.rows)
        for vm in self.declaration.vms:
            self.add_vm(vm)
        account(self.store)

    def add_networks(self) -> None:
        """Make the networks of the hosts' cards, the other declared ones, and the hosts' internal one."""
        declared = {network.name: network for network in self.declaration.networks}
        devices: dict[str, str] = {}
        for host in self.declaration.hosts:
            for at, nic in enumerate(host.nics):
                devices.setdefault(nic_network(at, nic), nic_device(at, nic))
        taken = {network.bridge for network in declared.values()}
        for name in dict.fromkeys([*devices, *declared]):
            network = declared.get(name, Network(name))
            bridge = network.bridge or _free_bridge(devices.get(name, ""), taken)
            taken.add(bridge)
            self.networks[name] = self.rows.create(
                self.store.network,
                name_label=name,
                name_description=network.description,
                bridge=bridge,
                MTU=network.mtu,
                tags=network.tags,
                other_config=network.other_config,
            )
        add_internal_network(self.rows)

    def add_storage(self) -> None:
        """Make the hosts' own SRs, the tools SR and the declared ones with their images."""
        own = {host.name: add_host_storage(self.rows, self.hosts[host.name], host) for host in self.declaration.hosts}
        add_tools_sr(self.rows, self.hosts.values())
        declared = {id(sr): self.add_sr(sr) for sr in self.declaration.srs}
        for name, owner in sr_names(self.declaration).items():
            sr = own[owner.name] if isinstance(owner, Host) else declared[id(owner)]
            if sr is not None:
                self.storage[name] = sr

    def add_sr(self, sr: SR) -> records.SR:
        """Make a declared SR with its images."""
        driver = types()[sr.type]
        space = {"physical_size": sr.size} if sr.size else NO_SPACE
        row = add_sr(
            self.rows,
            self.hosts.values() if sr.shared else [self.hosts[sr.host]],
            sr.device_config,
            name_label=sr.name,
            name_description=sr.description,
            type=sr.type,
            content_type=sr.content_type or driver.content_type,
            shared=sr.shared,
            tags=sr.tags,
            other_config=sr.other_config,
            **space,
        )
        for vdi in sr.vdis:
            self.images[vdi.name] = add_image(
                self.rows,
                row,
                vdi.name,
                vdi.size,
                name_description=vdi.description,
                read_only=vdi.read_only,
                sharable=vdi.sharable,
                tags=vdi.tags,
                other_config=vdi.other_config,
                **({"location": vdi.name} if driver.named else {}),
            )
        return row

    def add_pool(self) -> None:
        """Make the pool; its coordinator is the first declared host."""
        declared = self.declaration.pool
        sr = self.storage.get(default_sr(self.declaration))
        default = NULL if sr is None else sr._ref
        ratios = {"memory-ratio-hvm": "0.25", "memory-ratio-pv": "0.25"}
        self.rows.create(
            self.store.pool,
            name_label=declared.name,
            name_description=declared.description,
            master=self.hosts[self.declaration.hosts[0].name]._ref,
            default_SR=default,
            suspend_image_SR=default,
            crash_dump_SR=default,
            tags=declared.tags,
            other_config={**ratios, **declared.other_config},
            ha_cluster_stack="xhad",
            restrictions=RESTRICTIONS,
            cpu_info=pool_cpu_info(self.store),
            tls_verification_enabled=True,
        )

    def add_vm(self, vm: VM) -> None:
        """Make a declared VM with its drives and cards."""
        template = default_templates()[vm.from_]
        settings = template.settings()
        if vm.memory:
            keys = ("memory_dynamic_min", "memory_dynamic_max", "memory_static_max")
            settings |= {"memory_static_min": vm.memory // 2, **dict.fromkeys(keys, vm.memory)}
        if vm.vcpus:
            settings |= {"VCPUs_max": vm.vcpus, "VCPUs_at_startup": vm.vcpus}
        folder = {"folder": vm.folder} if vm.folder else {}
        row = create_vm(
            self.rows,
            **settings,
            name_label=vm.name,
            name_description=vm.description,
            is_a_template=vm.template,
            affinity=self.hosts[vm.host]._ref if vm.host else NULL,
            tags=vm.tags,
            other_config={**template.passed_on, **folder, **vm.other_config},
        )
        for at, disk in enumerate(vm.disks):
            self.add_disk(row, at, disk)
        first = self.declaration.hosts[0]
        main = next((at for at, nic in enumerate(first.nics) if nic.management), 0)
        for at, nic in enumerate(vm.nics):
            name = nic.network or nic_network(main, first.nics[main])
            add_card(self.rows, row, at, self.networks[name], nic.mac)

    def add_disk(self, vm: records.VM, at: int, disk: Disk) -> None:
        """Give a VM one drive, with a new image unless it is a CD drive or names one."""
        values: dict[str, object] = {"bootable": disk.bootable}
        image = self.images.get(disk.vdi)
        if disk.cd:
            values |= {"type": "CD", "mode": "RO"}
        elif image is None:
            sr = self.storage[disk.sr or default_sr(self.declaration)]
            image = add_image(self.rows, sr, disk.name or f"{vm.name_label} {at}", disk.size)
            values["other_config"] = {"owner": ""}
        if disk.read_only:
            values["mode"] = "RO"
        add_drive(self.rows, vm, at, image, **values)


def _free_bridge(device: str, taken: Collection[str]) -> str:
    """Return the bridge of a network: that of the card's device, else the next of its own."""
    own = device.replace("eth", "xenbr")
    if own and own not in taken:
        return own
    return next(bridge for number in count() if (bridge := f"xapi{number}") not in taken)


def add_internal_network(rows: Rows) -> None:
    """Make the network over which guests can reach their host's API."""
    rows.create(
        rows.store.network,
        name_label="Host internal management network",
        name_description="Network on which guests get a private link-local address to talk to the host's API",
        bridge="xenapi",
        other_config={
            "is_guest_installer_network": "true",
            "is_host_internal_management_network": "true",
            "ip_begin": "169.254.0.1",
            "ip_end": "169.254.255.254",
            "netmask": "255.255.0.0",
        },
    )
