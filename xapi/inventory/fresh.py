"""Fill an empty store with a new pool: what an installation leaves, and what is declared.

The same seed and the same declaration give the same uuids, references and records everywhere: all
randomness is the given `rng`, all time is the given `now`, and the order of creation is fixed. Roles
have uuids of their own, made from their names.

A host is shown as XCP-ng shows one, because clients choose their code paths by `software_version`.
The CPU features are those of the CPU that a host declares by default.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from itertools import count
from typing import Any

from xapi.datamodel import permission_uuid
from xapi.inventory.declaration import (
    LOCAL_STORAGE,
    SR,
    SR_TYPES,
    VM,
    Declaration,
    Disk,
    Host,
    HostNIC,
    Network,
    default_sr,
    nic_device,
    nic_network,
    sr_names,
)
from xapi.inventory.templates import (
    MIB,
    Rows,
    add_card,
    add_drive,
    add_image,
    create_vm,
    default_templates,
    import_templates,
)
from xapi.store.memory import Store
from xapi.types import NULL
from xapi.vms.consoles import PROTOCOLS, Door
from xapi.vms.devices import mac_address
from xapi.vms.memory import memory_overhead


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SOFTWARE_VERSION = {
    "product_version": "8.3.0",
    "product_version_text": "8.3",
    "product_version_text_short": "8.3",
    "product_brand": "XCP-ng",
    "platform_name": "XCP",
    "platform_version": "3.4.0",
    "build_number": "cloud",
    "git_id": "0",
    "hostname": "localhost",
    "date": "2026-06-01",
    "dbv": "0.0.1",
    "xapi": "26.17",
    "xapi_build": "26.17.0",
    "xen": "4.17.5",
    "linux": "4.19.0+1",
    "xencenter_min": "2.21",
    "xencenter_max": "2.21",
    "network_backend": "openvswitch",
    "db_schema": "5.909",
}
_UNRESTRICTED = _words("""
    vlan qos pool_attached_storage netapp equalogic pooling marathon email_alerting historical_performance
    wlb rbac dmc checkpoint cpu_masking connection vmpr vmss intellicache gpu dr vif_locking
    storage_xen_motion vgpu integrated_gpu_passthrough vss guest_agent_auto_update
    pci_device_for_auto_update xen_motion guest_ip_setting ad nested_virt live_patching
    set_vcpus_number_live pvs_proxy igmp_snooping rpu pool_size cbt usb_passthrough network_sriov corosync
    cluster_address zstd_export pool_secret_rotation certificate_verification updates
    internal_repo_access vtpm vm_groups vm_start vm_appliance_start vswitch_controller management_on_vlan
""")
RESTRICTIONS = {
    "enable_xha": "true",
    "platform_filter": "false",
    "regular_nag_dialog": "false",
    **{f"restrict_{feature}": "false" for feature in _UNRESTRICTED},
}
LICENSE = {
    **RESTRICTIONS,
    "sku_type": "xcp-ng",
    "sku_marketing_name": "XCP-ng",
    "version": "8.3.0",
    "grace": "no",
    "expiry": "20991231T23:59:59Z",
    **dict.fromkeys(("productcode", "serialnumber", "company", "name"), ""),
}
_FEATURES = (
    "1fc9cbf5-f6f83203-2991cbf5-00000123-00000001-001c0fbb-00000000-00000000-"
    "00001000-9c000400-00000000-00000000-00000000-00000000-00000000-00000000-00000000-00000000"
)
_FLAGS = (
    "fpu de tsc msr pae mce cx8 apic sep mca cmov pat clflush acpi mmx fxsr sse sse2 ht syscall nx rdtscp lm "
    "constant_tsc rep_good nopl cpuid pni pclmulqdq ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt aes xsave avx "
    "f16c rdrand hypervisor lahf_lm abm cpuid_fault fsgsbase bmi1 avx2 bmi2 erms xsaveopt"
)
_BIOS = {
    "bios-vendor": "Kronos",
    "bios-version": "1.0",
    "system-manufacturer": "Kronos",
    "system-product-name": "Virtual host",
    "system-version": "1.0",
    "baseboard-manufacturer": "Kronos",
    "baseboard-product-name": "Virtual host",
    "oem-1": "Xen",
    "oem-2": "MS_VM_CERT/SHA1/bdbeb6e0a816d43fa6d3fe8aaef04c2bad9d3e3d",
    "hp-rombios": "",
}
_DISK_FEATURES = _words("""
    SR_PROBE SR_SCAN SR_UPDATE SR_STATS VDI_CREATE VDI_DELETE VDI_ATTACH VDI_DETACH VDI_ACTIVATE VDI_DEACTIVATE
    VDI_UPDATE VDI_INTRODUCE VDI_RESIZE VDI_CLONE VDI_SNAPSHOT VDI_MIRROR VDI_GENERATE_CONFIG VDI_CONFIG_CBT
    VDI_RESET_ON_BOOT/2
