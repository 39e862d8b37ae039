"""The kinds of storage that hosts know, and storage repositories with what attaches them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from hypervisor.api import StorageType
from xapi.datamodel import records
from xapi.host.driver import types
from xapi.inventory.declaration import LOCAL_STORAGE, Host
from xapi.inventory.templates import MIB, Rows, add_image
from xapi.store.memory import Store

_TOOLS_SIZE = 8 * MIB
NO_SPACE = {"physical_size": -1, "physical_utilisation": -1}
"""What an SR reports that cannot tell its size."""


def add_drivers(rows: Rows, declared: Collection[str]) -> None:
    """Make one SM for each type of SR that can be made, and for those that are declared besides."""
    for driver in types().values():
        if not driver.creatable and driver.type not in declared:
            rows.uuid(), rows.uuid()  # so that a seed's other references are what they were when all had an SM
            continue
        rows.create(rows.store.SM, **_facts(driver))


def _facts(driver: StorageType) -> dict[str, Any]:
    """Return the fields of a driver's SM."""
    return {
        "type": driver.type,
        "name_label": driver.name,
        "name_description": driver.description,
        "vendor": "Kronos",
        "copyright": "",
        "version": "1.0",
        "required_api_version": "1.0",
        "configuration": dict.fromkeys(driver.device_config, ""),
        "features": driver.features,
        "capabilities": tuple(driver.features),
        "supported_image_formats": driver.image_formats,
        "driver_filename": f"/opt/xensource/sm/{driver.type.upper()}SR",
    }


def renew_drivers(store: Store) -> None:
    """Have the SMs of an older version say what drivers do now; those that nothing uses or makes go, new ones come."""
    used, known = {sr.type for sr in store.SR}, {sm.type for sm in store.SM}
    with store.atomic():
        for sm in list(store.SM):
            driver = types().get(sm.type)
            if sm.type not in used and (driver is None or not driver.creatable):
                store.SM.delete(sm._ref)
            elif driver is not None and sm.features != driver.features:
                sm.features, sm.capabilities = driver.features, tuple(driver.features)
        for driver in types().values():
            if driver.creatable and driver.type not in known:
                store.SM.create(**_facts(driver))


def add_sr(rows: Rows, hosts: Iterable[records.host], device_config: Mapping[str, str], **values: object) -> records.SR:
    """Make an SR that is attached to the given hosts."""
    sizes = {"physical_size": 0, "physical_utilisation": 0, "virtual_allocation": 0}
    row = rows.create(rows.store.SR, default_vdi_visibility=True, **{**sizes, **values})
    for host in hosts:
        add_pbd(rows, row, host, device_config)
    return row


def add_pbd(rows: Rows, sr: records.SR, host: records.host, device_config: Mapping[str, str]) -> None:
    """Attach an SR to a host."""
    rows.create(
        rows.store.PBD,
        SR=sr._ref,
        host=host._ref,
        device_config=device_config,
        currently_attached=True,
        other_config={"storage_driver_domain": host.control_domain},
    )


def add_host_storage(rows: Rows, host: records.host, declared: Host) -> records.SR | None:
    """Make the SRs that belong to one host; return its local storage, or None."""
    local = None
    if declared.local_storage:
        local = add_sr(
            rows,
            [host],
            types()[declared.local_storage_type].local or {},
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


def add_tools_sr(rows: Rows, hosts: Iterable[records.host]) -> None:
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


def account(store: Store) -> None:
    """Sum up what the images of SRs take; an SR that cannot tell its size keeps saying so."""
    for sr in store.SR:
        images = [store.VDI[ref] for ref in sr.VDIs]
        sr.virtual_allocation = sum(image.virtual_size for image in images)
        if sr.physical_utilisation >= 0:
            sr.physical_utilisation = sum(image.physical_utilisation for image in images)
