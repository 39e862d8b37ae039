"""The kinds of sets of vCPUs, chosen by the kind of guest and how many it has; and hypercalls of a domain's end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hypervisor.arch.kind import Kind
from hypervisor.arch.x86_64.kinds import PV, PVH
from hypervisor.domains.vcpus import SharingVCPUs, VCPUs
from hypervisor.host import Host
from tests.machines import machine
from tests.x86_64 import cpu_of

SIZE = 4 << 20


@pytest.fixture
def host() -> Iterator[Host]:
    with machine(64 << 20) as made:
        yield made


@pytest.mark.parametrize(
    ("kind", "count", "made", "most_up", "engines"),
    [(PVH, 1, VCPUs, 1, 1), (PVH, 3, SharingVCPUs, 3, 1), (PV, 1, VCPUs, 1, 1), (PV, 2, VCPUs, 1, 2)],
)
def test_a_set_is_of_the_kind_that_the_guest_needs(
    host: Host, kind: Kind, count: int, made: type[VCPUs], most_up: int, engines: int
) -> None:
    """Only those that share an engine can be started by their guest, and code is forgotten once in each engine."""
    vcpus = host.create(((0, SIZE),), vcpus=count, kind=kind).vcpus
    assert type(vcpus) is made and len(vcpus) == count
    assert (vcpus.most_up, len(vcpus.engines()), vcpus.startable) == (most_up, engines, made is SharingVCPUs)


def test_the_first_of_several_engines_runs(host: Host) -> None:
    """The others are chosen by nobody while they are offline."""
    vcpus = host.create(((0, SIZE),), vcpus=2, kind=PV).vcpus
    assert vcpus.choose() is None
    vcpus[0].up = True
    assert vcpus.choose() == 0 and vcpus.is_able()
    vcpus[0].blocked = True
    assert vcpus.choose() is None and not vcpus.is_able()


def test_vcpus_of_one_engine_take_turns(host: Host) -> None:
    """While two have something to do, the one that runs has a deadline, and a third that waits is not chosen."""
    domain = host.create(((0, SIZE),), vcpus=3)
    vcpus = domain.vcpus
    vcpus[0].up = vcpus[2].up = True
    assert vcpus.deadlines() == []
    first = vcpus.choose()
    assert first in (0, 2)
    (end,) = vcpus.deadlines()
    assert domain.time.deadline() == end > domain.time.clock.now() - 10**9
    vcpus[0].blocked = True
    assert vcpus.choose() == 2


def test_a_domain_without_hypercalls_refuses_to_be_asked(host: Host) -> None:
    """One that has ended knows the table no more."""
    domain = host.create(((0, SIZE),))
    cpu, platform = cpu_of(domain), domain.platform
    host.destroy(domain)
    with pytest.raises(AssertionError, match="no hypercalls"):
        platform.hypercall(cpu, 17, (0, 0, 0, 0, 0))