""")
_BLOCK = (*_DISK_FEATURES, "SR_TRIM", "SR_MULTIPATH")
_FILES = (*_DISK_FEATURES, "THIN_PROVISIONING")
_ISO = _words("SR_SCAN VDI_CREATE VDI_DELETE VDI_ATTACH VDI_DETACH")
_DEVICES = _words("SR_UPDATE VDI_INTRODUCE VDI_ATTACH VDI_DETACH")
DRIVERS: Mapping[str, tuple[str, str, tuple[str, ...], str]] = {
    "ext": ("Local EXT", "VHD files on a local file system", (*_FILES, "SR_SUPPORTS_LOCAL_CACHING"), "device"),
    "file": ("Folder", "VHD files in a folder of the host", _FILES, "location"),
    "iso": ("ISO", "CD images in a folder or on a file server", _ISO, "location type username cifspassword"),
    "lvm": ("Local LVM", "Logical volumes on a local disk", (*_BLOCK, "SR_SUPPORTS_LOCAL_CACHING"), "device"),
    "lvmohba": ("LVM over FC", "Logical volumes on a Fibre Channel disk", _BLOCK, "SCSIid"),
    "lvmoiscsi": ("LVM over iSCSI", "Logical volumes on an iSCSI disk", _BLOCK, "target targetIQN SCSIid port"),
    "nfs": ("NFS", "VHD files on an NFS server", _FILES, "server serverpath nfsversion options"),
    "smb": ("SMB", "VHD files on an SMB server", _FILES, "server username password"),
    "udev": ("Devices", "Drives of the host", _DEVICES, "location"),
}
"""SR type to (name, description, features with versions, the keys of device_config)."""


_PRODUCT: Mapping[str, Any] = {
    "API_version_major": 2,
    "API_version_minor": 23,
    "API_version_vendor": "XenSource",
    "software_version": SOFTWARE_VERSION,
    "edition": "xcp-ng",
    "editions": ("xcp-ng",),
    "license_params": LICENSE,
    "capabilities": ("xen-3.0-x86_64", "hvm-3.0-x86_32", "hvm-3.0-x86_32p", "hvm-3.0-x86_64"),
    "chipset_info": {"iommu": "true"},
    "virtual_hardware_platform_versions": (0, 1, 2),
    "supported_bootloaders": ("pygrub", "eliloader"),
    "sched_policy": "credit",
    "tls_verification_enabled": True,
    "ssl_legacy": False,
}
"""The fields of a host that are the same for all."""
_CARD = {
    "vendor_name": "Intel Corporation",
    "vendor_id": "8086",
    "device_name": "I350 Gigabit Network Connection",
    "device_id": "1521",
}
_TOOLS_SIZE = 8 * MIB
_NO_SPACE = {"physical_size": -1, "physical_utilisation": -1}
"""What an SR reports that cannot tell its size."""


def populate(store: Store, declaration: Declaration, *, rng: random.Random, now: datetime) -> None:
    """Make all objects of a new pool in one change of an empty store."""
    with store.atomic():
        create_roles(store)
        _Builder(store, declaration, rng, now).build()


def create_roles(store: Store) -> None:
    """Make the roles and permissions of the schema, unless they are there already.

    A permission is a role without subroles; a role's subroles are all that it permits.
    """
    if len(store.role):
        return
    ranks = {role: rank for rank, role in enumerate(store.model.roles)}
    held: dict[str, list[str]] = {role: [] for role in ranks}
    with store.atomic():
        for permission, (least, everyone) in store.model.permissions.items():
            label = permission.lower()
            uuid = permission_uuid(label)
            ref = f"OpaqueRef:{uuid}"
            store.role.create(ref, uuid=uuid, name_label=label, name_description="A basic permission", is_internal=True)
            for role, rank in ranks.items():
                mighty = rank <= ranks.get(least, -1) and role != "client-cert"
                if mighty or (role == "client-cert" and everyone):
                    held[role].append(ref)
        for made in store.model.roles.values():
            store.role.create(
                made.ref,
                uuid=made.uuid,
                name_label=made.name,
                name_description=made.doc,
                is_internal=made.internal,
                subroles=tuple(held[made.name]),
            )


def add_host(rows: Rows, host: Host, networks: Mapping[str, Any], now: datetime) -> Any:
    """Make a host with its CPUs, control domain and network cards; networks go by name."""
    metrics = rows.create("host_metrics", live=True, memory_total=host.memory, last_updated=now)
    iqn = f"iqn.{now:%Y-%m}.com.example:{rows.uuid()[:8]}"
    started = f"{int(now.timestamp())}."
    keys = {"agent_start_time": started, "boot_time": started, "iscsi_iqn": iqn, "multipathing": "false"}
    overhead = 256 * MIB + host.memory // 128 // MIB * MIB
    row = rows.create(
        "host",
        name_label=host.name,
        name_description=host.description,
        hostname=host.name,
        address=host.address,
        enabled=True,
        metrics=metrics._ref,
        tags=host.tags,
        other_config={**keys, **host.other_config},
        cpu_info=_cpu_info(host),
        memory_overhead=overhead,
        boot_free_mem=host.memory - overhead - host.control_domain_memory,
        iscsi_iqn=iqn,
        bios_strings=_BIOS | {"system-serial-number": rows.uuid()},
        last_software_update=now,
        **_PRODUCT,
    )
    _add_cpus(rows, row, host)
    row.control_domain = _add_control_domain(rows, row, host, now)
    management = next((at for at, nic in enumerate(host.nics) if nic.management), 0)
    for at, nic in enumerate(host.nics):
        network = networks[nic_network(at, nic)]
        _add_nic(rows, row, nic, at, network, now, host.address if at == management else "")
    return row


def _cpu_info(host: Host) -> dict[str, str]:
    return {
        "cpu_count": str(host.cpus),
        "socket_count": str(host.sockets),
        "threads_per_core": "1",
        "nr_nodes": "1",
        "vendor": "GenuineIntel",
        "speed": f"{host.cpu_mhz}.000",
        "modelname": host.cpu_model,
        "family": "6",
        "model": "79",
        "stepping": "1",
        "flags": _FLAGS,
        "features": "7ffefbff-bfebfbff-00000021-2c100800",
        "features_pv": _FEATURES,
        "features_hvm": _FEATURES,
        "features_pv_host": _FEATURES,
        "features_hvm_host": _FEATURES,
    }


def _add_cpus(rows: Rows, host: Any, declared: Host) -> None:
    info = host.cpu_info
    for number in range(declared.cpus):
        rows.create(
            "host_cpu",
            host=host._ref,
            number=number,
            vendor=info["vendor"],
            modelname=info["modelname"],
            speed=declared.cpu_mhz,
            family=int(info["family"]),
            model=int(info["model"]),
            stepping=info["stepping"],
            flags=info["flags"],
            features=info["features"],
        )


def _add_control_domain(rows: Rows, host: Any, declared: Host, now: datetime) -> str:
    memory, vcpus = declared.control_domain_memory, min(declared.cpus, 16)
    metrics = rows.create(
        "VM_metrics",
        start_time=now,
        install_time=now,
        last_updated=now,
        current_domain_type="pv",
        memory_actual=memory,
        VCPUs_number=vcpus,
    )
    vm = rows.create(
        "VM",
        name_label=f"Control domain on host: {declared.name}",
        name_description="The domain which manages physical devices and manages other domains",
        power_state="Running",
        domid=0,
        is_control_domain=True,
        resident_on=host._ref,
        affinity=host._ref,
        domain_type="pv",
        **dict.fromkeys(("memory_static_min", "memory_dynamic_min", "memory_dynamic_max", "memory_static_max"), memory),
        memory_target=memory,
        memory_overhead=memory_overhead("pv", memory, vcpus, 1.0),
        VCPUs_max=vcpus,
        VCPUs_at_startup=vcpus,
        has_vendor_device=False,
        user_version=1,
        metrics=metrics._ref,
        other_config={"is_system_domain": "true"},
    )
    for protocol in PROTOCOLS:
        console = rows.create("console", protocol=protocol, VM=vm._ref)
        console.location = Door().url(declared.address, f"ref={console._ref}")
    return str(vm._ref)


def _add_nic(rows: Rows, host: Any, nic: HostNIC, at: int, network: Any, now: datetime, address: str) -> None:
    path = f"0000:{at + 1:02x}:00.0"
    card = rows.create(
        "PCI",
        host=host._ref,
        pci_id=path,
        class_name="Ethernet controller",
        class_id="0200",
        driver_name="igb",
        **_CARD,
    )
    metrics = rows.create(
        "PIF_metrics",
        carrier=True,
        speed=nic.speed,
        duplex=True,
        pci_bus_path=path,
        last_updated=now,
        **_CARD,
    )
    ip = nic.ip or address
    rows.create(
        "PIF",
        device=nic_device(at, nic),
        device_name=nic_device(at, nic),
        host=host._ref,
        network=network._ref,
        MAC=nic.mac or mac_address(rows.uuid(), at),
        VLAN=-1,
        MTU=network.MTU,
        physical=True,
        currently_attached=True,
        management=bool(address),
        metrics=metrics._ref,
        PCI=card._ref,
        ip_configuration_mode="Static" if ip else "None",
        IP=ip,
        netmask=(nic.netmask or ("255.0.0.0" if ip.startswith("127.") else "255.255.255.0")) if ip else "",
        gateway=nic.gateway,
        DNS=nic.dns,
        properties={"gro": "on"},
    )


def add_sr(rows: Rows, hosts: Iterable[Any], device_config: Mapping[str, str], **values: Any) -> Any:
    """Make an SR that is attached to the given hosts."""
    sizes = {"physical_size": 0, "physical_utilisation": 0, "virtual_allocation": 0}
    row = rows.create("SR", default_vdi_visibility=True, **{**sizes, **values})
    for host in hosts:
        add_pbd(rows, row, host, device_config)
    return row


def add_pbd(rows: Rows, sr: Any, host: Any, device_config: Mapping[str, str]) -> None:
    """Attach an SR to a host."""
    rows.create(
        "PBD",
        SR=sr._ref,
        host=host._ref,
        device_config=device_config,
        currently_attached=True,
        other_config={"storage_driver_domain": host.control_domain},
    )


def add_host_storage(rows: Rows, host: Any, declared: Host) -> Any:
    """Make the SRs that belong to one host; return its local storage, or None."""
    local = None
    if declared.local_storage:
        place = {"location": "/var/opt/xen/sr"} if declared.local_storage_type == "file" else {"device": "/dev/sda3"}
        local = add_sr(
            rows,
            [host],
            place,
            name_label=LOCAL_STORAGE,
            type=declared.local_storage_type,
            content_type="user",
            physical_size=declared.local_storage,
            other_config={"i18n-key": "local-storage", "i18n-original-value-name_label": LOCAL_STORAGE},
        )
        host.suspend_image_sr = host.crash_dump_sr = local._ref
    for name, text, kind, content in (
        ("DVD drives", "Physical DVD drives", "cd", "iso"),
        ("Removable storage", "", "block", "disk"),
    ):
        add_sr(
            rows,
            [host],
            {"location": f"/dev/xapi/{kind}"},
            name_label=name,
            name_description=text,
            type="udev",
            content_type=content,
            sm_config={"type": kind},
            other_config={"i18n-key": f"local-hotplug-{'cd' if kind == 'cd' else 'disk'}"},
        )
    return local


def pool_cpu_info(store: Store) -> dict[str, str]:
    """Return what the CPUs of all hosts have in common, and how many there are."""
    hosts = [host.cpu_info for host in store.host]
    counts = {key: str(sum(int(info[key]) for info in hosts)) for key in ("cpu_count", "socket_count")}
    common = ("vendor", "features_pv", "features_hvm", "features_pv_host", "features_hvm_host")
    return {**counts, **{key: hosts[0][key] for key in common}}


class _Builder:
    """The steps of `populate`, and what later ones look up by name."""

    def __init__(self, store: Store, declaration: Declaration, rng: random.Random, now: datetime) -> None:
        self.store = store
        self.declaration = declaration
        self.rng = rng
        self.rows = Rows(store, rng)
        self.now = now
        self.networks: dict[str, Any] = {}
        self.hosts: dict[str, Any] = {}
        self.storage: dict[str, Any] = {}
        """By what the declaration calls an SR, see `sr_names`."""
        self.images: dict[str, Any] = {}

    def build(self) -> None:
        """Make everything, what is referred to before what refers to it."""
        self.rows.create("user", short_name="root", fullname="superuser")
        self.add_networks()
        for host in self.declaration.hosts:
            self.hosts[host.name] = add_host(self.rows, host, self.networks, self.now)
        self.add_drivers()
        self.add_storage()
        self.add_pool()
        import_templates(self.store, self.rng)
        for vm in self.declaration.vms:
            self.add_vm(vm)
        account(self.store.SR)

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
                "network",
                name_label=name,
                name_description=network.description,
                bridge=bridge,
                MTU=network.mtu,
                tags=network.tags,
                other_config=network.other_config,
            )
        add_internal_network(self.rows)

    def add_drivers(self) -> None:
        """Make one SM for each type of SR."""
        for kind in SR_TYPES:
            name, text, features, keys = DRIVERS[kind]
            versions = {name: int(version or 1) for name, _, version in (f.partition("/") for f in features)}
            self.rows.create(
                "SM",
                type=kind,
                name_label=name,
                name_description=text,
                vendor="Kronos",
                copyright="",
                version="1.0",
                required_api_version="1.0",
                configuration=dict.fromkeys(keys.split(), ""),
                features=versions,
                capabilities=tuple(versions),
                supported_image_formats=() if kind in ("iso", "udev") else ("vhd",),
                driver_filename=f"/opt/xensource/sm/{kind.upper()}SR",
            )

    def add_storage(self) -> None:
        """Make the hosts' own SRs, the tools SR and the declared ones with their images."""
        own = {host.name: add_host_storage(self.rows, self.hosts[host.name], host) for host in self.declaration.hosts}
        add_tools_sr(self.rows, self.hosts.values())
        declared = {id(sr): self.add_sr(sr) for sr in self.declaration.srs}
        for name, owner in sr_names(self.declaration).items():
            self.storage[name] = own[owner.name] if isinstance(owner, Host) else declared[id(owner)]

    def add_sr(self, sr: SR) -> Any:
        """Make a declared SR with its images."""
        space = {"physical_size": sr.size} if sr.size else _NO_SPACE
        row = add_sr(
            self.rows,
            self.hosts.values() if sr.shared else [self.hosts[sr.host]],
            sr.device_config,
            name_label=sr.name,
            name_description=sr.description,
            type=sr.type,
            content_type=sr.content_type or ("iso" if sr.type == "iso" else "user"),
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
                **({"location": vdi.name} if sr.type == "iso" else {}),
            )
        return row

    def add_pool(self) -> None:
        """Make the pool; its coordinator is the first declared host."""
        declared = self.declaration.pool
        sr = self.storage.get(default_sr(self.declaration))
        default = NULL if sr is None else sr._ref
        ratios = {"memory-ratio-hvm": "0.25", "memory-ratio-pv": "0.25"}
        self.rows.create(
            "pool",
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

    def add_disk(self, vm: Any, at: int, disk: Disk) -> None:
        """Give a VM one drive, with a new image unless it is a CD drive or names one."""
        values: dict[str, Any] = {"bootable": disk.bootable}
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
        "network",
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


def add_tools_sr(rows: Rows, hosts: Iterable[Any]) -> None:
    """Make the SR of the guest tools with its one CD image."""
    sr = add_sr(
        rows,
        hosts,
        {"location": "/opt/xensource/packages/iso", "legacy_mode": "true"},
        name_label="XCP-ng Tools",
        name_description="XCP-ng Tools ISOs",
        type="iso",
        content_type="iso",
        shared=True,
        is_tools_sr=True,
        other_config={"xenserver_tools_sr": "true", "xensource_internal": "true", "i18n-key": "xenserver-tools"},
        **_NO_SPACE,
    )
    name = "guest-tools.iso"
    facts = {"location": name, "read_only": True, "is_tools_iso": True}
    add_image(rows, sr, name, _TOOLS_SIZE, **facts)


def account(srs: Iterable[Any]) -> None:
    """Sum up what the images of SRs take; an SR that cannot tell its size keeps saying so."""
    for sr in srs:
        images = [sr._table.store.VDI[ref] for ref in sr.VDIs]
        sr.virtual_allocation = sum(image.virtual_size for image in images)
        if sr.physical_utilisation >= 0:
            sr.physical_utilisation = sum(image.physical_utilisation for image in images)
