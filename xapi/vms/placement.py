"""Where a VM may run, and where it shall.

`choose_host` follows xapi: the hosts are summed up with the VM on each, sorted by the memory that would be left,
and tried in a random order that favours the first; then again with less to ask of memory. The coordinator counts
with half of what it has, unless the pool's coordinator_bias is off.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL
from xapi.hosts.availability import is_live
from xapi.vms import memory
from xapi.vms.domains import domain_kind

if TYPE_CHECKING:
    from xapi.datamodel import records
    from xapi.datamodel.records import VM
    from xapi.store.memory import Store
    from xapi.vms.memory import Room

Coming = Mapping[str, "list[VM]"]
Category = Callable[["records.host", "Room"], int]
"""How good a host is with the VM on it; below 0 it is none of the category."""
_SHARED = "assume_network_is_shared"
"""Key of a network's other_config: without cards, it is on every host all the same."""
_NO_DUMP = "cannot invoke a coredump of an HVM, PVH or PV-in-PVH domain"
_LEAK = "option would leak a domain; VMs and not domains are managed by this API"


# Where it may run


def assert_can_boot_here(
    db: Store, vm: VM, host: records.host, *, enough_memory: bool = True, coming: Coming | None = None
) -> None:
    """Raise the Fault of the first reason why a VM cannot start on a host; memory may be left out.

    `coming` are the VMs that hosts expect, for callers that ask of several hosts.
    """
    _check_settings(vm)
    if not is_live(db, host):
        raise errors.HOST_NOT_LIVE()
    if vm.is_control_domain and vm.affinity not in (NULL, host._ref):
        raise errors.OPERATION_NOT_ALLOWED("Cannot boot a control domain on a host different from its affinity")
    stays = vm.power_state == "Running" and vm.resident_on == host._ref
    if not (host.enabled or vm.is_control_domain or stays):
        raise errors.HOST_DISABLED(host._ref)
    _check_platform(vm, host)
    _check_features(db, vm, host)
    missing = unseen_srs(db, host, _required_srs(db, vm))
    if missing:
        raise errors.VM_REQUIRES_SR(vm._ref, missing[0])
    _check_networks(db, vm, host)
    _check_passed_through(db, vm, host)
    needed = "xen" if _kind(db, vm) == "pv" else "hvm"
    if not any(capability.startswith(needed) for capability in host.capabilities):
        raise errors.VM_HVM_REQUIRED(vm._ref)  # also of PV guests: a host without Xen's CPU runs none at all
    if enough_memory:
        _check_memory(db, vm, host, memory.expected(db) if coming is None else coming)
    _check_pcpus(vm, host)


def _kind(db: Store, vm: VM) -> str:
    """Return what a VM is, or, when it has a domain or an image of one, what that is."""
    metrics = db.VM_metrics.get(vm.metrics)
    if vm.power_state == "Halted" or metrics is None or metrics.current_domain_type == "unspecified":
        return domain_kind(vm)
    return metrics.current_domain_type


def _check_settings(vm: VM) -> None:
    """Raise the Fault of the first setting with which a VM cannot start anywhere."""
    if vm.VCPUs_max < 1:
        raise errors.INVALID_VALUE("VCPUs_max", str(vm.VCPUs_max))
    if vm.VCPUs_at_startup < 1:
        raise errors.INVALID_VALUE("VCPUs-at-startup", str(vm.VCPUs_at_startup))
    if vm.VCPUs_at_startup > vm.VCPUs_max:
        raise errors.VALUE_NOT_SUPPORTED("VCPUs-at-startup", str(vm.VCPUs_at_startup), "value greater than VCPUs-max")
    memory.check_usable(vm)
    if vm.HVM_shadow_multiplier < 1:
        raise errors.INVALID_VALUE("HVM_shadow_multiplier", f"{vm.HVM_shadow_multiplier:g}")
    action = vm.actions_after_crash
    if action == "rename_restart":
        raise errors.VALUE_NOT_SUPPORTED("VM.actions_after_crash", action, _LEAK)
    if action.startswith("coredump") and domain_kind(vm) != "pv":
        raise errors.VALUE_NOT_SUPPORTED("VM.actions_after_crash", action, _NO_DUMP)


def _check_platform(vm: VM, host: records.host) -> None:
    versions = host.virtual_hardware_platform_versions
    if vm.hardware_platform_version not in versions:
        raise errors.VM_HOST_INCOMPATIBLE_VIRTUAL_HARDWARE_PLATFORM_VERSION(
            host._ref, f"[{'; '.join(map(str, versions))}]", vm._ref, str(vm.hardware_platform_version)
        )


