"""What is refused, and why: one case or more for each row of the table of the API."""

import csv
from collections.abc import Mapping
from pathlib import Path
from types import EllipsisType
from typing import Any

import pytest

from tests.conftest import Pool
from tests.journal import store_at_once
from xapi import datamodel
from xapi.calls import registry
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL
from xapi.operations.refusal import RULES, allowed_operations, permitted, refusal, register
from xapi.operations.serving import unserved
from xapi.store.memory import Store
from xapi.store.rows import Row

Given = Mapping[str, Mapping[str, Any]]
"""Objects by name, and their fields."""
Rule = tuple[str, str]
Expected = str | tuple[str | EllipsisType, ...]
Case = tuple[str, Rule, list[Given], str, str, Expected]

TABLE = Path("/work/shared/xenapi/allowed-operations.tsv")

CLASSES = {
    "pool": "pool",
    "host": "host",
    "alive": "host_metrics",
    "dead": "host",
    "death": "host_metrics",
    "sm": "SM",
    "sr": "SR",
    "pbd": "PBD",
    "network": "network",
    "pif": "PIF",
    "sriov": "network_sriov",
    "appliance": "VM_appliance",
    "vmpp": "VMPP",
    "vmss": "VMSS",
    "metrics": "VM_metrics",
    "guest": "VM_guest_metrics",
    "vm": "VM",
    "other": "VM",
    "pci": "PCI",
    "vdi": "VDI",
    "vbd": "VBD",
    "rival": "VBD",
    "vif": "VIF",
    "vusb": "VUSB",
    "vtpm": "VTPM",
    "gpu": "PGPU",
    "kind": "VGPU_type",
    "vgpu": "VGPU",
    "cluster": "Cluster",
    "member": "Cluster_host",
    "task": "task",
}
"""The objects that a case can speak of, in the order in which they are made."""

FEATURES = [
    "VDI_CREATE",
    "VDI_DELETE",
    "VDI_RESIZE",
    "VDI_RESIZE_ONLINE",
    "VDI_INTRODUCE",
    "VDI_MIRROR",
    "VDI_CONFIG_CBT",
    "VDI_RESET_ON_BOOT",
    "SR_UPDATE",
    "VDI_REVERT",
    "VDI_SNAPSHOT",
    "VDI_CLONE",
    "VDI_UPDATE",
    "VDI_GENERATE_CONFIG",
]

ALWAYS: Given = {
    "pool": {"ha_cluster_stack": "xhad"},
    "host": {"metrics": "@alive", "enabled": False},
    "alive": {"live": True},
    "sm": {"type": "ext", "features": dict.fromkeys(FEATURES, 1)},
    "sr": {"type": "ext"},
    "pbd": {"SR": "@sr", "host": "@host", "currently_attached": True},
    "network": {},
    "metrics": {},
    "vm": {"power_state": "Halted", "metrics": "@metrics", "domain_type": "hvm"},
}
"""What every case begins with."""


def resolve(value: Any) -> Any:
    """Put references for names that begin with @."""
    if isinstance(value, str):
        return f"OpaqueRef:{value[1:]}" if value.startswith("@") else value
    if isinstance(value, tuple):
        return tuple(map(resolve, value))
    return value


def world(*given: Given) -> Store:
    """Return a store with the objects that are always there and those given, later fields before earlier."""
    objects = {name: dict(fields) for name, fields in ALWAYS.items()}
    for more in given:
        for name, fields in more.items():
            objects.setdefault(name, {}).update(fields)
    db = store_at_once()
    for name, class_name in CLASSES.items():
        if name in objects:
            db.tables[class_name].create(f"OpaqueRef:{name}", **{k: resolve(v) for k, v in objects[name].items()})
    return db


def row(db: Store, name: str) -> Any:
    return db.tables[CLASSES[name]][f"OpaqueRef:{name}"]


def by_rules(db: Store, row: Row, operation: str, *, strict: bool = True, called: bool = True) -> Fault | None:
    """The rules alone, whether the operation is there yet or not."""
    return RULES[row._table.name].refuse(db, row, operation, strict=strict, called=called)


def doing(name: str, *operations: str, task: str = "task") -> Given:
    """The object has current operations."""
    return {name: {"current_operations": {f"{task}{n}": operation for n, operation in enumerate(operations, 1)}}}


def state(power_state: str, name: str = "vm") -> Given:
    return {name: {"power_state": power_state}}


RUNNING = state("Running")
HVM = {"vm": {"power_state": "Running"}, "metrics": {"current_domain_type": "hvm"}}
PV = {"vm": {"power_state": "Running"}, "metrics": {"current_domain_type": "pv"}}
TEMPLATE = {"vm": {"is_a_template": True}}
SNAPSHOT = {"vm": {"is_a_template": True, "is_a_snapshot": True}}
CONTROL: Given = {"vm": {"power_state": "Running", "is_control_domain": True}, "metrics": {"current_domain_type": "pv"}}
DOM0 = {
    "vm": {**CONTROL["vm"], "resident_on": "@host"},
    "metrics": CONTROL["metrics"],
    "host": {"control_domain": "@vm"},
}
UPGRADE = {"pool": {"other_config": {"rolling_upgrade_in_progress": "true"}}}
HA = {"pool": {"ha_enabled": True}}
DISK = {"vdi": {"SR": "@sr", "type": "user", "managed": True}}
VBD = DISK | {
    "vbd": {"VM": "@vm", "VDI": "@vdi", "type": "Disk", "mode": "RW", "unpluggable": True, "empty": False},
}
CD = {"vbd": {"type": "CD", "mode": "RO"}}
EMPTY = {"vbd": {"type": "CD", "mode": "RO", "VDI": NULL, "empty": True}}
ATTACHED = {"vbd": {"currently_attached": True}}
RIVAL = {"rival": {"VM": "@other", "VDI": "@vdi", "mode": "RW", "currently_attached": True}, "other": RUNNING["vm"]}
VIF = {"vif": {"VM": "@vm", "network": "@network"}}
VUSB = {"vusb": {"VM": "@vm"}}
VTPM = {"vtpm": {"VM": "@vm"}}
MEMBER: Given = {"appliance": {}, "vm": {"appliance": "@appliance"}}
CLUSTER: Given = {"cluster": {}, "member": {"cluster": "@cluster", "host": "@host"}}
DEGRADED: Given = {
    "sr": {"clustered": True},
    "dead": {"metrics": "@death"},
    "death": {"live": False},
    "cluster": {},
    "member": {"cluster": "@cluster", "host": "@dead", "enabled": True},
}
VGPU = {"vgpu": {"VM": "@vm", "type": "@kind"}, "kind": {"implementation": "passthrough"}, "gpu": {}}


def agent(**guest: Any) -> Given:
    """The guest has told something."""
    return {"vm": {"guest_metrics": "@guest"}, "guest": guest}


def lacking(*features: str) -> Given:
    return {"sm": {"features": dict.fromkeys(set(FEATURES) - set(features), 1)}}


