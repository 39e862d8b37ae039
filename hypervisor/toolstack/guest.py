"""A domain with what the toolstack joined to it, and what is true of it."""

from __future__ import annotations

from dataclasses import dataclass

from hypervisor.api import DomainConfig, DomainState, Power, Shutdown
from hypervisor.domains.domain import Domain
from hypervisor.domains.life import Reason
from hypervisor.memory.guest_memory import PAGE
from hypervisor.split.console import Console
from hypervisor.split.store_ring import StoreRing
from hypervisor.toolstack.control import Control
from hypervisor.toolstack.devices.table import Devices

_REASONS = {
    Reason.POWEROFF: Shutdown.POWEROFF,
    Reason.REBOOT: Shutdown.REBOOT,
    Reason.SUSPEND: Shutdown.SUSPEND,
    Reason.CRASH: Shutdown.CRASH,
    Reason.WATCHDOG: Shutdown.WATCHDOG,
    Reason.SOFT_RESET: Shutdown.SOFT_RESET,
}
_RUN_STATES = ("running", "runnable", "blocked", "offline")


@dataclass(slots=True)
class Guest:
    """A domain of a toolstack's."""

    domain: Domain
    config: DomainConfig
    kind: str
    """As `DomainState` has it."""
    console: Console
    store: StoreRing
    control: Control
    devices: Devices
    target: int
    """Bytes that the balloon was last told to keep."""
    start_time: float = 0.0
    looked_at: bool = True
    """Whether `state` was called since attention was last asked for: a guest may start and stop vCPUs as it likes."""

    @property
    def path(self) -> str:
        """Its home in xenstore."""
        return f"/local/domain/{self.domain.domid}"

    def state(self) -> DomainState:
        """Return what is true of it now; under the lock of the domain's host, and not after its end."""
        domain, config = self.domain, self.config
        self.looked_at = True
        shutdown = _REASONS[domain.life.reason] if domain.life.reason is not None else None
        power = Power.PAUSED if domain.life.pauses else Power.SHUTDOWN if shutdown else Power.RUNNING
        times = [domain.time.runstate_times(number) for number in range(len(domain.vcpus))]
        return DomainState(
            uuid=config.uuid,
            domid=domain.domid,
            power=power,
            shutdown=shutdown,
            crash=domain.life.crash,
            kind=self.kind,
            memory_actual=domain.memory.present * PAGE,
            memory_target=self.target,
            memory_max=config.memory_max,
            vcpus=sum(vcpu.up for vcpu in domain.vcpus),
            cpu_time=tuple(vcpu.cpu_time for vcpu in domain.vcpus),
            run_times={name: sum(each[at] for each in times) / len(times) / 1e9 for at, name in enumerate(_RUN_STATES)},
            start_time=self.start_time,
            devices=tuple(self.devices.states()),
            guest=self.control.metrics().values,
            asked=self.control.suspends,
        )
