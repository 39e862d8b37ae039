"""What becomes of guests: when they begin to live, what they went down of, and that they have ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.logger import Logger, LogLevel

from hypervisor.api import Shutdown
from xapi.log.names import Named

if TYPE_CHECKING:
    from hypervisor.api import DomainState
    from xapi.datamodel import records
    from xapi.datamodel.records import VM
    from xapi.store.rows import Row

log = Logger()

_WHY = {
    Shutdown.POWEROFF: "powered off",
    Shutdown.REBOOT: "asked for a reboot",
    Shutdown.SUSPEND: "is suspended",
    Shutdown.CRASH: "crashed",
    Shutdown.WATCHDOG: "did not feed its watchdog",
    Shutdown.SOFT_RESET: "asked for a soft reset",
}


def named(row: Row) -> str:
    """Return what the log calls an object."""
    return str(Named(row._table.name, getattr(row, "name_label", ""), getattr(row, "uuid", ""), row._ref))


def begins(vm: VM, host: records.host, state: DomainState) -> None:
    """Say that a VM has a domain, new or another than before."""
    log.info(
        "{vm} lives as domain {domid} on {host}: {kind}, {vcpus} vCPUs, {memory} MiB",
        vm=named(vm), domid=state.domid, host=named(host), kind=state.kind, vcpus=state.vcpus,
        memory=state.memory_actual >> 20,
    )  # fmt: skip


def goes_on(vm: VM, host: records.host) -> None:
    """Say that a VM's domain has lived on while nobody looked."""
    log.info("{vm} goes on as domain {domid} on {host}", vm=named(vm), domid=vm.domid, host=named(host))


def went_down(vm: VM, state: DomainState) -> None:
    """Say why a guest went down, which nobody asked for; its VM's actions follow."""
    assert state.shutdown is not None
    bad = state.shutdown in (Shutdown.CRASH, Shutdown.WATCHDOG)
    log.emit(
        LogLevel.warn if bad else LogLevel.info,
        "{vm}: its guest, domain {domid}, {why}{crash}",
        vm=named(vm), domid=state.domid, why=_WHY[state.shutdown], crash=f": {state.crash}" if state.crash else "",
        reason=state.shutdown.value,
    )  # fmt: skip


def ends(vm: VM, power_state: str) -> None:
    """Say that a VM has no domain any more, if it had one."""
    if vm.domid >= 0:
        log.info("{vm}: domain {domid} has ended, it is {power_state}",
                 vm=named(vm), domid=vm.domid, power_state=power_state)  # fmt: skip
