"""What changing a VM's power state is made of: steps on a host backend, each undone when a later one fails.

The callers hold the VM's operation; see `xapi.calls.claim`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twisted.logger import Logger

from hypervisor.api import Backend, DomainConfig, HostError, Shutdown, Truth, VolumeHandle
from xapi.calls.claim import SHORT, Held, Wanted, changed, claims
from xapi.calls.tasks import Tasks
from xapi.calls.work import Work
from xapi.cancelling import to_its_end
from xapi.datamodel import errors
from xapi.datamodel.errors import Fault
from xapi.datamodel.types import NULL
from xapi.events.alerts import alert
from xapi.hosts.backends import Backends
from xapi.log.guests import named
from xapi.networks.networks import Networks
from xapi.storage.repository import Storage
from xapi.storage.unfinished import Making, durable, making
from xapi.vms import guest_metrics
from xapi.vms.domains import Kernels, describe, domain_kind
from xapi.vms.faults import told
from xapi.vms.placement import choose_host
from xapi.vms.reconcile import Reconciler, lose, write_halted

if TYPE_CHECKING:
    from xapi.datamodel import records
    from xapi.store.memory import Store

log = Logger()


def backend(work: Work, vm: records.VM) -> Backend:
    """Return the backend of the host that a VM is on. Raises VM_BAD_POWER_STATE for one that went down meanwhile."""
    return work[Backends].of(_host(work, vm))


def _host(work: Work, vm: records.VM) -> records.host:
    host = work.db.host.get(vm.resident_on)
    if host is None:
        raise errors.VM_BAD_POWER_STATE(vm._ref, "running", vm.power_state.lower())
    return host


async def start(work: Work, vm: records.VM, host: records.host, *, start_paused: bool = False) -> None:
    """Make a claimed VM's domain on a host and let it run. Whatever fails is undone."""
    said = _Alert("VM_STARTED", f"VM '{vm.name_label}' started on host: {host.name_label}")
    with _expected(work.db, vm, host):
        with work.db.atomic():
            vm.domain_type = domain_kind(vm)
            guest_metrics.forget(work.db, vm)
        await _build(work, vm, host, said, bringing="vm_start", start_paused=start_paused)


@contextmanager
def _expected(db: Store, vm: records.VM, host: records.host) -> Iterator[None]:
    """Have a host keep memory for a VM that comes."""
    vm.scheduled_to_be_resident_on = host._ref
    try:
        yield
    finally:
        if vm._ref in db.VM and db.refusal is None:  # else the reconciler does it, when it can be written
            vm.scheduled_to_be_resident_on = NULL


@dataclass(frozen=True, slots=True)
class _Alert:
    """What is told of a VM that lives; nothing, of no name."""

    name: str
    body: str


async def _build(
    work: Work, vm: records.VM, host: records.host, said: _Alert, *, bringing: str = "", start_paused: bool = False
) -> None:
    """Build a VM's domain with its devices and let it run; no domain is left when it fails.

    `bringing` is the host's operation, when the VM was not on it before. That the VM lives, that nobody holds its
    devices any more, and the alert are one change.
    """
    db = work.db
    async with claims(work, _to_be_held(db, vm, host, bringing), patience=SHORT) as held:
        with told(vm):
            config = await _config(work, vm, host, reset=True)
            backend_ = work[Backends].of(host)
            try:
                truth = await backend_.build(config, paused=start_paused)
                with db.atomic():
                    work[Reconciler].begun(vm, host, truth)
                    held.give_back()
                    if said.name:
                        alert(db, work.now, said.name, "VM", vm, said.body)
            except BaseException:
                await to_its_end(backend_.destroy(vm.uuid))
                raise


def _to_be_held(db: Store, vm: records.VM, host: records.host, bringing: str) -> list[Wanted]:
    """Return what is held while a VM's domain is made: its host, and the devices that come with it."""
    wanted: list[Wanted] = [(bringing, host)] if bringing else []
    wanted += [("attach", db.VBD[ref]) for ref in vm.VBDs if not db.VBD[ref].currently_attached]
    return wanted + [("attach", db.VIF[ref]) for ref in vm.VIFs if not db.VIF[ref].currently_attached]


async def _config(work: Work, vm: records.VM, host: records.host, *, reset: bool) -> DomainConfig:
    """Make networks and disks of a VM ready on a host, and describe its domain."""
    db = work.db
    await work[Networks].join(host, [db.VIF[ref] for ref in vm.VIFs])
    images = await work[Storage].attach(work, host, vm, reset=reset)
    return describe(db, vm, images, work[Kernels].directory)


async def pause(work: Work, vm: records.VM) -> None:
    """Hold a VM's guest where it is, and write that it is."""
    host = _host(work, vm)
    with told(vm):
        work[Reconciler].write(vm, host, await work[Backends].of(host).pause(vm.uuid))


