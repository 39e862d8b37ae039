"""Facts of the fresh pool, of declared inventories and of pools that were grown."""

import csv
import hashlib
import json
import random
import runpy
import xmlrpc.client
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from tests.journal import store_at_once
from xapi import datamodel
from xapi.datamodel import permission_uuid
from xapi.datamodel.types import NULL
from xapi.host.driver import types
from xapi.inventory import roles, scale
from xapi.inventory.declaration import Declaration, DeclarationError, parse_declaration, read_declaration
from xapi.inventory.fresh import populate, upgrade
from xapi.inventory.templates import default_templates, newest_set
from xapi.store.memory import Store
from xapi.store.rows import Row, Table
from xapi.vms import devices, memory

ROOT = Path(__file__).parents[2]
FACTS = Path("/work/shared/xenapi")
NOW = datetime(2026, 1, 31, 9, 5, 7, tzinfo=UTC)
needs_facts = pytest.mark.skipif(not FACTS.is_dir(), reason="the table of facts is not on this machine")


def empty() -> Store:
    store = store_at_once()
    roles.load(store)
    return store


def fresh(declared: Declaration | None = None, seed: int = 1) -> Store:
    store = empty()
    populate(store, declared or Declaration(), rng=random.Random(seed), now=NOW)
    return store


def declared(text: str) -> Declaration:
    return parse_declaration(text, "test.toml")


@pytest.fixture(scope="module")
def pool() -> Store:
    """A fresh pool; the tests only read it."""
    return fresh()


@pytest.fixture(scope="module")
def example() -> Store:
    """The pool of the example declaration; the tests only read it."""
    return fresh(read_declaration(ROOT / "deploy" / "inventory.example.toml"))


def records(store: Store) -> dict[tuple[str, str], dict[str, Any]]:
    """All objects as plain data, role permissions left out for speed."""
    return {
        (table.name, row._ref): {
            field.name: field.type.plain(getattr(row, field.name)) for field in table.cls.fields.values()
        }
        for table in store.tables.values()
        if table.name != "role"
        for row in table
    }


def on_the_wire(row: Row) -> Any:
    """A record as an XML-RPC client gets it."""
    fields = row._table.cls.record_fields
    kind = datamodel.load().types.parse(f"{row._table.name} record")
    xml = kind.xml({field.name: getattr(row, field.name) for field in fields})
    (record,), _ = xmlrpc.client.loads(f"<params><param>{xml}</param></params>")
    return record


def the(table: Iterable[Any]) -> Any:
    (row,) = table
    return row


def named(table: Table[Any], label: str) -> Any:
    (row,) = table.by_name_label(label)
    return row


def control_domain(store: Store) -> Any:
    (vm,) = (vm for vm in store.VM if vm.is_control_domain)
    return vm


# Every pool


def test_the_same_seed_gives_the_same_pool_and_another_seed_another_one(pool: Store) -> None:
    """Nothing but the seed, the declaration and the given time decides."""
    assert records(fresh(seed=1)) == records(pool)
    assert records(fresh(seed=2)).keys().isdisjoint(records(pool))


def test_the_references_of_a_seed_are_the_same_on_every_machine_and_version(pool: Store) -> None:
    """Scripts may rely on a seed: a change of the order of creation must be deliberate."""
    text = "\n".join(ref for _, ref in records(pool))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "03e6c1a79e2d08ae"


def test_a_fresh_pool_is_one_change(pool: Store) -> None:
    """Clients never see half a pool."""
    assert pool.generation == 2


def test_uuids_have_version_4(pool: Store) -> None:
    """What a real pool shows, too."""
    assert {row.uuid[14] for table in (pool.host, pool.SR, pool.PIF) for row in table} == {"4"}


@needs_facts
def test_every_record_passes_the_conformance_check(example: Store) -> None:
    """The rules of check_conformance.py for records on the wire, for all classes but the many roles."""
    tool = runpy.run_path(str(FACTS / "check_conformance.py"))
    model = json.loads((FACTS / "datamodel.json").read_text())
    published = {cls["name"]: cls for cls in model["classes"]}
    check = tool["Types"](model).record
    wrong = [
        check(on_the_wire(row), published[table.name], table.name)
        for table in example.tables.values()
        if table.name != "role"
        for row in table
    ]
    assert len(wrong) > 100
    assert not any(wrong)