def disk(**fields: Any) -> Given:
    return {"vdi": fields}


VM_CASES: list[tuple[Rule, list[Given], str, Expected]] = [
    (("*", "op is a key"), [{"vm": {"blocked_operations": {"start": "why"}}}], "start", "OPERATION_BLOCKED @vm why"),
    (("*", "power_state not"), [RUNNING], "start", ("VM_BAD_POWER_STATE", "@vm", "halted", "running")),
    (
        ("*", "power_state not"),
        [],
        "checkpoint",
        ("VM_BAD_POWER_STATE", "@vm", "paused, suspended, running", "halted"),
    ),
    (
        ("*", "power_state not"),
        [SNAPSHOT, RUNNING],
        "copy",
        ("VM_BAD_POWER_STATE", "@vm", "halted, suspended", "running"),
    ),
    (("*", "power_state not"), [], "import", ("VM_BAD_POWER_STATE", "@vm", "", "halted")),
    (
        ("*", "current_operations not"),
        [doing("vm", "clone")],
        "start",
        "OTHER_OPERATION_IN_PROGRESS VM @vm clone task1",
    ),
    (
        ("*", "current_operations not"),
        [doing("vm", "clone", "copy")],
        "start",
        "OTHER_OPERATION_IN_PROGRESS VM @vm {clone,copy} {task1,task2}",
    ),
    (("*", "is_a_template and not"), [TEMPLATE], "start", "VM_IS_TEMPLATE @vm start"),
    (
        ("*", "is_a_template and not"),
        [TEMPLATE, {"vm": {"is_default_template": True}}],
        "destroy",
        "VM_IS_TEMPLATE @vm destroy",
    ),
    (
        ("*", "is_a_template and not"),
        [TEMPLATE, {"vm": {"other_config": {"default_template": "True"}}}],
        "migrate_send",
        "VM_IS_TEMPLATE @vm migrate_send",
    ),
    (("*", "is_a_snapshot and"), [SNAPSHOT], "start", "VM_IS_SNAPSHOT @vm start"),
    (("*", "is_a_snapshot and"), [SNAPSHOT], "provision", "VM_IS_SNAPSHOT @vm provision"),
    (("provision", "not is_a_template"), [], "provision", "PROVISION_ONLY_ALLOWED_ON_TEMPLATE"),
    (("revert", "not is_a_snapshot"), [], "revert", "REVERT_ONLY_ALLOWED_ON_SNAPSHOT"),
    (
        ("suspend,checkpoint", "strict and (nomigrate"),
        [PV, {"metrics": {"nomigrate": True}}],
        "suspend",
        "VM_IS_IMMOBILE @vm",
    ),
    (
        ("suspend,checkpoint", "strict and (nomigrate"),
        [PV, {"metrics": {"nested_virt": True}}],
        "pool_migrate",
        "VM_IS_IMMOBILE @vm",
    ),
    (
        ("suspend,checkpoint", "strict and (nomigrate"),
        [{"vm": {"metrics": NULL, "platform": {"nomigrate": "1"}}}],
        "migrate_send",
        "VM_IS_IMMOBILE @vm",
    ),
    (
        ("changing_dynamic", "strict and nested"),
        [{"metrics": {"nested_virt": True}}],
        "changing_dynamic_range",
        "VM_IS_USING_NESTED_VIRT @vm",
    ),
    (
        ("changing_VCPUs,destroy", "is dom0"),
        [DOM0],
        "changing_VCPUs",
        ("OPERATION_NOT_ALLOWED", "This operation is not allowed on dom0"),
    ),
    (
        ("changing_VCPUs,destroy", "is dom0"),
        [DOM0, state("Halted")],
        "destroy",
        ("OPERATION_NOT_ALLOWED", "This operation is not allowed on dom0"),
    ),
    (
        ("*", "is_control_domain and"),
        [CONTROL],
        "pause",
        ("OPERATION_NOT_ALLOWED", "This operation is not allowed on a control domain"),
    ),
    (
        ("suspend,checkpoint", "live (running"),
        [PV, agent(other={"data-cant-suspend-reason": "busy", "feature-suspend": "1"})],
        "suspend",
        "VM_NON_SUSPENDABLE @vm busy",
    ),
    (("suspend,checkpoint", "live, strict"), [HVM], "suspend", "VM_LACKS_FEATURE @vm"),
    (
        ("suspend,checkpoint", "live, strict"),
        [HVM, agent(other={"feature-suspend": "0"})],
        "pool_migrate",
        "VM_LACKS_FEATURE @vm",
    ),
    (("suspend,checkpoint", "live, strict"), [HVM, state("Paused")], "checkpoint", "VM_LACKS_FEATURE @vm"),
    (
        ("clean_shutdown", "strict, no implicit"),
        [HVM, agent(other={"feature-reboot": "1"})],
        "clean_shutdown",
        "VM_LACKS_FEATURE @vm",
    ),
    (
        ("clean_reboot", "strict, no implicit"),
        [HVM, agent(other={"feature-poweroff": "1"})],
        "clean_reboot",
        "VM_LACKS_FEATURE @vm",
    ),
    (("changing_VCPUs_live", "no implicit"), [HVM], "changing_VCPUs_live", "VM_LACKS_FEATURE @vm"),
    (
        ("(*)", "implicit support"),
        [HVM, agent(PV_drivers_version={"major": "9", "minor": "x"})],
        "suspend",
        "VM_LACKS_FEATURE @vm",
    ),
    (
        ("snapshot_with_quiesce", "always"),
        [RUNNING],
        "snapshot_with_quiesce",
        "VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED @vm",
    ),
    (
        ("checkpoint,snapshot", "a VDI of a VBD"),
        [VBD, disk(sm_config={"on_boot": "reset"})],
        "snapshot",
        "VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION",
    ),
    (
        ("pool_migrate", "a VDI has"),
        [PV, VBD, disk(sm_config={"on_boot": "reset", "caching": "true"})],
        "pool_migrate",
        "VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION",
    ),
    (
        ("suspend,checkpoint", "attached_PCIs has"),
        [PV, {"pci": {"attached_VMs": ("@vm",)}}],
        "suspend",
        "VM_HAS_PCI_ATTACHED @vm",
    ),
    (("suspend,checkpoint", "has VGPUs"), [PV, VGPU], "suspend", "VM_HAS_VGPU @vm"),
    (
        ("suspend,checkpoint", "has VGPUs"),
        [PV, VGPU, {"kind": {"implementation": "nvidia"}}],
        "migrate_send",
        "VM_HAS_VGPU @vm",
    ),
    (("suspend,snapshot", "has VUSBs"), [VUSB], "snapshot", "VM_HAS_VUSBS @vm"),
    (("suspend,snapshot", "has VUSBs"), [PV, VUSB], "pool_migrate", "VM_HAS_VUSBS @vm"),
    (
        ("make_into_template", "appliance is"),
        [MEMBER],
        "make_into_template",
        "VM_IS_PART_OF_AN_APPLIANCE @vm @appliance",
    ),
    (
        ("make_into_template", "protection_policy is"),
        [{"vmpp": {}, "vm": {"protection_policy": "@vmpp"}}],
        "make_into_template",
        "VM_ASSIGNED_TO_PROTECTION_POLICY @vm @vmpp",
    ),
    (
        ("make_into_template", "snapshot_schedule is"),
        [{"vmss": {}, "vm": {"snapshot_schedule": "@vmss"}}],
        "make_into_template",
        "VM_ASSIGNED_TO_SNAPSHOT_SCHEDULE @vm @vmss",
    ),
    (("query_services", "other_config:is_system"), [], "query_services", "NOT_SYSTEM_DOMAIN @vm"),
    (("*", "rolling upgrade"), [UPGRADE], "snapshot", "NOT_SUPPORTED_DURING_UPGRADE"),
    (("create_vtpm", "has a VTPM"), [VTPM], "create_vtpm", "VTPM_MAX_AMOUNT_REACHED 1"),
]

