"""A VM's record: made, removed, turned into a template and back, provisioned."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.test_power import make_vm, running
from tests.conftest import NOW, Pool
from tests.fakes import FakeDisks
from xapi.datamodel import errors
from xapi.datamodel.lexical import EPOCH
from xapi.datamodel.types import NULL

RECORD: dict[str, Any] = {
    "name_label": "new", "name_description": "", "user_version": "1", "is_a_template": False, "affinity": "",
    "memory_static_max": str(1 << 30), "memory_dynamic_max": str(1 << 30), "memory_dynamic_min": str(1 << 30),
    "memory_static_min": "0", "VCPUs_params": {}, "VCPUs_max": "2", "VCPUs_at_startup": "2",
    "actions_after_shutdown": "destroy", "actions_after_reboot": "restart", "actions_after_crash": "restart",
    "PV_bootloader": "", "PV_kernel": "", "PV_ramdisk": "", "PV_args": "", "PV_bootloader_args": "",
    "PV_legacy_args": "", "HVM_boot_policy": "", "HVM_boot_params": {}, "platform": {}, "PCI_bus": "",
    "other_config": {}, "recommendations": "",
}  # fmt: skip


@pytest.fixture
def disks(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> FakeDisks:
    return FakeDisks(pool.daemon, monkeypatch)


def created(pool: Pool, **changes: Any) -> Any:
    return pool.db.VM[pool("VM.create", RECORD | changes)]


def template(pool: Pool, **config: str) -> Any:
    return make_vm(pool, is_a_template=True, other_config=config)


def local_sr(pool: Pool) -> Any:
    return next(sr for sr in pool.db.SR if sr.type == "ext")


# create


def test_a_new_vm_has_what_every_vm_has(pool: Pool) -> None:
    """Empty metrics, a seed for its MACs, its overhead, and it is halted."""
    vm = created(pool)
    assert (vm.power_state, vm.domid, vm.affinity, vm.resident_on) == ("Halted", -1, NULL, NULL)
    metrics = pool.db.VM_metrics[vm.metrics]
    assert (metrics.start_time, metrics.current_domain_type) == (EPOCH, "unspecified")
    assert dict(metrics.VCPUs_utilisation) == {0: 0.0}
    assert len(vm.other_config["mac_seed"]) == 36
    assert vm.memory_overhead > 0
    assert "start" in vm.allowed_operations


def test_a_given_seed_is_kept(pool: Pool) -> None:
    """Clients that want certain MACs give it."""
    assert created(pool, other_config={"mac_seed": "mine"}).other_config == {"mac_seed": "mine"}


@pytest.mark.parametrize(
    ("policy", "given", "kind"), [("BIOS order", None, "hvm"), ("", None, "pv"), ("", "pvh", "pvh")]
)
def test_the_domain_type_follows_from_the_boot_policy(pool: Pool, policy: str, given: str | None, kind: str) -> None:
    """Unless it is given."""
    more = {} if given is None else {"domain_type": given}
    assert created(pool, HVM_boot_policy=policy, **more).domain_type == kind


def test_only_a_suspended_vm_begins_suspended(pool: Pool) -> None:
    """With its memory and what belongs to it; any other state is Halted."""
    memory = {"suspend_VDI": "OpaqueRef:v", "last_booted_record": "r", "last_boot_CPU_flags": {"a": "b"}}
    assert created(pool, power_state="Running", **memory).power_state == "Halted"
    assert created(pool, power_state="Running", **memory).suspend_VDI == NULL
    vm = created(pool, power_state="Suspended", domain_type="hvm", **memory)
    assert (vm.power_state, vm.suspend_VDI) == ("Suspended", "OpaqueRef:v")
    assert pool.db.VM_metrics[vm.metrics].current_domain_type == "hvm"
    for name in memory:
        rest = {key: value for key, value in memory.items() if key != name}
        code, _, wanted, given = pool.fails("VM.create", RECORD | rest | {"power_state": "Suspended"})
        assert (code, wanted, given) == ("VM_BAD_POWER_STATE", "halted", "suspended")


def test_some_arguments_are_not_looked_at(pool: Pool) -> None:
    """blocked_operations above all."""
    assert created(pool, blocked_operations={"start": "no"}).blocked_operations == {}


# destroy


def test_destroy_removes_all_but_disks(pool: Pool) -> None:
    """Devices, their metrics, blobs; children get the VM's parent."""
    db = pool.db
    parent, vm = make_vm(pool), make_vm(pool)
    with db.atomic():
        vdi = db.VDI.create(SR=local_sr(pool)._ref)
        metrics = db.VBD_metrics.create(), db.VIF_metrics.create(), db.VM_guest_metrics.create()
        db.VBD.create(VM=vm._ref, VDI=vdi._ref, userdevice="0", metrics=metrics[0]._ref)
        db.VIF.create(VM=vm._ref, device="0", network=next(iter(db.network))._ref, metrics=metrics[1]._ref)
        secret = db.secret.create(value="tpm")
        db.VTPM.create(VM=vm._ref, contents=secret._ref)
        db.VUSB.create(VM=vm._ref)
        db.VGPU.create(VM=vm._ref)
        blob = db.blob.create()
        child = db.VM.create(parent=vm._ref)
        vm.blobs, vm.guest_metrics, vm.parent = {"b": blob._ref}, metrics[2]._ref, parent._ref
    pool("VM.destroy", vm._ref)
    assert child.parent == parent._ref
    assert vdi._ref in db.VDI
    gone = (vm, *metrics, secret, blob)
    assert not [row for row in gone if row._ref in row._table]
    assert not [name for name in ("VBD", "VIF", "VTPM", "VUSB", "VGPU") if len(db.tables[name])]
    assert pool.fails("VM.destroy", vm._ref) == ["HANDLE_INVALID", "VM", vm._ref]


