"""Messages of VM_appliance: its VMs start and go down by their order, those of equal order at the same time.

Each VM has a task of its own. One that fails does not hold up the others; the message fails in the end and names
those that are not as they should be.
"""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.task import deferLater
from twisted.logger import Logger

from xapi.calls.call import Call
from xapi.calls.dispatch import Dispatcher
from xapi.calls.registry import message
from xapi.calls.tasks import Tasks
from xapi.datamodel import records
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import Ref
from xapi.log.guests import named

Appliance = Ref[records.VM_appliance]
log = Logger()


@message("VM_appliance.start")
async def start(call: Call, self: Appliance, paused: bool) -> None:
    """Start all VMs, those of the lowest order first; a VM's start_delay passes before the next order begins."""
    row = call.db.VM_appliance[self]
    await _perform(call, row, "VM.start", "Paused" if paused else "Running", paused, False)


@message("VM_appliance.clean_shutdown")
async def clean_shutdown(call: Call, self: Appliance) -> None:
    """Ask the guests to power off, those of the highest order first."""
    row = call.db.VM_appliance[self]
    await _perform(call, row, "VM.clean_shutdown", "Halted")


@message("VM_appliance.hard_shutdown")
async def hard_shutdown(call: Call, self: Appliance) -> None:
    """End all VMs, those of the highest order first."""
    row = call.db.VM_appliance[self]
    await _perform(call, row, "VM.hard_shutdown", "Halted")


@message("VM_appliance.shutdown")
async def shutdown(call: Call, self: Appliance) -> None:
    """Ask the guests to power off, and end those that do not, those of the highest order first."""
    row = call.db.VM_appliance[self]
    await _perform(call, row, "VM.shutdown", "Halted")


async def _perform(call: Call, appliance: records.VM_appliance, name: str, wanted: str, *arguments: bool) -> None:
    """Bring the VMs of an appliance into a power state. Raises OPERATION_PARTIALLY_FAILED."""
    rows = [call.db.VM[ref] for ref in appliance.VMs]
    targets = [vm for vm in rows if vm.power_state != wanted]
    orders = sorted({vm.order for vm in targets}, reverse=wanted == "Halted")
    for done, order in enumerate(orders, start=1):
        together = [_one(call, vm, name, *arguments) for vm in targets if vm.order == order]
        await _all([Deferred.fromCoroutine(each) for each in together])
        call[Tasks].progress(call.task, done / len(orders))
    failed = [vm._ref for vm in targets if vm._ref not in call.db.VM or vm.power_state != wanted]
    if failed:
        operation = call.message.full_name
        raise Fault("OPERATION_PARTIALLY_FAILED", operation, *failed)


async def _one(call: Call, vm: records.VM, name: str, *arguments: bool) -> None:
    """Run a message of a VM, with a task of its own, and let the VM's delay pass."""
    own, function = call[Dispatcher].own(name)
    work = Deferred.fromCoroutine(function(own, vm._ref, *arguments))
    call[Tasks].running(own.task, work)
    try:
        await work
        delay = vm.start_delay if name == "VM.start" else vm.shutdown_delay
        if delay > 0:
            await deferLater(call.clock, delay)
    except Fault as fault:
        log.info("{name} of {vm} failed: {fault}", name=name, vm=named(vm), fault=fault.description)
    finally:
        own.done()


async def _all(works: list[Deferred[None]]) -> None:
    """Wait for all of some works; who is cancelled cancels them."""
    stopped = []
    done = DeferredList(works, consumeErrors=True)

    def stop(_: Deferred[None]) -> None:
        stopped.append(True)
        done.cancel()

    waiting: Deferred[None] = Deferred(stop)
    done.addCallback(lambda _: None if waiting.called else waiting.callback(None))
    await waiting
    if stopped:
        raise CancelledError