# The fresh pool


def test_the_host_shows_what_clients_choose_their_code_paths_by(pool: Store) -> None:
    """design/clients.md, section 0, item 11."""
    host = the(pool.host)
    version = host.software_version
    assert [int(part) for part in version["product_version"].split(".")] >= [7, 0]
    assert [int(part) for part in version["platform_version"].split(".")] >= [3, 4]
    assert version["product_brand"] == "XCP-ng"
    assert version["db_schema"] == "5.909"
    assert (host.API_version_major, host.API_version_minor) == (2, 23)
    assert host.cpu_info["cpu_count"] == "4"
    assert "hvm-3.0-x86_64" in host.capabilities


def test_all_keys_of_software_version_are_there(pool: Store) -> None:
    """semantics.md, section 11."""
    expected = """product_version product_version_text product_version_text_short platform_name platform_version
        product_brand xapi build_number git_id hostname date xapi_build xen linux xencenter_min xencenter_max
        network_backend db_schema"""
    assert set(expected.split()) <= the(pool.host).software_version.keys()


def test_the_control_domain_runs_on_its_host(pool: Store) -> None:
    """xsconsole finds it by domid 0."""
    vm, host = control_domain(pool), the(pool.host)
    assert (vm.power_state, vm.domid) == ("Running", 0)
    assert vm.resident_on == vm.affinity == host._ref
    assert host.control_domain == vm._ref
    assert vm.name_label == "Control domain on host: kronos"
    assert pool.VM_metrics[vm.metrics].start_time == NOW


def test_the_control_domain_has_a_graphical_and_a_text_console(pool: Store) -> None:
    """Each is reached at the host's address, by its own reference."""
    consoles = [pool.console[ref] for ref in control_domain(pool).consoles]
    assert [console.protocol for console in consoles] == ["rfb", "vt100"]
    assert {console.location for console in consoles} == {
        f"https://127.0.0.1/console?ref={console._ref}" for console in consoles
    }


def test_memory_adds_up(pool: Store) -> None:
    """What the host needs itself and its control domain leave the rest free at boot."""
    host = the(pool.host)
    total = the(pool.host_metrics).memory_total
    assert host.boot_free_mem + host.memory_overhead + control_domain(pool).memory_static_max == total


def test_the_management_interface_carries_the_host_s_address(pool: Store) -> None:
    """On the bridge that its device implies."""
    pif, network = the(pool.PIF), named(pool.network, "Pool-wide network associated with eth0")
    assert pif.management
    assert (pif.IP, pif.netmask, pif.ip_configuration_mode) == ("127.0.0.1", "255.0.0.0", "Static")
    assert (pif.network, network.bridge) == (network._ref, "xenbr0")


def test_the_internal_network_says_so(pool: Store) -> None:
    """semantics.md, section 11."""
    network = named(pool.network, "Host internal management network")
    assert network.bridge == "xenapi"
    assert network.other_config["is_host_internal_management_network"] == "true"
    assert network.other_config["ip_end"] == "169.254.255.254"


def test_new_disks_go_to_the_local_storage(pool: Store) -> None:
    """Ansible cannot make a VM in a pool without a default SR."""
    assert the(pool.pool).default_SR == named(pool.SR, "Local storage")._ref


def test_every_sr_is_attached_and_has_a_driver(pool: Store) -> None:
    """A type without an SM could not be plugged again."""
    assert {sr.type for sr in pool.SR} <= {driver.type for driver in pool.SM}
    assert all(pool.PBD[ref].currently_attached for sr in pool.SR for ref in sr.PBDs)
    assert all(sr.PBDs for sr in pool.SR)


def test_the_tools_image_is_on_the_tools_sr(pool: Store) -> None:
    """Clients look for the flags, not the names."""
    (image,) = (vdi for vdi in pool.VDI if vdi.is_tools_iso)
    assert pool.SR[image.SR].is_tools_sr


def test_the_types_are_in_the_order_that_seeds_know() -> None:
    """Each draws two uuids, whether it gets an SM or not."""
    assert list(types()) == ["ext", "file", "iso", "lvm", "lvmohba", "lvmoiscsi", "nfs", "smb", "udev"]


