"""What the toolstack does with VMs by itself: when a guest goes down, and when the daemon begins."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from hypervisor.api import DomainState, Shutdown
from xapi.calls.claim import claim
from xapi.calls.work import Subsystems, Work
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL
from xapi.events.alerts import alert
from xapi.hosts.backends import Backends
from xapi.log.guests import named
from xapi.storage import unfinished
from xapi.storage.repository import Storage
from xapi.vms import power
from xapi.vms.placement import choose_host
from xapi.vms.reconcile import is_up, write_halted

if TYPE_CHECKING:
    from xapi.datamodel import records
    from xapi.store.memory import Store
    from xapi.store.rows import R, Table

log = Logger()

SOON = 120.0
"""Seconds after its start within which a guest that goes down does so too soon, as in xenopsd."""
WAIT = 15.0
"""Seconds that a guest waits which reboots too soon."""


async def follow(subsystems: Subsystems, ref: str) -> None:
    """Do what a VM's actions say, after its guest has gone down by itself; as xenopsd does it.

    A guest that crashes soon after its start is not started again, and one that reboots soon waits a while. While
    changes are refused it stays as it is: it is looked at again when they are not.
    """
    vm = subsystems.db.VM.get(ref)
    if vm is None:
        return
    state = await _is_down(subsystems, vm)
    if state is None or vm._ref not in subsystems.db.VM or subsystems.db.refusal is not None:
        return
    lived = subsystems.clock.seconds() - state.start_time
    if state.shutdown is Shutdown.CRASH:
        said = f"VM '{vm.name_label}' crashed" + (f": {state.crash}" if state.crash else "")
        alert(subsystems.db, subsystems.now, "VM_CRASHED", "VM", vm, said)
    action = _action(vm, state)
    if action == "restart" and state.shutdown is Shutdown.CRASH and lived < SOON:
        log.warn("{vm} crashed {lived:.1f} s after its start: it is not started again", vm=named(vm), lived=lived)
        action = "destroy"
    if action == "restart" and lived < SOON:
        log.info("{vm} went down {lived:.1f} s after its start: it waits", vm=named(vm), lived=lived)
        await deferLater(subsystems.clock, WAIT)
    await _act(subsystems, vm, action)


def _action(vm: records.VM, state: DomainState) -> str:
    """Return what is to be done with a domain that is down: destroy, restart, preserve, resume or suspend.

    Memory is dumped for nobody: a coredump action is its second half, as in xenopsd. There is no way to restart a
    guest inside its domain, so a soft reboot is a restart.
    """
    action: str
    if state.shutdown is Shutdown.CRASH:
        action = vm.actions_after_crash
    elif state.shutdown in (Shutdown.REBOOT, Shutdown.WATCHDOG):
        action = vm.actions_after_reboot
    elif state.shutdown is Shutdown.SOFT_RESET:
        action = vm.actions_after_softreboot
    elif state.shutdown is Shutdown.SUSPEND and vm.suspend_VDI != NULL:
        return "suspend"  # its memory was saved before its host was lost
    elif state.shutdown is Shutdown.SUSPEND and state.asked:
        return "resume"  # whoever asked has given up
    elif state.shutdown is Shutdown.SUSPEND:
        log.warn("{vm} has suspended itself, and nobody asked it to", vm=named(vm))
        action = "destroy"
    else:
        action = vm.actions_after_shutdown
    if action == "preserve":
        return "preserve"
    return "restart" if "restart" in action or action == "soft_reboot" else "destroy"


async def _is_down(subsystems: Subsystems, vm: records.VM) -> DomainState | None:
    """Return what is true of a VM's domain if it is down, and nobody has seen to that."""
    host = subsystems.db.host.get(vm.resident_on)
    state = None if host is None else (await subsystems[Backends].of(host).stat(vm.uuid)).state
    return state if state is not None and not is_up(state) else None


_MESSAGES = {
    "restart": "hard_reboot", "preserve": "pause", "destroy": "hard_shutdown", "resume": "suspend",
    "suspend": "suspend",
}  # fmt: skip


async def _act(subsystems: Subsystems, vm: records.VM, action: str) -> None:
    """Do something with a VM whose domain is down, unless a call that went before has."""
    operation = _MESSAGES[action]
    work = Work(subsystems, f"VM.{operation}")
    try:
        async with claim(work, operation, vm, strict=False):
            if await _is_down(subsystems, vm) is None:
                return
            if action == "restart":
                await power.reboot(work, vm, alerted="")
            elif action == "preserve":
                await power.pause(work, vm)  # its domain stays for whoever wants to look at it
            elif action == "suspend":
                await power.end_suspended(work, vm)
            elif action == "resume":
                await power.resume_in_place(work, vm)
            else:
                if not work.pool.ha_reboot_vm_on_internal_shutdown:
                    vm.ha_always_run = False
                await power.halt(work, vm, alerted="")
    except Fault as fault:
        if vm._ref in subsystems.db.VM and vm.domid != -1:  # else a call that went before has seen to it
            log.error("{vm} went down and could not be followed: {fault}", vm=named(vm), fault=fault)
    finally:
        work.done()


def renew_metrics(db: Store) -> None:
    """Make the metrics that loaded drives and cards refer to: they are in memory alone. Call before `Store.loaded`."""
    _renew(db, db.VBD_metrics, [vbd.metrics for vbd in db.VBD])
    _renew(db, db.VIF_metrics, [vif.metrics for vif in db.VIF])


def _renew(db: Store, table: Table[R], refs: Iterable[str]) -> None:
    db.load(table, [table.make(ref, {"uuid": db.uuids.draw(table.name)}) for ref in refs if ref != NULL])


async def undo_unfinished(subsystems: Subsystems) -> None:
    """Delete the disks that operations had made when the process ended, and those that they were deleting.

    A suspended VM that was being shut down has lost its memory so: then it is halted.
    """
    work = Work(subsystems, "VDI.destroy")
    try:
        await unfinished.sweep(work, work[Storage].discard)
    finally:
        work.done()
    with subsystems.db.atomic():
        for vm in subsystems.db.VM:
            if vm.power_state == "Suspended" and vm.suspend_VDI == NULL:
                write_halted(subsystems.db, vm)


def start_automatic(subsystems: Subsystems) -> None:
    """Start the VMs that start with their host, one after another, in the background."""
    Deferred.fromCoroutine(_start_each(subsystems)).addErrback(lambda failure: log.failure("auto-start", failure))


async def _start_each(subsystems: Subsystems) -> None:
    pool = next(iter(subsystems.db.pool))
    if pool.other_config.get("auto_poweron", "").lower() != "true":
        return
    wanted = [
        vm
        for vm in subsystems.db.VM
        if vm.other_config.get("auto_poweron", "").lower() == "true"
        and vm.power_state == "Halted"
        and not (vm.is_a_template or vm.is_control_domain)
    ]
    for vm in sorted(wanted, key=lambda each: each.order):
        work = Work(subsystems, "VM.start")
        try:
            async with claim(work, "start", vm):
                await power.start(work, vm, choose_host(subsystems.db, vm))
        except Fault as fault:
            log.error("{vm} does not start with its host: {fault}", vm=named(vm), fault=fault)
        finally:
            work.done()