UNSUPPORTED = {
    "VDI_SNAPSHOT": ("snapshot", "snapshot"),
    "VDI_DELETE": ("destroy", "destroy"),
    "VDI_RESIZE": ("resize", "resize"),
    "VDI_UPDATE": ("update", "update"),
    "VDI_RESIZE_ONLINE": ("resize_online", "resize_online"),
    "VDI_GENERATE_CONFIG": ("generate_config", "generate_config"),
    "VDI_CLONE": ("clone,revert_to", "clone"),
    "VDI_MIRROR": ("mirror", "mirror"),
    "VDI_CONFIG_CBT": ("enable_cbt,disable_cbt,data", "list_changed_blocks"),
    "VDI_RESET_ON_BOOT": ("set_on_boot", "set_on_boot"),
}
STATEFILE = disk(type="ha_statefile")
DESTROYING = "destroy,revert_from,data_destroy"

VDI_CASES: list[tuple[Rule, list[Given], str, Expected]] = [
    (("*", "rolling upgrade"), [UPGRADE], "mirror", "NOT_SUPPORTED_DURING_UPGRADE"),
    (
        ("*", "a current op other"),
        [doing("vdi", "snapshot")],
        "clone",
        "OTHER_OPERATION_IN_PROGRESS VDI @vdi snapshot task1",
    ),
    (
        ("*", "a current op other"),
        [doing("vdi", "copy", "mirror")],
        "forget",
        "OTHER_OPERATION_IN_PROGRESS VDI @vdi mirror task2",
    ),
    (("resize", "SR has no"), [{"pbd": {"currently_attached": False}}], "resize", "SR_HAS_NO_PBDS @sr"),
    (("all but snapshot", "active VBD"), [VBD, ATTACHED], "destroy", "VDI_IN_USE @vdi destroy"),
    (("all but snapshot", "active VBD"), [VBD, {"vbd": {"reserved": True}}], "copy", "VDI_IN_USE @vdi copy"),
    (("all but snapshot", "active VBD"), [VBD, ATTACHED], "list_changed_blocks", "VDI_IN_USE @vdi list_changed_blocks"),
    (
        ("all but data_destroy", "a VBD of"),
        [VBD, doing("vbd", "plug")],
        "clone",
        "OTHER_OPERATION_IN_PROGRESS VDI @vdi plug task1",
    ),
    *(
        (
            (operations, f"SM.features of the SR type lacks {feature}"),
            [lacking(feature)],
            operation,
            "SR_OPERATION_NOT_SUPPORTED @sr",
        )
        for feature, (operations, operation) in UNSUPPORTED.items()
    ),
    (
        ("clone,copy,disable", "type = cbt"),
        [disk(type="cbt_metadata")],
        "clone",
        "VDI_INCOMPATIBLE_TYPE @vdi cbt_metadata",
    ),
    (("mirror,set_on_boot", "cbt_enabled"), [disk(cbt_enabled=True)], "mirror", "VDI_CBT_ENABLED @vdi"),
    (("forget", "HA on"), [STATEFILE, HA], "forget", "HA_IS_ENABLED"),
    (("forget", "type = rrd"), [disk(type="rrd")], "forget", "VDI_HAS_RRDS @vdi"),
    (
        ("data_destroy", "not is_a_snapshot"),
        [],
        "data_destroy",
        ("OPERATION_NOT_ALLOWED", "VDI is not a snapshot: OpaqueRef:vdi"),
    ),
    (("data_destroy", "not cbt_enabled"), [disk(is_a_snapshot=True)], "data_destroy", "VDI_NO_CBT_METADATA @vdi"),
    (
        (DESTROYING, "SR type = udev"),
        [lacking("VDI_CREATE")],
        "destroy",
        "VDI_IS_A_PHYSICAL_DEVICE @vdi",
    ),
    ((DESTROYING, "SR.is_tools_sr"), [{"sr": {"is_tools_sr": True}}], "destroy", "SR_OPERATION_NOT_SUPPORTED @sr"),
    ((DESTROYING, "type = rrd"), [disk(type="rrd")], "revert_from", "VDI_HAS_RRDS @vdi"),
    (
        (DESTROYING, "HA on"),
        [disk(type="redo_log", is_a_snapshot=True, cbt_enabled=True), HA],
        "data_destroy",
        "HA_IS_ENABLED",
    ),
    (
        (DESTROYING, "same types, pool op ha_enable"),
        [STATEFILE, doing("pool", "ha_enable")],
        "destroy",
        "HA_ENABLE_IN_PROGRESS",
    ),
    (
        (DESTROYING, "same types, pool op ha_disable"),
        [STATEFILE, doing("pool", "ha_disable")],
        "destroy",
        "HA_DISABLE_IN_PROGRESS",
    ),
    (("resize,resize_online", "HA on"), [STATEFILE, HA], "resize_online", "HA_IS_ENABLED"),
    (("snapshot", "sharable"), [disk(sharable=True)], "snapshot", "VDI_IS_SHARABLE @vdi"),
    (("snapshot,copy", "on_boot"), [disk(on_boot="reset")], "copy", "VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION"),
    (
        ("snapshot", "copy is current"),
        [doing("vdi", "copy")],
        "snapshot",
        ("OPERATION_NOT_ALLOWED", "Snapshot operation not allowed during copy."),
    ),
    (("copy", "type ha_statefile"), [STATEFILE], "copy", ("OPERATION_NOT_ALLOWED", ...)),
    (
        ("enable_cbt,disable_cbt", "is_a_snapshot"),
        [disk(is_a_snapshot=True)],
        "enable_cbt",
        ("OPERATION_NOT_ALLOWED", "VDI is a snapshot: OpaqueRef:vdi"),
    ),
    (
        ("enable_cbt,disable_cbt", "type not"),
        [disk(type="suspend")],
        "disable_cbt",
        "VDI_INCOMPATIBLE_TYPE @vdi suspend",
    ),
    (
        ("enable_cbt,disable_cbt", "on_boot"),
        [disk(on_boot="reset")],
        "enable_cbt",
        "VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION",
    ),
    (("revert_to", "not is_a"), [], "revert_to", "REVERT_ONLY_ALLOWED_ON_SNAPSHOT"),
]