def test_driver_features_have_versions(pool: Store) -> None:
    """As the driver says."""
    (driver,) = (driver for driver in pool.SM if driver.type == "ext")
    assert driver.features["VDI_RESET_ON_BOOT"] == 2
    assert driver.features["VDI_SNAPSHOT"] == 1


def test_the_only_user_is_root(pool: Store) -> None:
    """semantics.md, section 11."""
    assert [(user.short_name, user.fullname) for user in pool.user] == [("root", "superuser")]


def test_nothing_is_restricted_by_a_licence(pool: Store) -> None:
    """Clients hide what a licence forbids."""
    restrictions = the(pool.pool).restrictions
    assert restrictions["restrict_vtpm"] == "false"
    assert restrictions.items() <= the(pool.host).license_params.items()


# Roles


def test_roles_hold_as_many_permissions_as_published(pool: Store) -> None:
    """roles.tsv, column permissions."""
    counts = {role.name_label: len(role.subroles) for role in pool.role if role.subroles}
    assert counts == {
        "pool-admin": 2284,
        "pool-operator": 2150,
        "vm-power-admin": 1666,
        "vm-admin": 1626,
        "vm-operator": 1464,
        "client-cert": 1428,
        "read-only": 1384,
    }


@needs_facts
def test_role_references_are_those_of_the_facts(pool: Store) -> None:
    """roles.tsv gives uuid, reference and permissions of each."""
    with (FACTS / "roles.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert {(row["ref"], row["uuid"], row["is_internal"] == "true", int(row["permissions"])) for row in rows} == {
        (role._ref, role.uuid, role.is_internal, len(role.subroles)) for role in pool.role if role.subroles
    }


def test_a_permission_is_an_internal_role_without_subroles(pool: Store) -> None:
    """Its uuid follows from its lower-case name."""
    permission = named(pool.role, "vm.start")
    assert permission.uuid == permission_uuid("vm.start")
    assert permission._ref == f"OpaqueRef:{permission.uuid}"
    assert (permission.is_internal, permission.subroles) == (True, ())
    assert permission._ref in named(pool.role, "vm-operator").subroles
    assert permission._ref not in named(pool.role, "read-only").subroles


def test_what_only_the_local_root_may_do_belongs_to_no_role(pool: Store) -> None:
    """Such a permission has a record all the same."""
    held = {ref for role in pool.role for ref in role.subroles}
    local = [name.lower() for name, (role, _) in pool.model.permissions.items() if role == "local-root"]
    assert local
    assert held.isdisjoint(named(pool.role, name)._ref for name in local)


def test_roles_hold_nothing_but_permissions(pool: Store) -> None:
    """Every subrole exists and is one."""
    held = {ref for role in pool.role for ref in role.subroles}
    assert all(pool.role[ref].is_internal and not pool.role[ref].subroles for ref in held)


def test_roles_are_the_same_in_every_pool_and_rows_of_their_own() -> None:
    """What one store's rows say is made once a process."""
    first, second = empty(), empty()
    assert list(first.role.rows) == list(second.role.rows)
    assert not {id(row) for row in first.role} & {id(row) for row in second.role}
    assert all(row._created == row._modified == first.generation for row in first.role)


# Templates


def test_there_are_xcps_49_default_templates_and_two_of_our_own(pool: Store) -> None:
    """templates.tsv; ours need nothing installed."""
    made = [vm for vm in pool.VM if vm.is_default_template]
    assert len(made) == 51
    assert [(vm.name_label, vm.domain_type, vm.PV_kernel, vm.PV_ramdisk) for vm in made[49:]] == [
        ("Demo guest", "pvh", "demo", ""), ("Debian Linux (direct kernel)", "pvh", "vmlinuz", "initrd"),
    ]  # fmt: skip
    assert all(vm.is_a_template for vm in pool.VM if vm.is_default_template)


def older_pool() -> Store:
    """A pool as it was made before the second set of templates; from then on what it lacks is added once."""
    store = fresh(seed=1)
    for vm in [vm for vm in store.VM if vm.is_default_template and default_templates()[vm.name_label].since > 1]:
        store.VM.delete(vm._ref)
    next(iter(store.pool)).template_set = 1
    return store


def test_an_older_pool_gets_the_templates_that_it_lacks() -> None:
    """With the uuids that all pools have."""
    store, new = older_pool(), ["Demo guest", "Debian Linux (direct kernel)"]
    assert upgrade(store, rng=random.Random(2)) == new
    assert [store.VM.by_uuid(default_templates()[name].uuid).is_default_template for name in new] == [True, True]
    assert next(iter(store.pool)).template_set == newest_set()


