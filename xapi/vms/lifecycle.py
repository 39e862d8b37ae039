"""What the toolstack does with VMs by itself: when a guest goes down, and when the daemon begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from hypervisor.api import Shutdown
from xapi.alerts import alert
from xapi.call import Call, Origin
from xapi.errors import Fault
from xapi.lexical import moment
from xapi.log.guests import named
from xapi.operations.claim import claim
from xapi.storage import unfinished
from xapi.types import NULL
from xapi.vms import power
from xapi.vms.placement import choose_host
from xapi.vms.reconcile import halt

if TYPE_CHECKING:
    from xapi.daemon import Daemon
    from xapi.store.memory import Store

log = Logger()


def own_call(daemon: Daemon, name: str) -> Call:
    """Return a call that the toolstack makes itself, with a task of its own; end it with `done`."""
    return Call(daemon, daemon.dispatcher.methods[name].message, name, None, Origin(trusted=True))


async def follow(daemon: Daemon, ref: str, reason: Shutdown) -> None:
    """Do what a VM's actions say, after its guest has gone down by itself."""
    vm: Any = daemon.db.VM.get(ref)
    if vm is None:
        return
    crashed = reason in (Shutdown.CRASH, Shutdown.WATCHDOG)
    if crashed:
        action = vm.actions_after_crash
        alert(daemon.db, moment(daemon.clock.seconds()), "VM_CRASHED", "VM", vm, f"VM '{vm.name_label}' crashed")
    else:
        action = vm.actions_after_reboot if reason is Shutdown.REBOOT else vm.actions_after_shutdown
    if "preserve" in action:
        return  # its domain stays for whoever wants to look at it
    restart = "restart" in action
    call = own_call(daemon, "VM.hard_reboot" if restart else "VM.hard_shutdown")
    try:
        async with claim(call, "hard_reboot" if restart else "hard_shutdown", vm):
            host = daemon.db.host.get(vm.resident_on)
            state = None if host is None else await daemon.backends.of(host).stat(vm.uuid)
            if state is None or state.shutdown is None:
                return  # a call that went before has dealt with it
            if restart:
                await power.again(call, vm)
            else:
                await power.end(call, vm)
    except Fault as fault:
        log.error("{vm} went down and could not be followed: {fault}", vm=named(vm), fault=fault)
    finally:
        daemon.tasks.drop(call.task)


def renew_metrics(db: Store) -> None:
    """Make the metrics that loaded drives and cards refer to: they are in memory alone. Call before `Store.loaded`."""
    for of in ("VBD", "VIF"):
        table = db.tables[f"{of}_metrics"]
        refs = [ref for row in db.tables[of] if (ref := cast("Any", row).metrics) != NULL]
        db.load(table, [table.make(ref, {"uuid": next(db.uuids)}) for ref in refs])


def forget_lost_domains(daemon: Daemon) -> list[str]:
    """Write that VMs are halted whose domains have gone with the process that they lived in; return their refs.

    Operations that were under way then are not any more.
    """
    db = daemon.db
    lost: list[str] = []
    with db.atomic():
        for table in (db.VM, db.VBD, db.VIF, db.VDI, db.SR, db.host, db.pool, db.VM_appliance):
            for row in table:
                held: Any = row
                if held.current_operations:
                    held.current_operations = {}
        for vm in list(db.VM):
            if vm.power_state in ("Running", "Paused") and not vm.is_control_domain:
                halt(db, vm)
                lost.append(vm._ref)
            elif vm.scheduled_to_be_resident_on in db.host:
                vm.scheduled_to_be_resident_on = NULL
    return lost


async def undo_unfinished(daemon: Daemon) -> None:
    """Delete the disks that operations had made when the process ended, and those that they were deleting.

    A suspended VM that was being shut down has lost its memory so: then it is halted.
    """
    call = own_call(daemon, "VDI.destroy")
    try:
        await unfinished.sweep(call)
    finally:
        daemon.tasks.drop(call.task)
    with daemon.db.atomic():
        for vm in daemon.db.VM:
            if vm.power_state == "Suspended" and vm.suspend_VDI == NULL:
                halt(daemon.db, vm)


def begin(daemon: Daemon) -> None:
    """Start the VMs that start with their host, one after another, in the background."""
    Deferred.fromCoroutine(_start_automatic(daemon)).addErrback(lambda failure: log.failure("auto-start", failure))


async def _start_automatic(daemon: Daemon) -> None:
    pool = next(iter(daemon.db.pool))
    if pool.other_config.get("auto_poweron", "").lower() != "true":
        return
    wanted = [
        vm
        for vm in daemon.db.VM
        if vm.other_config.get("auto_poweron", "").lower() == "true"
        and vm.power_state == "Halted"
        and not (vm.is_a_template or vm.is_control_domain)
    ]
    for vm in sorted(wanted, key=lambda each: each.order):
        call = own_call(daemon, "VM.start")
        try:
            async with claim(call, "start", vm):
                await power.begin(call, vm, choose_host(daemon.db, vm))
        except Fault as fault:
            log.error("{vm} does not start with its host: {fault}", vm=named(vm), fault=fault)
        finally:
            daemon.tasks.drop(call.task)