NO_VBD_HOTPLUG = ("OPERATION_NOT_ALLOWED", "VM states it does not support VBD hotplug.")
STOPPING = ("OPERATION_NOT_ALLOWED", "Current operation on VM:OpaqueRef:vm is suspend")
PLUGGING = "plug,unplug,unplug_force"

VBD_CASES: list[tuple[Rule, list[Given], str, Expected]] = [
    (
        ("all but pause", "current_operations"),
        [doing("vbd", "pause")],
        "attach",
        "OTHER_OPERATION_IN_PROGRESS VBD @vbd pause task1",
    ),
    (
        ("pause", "current op other"),
        [PV, doing("vbd", "unpause", "attach")],
        "pause",
        "OTHER_OPERATION_IN_PROGRESS VBD @vbd attach task2",
    ),
    (
        ("unpause", "current op other"),
        [PV, doing("vbd", "attach", "unplug")],
        "unpause",
        "OTHER_OPERATION_IN_PROGRESS VBD @vbd unplug task2",
    ),
    (
        ("unplug,unplug_force", "not unpluggable"),
        [PV, {"vbd": {"unpluggable": False}}],
        "unplug",
        "VBD_NOT_UNPLUGGABLE @vbd",
    ),
    (("insert,eject", "type not CD"), [], "eject", "VBD_NOT_REMOVABLE_MEDIA @vbd"),
    (("eject", "empty"), [EMPTY], "eject", "VBD_IS_EMPTY @vbd"),
    (("insert", "not empty"), [CD], "insert", "VBD_NOT_EMPTY @vbd"),
    (("plug", "VM running"), [PV, {"vbd": {"reserved": True}}], "plug", "DEVICE_ALREADY_ATTACHED @vbd"),
    (("unplug,unplug_force", "VM running"), [PV], "unplug_force", "DEVICE_ALREADY_DETACHED @vbd"),
    ((PLUGGING, "VM not running"), [state("Paused")], "plug", "VM_BAD_POWER_STATE @vm running paused"),
    (("pause,unpause", "VM halted"), [state("Suspended")], "pause", "VM_BAD_POWER_STATE @vm running suspended"),
    (("plug,unplug", "VM has clean_shutdown"), [PV, doing("vm", "suspend")], "plug", STOPPING),
    (
        (PLUGGING, "VM running HVM: guest_metrics"),
        [HVM, agent(can_use_hotplug_vbd="no", PV_drivers_detected=True)],
        "plug",
        NO_VBD_HOTPLUG,
    ),
    ((PLUGGING, "VM running HVM: can_use"), [HVM], "plug", "VM_MISSING_PV_DRIVERS @vm"),
    (
        (PLUGGING, "VM running HVM: can_use"),
        [HVM, ATTACHED, agent(PV_drivers_version={"major": "9"})],
        "unplug",
        "VM_MISSING_PV_DRIVERS @vm",
    ),
    (
        (PLUGGING, "VM running HVM and type CD"),
        [HVM, CD, agent(can_use_hotplug_vbd="yes")],
        "plug",
        ("OPERATION_NOT_ALLOWED", ...),
    ),
    (
        ("insert,eject", "type CD and VM"),
        [CD, state("Suspended")],
        "eject",
        ("VM_BAD_POWER_STATE", "@vm", "halted, running", "suspended"),
    ),
    (("all 8", "not empty and VDI"), [disk(managed=False)], "attach", "VDI_NOT_MANAGED @vbd"),
    (
        ("attach,plug,insert", "not empty and the VDI"),
        [doing("vdi", "copy", "snapshot")],
        "attach",
        "OTHER_OPERATION_IN_PROGRESS VDI @vdi snapshot task2",
    ),
    (("attach,insert,plug", "(when called"), [RIVAL], "attach", "VDI_IN_USE @vdi"),
    (("attach,insert,plug", "(when called"), [RIVAL, {"rival": {"mode": "RO"}}], "attach", "VDI_IN_USE @vdi"),
    (("attach,insert,plug", "(same)"), [disk(read_only=True)], "attach", "VDI_READONLY @vdi"),
]

NO_VIF_HOTPLUG = ("OPERATION_NOT_ALLOWED", "VM states it does not support VIF hotplug.")

VIF_CASES: list[tuple[Rule, list[Given], str, Expected]] = [
    (
        ("all", "current_operations"),
        [doing("vif", "plug", "attach")],
        "attach",
        ("OTHER_OPERATION_IN_PROGRESS", "VIF", "@vif", "{plug; attach}", "{task1; task2}"),
    ),
    (("plug", "VM is dom0"), [DOM0], "plug", ("OPERATION_NOT_ALLOWED", "Control domain does not support hotplug")),
    (
        ("plug,unplug", "network is an SR-IOV"),
        [PV, {"pif": {"network": "@network"}, "sriov": {"logical_PIF": "@pif"}}],
        "plug",
        ("OPERATION_NOT_ALLOWED", "Network SR-IOV VIF plug/unplug not allowed"),
    ),
    (("plug", "VM running and"), [PV, {"vif": {"currently_attached": True}}], "plug", "DEVICE_ALREADY_ATTACHED @vif"),
    (("unplug", "VM running and"), [PV], "unplug", "DEVICE_ALREADY_DETACHED @vif"),
    (("plug,unplug", "VM not running"), [], "plug", "VM_BAD_POWER_STATE @vm running halted"),
    (("plug,unplug", "VM has clean"), [PV, doing("vm", "suspend")], "plug", STOPPING),
    (("plug,unplug", "VM running HVM: can_use"), [HVM, agent(can_use_hotplug_vif="no")], "plug", NO_VIF_HOTPLUG),
    (("plug,unplug", "VM running HVM: unspecified"), [HVM], "plug", "VM_MISSING_PV_DRIVERS @vm"),
]

SR_FEATURES = {
    "VDI_CREATE": ("vdi_create", "vdi_create"),
    "VDI_DELETE": ("vdi_destroy", "vdi_destroy"),
    "VDI_RESIZE": ("vdi_resize", "vdi_resize"),
    "VDI_INTRODUCE": ("vdi_introduce", "vdi_introduce"),
    "VDI_MIRROR": ("vdi_mirror", "vdi_mirror"),
    "VDI_CONFIG_CBT": ("vdi_enable_cbt", "vdi_data_destroy"),
    "VDI_RESET_ON_BOOT": ("vdi_set_on_boot", "vdi_set_on_boot"),
    "SR_UPDATE": ("update", "update"),
    "VDI_REVERT": ("vdi_revert", "vdi_revert"),
    "VDI_SNAPSHOT": ("vdi_snapshot", "vdi_snapshot"),
}
UNPLUGGED = {"pbd": {"currently_attached": False}}

