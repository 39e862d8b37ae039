"""The default guest templates (`templates.toml`), and how the rows of any new, halted VM are made.

What a new VM has beyond its record follows the rules of VM.create: an empty VM_metrics, a `mac_seed`
from which the addresses of its network cards come, and the memory overhead that its size implies.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import md5
from pathlib import Path
from typing import Any

from xapi.store.memory import Store
from xapi.types import EPOCH, NULL

MIB = 2**20
PAGE = 4096
_UNITS = {"B": 1, "KiB": 2**10, "MiB": MIB, "GiB": 2**30, "TiB": 2**40}


def read_size(value: object) -> int:
    """Return bytes for a number of bytes or a text such as ``"4 GiB"``. Raises ValueError."""
    if type(value) is int and value >= 0:
        return value
    if isinstance(value, str):
        number, _, unit = value.partition(" ")
        if number.isascii() and number.isdigit() and unit in _UNITS:
            return int(number) * _UNITS[unit]
    raise ValueError(f'{value!r} is no size: write bytes, or a text such as "4 GiB"')


class Rows:
    """Make objects whose uuids and references all come from one source of randomness."""

    def __init__(self, store: Store, rng: random.Random) -> None:
        self.store = store
        self._bits = rng.getrandbits

    def uuid(self) -> str:
        """Return the next uuid, of version 4."""
        bits = self._bits(128) & ~(0xF << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62
        text = f"{bits:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def create(self, table: str, **values: Any) -> Any:
        """Make an object of the class; the uuid may be given."""
        values.setdefault("uuid", self.uuid())
        return self.store.tables[table].create(f"OpaqueRef:{self.uuid()}", **values)


def pages_in_mib(pages: int) -> int:
    """Return the MiB that hold so many pages."""
    return -(-pages * PAGE // MIB)


def memory_overhead(domain_type: str, static_max: int, vcpus: int, shadow_multiplier: float) -> int:
    """Return the bytes that a VM needs beyond its own memory, all of them whole MiB."""
    static = -(-static_max // MIB)
    shadow = max(1, int(pages_in_mib(256 * vcpus + 2 * static) * shadow_multiplier))
    total = shadow + 1 + pages_in_mib(38 * vcpus)
    if domain_type != "pv":
        total += 1
    if domain_type == "pv_in_pvh":
        total += 23 + static // 90
    return total * MIB


def mac_address(seed: str, device: int) -> str:
    """Return the address of a VM's n-th network card: local, unicast, the same for the same seed."""
    first = seed.encode()
    for _ in range(2 * device + 1):
        first = md5(first, usedforsecurity=False).digest()
    second = md5(first, usedforsecurity=False).digest()
    octets = (first[0] & 0xFE | 0x02, *first[1:4], *second[1:3])
    return ":".join(f"{octet:02x}" for octet in octets)


def create_vm(rows: Rows, **values: Any) -> Any:
    """Make a halted VM of the given fields, with its metrics, MAC seed and memory overhead."""
    values["other_config"] = {**values.get("other_config", {}), "mac_seed": rows.uuid()}
    overhead = memory_overhead(
        values["domain_type"],
        values["memory_static_max"],
        values["VCPUs_max"],
        values.get("HVM_shadow_multiplier", 1.0),
    )
    metrics = rows.create("VM_metrics", start_time=EPOCH, last_updated=EPOCH)
    defaults = {
        "domid": -1,
        "user_version": 1,
        "actions_after_shutdown": "destroy",
        "actions_after_reboot": "restart",
        "actions_after_crash": "restart",
        "has_vendor_device": False,
        "memory_overhead": overhead,
        "metrics": metrics._ref,
    }
    return rows.create("VM", **defaults, **values)


def add_image(rows: Rows, sr: Any, label: str, size: int, **values: Any) -> Any:
    """Make a disk image of `size` bytes on an SR; its storage is thin and still empty."""
    uuid = rows.uuid()
    facts = {"type": "user", "location": uuid, "managed": True, "virtual_size": size}
    return rows.create("VDI", uuid=uuid, name_label=label, SR=sr._ref, **{**facts, **values})


def add_drive(rows: Rows, vm: Any, position: int, image: Any, **values: Any) -> None:
    """Give a halted VM a drive with an image, or, when `image` is None, an empty CD drive."""
    facts = {"userdevice": str(position), "type": "Disk", "mode": "RW", "empty": image is None}
    rows.create("VBD", VM=vm._ref, VDI=NULL if image is None else image._ref, **{**facts, **values})


