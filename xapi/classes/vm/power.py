"""Messages of VM that change its power state: each a claim, steps on a host backend, and their undoing."""

from __future__ import annotations

from contextlib import suppress

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as LateError

from hypervisor.api import Shutdown
from xapi.calls.call import Call
from xapi.calls.claim import SHORT, declared
from xapi.calls.registry import message
from xapi.datamodel import errors, records
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import Ref
from xapi.events.alerts import alert
from xapi.hosts.backends import Backends
from xapi.storage.unfinished import making
from xapi.vms import power
from xapi.vms.placement import assert_can_boot_here, choose_host
from xapi.vms.reconcile import write_halted

VM = Ref[records.VM]
Host = Ref[records.host]
DEFAULT_SHUTDOWN_DELAY = 1200.0
"""Seconds that `shutdown` gives a guest whose VM says nothing of it."""


# Start


@message("VM.start", patience=SHORT)
async def start(call: Call, vm: VM, start_paused: bool, force: bool) -> None:
    """Start a halted VM on a host of our choice."""
    row = call.db.VM[vm]
    await power.start(call, row, choose_host(call.db, row), start_paused=start_paused)


@message("VM.start_on", patience=SHORT)
async def start_on(call: Call, vm: VM, host: Host, start_paused: bool, force: bool) -> None:
    """Start a halted VM on one host."""
    row, where = call.db.VM[vm], call.db.host[host]
    assert_can_boot_here(call.db, row, where)
    await power.start(call, row, where, start_paused=start_paused)


# Pause


@message("VM.pause", claims_itself=True)
async def pause(call: Call, vm: VM) -> None:
    """Hold a running VM where it is."""
    row = call.db.VM[vm]
    async with declared(call, row, patience=SHORT):
        await power.pause(call, row)
    alert(call.db, call.now, "VM_PAUSED", "VM", row, f"VM '{row.name_label}' (uuid: {row.uuid}) paused")


@message("VM.unpause", claims_itself=True)
async def unpause(call: Call, vm: VM) -> None:
    """Let a paused VM go on."""
    row = call.db.VM[vm]
    async with declared(call, row, patience=SHORT):
        await power.unpause(call, row)
    alert(call.db, call.now, "VM_UNPAUSED", "VM", row, f"VM '{row.name_label}' (uuid: {row.uuid}) unpaused")


# Shutdown


@message("VM.clean_shutdown")
async def clean_shutdown(call: Call, vm: VM) -> None:
    """Ask the guest to power off, and wait until it has."""
    row = call.db.VM[vm]
    row.ha_always_run = False
    await power.clean(call, row, Shutdown.POWEROFF)
    await power.halt(call, row)


@message("VM.hard_shutdown")
async def hard_shutdown(call: Call, vm: VM) -> None:
    """End the VM's domain at once; a suspended VM loses its memory."""
    row = call.db.VM[vm]
    await power.cancel_others(call, row)
    row.ha_always_run = False
    if row.power_state == "Suspended":
        await power.discard_suspended(call, row)
    await power.halt(call, row)


@message("VM.shutdown")
async def shutdown(call: Call, vm: VM) -> None:
    """Ask the guest to power off as long as its VM's shutdown_delay says, then end it."""
    row = call.db.VM[vm]
    if row.power_state == "Suspended":
        await power.discard_suspended(call, row)
    elif row.power_state == "Running":
        asked = Deferred.fromCoroutine(power.clean(call, row, Shutdown.POWEROFF))
        with suppress(Fault, LateError):  # it is ended below, whatever it said
            await asked.addTimeout(row.shutdown_delay or DEFAULT_SHUTDOWN_DELAY, call.clock)
    await power.halt(call, row)


# Reboot


@message("VM.clean_reboot")
async def clean_reboot(call: Call, vm: VM) -> None:
    """Ask the guest to reboot, and start it anew on the same host."""
    row = call.db.VM[vm]
    await power.clean(call, row, Shutdown.REBOOT)
    await power.reboot(call, row)


@message("VM.hard_reboot")
async def hard_reboot(call: Call, vm: VM) -> None:
    """End the VM's domain at once and start it anew on the same host."""
    row = call.db.VM[vm]
    await power.cancel_others(call, row)
    await power.reboot(call, row)


# Suspend


@message("VM.suspend")
async def suspend(call: Call, vm: VM) -> None:
    """Save the guest's memory into a VDI and end its domain."""
    row = call.db.VM[vm]
    with making(call) as unfinished:
        vdi = await power.save(call, row)
        await power.leave(call, row, vdi, unfinished)
        with call.db.atomic():
            write_halted(call.db, row, "Suspended")
            alert(call.db, call.now, "VM_SUSPENDED", "VM", row, f"VM '{row.name_label}' suspended")


@message("VM.resume", patience=SHORT)
async def resume(call: Call, vm: VM, start_paused: bool, force: bool) -> None:
    """Let a suspended VM go on, on a host of our choice."""
    row = call.db.VM[vm]
    await power.resume(call, row, choose_host(call.db, row), start_paused=start_paused)


@message("VM.resume_on", patience=SHORT)
async def resume_on(call: Call, vm: VM, host: Host, start_paused: bool, force: bool) -> None:
    """Let a suspended VM go on, on one host."""
    row, where = call.db.VM[vm], call.db.host[host]
    assert_can_boot_here(call.db, row, where)
    await power.resume(call, row, where, start_paused=start_paused)


@message("VM.power_state_reset")
async def power_state_reset(call: Call, vm: VM) -> None:
    """Say that a VM is halted when there is no domain behind it any more."""
    row = call.db.VM[vm]
    if row.is_control_domain:
        raise errors.CANNOT_RESET_CONTROL_DOMAIN(vm)
    host = call.db.host.get(row.resident_on)
    if host is not None and (await call[Backends].of(host).stat(row.uuid)).state is not None:
        raise errors.DOMAIN_EXISTS(vm, str(row.domid))
    if row.power_state == "Suspended":
        await power.discard_suspended(call, row)
    with call.db.atomic():
        write_halted(call.db, row)
