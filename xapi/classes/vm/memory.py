"""Messages of VM about its memory: the limits in their order, the balloon of a guest that runs, and estimates."""

from __future__ import annotations

from twisted.internet.task import deferLater

from hypervisor.api import Change
from xapi.calls.call import Call
from xapi.calls.claim import claim
from xapi.calls.registry import message
from xapi.datamodel import errors, records
from xapi.datamodel.types import Ref
from xapi.vms import memory
from xapi.vms.faults import told
from xapi.vms.memory import Limits, check_limits, limits
from xapi.vms.power import backend
from xapi.vms.reconcile import Reconciler

VM = Ref[records.VM]
PATIENCE = 256
"""Seconds that wait_memory_target_live gives a guest's balloon, as xapi does."""
TOLERANCE = memory.MIB
"""Bytes by which a guest may miss its target."""
PAGE = 4096


# Halted


@message("VM.set_memory_limits")
async def set_memory_limits(
    call: Call, self: VM, static_min: int, static_max: int, dynamic_min: int, dynamic_max: int
) -> None:
    """Set all four limits of a halted VM."""
    row = call.db.VM[self]
    _set_limits(call, row, Limits(static_min, dynamic_min, dynamic_max, static_max))


@message("VM.set_memory")
async def set_memory(call: Call, self: VM, value: int) -> None:
    """Give a halted VM so many bytes, no more and no less."""
    row = call.db.VM[self]
    _set_limits(call, row, Limits(row.memory_static_min, value, value, value))


def _set_limits(call: Call, vm: records.VM, wanted: Limits) -> None:
    check_limits(call.db, vm, wanted)
    with call.db.atomic():
        vm.memory_static_min, vm.memory_static_max = wanted.static_min, wanted.static_max
        vm.memory_dynamic_min, vm.memory_dynamic_max = wanted.dynamic_min, wanted.dynamic_max
        vm.memory_target = wanted.dynamic_min
        _later(vm)


def _later(vm: records.VM) -> None:
    """Say of a control domain that runs that it has its new settings after a reboot."""
    if vm.is_control_domain and vm.power_state == "Running":
        vm.requires_reboot = True


@message("VM.set_memory_static_range", claims_itself=True)
async def set_memory_static_range(call: Call, self: VM, min: int, max: int) -> None:
    """Set the static limits of a halted VM."""
    await _static(call, call.db.VM[self], min, max)


@message("VM.set_memory_static_min")
async def set_memory_static_min(call: Call, self: VM, value: int) -> None:
    """Set the lower static limit of a halted VM."""
    row = call.db.VM[self]
    await _static(call, row, value, row.memory_static_max)


@message("VM.set_memory_static_max")
async def set_memory_static_max(call: Call, self: VM, value: int) -> None:
    """Set the upper static limit of a halted VM."""
    row = call.db.VM[self]
    await _static(call, row, row.memory_static_min, value)


async def _static(call: Call, vm: records.VM, least: int, most: int) -> None:
    async with claim(call, "changing_static_range", vm):
        check_limits(call.db, vm, limits(vm)._replace(static_min=least, static_max=most))
        with call.db.atomic():
            vm.memory_static_min, vm.memory_static_max = least, most
            _later(vm)


# Halted or running


@message("VM.set_memory_dynamic_range", claims_itself=True)
async def set_memory_dynamic_range(call: Call, self: VM, min: int, max: int) -> None:
    """Set between what the balloon of a VM's guest moves."""
    await _dynamic(call, call.db.VM[self], min, max)


@message("VM.set_memory_dynamic_min")
async def set_memory_dynamic_min(call: Call, self: VM, value: int) -> None:
    """Set what a VM's guest keeps in any case."""
    row = call.db.VM[self]
    await _dynamic(call, row, value, row.memory_dynamic_max)


@message("VM.set_memory_dynamic_max")
async def set_memory_dynamic_max(call: Call, self: VM, value: int) -> None:
    """Set what a VM's guest has as long as its host has enough."""
    row = call.db.VM[self]
    await _dynamic(call, row, row.memory_dynamic_min, value)


