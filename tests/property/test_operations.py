"""Whatever changes, and whether it lasts: no list of allowed operations is ever stale."""

import random
from collections.abc import Collection, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.journal import Journal
from xapi import datamodel
from xapi.datamodel import Field, errors
from xapi.datamodel.types import NULL, BoolType, EnumType, MapType, RefType, SetType, StringType
from xapi.operations.refusal import RULES, allowed_operations, register
from xapi.store.memory import Store

SOME = {
    "pool": 1,
    "host": 2,
    "host_metrics": 2,
    "SM": 2,
    "SR": 2,
    "PBD": 3,
    "network": 2,
    "PIF": 2,
    "VLAN": 1,
    "network_sriov": 1,
    "VM_appliance": 1,
    "VMPP": 1,
    "VMSS": 1,
    "VM": 3,
    "VM_metrics": 3,
    "VM_guest_metrics": 3,
    "VDI": 3,
    "VBD": 4,
    "VIF": 2,
    "VUSB": 1,
    "VTPM": 1,
    "PCI": 1,
    "PGPU": 1,
    "VGPU_type": 1,
    "VGPU": 1,
    "Cluster": 1,
    "Cluster_host": 1,
    "task": 1,
}
"""How many objects of each class there are to begin with."""

STRINGS: Mapping[str, tuple[str, ...]] = {
    "type": ("ext", "iso", "udev"),
    "name_label": ("", "SR Recovering"),
    "power_on_mode": ("", "wake-on-lan"),
    "ha_cluster_stack": ("xhad", "corosync"),
}
MAPS: Mapping[str, tuple[Mapping[str, str | int], ...]] = {
    "blocked_operations": ({}, {"start": "no"}, {"clone": "no", "metadata_export": "no"}),
    "platform": ({}, {"nomigrate": "true"}, {"nested-virt": "1"}),
    "sm_config": ({}, {"on_boot": "reset"}, {"on_boot": "reset", "caching": "true"}),
    "compatibility_metadata": ({}, {"nvidia": "x"}),
    "PV_drivers_version": ({}, {"major": "9", "minor": "3"}, {"major": "9"}),
    "other": ({}, {"feature-suspend": "1", "feature-shutdown": "1"}, {"data-cant-suspend-reason": "busy"}),
    "features": (
        {},
        {"VDI_RESIZE": 1, "VDI_CLONE": 1, "SR_UPDATE": 1, "VDI_MIRROR": 1},
        {"VDI_DELETE": 1, "VDI_SNAPSHOT": 2},
    ),
    "other_config": (
        {},
        {"folder": "/"},
        {"rolling_upgrade_in_progress": "true"},
        {"allow_clone_suspended_vm": "true"},
        {"default_template": "true", "is_system_domain": "1"},
    ),
}
METRICS = {"VM_metrics": "metrics", "VM_guest_metrics": "guest_metrics", "host_metrics": "metrics"}
"""Objects that belong to one other object at most, and the field that says so."""

SENSE: Mapping[tuple[str, str], Any] = {
    ("VM", "power_state"): "Running",
    ("VM_metrics", "current_domain_type"): "hvm",
    ("VM_guest_metrics", "can_use_hotplug_vif"): "unspecified",
    ("VM_guest_metrics", "can_use_hotplug_vbd"): "unspecified",
    ("SR", "type"): "ext",
    ("SM", "features"): MAPS["features"][1],
    ("VDI", "managed"): True,
    ("VDI", "type"): "user",
    ("VDI", "on_boot"): "persist",
    ("VBD", "type"): "Disk",
    ("VBD", "unpluggable"): True,
    ("VGPU_type", "implementation"): "nvidia",
    ("host_metrics", "live"): True,
    ("PBD", "currently_attached"): True,
    ("Cluster_host", "enabled"): True,
    ("task", "name_label"): "SR Recovering",
}
"""Where the default of a field is not what makes an object useful."""
ALONE: Mapping[str, Collection[str]] = {
    "VM": {"resident_on", "snapshot_of", "parent", "appliance", "protection_policy", "snapshot_schedule"},
    "PIF": {"VLAN_master_of"},
    "network_sriov": {"logical_PIF"},
    "VDI": {"snapshot_of"},
}
"""References that are better null."""