def _check_features(db: Store, vm: VM, host: records.host) -> None:
    """Compare the processor that a guest has seen with that of a host."""
    seen = vm.last_boot_CPU_flags
    if vm.power_state == "Halted" or not seen:
        return
    has = host.cpu_info
    if seen.get("vendor", has.get("vendor")) != has.get("vendor"):
        text = "VM last booted on a host which had a CPU from a different vendor."
        raise errors.VM_INCOMPATIBLE_WITH_THIS_HOST(vm._ref, host._ref, text)
    there = has.get("features_pv" if _kind(db, vm) == "pv" else "features_hvm", "")
    if not _words(seen.get("features", "")).issubset(_words(there)):
        text = "VM last booted on a CPU with features this host's CPU does not have."
        raise errors.VM_INCOMPATIBLE_WITH_THIS_HOST(vm._ref, host._ref, text)


def _words(features: str) -> set[tuple[int, int]]:
    """Return the bits of words in hexadecimal, joined by hyphens."""
    words = [int(word, 16) for word in features.split("-") if word]
    return {(at, bit) for at, word in enumerate(words) for bit in range(word.bit_length()) if word >> bit & 1}


def _required_srs(db: Store, vm: VM) -> list[str]:
    images = [vbd.VDI for ref in vm.VBDs if not (vbd := db.VBD[ref]).empty]
    if vm.power_state == "Suspended" and vm.suspend_VDI != NULL:
        images.append(vm.suspend_VDI)
    return [vdi.SR for ref in images if (vdi := db.VDI.get(ref)) is not None]


def unseen_srs(db: Store, host: records.host, srs: Iterable[str]) -> list[str]:
    """Return those of some SRs that a host has not attached."""
    seen = {pbd.SR for ref in host.PBDs if (pbd := db.PBD[ref]).currently_attached}
    return [sr for sr in srs if sr not in seen]


def _check_networks(db: Store, vm: VM, host: records.host) -> None:
    networks = [db.network[db.VIF[ref].network] for ref in vm.VIFs]
    for network in networks:
        if not _sees_network(db, network, host):
            raise errors.VM_REQUIRES_NETWORK(vm._ref, network._ref)
    for network in networks:
        pifs = [pif for ref in network.PIFs if (pif := db.PIF[ref]).host == host._ref]
        if any(pif.bond_slave_of != NULL for pif in pifs):
            raise errors.HOST_CANNOT_ATTACH_NETWORK(host._ref, network._ref)


def _sees_network(db: Store, network: records.network, host: records.host) -> bool:
    """Tell whether a host has a card on a network; one without cards is where the first of its VMs runs."""
    if network.PIFs:
        return any(db.PIF[ref].host == host._ref for ref in network.PIFs)
    if network.other_config.get(_SHARED) == "true" or not network.managed:
        return True
    vms = [db.VM[db.VIF[ref].VM] for ref in network.VIFs]
    where = {vm.resident_on for vm in vms if vm.power_state == "Running"}
    return not where or host._ref in where


def _check_passed_through(db: Store, vm: VM, host: records.host) -> None:
    """Check that a host has the devices of its own that a VM uses."""
    for ref in vm.VGPUs:
        vgpu = db.VGPU[ref]
        if not any(pgpu.GPU_group == vgpu.GPU_group for each in host.PGPUs if (pgpu := db.PGPU[each])):
            raise errors.VM_REQUIRES_VGPU(vm._ref, vgpu.GPU_group, vgpu.type)
    for vusb in vm.VUSBs:
        group = db.USB_group.get(db.VUSB[vusb].USB_group)
        pusbs = [] if group is None else [db.PUSB[each] for each in group.PUSBs]
        if not pusbs or pusbs[0].host != host._ref:
            raise errors.OPERATION_NOT_ALLOWED(f"VUSB {vusb} is not available on Host {host._ref}")


def _check_memory(db: Store, vm: VM, host: records.host, coming: Coming) -> None:
    needed, free = memory.to_start(vm), memory.room(db, host, coming, vm._ref).free
    if free < needed:
        raise errors.HOST_NOT_ENOUGH_FREE_MEMORY(str(needed), str(free))


def _check_pcpus(vm: VM, host: records.host) -> None:
    pcpus = int(host.cpu_info.get("cpu_count", "0"))
    unrestricted = vm.platform.get("vcpu-unrestricted", "").lower() in ("true", "1")
    if vm.VCPUs_max > pcpus and not unrestricted:
        raise errors.HOST_NOT_ENOUGH_PCPUS(str(vm.VCPUs_max), str(pcpus))


