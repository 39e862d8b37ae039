"""What changing a VM's power state is made of: steps on a host backend, each undone when a later one fails.

The callers hold the VM's operation; see `xapi.operations.claim`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from hypervisor.api import HostError, Shutdown
from xapi import errors
from xapi.alerts import alert
from xapi.call import Call
from xapi.errors import Fault
from xapi.operations.claim import SHORT, changed, claim
from xapi.storage.faults import backend_failure
from xapi.types import NULL
from xapi.vms import guest_metrics
from xapi.vms.domains import describe
from xapi.vms.placement import choose_host
from xapi.vms.reconcile import halt

log = Logger()


def backend(call: Call, vm: Any) -> Any:
    """Return the backend of the host that a VM is on."""
    return call.daemon.backends.of(call.db.host[vm.resident_on])


def fault_of(error: HostError, vm: Any) -> Fault:
    """Return the API's error for what a host backend could not do."""
    if error.code == "no_memory":
        return errors.HOST_NOT_ENOUGH_FREE_MEMORY(str(vm.memory_static_max), "0")
    if error.code in ("bad_kernel", "bootloader_failed"):
        return errors.BOOTLOADER_FAILED(vm._ref, str(error))
    if error.code == "not_acknowledged":
        return errors.VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT(vm._ref)
    if error.code == "not_suspendable":
        return errors.VM_NON_SUSPENDABLE(vm._ref, str(error))
    if error.code == "not_suspended":
        return errors.VM_FAILED_SUSPEND_ACKNOWLEDGMENT(vm._ref)
    if error.code == "bad_disk":
        return backend_failure(46, str(error))
    if error.code == "no_space":
        return errors.SR_FULL("", str(error))
    return errors.INTERNAL_ERROR(f"{error.code}: {error}")


@contextmanager
def told(vm: Any) -> Iterator[None]:
    """Turn what a host backend could not do for a VM into the API's error."""
    try:
        yield
    except HostError as error:
        raise fault_of(error, vm) from error


async def begin(call: Call, vm: Any, host: Any, *, start_paused: bool = False) -> None:
    """Make a claimed VM's domain on a host and let it run. Whatever fails is undone."""
    async with _expected(call, vm, host, "vm_start"):
        guest_metrics.forget(call.db, vm)
        await _live(call, vm, host, start_paused=start_paused)
    alert(call.db, call.now, "VM_STARTED", "VM", vm, f"VM '{vm.name_label}' started on host: {host.name_label}")


@asynccontextmanager
async def _expected(call: Call, vm: Any, host: Any, operation: str) -> AsyncIterator[None]:
    """Have a host expect a VM."""
    async with claim(call, operation, host):
        vm.scheduled_to_be_resident_on = host._ref
        try:
            yield
        finally:
            if vm._ref in call.db.VM:
                vm.scheduled_to_be_resident_on = NULL


async def _live(call: Call, vm: Any, host: Any, image: str = "", *, start_paused: bool = False) -> None:
    """Build or restore a VM's domain with its devices and let it run; no domain is left when it fails."""
    db, daemon = call.db, call.daemon
    backend_ = daemon.backends.of(host)
    vbds = [db.VBD[ref] for ref in vm.VBDs if not db.VBD[ref].currently_attached]
    vifs = [db.VIF[ref] for ref in vm.VIFs if not db.VIF[ref].currently_attached]
    async with claim(call, "attach", *vbds, patience=SHORT), claim(call, "attach", *vifs, patience=SHORT):
        with told(vm):
            await daemon.networks.join(host, [db.VIF[ref] for ref in vm.VIFs])
            images = await daemon.storage.attach(call, host, vm, reset=not image)
            config = describe(db, vm, images, daemon.guest_directory)
            try:
                await (backend_.restore(config, image) if image else backend_.build(config))
                if not start_paused:
                    await backend_.unpause(vm.uuid)
                await daemon.reconciler.look(vm, host)
            except BaseException:
                await backend_.destroy(vm.uuid)
                raise


async def clean(call: Call, vm: Any, how: Shutdown) -> None:
    """Ask the guest of a VM to go down, and wait until it has. Raises Fault."""
    with told(vm):
        await backend(call, vm).shutdown(vm.uuid, how)


async def _destroy(call: Call, vm: Any, host: Any) -> None:
    """End a VM's domain; one that stays is looked at when the operation is over, for its guest may be down."""
    try:
        with told(vm):
            await call.daemon.backends.of(host).destroy(vm.uuid)
    except BaseException:
        call.daemon.reconciler.attend(vm.uuid)
        raise