def test_a_template_that_somebody_destroyed_stays_away() -> None:
    """Whether it came with the pool or by an upgrade."""
    store = older_pool()
    store.VM.delete(named(store.VM, "Windows 11")._ref)
    upgrade(store, rng=random.Random(2))
    store.VM.delete(named(store.VM, "Demo guest")._ref)
    assert upgrade(store, rng=random.Random(3)) == []
    assert len([vm for vm in store.VM if vm.is_default_template]) == 49


def test_a_template_is_a_halted_vm_that_belongs_nowhere(pool: Store) -> None:
    """Checked on the one that every client knows."""
    vm = named(pool.VM, "Other install media")
    assert (vm.power_state, vm.domid, vm.resident_on, vm.affinity) == ("Halted", -1, NULL, NULL)
    assert (vm.user_version, vm.reference_label) == (1, "other-install-media")
    assert (vm.actions_after_shutdown, vm.actions_after_reboot) == ("destroy", "restart")
    assert vm.actions_after_crash == "restart"
    assert vm.memory_static_min * 2 == vm.memory_dynamic_min == vm.memory_static_max == 256 * 2**20


def test_recommendations_have_several_restrictions(pool: Store) -> None:
    """Xen Orchestra drops a VM with exactly one."""
    trees = [etree.fromstring(vm.recommendations) for vm in pool.VM if vm.is_a_template]
    assert all(len(tree) >= 2 and {child.tag for child in tree} == {"restriction"} for tree in trees)


def test_disks_are_what_vm_provision_reads(pool: Store) -> None:
    """Clients fill in the SR."""
    vm = named(pool.VM, "Debian Bookworm 12")
    disk = etree.fromstring(vm.other_config["disks"])[0]
    assert dict(disk.attrib) == {
        "device": "0",
        "size": "10737418240",
        "sr": "",
        "bootable": "true",
        "type": "system",
    }


def test_a_template_without_disks_has_no_disks_key(pool: Store) -> None:
    """VM.provision then only clears the flag."""
    assert "disks" not in named(pool.VM, "Other install media").other_config