async def unpause(work: Work, vm: records.VM) -> None:
    """Let a VM's guest go on, and write that it does."""
    host = _host(work, vm)
    with told(vm):
        work[Reconciler].write(vm, host, await work[Backends].of(host).unpause(vm.uuid))


async def clean(work: Work, vm: records.VM, how: Shutdown) -> None:
    """Ask the guest of a VM to go down, and wait until it has. Raises Fault."""
    with told(vm):
        await backend(work, vm).shutdown(vm.uuid, how)


async def _destroy(work: Work, vm: records.VM, host: records.host) -> None:
    """End a VM's domain; one that stays is looked at when the operation is over, for its guest may be down."""
    try:
        with told(vm):
            await work[Backends].of(host).destroy(vm.uuid)
    except BaseException:
        work[Reconciler].attend(vm.uuid)
        raise


async def halt(work: Work, vm: records.VM, *, alerted: str = "VM_SHUTDOWN") -> None:
    """Destroy a VM's domain and write that it is halted."""
    host = work.db.host.get(vm.resident_on)
    if host is not None:
        await _destroy(work, vm, host)
    with work.db.atomic():
        write_halted(work.db, vm)
        if alerted:
            alert(work.db, work.now, alerted, "VM", vm, f"VM '{vm.name_label}' shut down")


_CANCELLED = frozenset(
    ("clean_shutdown", "clean_reboot", "hard_reboot", "pool_migrate", "call_plugin", "shutdown", "suspend",
     "checkpoint")
)  # fmt: skip


async def cancel_others(work: Work, vm: records.VM) -> None:
    """Cancel what a hard shutdown or reboot makes pointless, and wait until it has ended."""

    def others() -> list[str]:
        running = vm.current_operations.items()
        return [task for task, name in running if name in _CANCELLED and task != work.task._ref]

    for ref in others():
        task = work.db.task.get(ref)
        if task is not None:
            work[Tasks].cancel(task, work.task._ref)
    await changed(work.db, work.clock, lambda: not others(), SHORT)


async def discard_suspended(work: Work, vm: records.VM) -> None:
    """Destroy the memory of a suspended VM."""
    if vm.suspend_VDI in work.db.VDI:
        await work[Storage].destroy(work, work.db.VDI[vm.suspend_VDI])
    vm.suspend_VDI = NULL


async def reboot(work: Work, vm: records.VM, *, alerted: str = "VM_REBOOTED") -> None:
    """Make a claimed VM's domain anew on the host that it is on; it is halted when that fails."""
    if work.db.refusal is not None:  # what is made could not be written, and would have to be ended
        raise work.db.refusal
    host = work.db.host.get(vm.resident_on) or choose_host(work.db, vm)
    await _destroy(work, vm, host)
    with work.db.atomic():
        vm.domain_type = domain_kind(vm)
        for table, refs in ((work.db.VBD, vm.VBDs), (work.db.VIF, vm.VIFs)):
            for ref in refs:
                table[ref].currently_attached = False
        guest_metrics.forget(work.db, vm)
    try:
        await _build(work, vm, host, _Alert(alerted, f"VM '{vm.name_label}' rebooted"))
    except BaseException:
        with work.db.atomic():
            write_halted(work.db, vm)
        raise


async def save(work: Work, vm: records.VM) -> records.VDI:
    """Return a new VDI with the memory of a VM, whose guest is suspended then; it goes on when that fails."""
    storage, host = work[Storage], work.db.host[vm.resident_on]
    backend_ = work[Backends].of(host)
    vdi, image = await storage.make_suspend_image(work, vm, host)
    try:
        with told(vm):
            await backend_.suspend(vm.uuid, image)
        await storage.suspend_image_written(work, vdi)
    except BaseException:
        await to_its_end(_stay(work, vm, backend_, vdi))
        raise
    return vdi


async def _stay(work: Work, vm: records.VM, host: Backend, vdi: records.VDI) -> None:
    """Let a guest whose memory was to be saved go on where it is, if it has got so far, without the image."""
    try:
        with told(vm):
            state = (await host.stat(vm.uuid)).state
            if state is not None and state.shutdown is Shutdown.SUSPEND:
                await host.resume(vm.uuid)
    finally:
        await work[Storage].destroy(work, vdi)
    await work[Reconciler].look(vm)  # a look meanwhile may have seen it on its way, and nothing tells the end


async def resume_in_place(work: Work, vm: records.VM) -> None:
    """Let a guest go on where it is that has suspended itself for somebody who waits no longer."""
    with told(vm):
        await backend(work, vm).resume(vm.uuid)
    await work[Reconciler].look(vm)