SR_CASES: list[tuple[Rule, list[Given], str, Expected]] = [
    (("all but scan", "rolling"), [UPGRADE], "vdi_mirror", "NOT_SUPPORTED_DURING_UPGRADE"),
    *(
        (
            (operations, f"SM.features of the type lacks {feature}"),
            [lacking(feature)],
            operation,
            "SR_OPERATION_NOT_SUPPORTED @sr",
        )
        for feature, (operations, operation) in SR_FEATURES.items()
    ),
    (("vdi_create", "SM.features"), [{"sr": {"is_tools_sr": True}}], "vdi_create", "SR_OPERATION_NOT_SUPPORTED @sr"),
    (("destroy,forget", "a PBD is"), [], "forget", "SR_HAS_PBD @sr"),
    (("destroy", "no PBDs"), [{"pbd": {"SR": NULL}}], "destroy", "SR_HAS_NO_PBDS @sr"),
    (("destroy", "a managed VDI"), [UNPLUGGED, DISK], "destroy", "SR_NOT_EMPTY"),
    (
        ("all but plug", "current_operations"),
        [doing("sr", "scan")],
        "unplug",
        "OTHER_OPERATION_IN_PROGRESS SR @sr scan task1",
    ),
    (("plug", "a current op"), [doing("sr", "plug", "scan")], "plug", "OTHER_OPERATION_IN_PROGRESS SR @sr scan task2"),
    (
        ("plug", "HA/cluster"),
        [HA, {"sm": {"required_cluster_stack": ("corosync", "other")}}],
        "plug",
        "INCOMPATIBLE_CLUSTER_STACK_ACTIVE corosync,other",
    ),
]

HOST_CASES: list[tuple[Rule, list[Given], str, Expected]] = [
    (
        ("provision,vm_resume", "evacuate"),
        [doing("host", "evacuate")],
        "vm_migrate",
        "OTHER_OPERATION_IN_PROGRESS host @host evacuate task1",
    ),
    (
        ("evacuate,reboot", "provision"),
        [doing("host", "vm_resume")],
        "evacuate",
        "OTHER_OPERATION_IN_PROGRESS host @host vm_resume task1",
    ),
    (
        ("shutdown,apply_updates", "reboot is"),
        [doing("host", "reboot")],
        "apply_updates",
        "OTHER_OPERATION_IN_PROGRESS host @host reboot task1",
    ),
    (
        ("reboot,apply_updates", "shutdown is"),
        [doing("host", "shutdown")],
        "reboot",
        "OTHER_OPERATION_IN_PROGRESS host @host shutdown task1",
    ),
    (
        ("reboot,shutdown,enable", "apply_updates is"),
        [doing("host", "apply_updates")],
        "enable",
        "OTHER_OPERATION_IN_PROGRESS host @host apply_updates task1",
    ),
    (
        ("provision", "provision is"),
        [doing("host", "vm_start", "provision")],
        "provision",
        "OTHER_OPERATION_IN_PROGRESS host @host provision task2",
    ),
    (("reboot,shutdown,apply", "host.enabled"), [{"host": {"enabled": True}}], "reboot", "HOST_NOT_DISABLED"),
    (("power_on", "host_metrics.live"), [], "power_on", "HOST_IS_LIVE @host"),
    (("power_on", "power_on_mode"), [{"alive": {"live": False}}], "power_on", "HOST_POWER_ON_MODE_DISABLED"),
    (("shutdown,reboot,apply", "clustered SR"), [DEGRADED], "shutdown", "CLUSTERED_SR_DEGRADED @sr"),
    (
        ("shutdown,reboot,apply", "clustered SR"),
        [{"sr": {"clustered": True}, "task": {"name_label": "SR Recovering", "name_description": "@sr"}}],
        "reboot",
        "CLUSTERED_SR_DEGRADED @sr",
    ),
]

BLOCKING = [
    "ha_enable",
    "ha_disable",
    "cluster_create",
    "designate_new_master",
    "tls_verification_enable",
    "configure_repositories",
    "sync_updates",
    "sync_bundle",
    "apply_updates",
]

POOL_CASES: list[tuple[Rule, list[Given], str, Expected]] = [
    (("*", "is_psr_pending"), [{"pool": {"is_psr_pending": True}}], "eject", "POOL_SECRET_ROTATION_PENDING"),
    *(
        (
            ("blocking ops", f"{blocking} is current"),
            [doing("pool", "eject", blocking)],
            operation,
            f"{blocking.upper()}_IN_PROGRESS",
        )
        for blocking in BLOCKING
        for operation in ("ha_enable", "apply_updates")
    ),
    (("waiting ops", "any blocking"), [doing("pool", "ha_enable")], "eject", "OTHER_OPERATION_IN_PROGRESS pool @pool"),
    (
        ("waiting ops", "any blocking"),
        [doing("pool", "ha_enable", "eject")],
        "get_updates",
        "OTHER_OPERATION_IN_PROGRESS pool @pool eject task2",
    ),
    (
        ("blocking ops", "only a waiting"),
        [doing("pool", "eject")],
        "ha_enable",
        "OTHER_OPERATION_IN_PROGRESS pool @pool eject task1",
    ),
    (("ha_enable,tls", "ha_enabled"), [HA], "tls_verification_enable", "HA_IS_ENABLED"),
    (("ha_disable", "not ha_enabled"), [], "ha_disable", "HA_NOT_ENABLED"),
    (("cluster_create,tls", "rolling"), [UPGRADE], "cluster_create", "NOT_SUPPORTED_DURING_UPGRADE"),
    (("cluster_create", "a Cluster"), [CLUSTER, HA], "cluster_create", "CLUSTER_ALREADY_EXISTS"),
    (("cluster_create", "ha_enabled"), [HA], "cluster_create", "INCOMPATIBLE_CLUSTER_STACK_ACTIVE xhad"),
]

APPLIANCE_CASES: list[tuple[Rule, list[Given], str, Expected]] = [
    (
        ("*", "current_operations"),
        [MEMBER, doing("appliance", "start")],
        "shutdown",
        "OTHER_OPERATION_IN_PROGRESS VM_appliance @appliance start task1",
    ),
    (("*", "no VMs"), [{"appliance": {}}], "start", ("OPERATION_NOT_ALLOWED", "Appliance has no VMs.")),
    (("start", "no VM is halted"), [MEMBER, RUNNING], "start", ("OPERATION_NOT_ALLOWED", ...)),
    (("clean_shutdown", "no VM"), [MEMBER], "clean_shutdown", ("OPERATION_NOT_ALLOWED", ...)),
    (("hard_shutdown,shutdown", "every VM"), [MEMBER], "hard_shutdown", ("OPERATION_NOT_ALLOWED", ...)),
]