def test_what_runs_or_comes_with_the_toolstack_is_not_destroyed(pool: Pool) -> None:
    """A template of somebody's own is."""
    vm = running(pool)
    assert pool.fails("VM.destroy", vm._ref) == ["VM_BAD_POWER_STATE", vm._ref, "halted, suspended", "running"]
    default = next(row for row in pool.db.VM if row.is_default_template)
    assert pool.fails("VM.destroy", default._ref) == ["VM_IS_TEMPLATE", default._ref, "destroy"]
    own = template(pool)
    pool("VM.destroy", own._ref)
    assert own._ref not in pool.db.VM


# Templates


def test_a_vm_becomes_a_template_and_back(pool: Pool) -> None:
    """As a template it has no metrics; when it is a VM again, that is its installation."""
    vm = make_vm(pool, ha_always_run=True)
    with pool.db.atomic():
        pool.db.VUSB.create(VM=vm._ref)
        vm.groups = (pool.db.VM_group.create()._ref,)
    old = vm.metrics
    pool("VM.set_is_a_template", vm._ref, True)
    assert (vm.is_a_template, vm.metrics, vm.ha_always_run, vm.groups, list(vm.VUSBs)) == (True, NULL, False, (), [])
    assert old not in pool.db.VM_metrics
    assert dict(vm.current_operations) == {}
    assert pool.fails("VM.start", vm._ref, False, False)[0] == "VM_IS_TEMPLATE"
    pool("VM.set_is_a_template", vm._ref, False)
    assert not vm.is_a_template


def test_leaving_the_templates_is_the_installation(pool: Pool) -> None:
    """The time is written."""
    vm = template(pool)
    pool("VM.set_is_a_template", vm._ref, False)
    assert pool.db.VM_metrics[vm.metrics].install_time == NOW


def test_what_may_not_become_a_template(pool: Pool) -> None:
    """A VM that runs, and one that high availability is about to start."""
    assert pool.fails("VM.set_is_a_template", running(pool)._ref, True)[0] == "VM_BAD_POWER_STATE"
    vm = make_vm(pool, ha_always_run=True, ha_restart_priority="restart")
    next(iter(pool.db.pool)).ha_enabled = True
    assert pool.fails("VM.set_is_a_template", vm._ref, True) == ["VM_IS_PROTECTED", vm._ref]
    assert not vm.is_a_template


