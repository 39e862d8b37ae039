"""Letting a suspended domain go on: where it is, after a checkpoint or a failed save, or as one that is new to it."""

from __future__ import annotations

from hypervisor.domains.domain import Domain
from hypervisor.host import Host
from hypervisor.hypercalls.hvm_op import CONSOLE_EVTCHN, CONSOLE_PFN, STORE_EVTCHN, STORE_PFN
from hypervisor.loader import pv
from hypervisor.memory.guest_memory import PAGE
from hypervisor.migration.context import Shape


def cancel(host: Host, domain: Domain) -> None:
    """Let the guest find that its suspend was cancelled: nothing has changed, rings and ports are good. Runs at once.

    Its hypercall returns 1, on the first vCPU as Xen does it (xc_domain_resume). For guests whose kernel says in
    its note SUSPEND_CANCEL that it knows this, as Linux does. Raises ValueError unless the domain is suspended.
    """
    host.pause(domain)  # it may have shut down a moment ago, its thread is still leaving
    try:
        with host.lock:
            domain.life.resume()
            domain.vcpus[0].cpu.answer(1)
        host.unpause(domain)
    finally:
        host.unpause(domain)


def renew(host: Host, domain: Domain) -> None:
    """Make the suspended domain one that its guest takes for new, and leave it paused: its hypercall returns 0.

    Before, backends have let go of their rings (`Backend.restart`); afterwards console and xenstore need new ports,
    their ends and `connect`, then `Host.unpause`. Raises ValueError unless the domain is suspended.
    """
    host.pause(domain)
    try:
        with host.lock:
            domain.life.resume()
            domain.renew()
            for key in (STORE_PFN, CONSOLE_PFN):
                domain.memory.write(domain.params[key] * PAGE, bytes(PAGE))
            if Shape.of(domain).is_pv:
                pv.place_shared_page(domain)
    finally:
        host.unpause(domain)


def connect(domain: Domain, store_port: int, console_port: int) -> None:
    """Tell the guest of a domain that was restored, cloned or renewed by which ports it reaches xenstore and console.

    A PVH guest asks for them; a PV guest finds them in its start_info. Raises BadAddress where that is none.
    """
    domain.params |= {STORE_EVTCHN: store_port, CONSOLE_EVTCHN: console_port}
    if Shape.of(domain).is_pv:
        pv.reconnect(domain, store_port, console_port)
