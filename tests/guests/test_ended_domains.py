"""What is left in this process of a domain that has ended."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import structs

from hypervisor.api import NIC, Disk, Display
from hypervisor.domains.domain import Domain
from hypervisor.memory.guest_memory import Memory
from hypervisor.toolstack.toolstack import Toolstack
from tests.guests.test_toolstack import DEMO, MIB, SECONDS, Running, config, toolstack

__all__ = ["toolstack"]


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Nothing but counting references frees anything."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"vcpus": 2, "vcpus_max": 2},
        {"boot": structs.replace(DEMO, kind="pv")},
        {
            "disks": (Disk(0, "", "anonymous", size=MIB),),
            "nics": (NIC(0, "02:00:00:00:00:01", "lan"),),
            "display": Display(memory=4 * MIB),
        },
    ],
    ids=["plain", "two vCPUs", "PV", "devices"],
)
def test_an_ended_domain_comes_apart_without_the_garbage_collector(
    toolstack: Toolstack, no_collector: None, fields: dict[str, Any]
) -> None:
    """A collector that looks at less than everything, to be short, would keep its pages and its mapping."""
    guest = Running(toolstack, config(**fields))
    domain = toolstack.guest(guest.uuid).domain
    domain_gone, memory_gone = threading.Event(), threading.Event()
    seen: list[weakref.ref[Domain] | weakref.ref[Memory]] = [
        weakref.ref(domain, lambda _: domain_gone.set()),
        weakref.ref(domain.memory, lambda _: memory_gone.set()),
    ]
    toolstack.destroy(guest.uuid)
    del guest, domain
    assert domain_gone.wait(SECONDS)  # the thread that ran it may be about to let go
    assert memory_gone.wait(SECONDS)
    assert [part() for part in seen] == [None, None]