TURNS: Mapping[str, Mapping[tuple[str, str], Any]] = {
    "running": {},
    "paravirtual": {("VM_metrics", "current_domain_type"): "pv", ("VBD", "currently_attached"): True},
    "halted": {
        ("VM", "power_state"): "Halted",
        ("VM", "appliance"): ...,
        ("VM", "is_control_domain"): True,
        ("SM", "features"): MAPS["features"][2],
    },
    "grouped": {("VM", "power_state"): "Halted", ("VM", "appliance"): ..., ("VDI", "sm_config"): MAPS["sm_config"][2]},
    "suspended": {("VM", "power_state"): "Suspended", ("VM", "is_a_template"): True},
    "snapshots": {("VM", "power_state"): "Halted", ("VM", "is_a_snapshot"): True, ("VM", "is_a_template"): True},
    "upgrading": {("pool", "other_config"): {"rolling_upgrade_in_progress": "true"}, ("VDI", "type"): "redo_log"},
    "clustered": {("SR", "clustered"): True, ("host_metrics", "live"): False, ("pool", "ha_enabled"): True},
    "recovering": {("SR", "clustered"): True, ("Cluster_host", "enabled"): False, ("VDI", "type"): "ha_statefile"},
    "degraded": {("host_metrics", "live"): False},
    "strict": {("pool", "ha_enabled"): True, ("SM", "required_cluster_stack"): ("corosync",)},
    "down": {("host_metrics", "live"): False, ("SR", "clustered"): True, ("PBD", "currently_attached"): False},
    "tagged": {
        ("VM_metrics", "current_domain_type"): "pv",
        ("PIF", "VLAN_master_of"): ...,
        ("network_sriov", "logical_PIF"): ...,
    },
    "unplugged": {("PBD", "currently_attached"): False, ("VM", "appliance"): ..., ("VDI", "managed"): False},
    "dom0": {("VM", "is_control_domain"): True, ("VM_metrics", "current_domain_type"): "pv"},
    "organised": {
        ("VM", "power_state"): "Halted",
        ("VM", "protection_policy"): ...,
        ("VM", "snapshot_schedule"): ...,
    },
    "virtual": {
        ("network_sriov", "logical_PIF"): ...,
        ("VM_guest_metrics", "PV_drivers_version"): {"major": "9", "minor": "3"},
        ("VGPU_type", "implementation"): "nvidia_sriov",
        ("PGPU", "compatibility_metadata"): {"nvidia": "x"},
    },
}
"""Pools that are out of the ordinary: what their objects are like; ... is a reference to something."""


class World:
    """A small pool, and a die that turns it into one that makes less and less sense."""

    def __init__(self, rng: random.Random, turn: str = "running") -> None:
        self.rng = rng
        self.turn = TURNS[turn]
        self.journal = Journal()
        self.db = self.journal.store = Store(datamodel.load(), self.journal, call_soon=lambda tell: None)
        for name, number in SOME.items():
            for _ in range(number):
                self.db.tables[name].create(**{"name_label": "SR Recovering"} if name == "task" else {})
        self.sense: dict[tuple[str, str], Any] = {}
        for name in SOME:
            for at, row in enumerate(list(self.db.tables[name])):
                for field in self.fields(name):
                    self.sense[row._ref, field.name] = self.sensible(name, at, field)
                    setattr(row, field.name, self.sense[row._ref, field.name])
        for host, vm in zip(self.db.host, self.db.VM):
            host.control_domain, vm.resident_on = vm._ref, host._ref
        for vusb in self.db.VUSB:  # not where the virtual GPU is, which forbids the same
            vusb.VM = list(self.db.VM)[-1]._ref

    def sensible(self, name: str, at: int, field: Field) -> Any:
        """Return what makes the nth object of a class useful."""
        if (name, field.name) == ("SM", "type"):
            return ("ext", "iso")[at]
        value = self.turn.get((name, field.name), SENSE.get((name, field.name), field.default))
        kind = field.type
        if isinstance(kind, RefType) and (value is ... or field.name not in ALONE.get(name, ())):
            refs = list(self.db.tables[kind.target].rows)
            return refs[at % len(refs)]
        return value

    def fields(self, name: str) -> list[Field]:
        fields = self.db.tables[name].cls.fields.values()
        return [
            field
            for field in fields
            if not field.derived and field.name not in ("uuid", "allowed_operations") and self.values(field)
            # Nobody renames a task.
            if (name, field.name) != ("task", "name_label")
        ]

    def values(self, field: Field) -> tuple[Any, ...]:
        """Return the values to choose from, none for a field that no rule could read."""
        kind = field.type
        if isinstance(kind, BoolType):
            return (True, False)
        if isinstance(kind, EnumType):
            return tuple(kind.values)
        if isinstance(kind, RefType):
            return (NULL, *self.db.tables[kind.target].rows) if kind.target in SOME else ()
        if isinstance(kind, SetType) and isinstance(kind.item, RefType) and kind.item.target in SOME:
            refs = tuple(self.db.tables[kind.item.target].rows)
            return ((), refs[:1], refs[-1:])
        if isinstance(kind, MapType) and isinstance(kind.value, EnumType) and field.name == "current_operations":
            operations = tuple(kind.value.values)
            return ({}, {}, {"task1": self.rng.choice(operations)}, dict(zip("ab", self.rng.choices(operations, k=2))))
        if field.name == "name_description":
            return tuple(self.db.SR.rows)
        if isinstance(kind, StringType):
            return STRINGS.get(field.name, ())
        if field.name == "required_cluster_stack":
            return ((), ("corosync",))
        return MAPS.get(field.name, ())

    def assign(self, row: Any, field: Field) -> None:
        """Give a field a value, half of the time the one that makes sense."""
        value = self.rng.choice(self.values(field))
        target = getattr(field.type, "target", "")
        if METRICS.get(target) == field.name:
            value = self.rng.choice((NULL, self.db.tables[target].create()._ref))
        elif self.rng.random() < 0.5:
            value = self.sense.get((row._ref, field.name), value)
        if row._table.name == "SM" and field.name == "type":
            value = row.uuid[:2] if value in [sm.type for sm in self.db.SM] else value  # one driver a type
        setattr(row, field.name, value)

    def change(self) -> None:
        """Change, make or remove one object."""
        name = self.rng.choice([name for name in SOME if name != "pool" or self.rng.random() < 0.5])
        table = self.db.tables[name]
        rows = list(table)
        dice = self.rng.random()
        if name != "pool" and (dice < 0.05 or not rows):
            fields = [
                field
                for field in self.fields(name)
                if not isinstance(field.type, SetType) and (name, field.name) != ("SM", "type")
            ]
            made = {"name_label": "SR Recovering"} if name == "task" else {}
            table.create(
                **made
                | {
                    field.name: self.rng.choice(self.values(field))
                    for field in fields
                    if METRICS.get(getattr(field.type, "target", "")) != field.name
                }
            )
        elif name != "pool" and dice < 0.08:
            table.delete(self.rng.choice(rows)._ref)
        else:
            self.assign(self.rng.choice(rows), self.rng.choice(self.fields(name)))

    def stale(self) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
        return [
            (name, row.allowed_operations, allowed_operations(self.db, row))
            for name in RULES
            for row in self.db.claimable(name)
            if row.allowed_operations != allowed_operations(self.db, row)
        ]