def possible_hosts(db: Store, vm: VM) -> list[records.host]:
    """Return the hosts on which a VM could start, or the one that expects it already."""
    if vm.scheduled_to_be_resident_on in db.host:
        return [db.host[vm.scheduled_to_be_resident_on]]
    coming = memory.expected(db)
    return [host for host in db.host if _could(db, vm, host, coming, enough_memory=True)]


def _could(db: Store, vm: VM, host: records.host, coming: Coming, *, enough_memory: bool) -> bool:
    try:
        assert_can_boot_here(db, vm, host, enough_memory=enough_memory, coming=coming)
    except Fault:
        return False
    return True


# Where it shall run


def choose_host(db: Store, vm: VM, *, draw: Callable[[], float] = random.random) -> records.host:
    """Return the host on which a VM shall start; `draw` gives numbers from 0 to below 1.

    Raises NO_HOSTS_AVAILABLE, or VM_HVM_REQUIRED where this machine can run no guest at all (xapi has the former).
    """
    if vm.scheduled_to_be_resident_on in db.host:
        return db.host[vm.scheduled_to_be_resident_on]
    coming = memory.expected(db)
    groups = _groups(db, vm)
    for group in groups:
        host = _select(db, vm, group, coming, draw, enough_memory=True)
        if host is not None:
            return host
    everyone = [host for group in groups for host in group]
    host = _select(db, vm, everyone, coming, draw, enough_memory=False)
    if host is None:
        if not any(host.capabilities for host in db.host):
            raise errors.VM_HVM_REQUIRED(vm._ref)
        raise errors.NO_HOSTS_AVAILABLE()
    return host


def _groups(db: Store, vm: VM) -> list[list[records.host]]:
    """Return the hosts in groups, the best first: for an anti-affinity group those with fewest of its VMs."""
    hosts = list(db.host)
    pool = next(iter(db.pool))
    apart = [group for ref in vm.groups if (group := db.VM_group[ref]).placement == "anti_affinity"]
    if not apart or pool.restrictions.get("restrict_vm_groups") == "true":
        return [hosts]
    counts: dict[str, int] = {}
    for ref in apart[0].VMs:
        where = _counted_on(db.VM[ref])
        counts[where] = counts.get(where, 0) + 1
    preferred = [host for host in hosts if host._ref == vm.affinity]
    others: dict[int, list[records.host]] = {}
    for host in hosts:
        if host._ref != vm.affinity:
            others.setdefault(counts.get(host._ref, 0), []).append(host)
    return ([preferred] if preferred else []) + [others[count] for count in sorted(others)]


def _counted_on(vm: VM) -> str:
    """Return the host that a member of a group counts for, null for none: Paused ones do not."""
    if vm.scheduled_to_be_resident_on != NULL:
        return vm.scheduled_to_be_resident_on
    return vm.resident_on if vm.power_state == "Running" else NULL


def _select(
    db: Store,
    vm: VM,
    hosts: Collection[records.host],
    coming: Coming,
    draw: Callable[[], float],
    *,
    enough_memory: bool,
) -> records.host | None:
    """Return one of some hosts on which a VM can start, or None."""
    rooms = [(host, memory.room(db, host, coming).beside(vm)) for host in hosts]
    for category in _categories(db, vm):
        rated = [(category(host, room), host, room) for host, room in rooms]
        inside = sorted((each for each in rated if each[0] >= 0), key=lambda each: -each[0])
        while inside:
            # The square of the number favours the first.
            _, host, _ = inside.pop(int(len(inside) * draw() ** 2))
            evacuating = "evacuate" in host.current_operations.values()
            ready = (host.enabled or vm.is_control_domain) and not evacuating
            if ready and _could(db, vm, host, coming, enough_memory=enough_memory):
                return host
        rooms = [(host, room) for value, host, room in rated if value < 0]
    return None


def _categories(db: Store, vm: VM) -> list[Category]:
    """Return what makes a host good, the most wanted first."""
    pool = next(iter(db.pool))
    biased = pool.master if pool.coordinator_bias else NULL

    def bias(host: records.host, value: int) -> int:
        return (value - 1) // 2 if host._ref == biased else value

    return [
        lambda host, room: _squeezed(room) if host._ref == vm.affinity else -1,
        lambda host, room: bias(host, room.available - room.static_max),
        lambda host, room: bias(host, room.available - room.dynamic_max),
        lambda host, room: _squeezed(room),
    ]


def _squeezed(room: Room) -> int:
    """Return how much of what they may have, in thousandths, the guests would get; -1 when it is too little."""
    if room.available >= room.dynamic_max:
        return 1000
    if room.available < room.dynamic_min:
        return -1
    return 1000 * (room.available - room.dynamic_min) // (room.dynamic_max - room.dynamic_min)
