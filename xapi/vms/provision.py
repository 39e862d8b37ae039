"""The disks that a template asks for (`other_config:disks`), as VM.provision makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lxml import etree

from xapi.calls.parts import part, undo_all
from xapi.calls.tasks import Tasks
from xapi.calls.work import Work
from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.vms.copies import OWNER

if TYPE_CHECKING:
    from xapi.datamodel.records import SR, VBD, VM
    from xapi.datamodel.types import Ref

DISKS, SCRIPT = "disks", "postinstall"
"""Keys of other_config that go when the disks are there."""
TYPES = ("system", "user", "ephemeral", "suspend", "crashdump")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One disk; `size` in bytes, `sr` the uuid of where it shall lie."""

    device: str
    size: int
    sr: str
    bootable: bool
    type: str


def wanted_disks(text: str) -> list[Wanted]:
    """Read what a template asks for. Raises INTERNAL_ERROR for what is no `<provision>`."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, remove_comments=True, remove_pis=True)
    try:
        root = etree.fromstring(text.encode(), parser)
        if root.tag != "provision" or root.attrib:
            raise ValueError("no <provision> element")
        return [_wanted(element) for element in root]
    except (etree.XMLSyntaxError, KeyError, ValueError) as error:
        raise errors.INTERNAL_ERROR(f"VM.other_config:disks: {error}") from None


def _wanted(element: etree._Element) -> Wanted:
    if element.tag != "disk" or len(element):
        raise ValueError("a <disk/> element is expected")
    given = element.attrib
    kind = given.get("type", "system")
    return Wanted(
        device=given["device"],
        size=int(given["size"]),
        sr=given["sr"],
        bootable=given["bootable"] == "true",
        type=kind if kind in TYPES else "system",
    )


async def make_disks(work: Work, vm: VM, disks: list[Wanted]) -> list[Ref[VBD]]:
    """Make disks and their VBDs and return the latter; none are left when one fails. Raises Fault."""
    made: list[Ref[VBD]] = []
    try:
        for number, disk in enumerate(disks):
            made.append(await _make(work, vm, disk))
            work[Tasks].progress(work.task, 0.1 + 0.8 * (number + 1) / len(disks))
    except BaseException:
        await undo(work, made)
        raise
    return made


async def undo(work: Work, vbds: list[Ref[VBD]]) -> None:
    """Remove VBDs and their disks."""
    vdis = [work.db.VBD[ref].VDI for ref in vbds]
    await undo_all(work, "VBD.destroy", vbds)
    await undo_all(work, "VDI.destroy", vdis)


async def _make(work: Work, vm: VM, disk: Wanted) -> Ref[VBD]:
    sr = sr_of(work, disk)
    vdi = await part(work, "VDI.create", {
        "name_label": "", "name_description": "Created by template provisioner", "SR": sr._ref,
        "virtual_size": disk.size, "type": disk.type, "sharable": False, "read_only": False, "other_config": {},
        "xenstore_data": {}, "sm_config": {"vmhint": vm.uuid}, "tags": (),
    })  # fmt: skip
    try:
        vbd: Ref[VBD] = await part(work, "VBD.create", {
            "VM": vm._ref, "VDI": vdi, "userdevice": disk.device, "bootable": disk.bootable, "mode": "RW",
            "type": "Disk", "unpluggable": disk.type != "system", "empty": False, "qos_algorithm_type": "",
            "qos_algorithm_params": {}, "other_config": {OWNER: ""}, "device": "", "currently_attached": False,
        })  # fmt: skip
    except BaseException:
        await undo_all(work, "VDI.destroy", [vdi])
        raise
    await part(work, "VDI.set_name_label", vdi, work.db.VBD[vbd].userdevice)
    return vbd


def sr_of(work: Work, disk: Wanted) -> SR:
    """Return the SR of a disk. Raises UUID_INVALID: clients must have written one in."""
    try:
        return work.db.SR.by_uuid(disk.sr)
    except Fault:
        raise errors.UUID_INVALID("sr", disk.sr) from None