class Mishap(Exception):
    """What may go wrong inside a change."""


def try_changes(world: World, number: int, fails: bool) -> None:
    """Make some changes at once, which then last or do not."""
    try:
        with world.db.atomic():
            for _ in range(number):
                world.change()
            if fails:
                raise Mishap
    except Mishap:
        pass


@pytest.mark.parametrize("turn", TURNS)
def test_lists_follow_each_field(turn: str) -> None:
    """Any field of two objects a class, changed to any value and back, leaves no list stale."""
    world = World(random.Random(1), turn)
    register(world.db)
    for name in SOME:
        for row in list(world.db.tables[name])[:2]:
            for field in world.fields(name):
                before = getattr(row, field.name)
                owned = METRICS.get(getattr(field.type, "target", "")) == field.name
                for value in (*((NULL,) if owned else world.values(field)), before):
                    setattr(row, field.name, value)
                    assert world.stale() == [], (row, field.name, value)


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(sorted(TURNS)))
def test_lists_follow_the_end_of_each_object(rng: random.Random, turn: str) -> None:
    """Objects can go in any order; what pointed at them knows."""
    world = World(rng, turn)
    register(world.db)
    rows = [row for name in SOME if name != "pool" for row in world.db.tables[name]]
    rng.shuffle(rows)
    for row in rows:
        row._table.delete(row._ref)
        assert world.stale() == [], row


@settings(max_examples=25, deadline=None)
@given(
    st.randoms(use_true_random=False),
    st.sampled_from(sorted(TURNS)),
    st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=40),
)
def test_lists_follow_every_change(rng: random.Random, turn: str, changes: list[tuple[int, bool]]) -> None:
    """Each derived list equals the one made afresh, after changes that last and changes that fail."""
    world = World(rng, turn)
    register(world.db)
    for number, fails in changes:
        try_changes(world, number, fails)
        assert world.stale() == []


@pytest.mark.parametrize("turn", TURNS)
def test_lists_survive_a_deletion_that_was_not_written(turn: str) -> None:
    """An object that comes back, because its end was not durable, is felt wherever its end was."""
    world = World(random.Random(1), turn)
    register(world.db)
    world.journal.held = True
    for row in [row for name in SOME if name != "pool" for row in world.db.tables[name]]:
        row._table.delete(row._ref)

        world.db.failed(errors.INTERNAL_ERROR("the disk is full"))

        world.db.recovered()
        assert world.stale() == [], row


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 12))
def test_lists_survive_a_journal_that_fails(rng: random.Random, number: int) -> None:
    """What could not be written is undone, and the lists with it."""
    world = World(rng)
    register(world.db)
    world.journal.held = True
    for _ in range(number):
        world.change()

    world.db.failed(errors.INTERNAL_ERROR("the disk is full"))

    assert world.stale() == []


@settings(max_examples=10, deadline=None)
@given(st.integers())
def test_lists_are_made_while_loading(seed: int) -> None:
    """With the rules registered first, `loaded` derives all lists, in whatever order the tables come."""
    world = World(random.Random(seed))
    register(world.db)
    for name in RULES:
        for row in world.db.tables[name]:
            row._table.set["allowed_operations"](row, ())

    world.db.loaded()

    assert world.stale() == []