async def leave(work: Work, vm: records.VM, vdi: records.VDI, unfinished: Making) -> None:
    """End the domain of a VM whose memory is saved, when that is durable. Raises Fault; then the guest goes on.

    A cancel comes too late, and is ignored. Where nobody knows whether the domain has ended, as its host is lost, the
    memory is kept: the VM is suspended when the host is back (`end_suspended`).
    """
    db, host = work.db, backend(work, vm)
    try:
        with told(vm):
            with db.atomic():
                vm.suspend_VDI = vdi._ref
                unfinished.done()
            await to_its_end(durable(db))
            await to_its_end(host.destroy(vm.uuid))
    except Fault as fault:
        if isinstance(fault.__cause__, HostError) and fault.__cause__.is_unknown:
            raise
        if vm.suspend_VDI != NULL:
            vm.suspend_VDI = NULL
            await to_its_end(durable(db))  # a guest must not go on from an image that is older than its disks
        await to_its_end(_stay(work, vm, host, vdi))
        raise


async def end_suspended(work: Work, vm: records.VM) -> None:
    """End the domain of a VM whose memory was saved before its host was lost, and write that it is suspended."""
    with told(vm):
        await backend(work, vm).destroy(vm.uuid)
    lose(work.db, vm)


async def resume(work: Work, vm: records.VM, host: records.host, *, start_paused: bool = False) -> None:
    """Restore a claimed VM from its suspend image, which is destroyed when it lives."""
    db = work.db
    if vm.suspend_VDI not in db.VDI:
        with db.atomic():
            write_halted(db, vm)
        raise errors.VM_HAS_NO_SUSPEND_VDI(vm._ref)
    said = _Alert("VM_RESUMED", f"VM '{vm.name_label}' resumed on host: {host.name_label}")
    with _expected(db, vm, host), making(work) as unfinished:
        await _resume(work, vm, host, unfinished, said, bringing="vm_resume", start_paused=start_paused)


async def move(work: Work, vm: records.VM, host: records.host) -> None:
    """Take a claimed VM's guest into a new domain on the host that it is on.

    What fails before its memory is saved leaves it running; afterwards it is suspended, and nothing of it is lost.
    """
    where = f"'{host.name_label}' (uuid: {host.uuid})"
    body = f"VM '{vm.name_label}' (uuid: {vm.uuid}) migrated from host {where} to host {where}"
    with making(work) as unfinished:
        await leave(work, vm, await save(work, vm), unfinished)
        await _resume(work, vm, host, unfinished, _Alert("VM_MIGRATED", body))


async def _resume(
    work: Work,
    vm: records.VM,
    host: records.host,
    unfinished: Making,
    said: _Alert,
    *,
    bringing: str = "",
    start_paused: bool = False,
) -> None:
    """Let a guest go on from its suspend image, which is destroyed then; it is suspended when that fails."""
    db, vdi = work.db, work.db.VDI[vm.suspend_VDI]
    try:
        image = await work[Storage].suspend_image(work, vdi, host)
        async with claims(work, _to_be_held(db, vm, host, bringing), patience=SHORT) as held:
            truth = await _restore(work, vm, host, image, unfinished, held, start_paused=start_paused)
    except BaseException:
        if vm._ref in db.VM and db.refusal is None:  # its guest has not run: the image is as good as it was
            with db.atomic():
                vm.suspend_VDI = vdi._ref if vdi._ref in db.VDI else NULL  # a hard shutdown destroys it
                unfinished.done()
                lose(db, vm)
        raise
    with db.atomic():
        work[Reconciler].write(vm, host, truth)
        alert(db, work.now, said.name, "VM", vm, said.body)
    try:
        await to_its_end(work[Storage].destroy(work, vdi))
    except Fault as error:  # the VM lives, whatever becomes of the image
        log.error("the suspend image {vdi} of {vm} stays: {error}", vdi=named(vdi), vm=named(vm), error=error)


async def _restore(
    work: Work,
    vm: records.VM,
    host: records.host,
    image: VolumeHandle,
    unfinished: Making,
    held: Held,
    *,
    start_paused: bool,
) -> Truth:
    """Make a VM's domain from its suspend image; return what is true then. No domain is left when it fails.

    The guest runs when it is durable that the image is out of use: it must not go on twice from one image. A cancel
    comes too late then, and is ignored.
    """
    db, backend_ = work.db, work[Backends].of(host)
    with told(vm):
        config = await _config(work, vm, host, reset=False)
        try:
            truth: Truth = await backend_.restore(config, image)
            with db.atomic():
                work[Reconciler].begun(vm, host, truth)
                held.give_back()
                unfinished.replaced([db.VDI[vm.suspend_VDI]])
                vm.suspend_VDI = NULL
            await to_its_end(durable(db))
            return truth if start_paused else await to_its_end(backend_.unpause(vm.uuid))
        except BaseException:
            await to_its_end(backend_.destroy(vm.uuid))
            raise