def add_card(rows: Rows, vm: Any, position: int, network: Any, mac: str = "") -> None:
    """Give a halted VM a network card; without an address it gets the one that its seed implies."""
    rows.create(
        "VIF",
        VM=vm._ref,
        network=network._ref,
        device=str(position),
        MTU=network.MTU,
        MAC=mac or mac_address(vm.other_config["mac_seed"], position),
        MAC_autogenerated=not mac,
    )


@dataclass(frozen=True, slots=True)
class Template:
    """One default template. Sizes are bytes; `disk` is 0 for a template without one."""

    name: str
    uuid: str
    label: str
    domain: str
    memory: int
    disk: int
    vcpus: int
    boot: Mapping[str, str]
    bootloader: str
    args: str
    platform: Mapping[str, str]
    other_config: Mapping[str, str]
    recommendations: Mapping[str, str]

    @property
    def provision(self) -> str:
        """The disks that VM.provision shall make, '' for none; clients fill in the SR first."""
        if not self.disk:
            return ""
        disk = f'<disk device="0" size="{self.disk}" sr="" bootable="true" type="system"/>'
        return f"<provision>{disk}</provision>"

    @property
    def passed_on(self) -> dict[str, str]:
        """The other_config of a VM that is made of this template."""
        kept = {key: value for key, value in self.other_config.items() if key != "default_template"}
        return {**kept, "base_template_name": self.name}

    def settings(self) -> dict[str, Any]:
        """Return the fields which a VM that is made of this template shares with it."""
        return {
            "memory_static_min": self.memory // 2,
            "memory_dynamic_min": self.memory,
            "memory_dynamic_max": self.memory,
            "memory_static_max": self.memory,
            "VCPUs_max": self.vcpus,
            "VCPUs_at_startup": self.vcpus,
            "domain_type": self.domain,
            "HVM_boot_policy": "BIOS order" if self.domain == "hvm" else "",
            "HVM_boot_params": dict(self.boot),
            "PV_bootloader": self.bootloader,
            "PV_args": self.args,
            "platform": dict(self.platform),
            "recommendations": recommendations_xml(self.recommendations),
            "reference_label": self.label,
        }


def recommendations_xml(recommendations: Mapping[str, str]) -> str:
    """Return the restrictions as clients read them: limits, counts of devices, and plain values."""
    lines = []
    for key, value in recommendations.items():
        kind = "property" if key.startswith("number_of_") else "field"
        bound = "min" if key.endswith("_min") else "max"
        limit = bound if kind == "property" or key.endswith(("_min", "_max")) else "value"
        lines.append(f'<restriction {kind}="{key.replace("_", "-")}" {limit}="{value}"/>')
    return f"<restrictions>{''.join(lines)}</restrictions>"


@cache
def default_templates() -> Mapping[str, Template]:
    """Read the default templates, by name, in their order."""
    tables = tomllib.loads((Path(__file__).parent / "templates.toml").read_text("utf-8"))
    found = (_template([tables["common"], tables["kind"][own["kind"]], own]) for own in tables["template"])
    return {template.name: template for template in found}


def _template(layers: list[dict[str, Any]]) -> Template:
    def text(name: str) -> str:
        return next((str(layer[name]) for layer in reversed(layers) if name in layer), "")

    def merged(name: str) -> dict[str, str]:
        joined = {key: value for layer in layers for key, value in layer.get(name, {}).items()}
        return {key: _text(key, value) for key, value in joined.items()}

    return Template(
        text("name"),
        text("uuid"),
        text("label"),
        text("domain"),
        read_size(text("memory")),
        read_size(text("disk") or 0),
        int(text("vcpus")),
        merged("boot"),
        text("bootloader"),
        text("args"),
        merged("platform"),
        merged("other_config"),
        merged("recommendations"),
    )


def _text(key: str, value: object) -> str:
    if key == "memory_static_max":
        return str(read_size(value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def import_templates(store: Store, rng: random.Random) -> None:
    """Make all default templates, in their order."""
    rows = Rows(store, rng)
    with store.atomic():
        for template in default_templates().values():
            disks = {"disks": template.provision} if template.disk else {}
            create_vm(
                rows,
                **template.settings(),
                uuid=template.uuid,
                name_label=template.name,
                is_a_template=True,
                is_default_template=True,
                other_config={**template.other_config, **disks},
            )