VUSB_CASES: list[tuple[Rule, list[Given], str, Expected]] = [
    (
        ("all", "current_operations"),
        [doing("vusb", "plug")],
        "attach",
        "OTHER_OPERATION_IN_PROGRESS VUSB @vusb {plug} {task1}",
    ),
    (("plug", "VM running"), [PV, {"vusb": {"currently_attached": True}}], "plug", "DEVICE_ALREADY_ATTACHED @vusb"),
    (("unplug", "VM running"), [PV], "unplug", "DEVICE_ALREADY_DETACHED @vusb"),
    (("plug,unplug", "VM not"), [], "unplug", "VM_BAD_POWER_STATE @vm running halted"),
    (("plug,unplug", "VM has"), [PV, doing("vm", "suspend")], "plug", STOPPING),
]

SMALL_CASES: list[Case] = [
    (
        "VTPM",
        ("destroy", "VM not"),
        [VTPM, RUNNING],
        "vtpm",
        "destroy",
        "VM_BAD_POWER_STATE @vm halted;suspended running",
    ),
    (
        "Cluster",
        ("all", "current"),
        [CLUSTER, doing("cluster", "add")],
        "cluster",
        "enable",
        "OTHER_OPERATION_IN_PROGRESS Cluster @cluster add task1",
    ),
    ("Cluster", ("add,remove", "rolling"), [CLUSTER, UPGRADE], "cluster", "add", "NOT_SUPPORTED_DURING_UPGRADE"),
    (
        "Cluster_host",
        ("all", "current"),
        [CLUSTER, doing("member", "enable")],
        "member",
        "destroy",
        "OTHER_OPERATION_IN_PROGRESS Cluster_host @member enable task1",
    ),
    (
        "Cluster_host",
        ("enable,disable", "not joined"),
        [CLUSTER, {"member": {"joined": False}}],
        "member",
        "enable",
        "CLUSTER_HOST_NOT_JOINED @member",
    ),
]

CASES: list[Case] = [
    *(("VM", rule, given, "vm", operation, error) for rule, given, operation, error in VM_CASES),
    *(("VDI", rule, [DISK, *given], "vdi", operation, error) for rule, given, operation, error in VDI_CASES),
    *(("VBD", rule, [VBD, *given], "vbd", operation, error) for rule, given, operation, error in VBD_CASES),
    *(("VIF", rule, [VIF, *given], "vif", operation, error) for rule, given, operation, error in VIF_CASES),
    *(("SR", rule, given, "sr", operation, error) for rule, given, operation, error in SR_CASES),
    *(("host", rule, given, "host", operation, error) for rule, given, operation, error in HOST_CASES),
    *(("pool", rule, given, "pool", operation, error) for rule, given, operation, error in POOL_CASES),
    *(
        ("VM_appliance", rule, given, "appliance", operation, error)
        for rule, given, operation, error in APPLIANCE_CASES
    ),
    *(("VUSB", rule, [VUSB, *given], "vusb", operation, error) for rule, given, operation, error in VUSB_CASES),
    *SMALL_CASES,
]
"""Class, the beginnings of the table's columns, what is given, the object, the operation, the error."""

CALLED_ONLY = ("(when called", "(same)", "is_psr_pending")


def title(case: Case) -> str:
    class_name, (_, condition), _, _, operation, _ = case
    return f"{class_name}.{operation}: {condition}"


@pytest.mark.parametrize("case", CASES, ids=title)
def test_an_operation_is_refused_with_the_error_of_the_table(case: Case) -> None:
    """The first rule that applies gives the error and its parameters; ... stands for a text of ours."""
    _, _, given, name, operation, expected = case
    db = world(*given)

    fault = refusal(db, row(db, name), operation)

    assert fault is not None
    words = expected.split() if isinstance(expected, str) else list(expected)
    found = [... if word is ... else met for word, met in zip(words, fault.description, strict=True)]
    assert found == [resolve(word) for word in words]


@pytest.mark.parametrize("case", [case for case in CASES if case[1][1] not in CALLED_ONLY], ids=title)
def test_what_is_refused_is_not_listed(case: Case) -> None:
    """The list and the answer to a call come from the same rules."""
    _, _, given, name, operation, _ = case
    db = world(*given)

    assert operation not in allowed_operations(db, row(db, name))


@pytest.mark.skipif(not TABLE.is_file(), reason="the table of facts is not on this machine")
def test_every_row_of_the_table_has_a_case() -> None:
    """A row without a case would be a rule that nobody checks."""
    with TABLE.open() as text:
        rows = [tuple(line[:3]) for line in csv.reader(text, "excel-tab") if line[0] in RULES and line[3]]
    missing = [
        row
        for row in rows
        if not any(
            case[0] == row[0] and row[1].startswith(case[1][0]) and row[2].startswith(case[1][1]) for case in CASES
        )
    ]
    # Whether the plugin is there is no fact of any row.
    assert missing == [("host", "power_on", "plugin power-on-host missing")]


@pytest.mark.parametrize(
    ("running", "operation"),
    [
        (["clone", "export"], "copy"),
        (["checkpoint"], "snapshot"),
        (["get_boot_record"], "get_boot_record"),
        (["clean_shutdown", "suspend"], "hard_shutdown"),
        (["clean_reboot"], "hard_reboot"),
        (["snapshot_with_quiesce"], "snapshot"),
        (["migrate_send"], "metadata_export"),
        (["migrate_send"], "clean_shutdown"),
        (["migrate_send"], "clean_reboot"),
    ],
)
def test_some_operations_of_a_vm_start_beside_others(running: list[str], operation: str) -> None:
    """The VM-concurrency rows of the table."""
    given = state("Halted") if operation in ("copy", "snapshot") else PV
    db = world(given, doing("vm", *running))

    assert by_rules(db, row(db, "vm"), operation) is None


@pytest.mark.parametrize(
    ("running", "operation"),
    [
        (["clone", "snapshot"], "copy"),
        (["hard_shutdown"], "hard_shutdown"),
        (["hard_shutdown"], "hard_reboot"),
        (["hard_reboot"], "hard_reboot"),
        (["snapshot_with_quiesce", "snapshot"], "snapshot"),
        (["migrate_send", "migrate_send"], "clean_shutdown"),
        (["migrate_send"], "suspend"),
    ],
)
def test_other_operations_of_a_vm_wait(running: list[str], operation: str) -> None:
    """The same rows, just missed."""
    given = state("Halted") if operation in ("copy", "snapshot") else PV
    db = world(given, doing("vm", *running))

    fault = refusal(db, row(db, "vm"), operation)

    assert fault is not None and fault.code == "OTHER_OPERATION_IN_PROGRESS"