async def _dynamic(call: Call, vm: records.VM, least: int, most: int) -> None:
    async with claim(call, "changing_dynamic_range", vm):
        runs = vm.power_state == "Running"
        if runs:
            _check_room(call, vm, least - vm.memory_dynamic_min)
        check_limits(call.db, vm, limits(vm)._replace(dynamic_min=least, dynamic_max=most))
        before = vm.memory_dynamic_min, vm.memory_dynamic_max, vm.memory_target
        _set_dynamic(call, vm, least, most, least)
        if runs and not vm.is_control_domain:
            try:
                await _balloon(call, vm, most)
            except BaseException:
                if vm._ref in call.db.VM:
                    _set_dynamic(call, vm, *before)
                raise


def _check_room(call: Call, vm: records.VM, growth: int) -> None:
    """Raise HOST_NOT_ENOUGH_FREE_MEMORY, in KiB as xapi does here, when a host cannot keep so much more for a VM."""
    free = memory.free(call.db, call.db.host[vm.resident_on])
    if free < growth:
        raise errors.HOST_NOT_ENOUGH_FREE_MEMORY(str(growth // 1024), str(free // 1024))


def _set_dynamic(call: Call, vm: records.VM, least: int, most: int, target: int) -> None:
    with call.db.atomic():
        vm.memory_dynamic_min, vm.memory_dynamic_max, vm.memory_target = least, most, target


async def _balloon(call: Call, vm: records.VM, most: int) -> None:
    """Tell a guest what to keep: its dynamic maximum, because our hosts lend no memory twice."""
    target = most // PAGE * PAGE
    with told(vm):
        await backend(call, vm).adjust(vm.uuid, Change(memory_target=target))
    vm.memory_target = target


# Running


@message("VM.set_memory_target_live")
async def set_memory_target_live(call: Call, self: VM, target: int) -> None:
    """Do nothing but take the operation, as xapi has done since set_memory_dynamic_range took this one's place."""


@message("VM.wait_memory_target_live")
async def wait_memory_target_live(call: Call, self: VM) -> None:
    """Wait until a guest's balloon has come as far as it was told. Raises VM_MEMORY_TARGET_WAIT_TIMEOUT."""
    row = call.db.VM[self]
    if row.is_control_domain:
        return  # it has no balloon
    for _ in range(PATIENCE + 1):
        state = (await backend(call, row).stat(row.uuid)).state
        if state is None:
            raise errors.VM_BAD_POWER_STATE(self, "running", "halted")
        if abs(state.memory_actual - state.memory_target) <= TOLERANCE:
            await call[Reconciler].look(row)
            return
        await deferLater(call.clock, 1.0)
    raise errors.VM_MEMORY_TARGET_WAIT_TIMEOUT(call.task._ref)


@message("VM.get_cooperative")
def get_cooperative(call: Call, self: VM) -> bool:
    """Say that a guest cooperates, as xapi says of all of them."""
    _ = call.db.VM[self]
    return True


# Shadow memory


@message("VM.set_HVM_shadow_multiplier")
async def set_HVM_shadow_multiplier(call: Call, self: VM, value: float) -> None:
    """Set how much more than the usual a halted VM's page tables take."""
    row = call.db.VM[self]
    _check_multiplier(value)
    row.HVM_shadow_multiplier = value


@message("VM.set_shadow_multiplier_live")
async def set_shadow_multiplier_live(call: Call, self: VM, multiplier: float) -> None:
    """Set how much more than the usual the page tables of a VM that runs take; they are only accounted for."""
    row = call.db.VM[self]
    _check_multiplier(multiplier)
    metrics = call.db.VM_metrics.get(row.metrics)
    if metrics is not None and metrics.current_domain_type == "pv":
        return  # it has none, which xapi passes over
    before = row.memory_overhead
    with call.db.atomic():
        row.HVM_shadow_multiplier = multiplier
        needed = memory.overhead(row) - before
        free = memory.free(call.db, call.db.host[row.resident_on])
        if needed > free:
            raise errors.HOST_NOT_ENOUGH_FREE_MEMORY(str(needed), str(free))


def _check_multiplier(value: float) -> None:
    if not value >= 1:
        raise errors.INVALID_VALUE("multiplier", f"{value:g}" if value % 1 else f"{value:.0f}.")


# Estimates


@message("VM.compute_memory_overhead")
def compute_memory_overhead(call: Call, vm: VM) -> int:
    """Return the bytes that a VM takes of its host beside its own memory."""
    return memory.overhead(call.db.VM[vm])


@message("VM.maximise_memory")
def maximise_memory(call: Call, self: VM, total: int, approximate: bool) -> int:
    """Return the largest static maximum with which a VM fits into so many bytes of a host."""
    return memory.maximum(call.db.VM[self], total, approximate=approximate)
