"""The kinds of storage that hosts know, and storage repositories with what attaches them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from xapi.inventory.declaration import LOCAL_STORAGE, SR_TYPES, Host
from xapi.inventory.templates import MIB, Rows, add_image
from xapi.storage.drivers import CREATABLE
from xapi.store.memory import Store

_BLOCK = (
    "SR_SCAN", "SR_UPDATE", "VDI_CREATE", "VDI_DELETE", "VDI_ATTACH", "VDI_DETACH", "VDI_ACTIVATE", "VDI_DEACTIVATE",
    "VDI_UPDATE", "VDI_INTRODUCE", "VDI_RESIZE", "VDI_CLONE", "VDI_SNAPSHOT", "VDI_RESET_ON_BOOT/2",
)  # fmt: skip
"""What our storage does for disks, whatever it calls itself; each has a message that does something."""
_FILES = (*_BLOCK, "THIN_PROVISIONING")
_ISO = ("SR_SCAN", "VDI_CREATE", "VDI_DELETE", "VDI_ATTACH", "VDI_DETACH")
_DEVICES = ("SR_UPDATE", "VDI_INTRODUCE", "VDI_ATTACH", "VDI_DETACH")
DRIVERS: Mapping[str, tuple[str, str, tuple[str, ...], str]] = {
    "ext": ("Local EXT", "VHD files on a local file system", _FILES, "device"),
    "file": ("Folder", "VHD files in a folder of the host", _FILES, "location"),
    "iso": ("ISO", "CD images in a folder or on a file server", _ISO, "location type username cifspassword"),
    "lvm": ("Local LVM", "Logical volumes on a local disk", _BLOCK, "device"),
    "lvmohba": ("LVM over FC", "Logical volumes on a Fibre Channel disk", _BLOCK, "SCSIid"),
    "lvmoiscsi": ("LVM over iSCSI", "Logical volumes on an iSCSI disk", _BLOCK, "target targetIQN SCSIid port"),
    "nfs": ("NFS", "VHD files on an NFS server", _FILES, "server serverpath nfsversion options"),
    "smb": ("SMB", "VHD files on an SMB server", _FILES, "server username password"),
    "udev": ("Devices", "Drives of the host", _DEVICES, "location"),
}
"""SR type to (name, description, features with versions, the keys of device_config)."""
_TOOLS_SIZE = 8 * MIB
NO_SPACE = {"physical_size": -1, "physical_utilisation": -1}
"""What an SR reports that cannot tell its size."""


def add_drivers(rows: Rows, declared: Collection[str]) -> None:
    """Make one SM for each type of SR that can be made, and for those that are declared besides."""
    for kind in SR_TYPES:
        if kind not in CREATABLE and kind not in declared:
            rows.uuid(), rows.uuid()  # so that a seed's other references are what they were when all had an SM
            continue
        name, text, _, keys = DRIVERS[kind]
        versions = _features(kind)
        rows.create(
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


def _features(kind: str) -> dict[str, int]:
    return {name: int(version or 1) for name, _, version in (each.partition("/") for each in DRIVERS[kind][2])}


def renew_drivers(store: Store) -> None:
    """Have the SMs of an older version say what drivers do now; those that nothing uses or makes go."""
    used = {sr.type for sr in store.SR}
    with store.atomic():
        for sm in list(store.SM):
            if sm.type not in CREATABLE and sm.type not in used:
                store.SM.delete(sm._ref)
            elif sm.type in DRIVERS and sm.features != (features := _features(sm.type)):
                sm.features, sm.capabilities = features, tuple(features)


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
        **NO_SPACE,
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
