"""A declared host as rows: its CPUs, control domain and network cards."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from xapi.datamodel import records
from xapi.datamodel.types import Ref
from xapi.inventory.declaration import Host, HostNIC, nic_device, nic_network
from xapi.inventory.processors import cpu_info, of_one_cpu
from xapi.inventory.product import BIOS, PRODUCT
from xapi.inventory.templates import MIB, Rows
from xapi.vms.consoles import PROTOCOLS, Door
from xapi.vms.devices import mac_address
from xapi.vms.memory import memory_overhead

_CARD = {
    "vendor_name": "Intel Corporation",
    "vendor_id": "8086",
    "device_name": "I350 Gigabit Network Connection",
    "device_id": "1521",
}


def add_host(rows: Rows, host: Host, networks: Mapping[str, records.network], now: datetime) -> records.host:
    """Make a host with its CPUs, control domain and network cards; networks go by name."""
    metrics = rows.create(rows.store.host_metrics, live=True, memory_total=host.memory, last_updated=now)
    iqn = f"iqn.{now:%Y-%m}.com.example:{rows.uuid()[:8]}"
    started = f"{int(now.timestamp())}."
    keys = {"agent_start_time": started, "boot_time": started, "iscsi_iqn": iqn, "multipathing": "false"}
    overhead = 256 * MIB + host.memory // 128 // MIB * MIB
    row = rows.create(
        rows.store.host,
        name_label=host.name,
        name_description=host.description,
        hostname=host.name,
        address=host.address,
        enabled=True,
        metrics=metrics._ref,
        tags=host.tags,
        other_config={**keys, **host.other_config},
        cpu_info=cpu_info(host.cpu_model, host.cpus, host.sockets, host.cpu_mhz),
        memory_overhead=overhead,
        boot_free_mem=host.memory - overhead - host.control_domain_memory,
        iscsi_iqn=iqn,
        bios_strings=BIOS | {"system-serial-number": rows.uuid()},
        last_software_update=now,
        **PRODUCT,
    )
    _add_cpus(rows, row, host)
    row.control_domain = _add_control_domain(rows, row, host, now)
    management = next((at for at, nic in enumerate(host.nics) if nic.management), 0)
    for at, nic in enumerate(host.nics):
        network = networks[nic_network(at, nic)]
        _add_nic(rows, row, nic, at, network, now, host.address if at == management else "")
    return row


def _add_cpus(rows: Rows, host: records.host, declared: Host) -> None:
    for number in range(declared.cpus):
        rows.create(rows.store.host_cpu, host=host._ref, number=number, **of_one_cpu(host.cpu_info))


def _add_control_domain(rows: Rows, host: records.host, declared: Host, now: datetime) -> Ref[records.VM]:
    memory, vcpus = declared.control_domain_memory, min(declared.cpus, 16)
    metrics = rows.create(
        rows.store.VM_metrics,
        start_time=now,
        install_time=now,
        last_updated=now,
        current_domain_type="pv",
        memory_actual=memory,
        VCPUs_number=vcpus,
    )
    vm = rows.create(
        rows.store.VM,
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
        console = rows.create(rows.store.console, protocol=protocol, VM=vm._ref)
        console.location = Door().url(declared.address, f"ref={console._ref}")
    return vm._ref


def _add_nic(
    rows: Rows, host: records.host, nic: HostNIC, at: int, network: records.network, now: datetime, address: str
) -> None:
    path = f"0000:{at + 1:02x}:00.0"
    card = rows.create(
        rows.store.PCI,
        host=host._ref,
        pci_id=path,
        class_name="Ethernet controller",
        class_id="0200",
        driver_name="igb",
        **_CARD,
    )
    metrics = rows.create(
        rows.store.PIF_metrics,
        carrier=True,
        speed=nic.speed,
        duplex=True,
        pci_bus_path=path,
        last_updated=now,
        **_CARD,
    )
    ip = nic.ip or address
    rows.create(
        rows.store.PIF,
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