async def end(call: Call, vm: Any, *, alerted: str = "VM_SHUTDOWN") -> None:
    """Destroy a VM's domain and write that it is halted."""
    host = call.db.host.get(vm.resident_on)
    if host is not None:
        await _destroy(call, vm, host)
    with call.db.atomic():
        halt(call.db, vm)
        if alerted:
            alert(call.db, call.now, alerted, "VM", vm, f"VM '{vm.name_label}' shut down")


_CANCELLED = ("clean_shutdown", "clean_reboot", "hard_reboot", "pool_migrate", "call_plugin", "shutdown", "suspend")


async def cancel_others(call: Call, vm: Any) -> None:
    """Cancel what a hard shutdown makes pointless, and wait until it has ended."""

    def others() -> list[str]:
        running = vm.current_operations.items()
        return [task for task, name in running if name in _CANCELLED and task != call.task._ref]

    for ref in others():
        task = call.db.task.get(ref)
        if task is not None:
            call.daemon.tasks.cancel(task, call.task._ref)
    await changed(call.db, call.clock, lambda: not others(), SHORT)


async def discard_suspended(call: Call, vm: Any) -> None:
    """Destroy the memory of a suspended VM."""
    if vm.suspend_VDI in call.db.VDI:
        await call.daemon.storage.destroy(call, call.db.VDI[vm.suspend_VDI])
    vm.suspend_VDI = NULL


async def again(call: Call, vm: Any, *, start_paused: bool = False) -> None:
    """Make a claimed VM's domain anew on the host that it is on; it is halted when that fails."""
    host = call.db.host.get(vm.resident_on) or choose_host(call.db, vm)
    await _destroy(call, vm, host)
    with call.db.atomic():
        for table, refs in ((call.db.VBD, vm.VBDs), (call.db.VIF, vm.VIFs)):
            for ref in refs:
                table[ref].currently_attached = False
        guest_metrics.forget(call.db, vm)
    try:
        await _live(call, vm, host, start_paused=start_paused)
    except BaseException:
        with call.db.atomic():
            halt(call.db, vm)
        raise
    alert(call.db, call.now, "VM_REBOOTED", "VM", vm, f"VM '{vm.name_label}' rebooted")


async def save(call: Call, vm: Any) -> Any:
    """Return a new VDI with the memory of a VM, whose guest is suspended then; it goes on when that fails."""
    storage = call.daemon.storage
    host = call.db.host[vm.resident_on]
    vdi, path = await storage.make_suspend_image(call, vm, host)
    try:
        with told(vm):
            await call.daemon.backends.of(host).suspend(vm.uuid, path)
        await storage.suspend_image_written(call, vdi)
    except BaseException:
        state = await backend(call, vm).stat(vm.uuid)
        if state is not None and state.shutdown is Shutdown.SUSPEND:
            await backend(call, vm).resume(vm.uuid)
        await storage.destroy(call, vdi)
        raise
    return vdi


async def leave(call: Call, vm: Any, vdi: Any) -> None:
    """End the domain of a VM whose memory is saved. What fails is undone; a cancel comes too late, and is ignored."""
    host = backend(call, vm)
    try:
        try:
            await host.destroy(vm.uuid)
        except CancelledError:  # it may be gone already: then the image is all that there is
            await host.destroy(vm.uuid)
    except HostError as error:
        await host.resume(vm.uuid)
        await call.daemon.storage.destroy(call, vdi)
        raise fault_of(error, vm) from error


async def wake(call: Call, vm: Any, host: Any, *, start_paused: bool = False) -> None:
    """Restore a claimed VM from its suspend image, which is destroyed when it lives."""
    db = call.db
    if vm.suspend_VDI not in db.VDI:
        with db.atomic():
            halt(db, vm)
        raise errors.VM_HAS_NO_SUSPEND_VDI(vm._ref)
    vdi = db.VDI[vm.suspend_VDI]
    async with _expected(call, vm, host, "vm_resume"):
        image = await call.daemon.storage.suspend_image(call, vdi, host)
        await _live(call, vm, host, image, start_paused=start_paused)
    vm.suspend_VDI = NULL
    try:
        await call.daemon.storage.destroy(call, vdi)
    except (Fault, CancelledError) as error:  # the VM lives, whatever becomes of the image
        log.error("the suspend image {vdi} of {vm} stays: {error}", vdi=vdi.uuid, vm=vm.uuid, error=error)
    alert(db, call.now, "VM_RESUMED", "VM", vm, f"VM '{vm.name_label}' resumed on host: {host.name_label}")