def test_default_templates_are_marked_twice(pool: Pool) -> None:
    """In the field, and in other_config for old clients."""
    vm = make_vm(pool)
    pool("VM.set_is_default_template", vm._ref, True)
    assert (vm.is_a_template, vm.is_default_template, vm.other_config["default_template"]) == (True, True, "true")
    pool("VM.set_is_default_template", vm._ref, False)
    assert (vm.is_a_template, vm.is_default_template, vm.other_config["default_template"]) == (True, False, "false")


# provision


def wish(sr: str, *devices: str, size: str = "1048576") -> str:
    inner = "".join(
        f'<disk device="{each}" size="{size}" sr="{sr}" bootable="true" type="system"/>' for each in devices
    )
    return f"<provision>{inner}</provision>"


def test_provision_makes_the_disks_of_a_template(pool: Pool, disks: FakeDisks) -> None:
    """Named by their place, owned by the VM; the wish goes."""
    sr = local_sr(pool)
    vm = template(pool, disks=wish(sr.uuid, "0", "1"), folder="kept")
    pool("VM.provision", vm._ref)
    assert (vm.is_a_template, vm.other_config) == (False, {"folder": "kept"})
    made = [(vbd, pool.db.VDI[vbd.VDI]) for vbd in (pool.db.VBD[ref] for ref in vm.VBDs)]
    assert [(vbd.userdevice, vdi.name_label, vdi.virtual_size) for vbd, vdi in made] == [
        ("0", "0", 1 << 20), ("1", "1", 1 << 20),
    ]  # fmt: skip
    vbd, vdi = made[0]
    assert (vbd.bootable, vbd.mode, vbd.type, vbd.unpluggable, vbd.other_config) == (
        True,
        "RW",
        "Disk",
        False,
        {"owner": ""},
    )
    assert (vdi.type, vdi.SR, vdi.name_description) == ("system", sr._ref, "Created by template provisioner")
    assert vdi.sm_config == {"vmhint": vm.uuid}
    assert pool.db.VM_metrics[vm.metrics].install_time == NOW


def test_provision_without_a_wish_only_installs(pool: Pool) -> None:
    """And what is no template is refused."""
    vm = template(pool)
    pool("VM.provision", vm._ref)
    assert not vm.is_a_template
    assert pool.fails("VM.provision", vm._ref) == ["PROVISION_ONLY_ALLOWED_ON_TEMPLATE"]


@pytest.mark.parametrize(
    ("text", "error"),
    [("", "INTERNAL_ERROR"), ("<other/>", "INTERNAL_ERROR"), ("<provision><disk/></provision>", "INTERNAL_ERROR"),
     (wish("", "0", size="many"), "INTERNAL_ERROR"), (wish("no-uuid", "0"), "UUID_INVALID"),
     ('<!DOCTYPE a [<!ENTITY b "c">]><provision>&b;</provision>', "INTERNAL_ERROR")],
)  # fmt: skip
def test_a_bad_wish_changes_nothing(pool: Pool, disks: FakeDisks, text: str, error: str) -> None:
    """It stays a template."""
    vm = template(pool, disks=text)
    assert pool.fails("VM.provision", vm._ref)[0] == error
    assert (vm.is_a_template, vm.other_config, disks.calls) == (True, {"disks": text}, [])


def test_a_script_of_the_template_is_refused(pool: Pool) -> None:
    """There is no control domain that would run it."""
    vm = template(pool, postinstall="/tmp/x")
    assert pool.fails("VM.provision", vm._ref) == ["PERMISSION_DENIED", "illegal provision script /tmp/x"]
    assert vm.is_a_template


def test_a_provision_that_fails_leaves_nothing(pool: Pool, disks: FakeDisks) -> None:
    """No disk, no VBD: a template again, that can be provisioned later."""
    vm = template(pool, disks=wish(local_sr(pool).uuid, "0", "no device"))
    before = len(pool.db.VDI)
    fail = errors.INVALID_DEVICE("no device")
    real = pool.daemon.dispatcher.methods["VBD.create"].function

    def create(call: Any, args: Any) -> Any:
        if args["userdevice"] == "no device":
            raise fail
        return real(call, args)

    pool.daemon.dispatcher.methods["VBD.create"].function = create
    assert pool.fails("VM.provision", vm._ref) == fail.description
    assert (len(pool.db.VDI), list(vm.VBDs), vm.is_a_template) == (before, [], True)
    assert "disks" in vm.other_config
