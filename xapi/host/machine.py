"""The hosts of this process: with guests where the machine can run them, and without where it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.arch.x86_64.cpu.support import why_no_guests
from hypervisor.arch.x86_64.processor import processor
from hypervisor.network.site import Site
from xapi.host.guestless import GuestlessBackend
from xapi.host.storage import LocalStorage
from xapi.host.threads import Threads

if TYPE_CHECKING:
    from xapi.host.backend import EmulatedBackend

__all__ = ["Site", "load", "make_host", "processor", "why_no_guests"]


def load() -> None:
    """Import what runs guests, 0.3 s of CPU, where that holds up nobody: others are served while `make_host` works."""
    import xapi.host.backend  # noqa: F401


def make_host(
    memory: int,
    threads: Threads,
    storage: LocalStorage,
    network_boot: str,
    cpu_name: str = "",
    site: Site | None = None,
    *,
    pcpus: int | None = None,
) -> EmulatedBackend | GuestlessBackend:
    """Return a host with some memory, to be started; `network_boot` is what its network offers to domains that boot so.

    `cpu_name` is what guests find their CPUs called, "" for the usual name; `site` is where its cards are plugged in.
    """
    if why := why_no_guests():
        return GuestlessBackend(memory, storage, why)
    from xapi.host.backend import EmulatedBackend

    return EmulatedBackend(
        memory, threads, storage, pcpus=pcpus, network_boot=network_boot, cpu_name=cpu_name, site=site
    )