@pytest.mark.parametrize(
    ("given", "name", "operation"),
    [
        ([VGPU], "vm", "migrate_send"),
        ([VGPU, state("Suspended")], "vm", "checkpoint"),
        (
            [
                PV,
                VGPU,
                {
                    "kind": {"implementation": "nvidia"},
                    "gpu": {"compatibility_metadata": {"nvidia": "x"}},
                    "vgpu": {"resident_on": "@gpu"},
                },
            ],
            "vm",
            "suspend",
        ),
        (
            [
                PV,
                VGPU,
                {
                    "kind": {"implementation": "nvidia_sriov"},
                    "gpu": {"compatibility_metadata": {"nvidia": "x"}},
                    "vgpu": {"resident_on": "@gpu", "PCI": "@pci"},
                    "pci": {"attached_VMs": ("@vm",)},
                },
            ],
            "vm",
            "suspend",
        ),
        ([{"metrics": {"nomigrate": False}, "vm": {"platform": {"nomigrate": "true"}}}], "vm", "migrate_send"),
        ([HVM, agent(PV_drivers_version={"major": "9", "minor": "3"})], "vm", "suspend"),
        ([HVM, agent(other={"feature-poweroff": "1"})], "vm", "clean_shutdown"),
        ([{"vm": {"other_config": {"is_system_domain": "true"}}}], "vm", "query_services"),
        ([CONTROL], "vm", "changing_static_range"),
        ([SNAPSHOT, state("Suspended")], "vm", "clone"),
        ([state("Suspended"), {"pool": {"other_config": {"allow_clone_suspended_vm": "true"}}}], "vm", "copy"),
        ([TEMPLATE], "vm", "destroy"),
        ([SNAPSHOT], "vm", "revert"),
        ([{"vm": {"appliance": "@gone"}}], "vm", "make_into_template"),
        ([VBD, ATTACHED, {"vbd": {"mode": "RO"}}], "vdi", "copy"),
        ([VBD, ATTACHED, SNAPSHOT], "vdi", "list_changed_blocks"),
        ([VBD, ATTACHED], "vdi", "snapshot"),
        ([DISK, doing("vdi", "mirror")], "vdi", "destroy"),
        ([DISK, doing("vdi", "copy")], "vdi", "clone"),
        ([DISK, disk(is_a_snapshot=True, cbt_enabled=True), doing("pool", "ha_enable")], "vdi", "data_destroy"),
        ([VBD, HVM, agent(PV_drivers_detected=True)], "vbd", "plug"),
        ([VBD, RIVAL, state("Suspended", "other")], "vbd", "attach"),
        ([VBD, RIVAL, {"other": {"is_control_domain": True}}], "vbd", "attach"),
        ([VBD, RIVAL, disk(sharable=True)], "vbd", "attach"),
        ([VBD, RIVAL, {"rival": {"mode": "RO"}, "vbd": {"mode": "RO"}}], "vbd", "attach"),
        ([VBD, RIVAL, ATTACHED], "vbd", "attach"),
        ([VBD, EMPTY], "vbd", "insert"),
        ([VBD, state("Paused")], "vbd", "pause"),
        ([VBD, PV, doing("vbd", "attach")], "vbd", "unpause"),
        ([VIF, PV], "vif", "plug"),
        ([doing("sr", "plug")], "sr", "plug"),
        ([UNPLUGGED, DISK, disk(type="rrd")], "sr", "destroy"),
        ([HA, {"sm": {"required_cluster_stack": ("xhad",)}}], "sr", "plug"),
        ([{"alive": {"live": False}, "host": {"power_on_mode": "wake-on-lan"}}], "host", "power_on"),
        ([DEGRADED, {"member": {"enabled": False}}], "host", "shutdown"),
        ([DEGRADED, UNPLUGGED], "host", "shutdown"),
        ([doing("host", "evacuate")], "host", "vm_start"),
        ([VTPM, state("Suspended")], "vtpm", "destroy"),
        ([CLUSTER, UPGRADE], "cluster", "enable"),
        ([CLUSTER, {"member": {"joined": True}}], "member", "enable"),
    ],
)
def test_what_the_table_exempts_is_accepted(given: list[Given], name: str, operation: str) -> None:
    """Exceptions inside a rule, and values on the near side of it."""
    db = world(*given)

    assert by_rules(db, row(db, name), operation) is None


@pytest.mark.parametrize("operation", ["suspend", "checkpoint", "pool_migrate", "migrate_send"])
def test_force_trusts_the_guest(operation: str) -> None:
    """Without strict, a guest that announces nothing and may not move is moved all the same."""
    db = world(HVM, {"metrics": {"nomigrate": True}})

    assert by_rules(db, row(db, "vm"), operation, strict=False) is None


def test_rules_for_calls_only_do_not_count_without_a_call() -> None:
    """A pool whose secret is about to change lists what it lists otherwise."""
    db = world({"pool": {"is_psr_pending": True}})

    assert by_rules(db, row(db, "pool"), "eject", called=False) is None


def test_a_suspended_vm_does_not_list_the_end_of_its_vtpm() -> None:
    db = world(VTPM, state("Suspended"))

    assert permitted(db, row(db, "vtpm")) == ()


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        (
            [],
            "vm",
            "snapshot clone copy start start_on migrate_send changing_dynamic_range changing_static_range "
            "changing_shadow_memory changing_NVRAM make_into_template export metadata_export destroy create_vtpm",
        ),
        (
            [PV],
            "vm",
            "snapshot checkpoint pause clean_shutdown clean_reboot hard_shutdown hard_reboot suspend pool_migrate "
            "migrate_send changing_dynamic_range changing_VCPUs_live metadata_export sysprep",
        ),
        (
            [state("Suspended")],
            "vm",
            "snapshot checkpoint hard_shutdown resume resume_on migrate_send export metadata_export destroy",
        ),
        ([SNAPSHOT], "vm", "clone copy revert export metadata_export destroy"),
        (
            [UPGRADE, PV],
            "vm",
            "pause clean_shutdown clean_reboot hard_shutdown hard_reboot suspend pool_migrate migrate_send "
            "changing_VCPUs_live",
        ),
        ([DISK], "vdi", "clone copy resize resize_online snapshot destroy forget update generate_config"),
        ([VBD], "vbd", "attach"),
        ([VBD, CD, HVM], "vbd", "attach eject pause unpause"),
        ([VIF, PV, {"vif": {"currently_attached": True}}], "vif", "attach unplug"),
        (
            [],
            "sr",
            "scan plug unplug update vdi_create vdi_introduce vdi_destroy vdi_resize vdi_clone vdi_snapshot vdi_mirror "
            "vdi_enable_cbt vdi_disable_cbt vdi_data_destroy vdi_list_changed_blocks vdi_set_on_boot vdi_revert "
            "pbd_create pbd_destroy",
        ),
        ([{"host": {"enabled": True}}], "host", "provision evacuate vm_start vm_resume vm_migrate enable"),
        ([doing("pool", "ha_enable")], "pool", ""),
        ([VTPM], "vtpm", "destroy"),
        ([], "network", ""),
        ([CLUSTER, {"member": {"joined": True}}], "member", "enable disable"),
    ],
)
def test_the_list_of_an_object(given: list[Given], name: str, expected: str) -> None:
    """Only advertised operations, in the order of the enum, as if all of them were there."""
    db = world(*given)

    assert permitted(db, row(db, name)) == tuple(expected.split())