@needs_facts
def test_templates_agree_with_the_facts(pool: Store) -> None:
    """templates.tsv, the columns that are fields as they stand."""
    names = "name_label reference_label HVM_boot_policy PV_bootloader PV_args memory_static_min memory_dynamic_min"
    names += " memory_dynamic_max memory_static_max VCPUs_at_startup VCPUs_max"
    with (FACTS / "templates.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    made = [vm for vm in pool.VM if vm.is_default_template][: len(rows)]
    assert [(vm.uuid, *(str(getattr(vm, name)) for name in names.split())) for vm in made] == [
        (row["uuid"], *(row[name] for name in names.split())) for row in rows
    ]


@needs_facts
def test_template_maps_agree_with_the_facts(pool: Store) -> None:
    """templates.tsv, the columns that are maps or XML in the record."""

    def maps(row: dict[str, str]) -> list[dict[str, str]]:
        columns = ("HVM_boot_params", "platform", "other_config", "recommendations")
        return [dict(pair.split("=", 1) for pair in row[name].split(";") if pair) for name in columns]

    def made(vm: Any) -> list[Any]:
        extra = ("disks", "mac_seed")
        kept = {key: value for key, value in vm.other_config.items() if key not in extra}
        restrictions = {
            (item.get("field") or item.attrib["property"]).replace("-", "_"): next(
                item.get(bound) for bound in ("min", "max", "value") if item.get(bound) is not None
            )
            for item in etree.fromstring(vm.recommendations)
        }
        return [vm.HVM_boot_params, vm.platform, kept, restrictions]

    def sizes(vm: Any) -> str:
        text = vm.other_config.get("disks", "<provision/>")
        return " ".join(disk.attrib["size"] for disk in etree.fromstring(text))

    with (FACTS / "templates.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [made(pool.VM.by_uuid(row["uuid"])) for row in rows] == [maps(row) for row in rows]
    assert [sizes(pool.VM.by_uuid(row["uuid"])) for row in rows] == [row["disk_sizes"] for row in rows]


def test_memory_overhead_follows_the_formula() -> None:
    """semantics.md, section 10, worked by hand: 2 GiB and two vCPUs."""
    assert memory.memory_overhead("hvm", 2 * 2**30, 2, 1.0) == (18 + 1 + 1 + 1) * 2**20
    assert memory.memory_overhead("pv", 2 * 2**30, 2, 1.0) == (18 + 1 + 1) * 2**20
    assert memory.memory_overhead("pv_in_pvh", 2 * 2**30, 2, 1.0) == (18 + 1 + 1 + 1 + 23 + 22) * 2**20
    assert memory.memory_overhead("hvm", 2 * 2**30, 2, 2.0) == (36 + 1 + 1 + 1) * 2**20


def test_addresses_follow_from_the_seed() -> None:
    """Local, unicast, and another one for each card: MD5 once for card 0, three times for card 1."""
    first = hashlib.md5(b"seed").digest()
    second = hashlib.md5(first).digest()
    local = first[0] & 0xFE | 0x02
    expected = ":".join(f"{octet:02x}" for octet in (local, *first[1:4], *second[1:3]))
    assert devices.mac_address("seed", 0) == expected
    assert devices.mac_address("seed", 1) != expected


# Declarations


def test_an_empty_file_declares_the_default() -> None:
    """One host, an ISO library and nothing else."""
    assert declared("") == Declaration()


def test_the_example_has_two_hosts_on_common_networks(example: Store) -> None:
    """Cards that name a network share it; its bridge is that of their device."""
    storage = named(example.network, "storage")
    assert [host.name_label for host in example.host] == ["alpha", "beta"]
    assert (storage.bridge, storage.MTU, len(storage.PIFs)) == ("xenbr1", 9000, 2)
    assert named(example.network, "private").bridge == "xapi0"
    assert the(example.pool).master == named(example.host, "alpha")._ref


def test_shared_srs_are_attached_to_every_host_and_local_ones_to_theirs(example: Store) -> None:
    """Each host has its own local storage of the same name."""
    locals_ = example.SR.by_name_label("Local storage")
    assert [len(sr.PBDs) for sr in locals_] == [1, 1]
    assert len(named(example.SR, "vm-disks").PBDs) == len(named(example.SR, "XCP-ng Tools").PBDs) == 2
    assert the(example.pool).default_SR == named(example.SR, "vm-disks")._ref


def test_a_declared_vm_has_what_the_file_says(example: Store) -> None:
    """The rest comes from its default template."""
    vm = named(example.VM, "web")
    template = named(example.VM, "Debian Bookworm 12")
    assert (vm.memory_static_max, vm.VCPUs_max, vm.tags) == (4 * 2**30, 2, ("production",))
    assert (vm.platform, vm.HVM_boot_params) == (template.platform, template.HVM_boot_params)
    assert vm.other_config["base_template_name"] == "Debian Bookworm 12"
    assert vm.other_config["folder"] == "/sites"
    assert not {"disks", "default_template"} & vm.other_config.keys()
    assert not vm.is_a_template


def test_declared_drives_join_images(example: Store) -> None:
    """New ones on the SR that is named, else the default one; and declared ones."""
    drives = [example.VBD[ref] for ref in named(example.VM, "web").VBDs]
    images = [example.VDI[drive.VDI] for drive in drives]
    assert [(drive.userdevice, drive.type, drive.mode, drive.bootable) for drive in drives] == [
        ("0", "Disk", "RW", True),
        ("1", "Disk", "RW", False),
        ("2", "CD", "RO", False),
    ]
    assert [example.SR[image.SR].name_label for image in images] == ["vm-disks", "Local storage", "ISO library"]
    assert images[2].name_label == "debian-12-netinst.iso"
    assert "owner" in drives[0].other_config and "owner" not in drives[2].other_config


def test_a_cd_drive_without_image_is_empty() -> None:
    """It is the only drive that may be."""
    store = fresh(declared('[[vm]]\nname = "v"\ndisk = [{ cd = true }]'))
    drive = the(store.VBD)
    assert (drive.empty, drive.VDI, drive.type) == (True, NULL, "CD")


def test_declared_cards_have_addresses(example: Store) -> None:
    """Given ones are kept, others follow from the seed."""
    vm = named(example.VM, "web")
    first, second = (example.VIF[ref] for ref in vm.VIFs)
    expected = devices.mac_address(vm.other_config["mac_seed"], 0)
    assert example.network[first.network].bridge == "xenbr0"
    assert expected == first.MAC
    assert (first.MAC_autogenerated, second.MAC_autogenerated) == (True, False)
    assert second.MAC == "02:00:00:00:00:01"


def test_a_vm_may_prefer_a_host_and_be_a_template(example: Store) -> None:
    """Neither makes it a default template."""
    assert named(example.VM, "db").affinity == named(example.host, "beta")._ref
    small = named(example.VM, "Small Debian")
    assert (small.is_a_template, small.is_default_template) == (True, False)


def test_the_images_of_an_sr_are_summed_up(example: Store) -> None:
    """virtual_allocation is the sum of the sizes that guests see."""
    sr = named(example.SR, "vm-disks")
    assert sr.virtual_allocation == sum(example.VDI[ref].virtual_size for ref in sr.VDIs)
    assert sr.physical_size == 2 * 2**40


def test_two_networks_of_one_device_get_two_bridges() -> None:
    """Hosts may use the same card differently; a bridge has one network."""
    store = fresh(
        declared(
            """
            network = [{ name = "lan" }]
            host = [
                { name = "a", address = "127.0.0.1", nic = [{ network = "lan" }] },
                { name = "b", address = "127.0.0.2" },
            ]
            """
        )
    )
    assert {network.bridge for network in store.network} == {"xenbr0", "xapi0", "xenapi"}


def test_a_host_may_have_no_local_storage() -> None:
    """Then the pool has no default SR and the host nowhere to suspend to."""
    store = fresh(declared("[[host]]\nlocal_storage = 0"))
    assert (the(store.pool).default_SR, the(store.host).suspend_image_sr) == (NULL, NULL)
    assert store.SR.by_name_label("Local storage") == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("pool = ", "test.toml: Invalid value"),
        ("pool = 3", "pool: expected a table"),
        ("host = 3", "host: expected tables: write [[host]]"),
        ("[[host]]\ncpu = 4", "host[0].cpu: unknown key; known here: name, description"),
        ("[[sr]]\ntype = 'nfs'", "sr[0]: name must be given"),
        ("[[sr]]\nname = 's'\nvdi = [{}]", "sr[0].vdi[0]: name must be given"),
        ("[[sr]]\nname = 's'\nvdi = [{ name = 'v' }]", "sr[0].vdi[0]: size must be given"),
        ("[[host]]\ncpus = '4'", "host[0].cpus: expected a whole number, got '4'"),
        ("[[host]]\ncpus = true", "host[0].cpus: expected a whole number, got True"),
        ("[[host]]\nname = 4", "host[0].name: expected a text, got 4"),
        ("[[host]]\ntags = 'x'", "host[0].tags: expected a list of texts, got 'x'"),
        ("[[host]]\ntags = [1]", "host[0].tags: expected a text, got 1"),
        ("[pool.other_config]\nx = 1", "pool.other_config: expected a text, got 1"),
        ("[[host]]\nmemory = '16 GB'", "host[0].memory: '16 GB' is no size"),
        ("[[host]]\nmemory = -1", "host[0].memory: -1 is no size"),
        ("host = []", "host: a pool has at least one host"),
        ("[[host]]\nname = 'a b'", "host[0].name: not a host name"),
        ("[[host]]\n[[host]]", "host[1].name: 'kronos' is taken by host[0]"),
        ("[[host]]\n[[host]]\nname = 'b'", "host[1].address: '127.0.0.1' is taken by host[0]"),
        ("[[host]]\naddress = 'localhost'", "host[0].address: 'localhost' is no IPv4 address"),
        ("[[host]]\ncpus = 0", "host[0].cpus: 0 is not within 1 to 1024"),
        ("[[host]]\nsockets = 3", "host[0].sockets: 4 CPUs do not fill 3 sockets"),
        ("[[host]]\ncpu_mhz = 0", "host[0].cpu_mhz: 0 is not positive"),
        (f"[[host]]\ncpu_model = '{'x' * 48}'", "host[0].cpu_model: not up to 47 characters"),
        ("[[host]]\ncpu_model = 'Z80  A'", "host[0].cpu_model: not up to 47 characters"),
        ("[[host]]\nmemory = '512 MiB'", "host[0].memory: less than 1 GiB"),
        ("[[host]]\nmemory = '2 GiB'", "host[0].control_domain_memory: not within 0 and half"),
        ("[[host]]\nlocal_storage_type = 'nfs'", "host[0].local_storage_type: not one of ext, file, lvm"),
        ("[[host]]\nnic = []", "host[0].nic: a host has at least one network card"),
        ("[[host]]\nnic = [{ management = true }, { management = true }]", "host[0].nic: two management cards"),
        ("[[host]]\nnic = [{}, { device = 'eth0' }]", "host[0].nic[1].device: 'eth0' is taken by host[0].nic[0]"),
        ("[[host]]\nnic = [{ network = 'x' }]", "host[0].nic[0].network: no network 'x'"),
        ("[[host]]\nnic = [{ speed = -1 }]", "host[0].nic[0].speed: -1 is negative"),
        ("[[host]]\nnic = [{ mac = '01:00:00:00:00:00' }]", "host[0].nic[0].mac: '01:00:00:00:00:00' is no unicast"),
        ("[[host]]\nnic = [{ ip = '10.0.0.256' }]", "host[0].nic[0].ip: '10.0.0.256' is no IPv4 address"),
        (
            "network = [{ name = 'n' }]\nhost = [{ nic = [{ network = 'n' }, { network = 'n' }] }]",
            "host[0].nic[1].network: 'n' is taken by host[0].nic[0]",
        ),
        ("network = [{ name = 'n' }, { name = 'n' }]", "network[1].name: 'n' is taken by network[0]"),
        (
            "network = [{ name = 'n', bridge = 'b' }, { name = 'm', bridge = 'b' }]",
            "network[1].bridge: 'b' is taken by network[0]",
        ),
        ("[[network]]\nname = 'n'\nmtu = 10", "network[0].mtu: 10 is not within 68 to 65535"),
        ("[[network]]\nname = 'n'\nbridge = 'a23456789012345x'", "network[0].bridge: longer than 15 characters"),
        ("[[network]]\nname = 'n'\nbridge = 'xenapi'", "network[0].bridge: 'xenapi' is the hosts' own"),
        ("[[sr]]\nname = 's'\ntype = 'zfs'", "sr[0].type: 'zfs' is not one of ext, file"),
        ("[[sr]]\nname = 's'\nhost = 'kronos'", "sr[0].host: a shared SR is on all hosts"),
        ("[[sr]]\nname = 's'\nshared = false", "sr[0].host: no host ''"),
        ("[[sr]]\nname = 's'\nvdi = [{ name = 'v', size = 0 }]", "sr[0].vdi[0].size: not positive"),
        ("pool = { default_sr = 'x' }", "pool.default_sr: not the name of one SR: 'x'"),
        (
            "pool = { default_sr = 'Local storage' }\nhost = [{ name = 'a' }, { name = 'b', address = '127.0.0.2' }]",
            "pool.default_sr: not the name of one SR: 'Local storage'",
        ),
        ("[[vm]]\nname = 'v'\nfrom = 'BeOS'", "vm[0].from: no default template 'BeOS'"),
        ("[[vm]]\nname = 'v'\nhost = 'x'", "vm[0].host: no host 'x'"),
        ("[[vm]]\nname = 'v'\nvcpus = 65", "vm[0].vcpus: 65 is not within 1 to 64"),
        ("[[vm]]\nname = 'v'\nfolder = 'x'", "vm[0].folder: does not begin with /"),
        ("[[vm]]\nname = 'v'\ndisk = [{}]", "vm[0].disk[0]: either size or vdi must be given"),
        ("[[vm]]\nname = 'v'\ndisk = [{ vdi = 'x' }]", "vm[0].disk[0].vdi: not the name of one VDI: 'x'"),
        ("[[vm]]\nname = 'v'\ndisk = [{ size = 1, cd = true }]", "vm[0].disk[0]: size and sr are of a new image"),
        ("[[vm]]\nname = 'v'\ndisk = [{ size = 1, sr = 'x' }]", "vm[0].disk[0].sr: not the name of one SR: 'x'"),
        (
            "pool = { default_sr = '' }\nvm = [{ name = 'v', disk = [{ size = 1 }] }]",
            "vm[0].disk[0].sr: the pool has no default SR",
        ),
        ("[[vm]]\nname = 'v'\nnic = [{ network = 'x' }]", "vm[0].nic[0].network: no network 'x'"),
        ("[[vm]]\nname = 'v'\nnic = [{ mac = 'x' }]", "vm[0].nic[0].mac: 'x' is no unicast"),
        (f"[[vm]]\nname = 'v'\nnic = [{'{},' * 17}]", "vm[0].nic: more than 16 network cards"),
        (f"[[vm]]\nname = 'v'\ndisk = [{'{ cd = true },' * 256}]", "vm[0].disk: more than 255 disks"),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, complaint: str) -> None:
    """File, key path, and what is wrong."""
    with pytest.raises(DeclarationError) as caught:
        declared(text)
    assert str(caught.value).startswith("test.toml: ")
    assert complaint in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """Once, with the reason; no traceback."""
    with pytest.raises(DeclarationError) as caught:
        read_declaration(tmp_path / "gone.toml")
    assert str(caught.value) == f"{tmp_path}/gone.toml: No such file or directory"


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    """TOML is UTF-8."""
    path = tmp_path / "latin.toml"
    path.write_bytes(b"[pool]\nname = '\xe9'")
    with pytest.raises(DeclarationError, match=r"latin\.toml"):
        read_declaration(path)


# Growing


def test_growing_adds_hosts_and_vms() -> None:
    """`hosts` is a total, `vms` an addition; names and addresses do not repeat."""
    store = fresh()
    steps = list(scale.grow(store, hosts=3, vms=700, rng=random.Random(2), now=NOW))
    assert steps == [1, 2, 502, 702]
    assert [host.address for host in store.host] == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    assert len(store.VM) == 3 + 51 + 700
    assert the(store.pool).cpu_info["cpu_count"] == "12"


def test_a_grown_vm_is_halted_with_a_disk_where_its_host_has_storage() -> None:
    """VMs are spread over the hosts; each disk is on the local storage of the VM's host."""
    store = fresh()
    list(scale.grow(store, hosts=2, vms=4, rng=random.Random(2), now=NOW))
    grown = [vm for vm in store.VM if vm.name_label.startswith("vm-")]
    hosts = [vm.affinity for vm in grown]
    srs = [store.SR[store.VDI[store.VBD[next(iter(vm.VBDs))].VDI].SR] for vm in grown]
    assert {vm.power_state for vm in grown} == {"Halted"}
    assert sorted(hosts.count(host._ref) for host in store.host) == [2, 2]
    assert [store.PBD[next(iter(sr.PBDs))].host for sr in srs] == hosts
    assert [len(vm.VIFs) for vm in grown] == [1, 1, 1, 1]


def test_growing_twice_goes_on_counting() -> None:
    """Names stay unique, allocations add up."""
    store = fresh()
    list(scale.grow(store, hosts=1, vms=2, rng=random.Random(2), now=NOW))
    list(scale.grow(store, hosts=1, vms=1, rng=random.Random(3), now=NOW))
    assert [named(store.VM, f"vm-{number:06}").domid for number in (1, 2, 3)] == [-1, -1, -1]
    assert named(store.SR, "Local storage").virtual_allocation == 3 * scale.DISK


def test_growing_is_deterministic() -> None:
    """The same seeds, the same pool."""
    stores = [fresh(), fresh()]
    for store in stores:
        list(scale.grow(store, hosts=2, vms=10, rng=random.Random(2), now=NOW))
    assert records(stores[0]) == records(stores[1])


def test_growing_without_storage_is_refused() -> None:
    """A clear error instead of VMs without disks."""
    store = fresh(declared("sr = []\n[[host]]\nlocal_storage = 0"))
    with pytest.raises(ValueError, match="no host has an SR for disks"):
        list(scale.grow(store, hosts=1, vms=1, rng=random.Random(2), now=NOW))


def test_a_new_host_gets_the_shared_srs() -> None:
    """And its own ones."""
    store = fresh(declared("[[sr]]\nname = 'vm-disks'\nsize = '1 TiB'"))
    list(scale.grow(store, hosts=2, vms=0, rng=random.Random(2), now=NOW))
    assert len(named(store.SR, "vm-disks").PBDs) == len(named(store.SR, "XCP-ng Tools").PBDs) == 2
    assert len(store.SR.by_name_label("Local storage")) == 2
