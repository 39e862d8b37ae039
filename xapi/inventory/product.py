"""What a host says of itself: an XCP-ng host, because clients choose their code paths by `software_version`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xapi.store.memory import Store

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
_UNRESTRICTED = (
    "vlan", "qos", "pool_attached_storage", "netapp", "equalogic", "pooling", "marathon", "email_alerting",
    "historical_performance", "wlb", "rbac", "dmc", "checkpoint", "cpu_masking", "connection", "vmpr", "vmss",
    "intellicache", "gpu", "dr", "vif_locking", "storage_xen_motion", "vgpu", "integrated_gpu_passthrough", "vss",
    "guest_agent_auto_update", "pci_device_for_auto_update", "xen_motion", "guest_ip_setting", "ad", "nested_virt",
    "live_patching", "set_vcpus_number_live", "pvs_proxy", "igmp_snooping", "rpu", "pool_size", "cbt",
    "usb_passthrough", "network_sriov", "corosync", "cluster_address", "zstd_export", "pool_secret_rotation",
    "certificate_verification", "updates", "internal_repo_access", "vtpm", "vm_groups", "vm_start",
    "vm_appliance_start", "vswitch_controller", "management_on_vlan",
)  # fmt: skip
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
BIOS = {
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
CAPABILITIES = ("xen-3.0-x86_64", "hvm-3.0-x86_32", "hvm-3.0-x86_32p", "hvm-3.0-x86_64")
"""The kinds of guests that Xen offers to run; none where the machine cannot."""
PRODUCT: Mapping[str, object] = {
    "API_version_major": 2,
    "API_version_minor": 23,
    "API_version_vendor": "XenSource",
    "software_version": SOFTWARE_VERSION,
    "edition": "xcp-ng",
    "editions": ("xcp-ng",),
    "license_params": LICENSE,
    "capabilities": CAPABILITIES,
    "chipset_info": {"iommu": "true"},
    "virtual_hardware_platform_versions": (0, 1, 2),
    "supported_bootloaders": ("pygrub", "eliloader"),
    "sched_policy": "credit",
    "tls_verification_enabled": True,
    "ssl_legacy": False,
}
"""The fields of a host that are the same for all."""


def offer_guests(db: Store, able: bool) -> None:
    """Have all hosts say that guests of every kind can run on them, or that none can."""
    offered = CAPABILITIES if able else ()
    with db.atomic():
        for host in db.host:
            if tuple(host.capabilities) != offered:
                host.capabilities = offered