def test_every_class_that_lists_operations_has_rules() -> None:
    """task is the one whose list follows from more than rows."""
    classes = {cls.name for cls in datamodel.load().stored if "allowed_operations" in cls.fields}

    assert classes == {*RULES, "task"}


def test_registering_brings_existing_rows_up_to_date() -> None:
    db = world()

    register(db)

    assert row(db, "vm").allowed_operations == allowed_operations(db, row(db, "vm"))


def test_a_change_that_does_not_matter_derives_nothing() -> None:
    """A change of a name or of a free key makes no list anew, near or far."""
    db = world(VBD, VIF, PV)
    register(db)
    touched: list[Row] = []
    db.forget = touched.append

    row(db, "vm").name_label = "new"
    row(db, "pool").other_config = {"folder": "/"}

    assert touched == [row(db, "vm"), row(db, "pool")]


def test_a_guest_that_starts_to_talk_changes_lists() -> None:
    """VM_guest_metrics leads to its VM and to the VM's devices, though no relation does."""
    db = world(VBD, VIF, HVM, agent())
    register(db)
    before = [row(db, name).allowed_operations for name in ("vm", "vbd", "vif")]

    row(db, "guest").PV_drivers_version = {"major": "9", "minor": "3"}

    after = [row(db, name).allowed_operations for name in ("vm", "vbd", "vif")]
    gained = [set(new) - set(old) for new, old in zip(after, before, strict=True)]
    assert gained == [
        {
            "clean_shutdown",
            "clean_reboot",
            "suspend",
            "checkpoint",
            "pool_migrate",
            "changing_VCPUs_live",
        },
        {"plug"},
        {"plug"},
    ]


def test_a_host_that_comes_or_goes_changes_what_only_a_pool_of_one_host_lists() -> None:
    """Guests move to their own host alone: their lists, and the host's, follow the number of hosts."""
    db = world(PV, {"host": {"enabled": True}})
    register(db)
    alone = [row(db, name).allowed_operations for name in ("vm", "host")]

    other = db.host.create()

    among = [row(db, name).allowed_operations for name in ("vm", "host")]
    assert [set(more) - set(less) for more, less in zip(alone, among, strict=True)] == [
        {"pool_migrate"}, {"vm_migrate"},
    ]  # fmt: skip
    db.host.delete(other._ref)
    assert [row(db, name).allowed_operations for name in ("vm", "host")] == alone


def test_a_default_template_of_a_fresh_pool_can_be_cloned_and_provisioned(pool: Pool) -> None:
    template = next(vm for vm in pool.db.VM if vm.is_default_template)

    assert template.allowed_operations == (
        "clone",
        "copy",
        "provision",
        "changing_dynamic_range",
        "changing_static_range",
        "changing_shadow_memory",
        "changing_NVRAM",
    )


def test_dom0_of_a_fresh_pool_allows_memory_changes_and_little_else(pool: Pool) -> None:
    dom0 = next(vm for vm in pool.db.VM if vm.is_control_domain)

    assert dom0.allowed_operations == ("changing_dynamic_range", "changing_static_range")


def test_the_coordinator_of_a_fresh_pool_can_take_vms(pool: Pool) -> None:
    host = next(iter(pool.db.host))

    assert host.allowed_operations == ("provision", "vm_start", "vm_resume", "vm_migrate", "enable")


def implemented() -> set[str]:
    """The messages that do something, as dispatch has them."""
    model = datamodel.load()
    functions = registry.functions(model)
    return {message.full_name for message in model.messages if message.kind or message.full_name in functions}


SERVANTS = {
    "SR.vdi_create": {"VDI.create"},
    "SR.vdi_destroy": {"VDI.destroy"},
    "SR.pbd_create": {"PBD.create"},
    "SR.pbd_destroy": {"PBD.destroy"},
    "host.provision": {"VM.provision"},
}
"""Operations of messages whose claims the schema does not tell."""


def test_each_operation_that_a_fresh_pool_offers_has_a_message_that_does_something(pool: Pool) -> None:
    """A client that asks first is not told of what answers NOT_IMPLEMENTED."""
    model, there = datamodel.load(), implemented()
    claims = {
        (claim, message.full_name) for message in model.messages for claim in (*message.claims, message.full_name)
    }
    offered = {
        f"{name}.{operation}"
        for name in RULES
        for row in pool.db.claimable(name)
        for operation in row.allowed_operations
    }

    empty = {
        operation
        for operation in offered
        if there.isdisjoint({name for claim, name in claims if claim == operation} | SERVANTS.get(operation, set()))
    }

    assert not empty and {"VM.clone", "SR.scan", "SR.vdi_create", "host.vm_start"} <= offered


def test_an_operation_of_no_message_is_refused_where_it_is_asked_for(pool: Pool) -> None:
    """What the rules would permit says NOT_IMPLEMENTED with the message that is to come."""
    vm = pool("VM.clone", pool("VM.get_by_name_label", "Demo guest")[0], "vm")
    pool("VM.set_is_a_template", vm, False)

    assert pool.fails("VM.assert_operation_valid", vm, "migrate_send") == ["NOT_IMPLEMENTED", "VM.migrate_send"]
    assert pool.fails("VM.assert_operation_valid", vm, "export") == ["NOT_IMPLEMENTED", "VM.export"]
    assert not {"migrate_send", "export", "metadata_export"} & set(pool("VM.get_allowed_operations", vm))


def test_what_is_refused_by_state_is_refused_so_before_it_is_not_implemented(pool: Pool) -> None:
    """Clients know the errors of states."""
    host = next(iter(pool.db.host))

    fault = refusal(pool.db, host, "reboot")

    assert fault is not None and fault.code == "HOST_NOT_DISABLED"


def test_the_end_of_a_rolling_upgrade_brings_lists_back(pool: Pool) -> None:
    """Lists are made anew that were made under other conditions."""
    template = next(vm for vm in pool.db.VM if vm.is_default_template)
    before = template.allowed_operations
    ref = pool("pool.get_all")[0]

    pool("pool.add_to_other_config", ref, "rolling_upgrade_in_progress", "true")
    during = template.allowed_operations
    pool("pool.remove_from_other_config", ref, "rolling_upgrade_in_progress")

    assert "changing_NVRAM" not in during and template.allowed_operations == before


def test_an_operation_is_unserved_only_while_its_own_message_is_missing() -> None:
    """A claim by another message does not make an operation that has a message of its own."""
    there = implemented()
    missing = {name for operations in unserved().values() for name in operations.values()}

    assert not missing & there


def test_every_list_of_a_fresh_pool_is_up_to_date(pool: Pool) -> None:
    """Also those that are sent to clients, which read the field."""
    stale = [
        row
        for name in RULES
        for row in pool.db.claimable(name)
        if row.allowed_operations != allowed_operations(pool.db, row)
    ]

    assert stale == []
