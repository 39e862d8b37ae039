"""Memory, scheduling and metrics of a guest through the API, each fact read back inside the demo guest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import XenAPI

from tests.clients.conftest import Clients
from tests.clients.daemon import Daemon
from tests.clients.guest_console import GuestConsole

MIB = 1 << 20
SECONDS = 60


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    child = Daemon(tmp_path_factory.mktemp("state"))
    try:
        yield child.ready()
    finally:
        child.kill()


@pytest.fixture(scope="module")
def session(daemon: Daemon) -> Iterator[Any]:
    made = Clients()
    yield made.root(daemon)
    made.close()


@pytest.fixture
def api(session: Any) -> Any:
    return session.xenapi


@pytest.fixture
def vm(api: Any) -> Iterator[str]:
    """A halted VM of 64 MiB at most, gone afterwards."""
    ref = api.VM.clone(api.VM.get_by_name_label("Demo guest")[0], "guest")
    api.VM.provision(ref)
    api.VM.set_memory_limits(ref, str(16 * MIB), str(64 * MIB), str(32 * MIB), str(64 * MIB))
    yield ref
    if api.VM.get_power_state(ref) != "Halted":
        api.VM.hard_shutdown(ref)
    api.VM.destroy(ref)


@pytest.fixture
def boot(daemon: Daemon, session: Any, vm: str) -> Iterator[Callable[[], GuestConsole]]:
    """Start the VM and return its console."""
    opened: list[GuestConsole] = []

    def start() -> GuestConsole:
        session.xenapi.VM.start(vm, False, False)
        opened.append(GuestConsole(session, daemon.http, vm).prompt())
        return opened[-1]

    yield start
    for console in opened:
        console.close()


def eventually(api: Any, true: Callable[[], bool]) -> None:
    """Ask after each change that the daemon tells of, until it is so."""
    end, token = time.monotonic() + SECONDS, ""
    while not true():
        assert time.monotonic() < end
        token = api.event_from(["VM", "VM_metrics"], token, 10.0)["token"]


def test_the_balloon_moves_between_its_limits(api: Any, vm: str, boot: Callable[[], GuestConsole]) -> None:
    """The guest gives memory back and takes it again, and VM_metrics tell what it has."""
    console = boot()
    metrics = api.VM.get_metrics(vm)
    full = int(api.VM_metrics.get_memory_actual(metrics))
    assert full == 64 * MIB
    for most in (40, 64):
        api.VM.set_memory_dynamic_range(vm, str(32 * MIB), str(most * MIB))
        api.VM.wait_memory_target_live(vm)
        assert api.VM.get_memory_target(vm) == str(most * MIB)
        assert abs(int(api.VM_metrics.get_memory_actual(metrics)) - most * MIB) <= MIB
        held = console.values("mem")
        assert abs(int(held["held-kib"]) - most * 1024) <= 1024, held


def test_a_dynamic_maximum_beyond_the_static_one_changes_nothing(
    api: Any, vm: str, boot: Callable[[], GuestConsole]
) -> None:
    """The guest keeps what it has."""
    console = boot()
    before = console.values("mem")["held-kib"]
    with pytest.raises(XenAPI.Failure) as caught:
        api.VM.set_memory_dynamic_max(vm, str(65 * MIB))
    assert caught.value.details == ["MEMORY_CONSTRAINT_VIOLATION_ORDER"]
    assert console.values("mem")["held-kib"] == before


def test_a_guest_that_spins_is_seen(api: Any, vm: str, boot: Callable[[], GuestConsole]) -> None:
    """By VM_metrics, and by the data sources of VM and host; a cap holds it back."""
    boot().type("spin 60")

    def share() -> float:
        return float(api.VM.query_data_source(vm, "cpu0"))

    eventually(api, lambda: share() > 0.1)
    record = api.VM_metrics.get_record(api.VM.get_metrics(vm))
    assert float(record["VCPUs_utilisation"]["0"]) > 0.1
    assert record["state"] == ["running"]
    host = api.VM.get_resident_on(vm)
    assert api.host.query_data_source(host, "running_domains") == 2
    api.VM.add_to_VCPUs_params_live(vm, "cap", "5")
    eventually(api, lambda: 0 < share() <= 0.1)
    names = {source["name_label"] for source in api.VM.get_data_sources(vm)}
    assert {"cpu0", "cpu_usage", "memory", "memory_target"} <= names


def test_what_xenstore_data_says_is_in_the_guest(api: Any, vm: str, boot: Callable[[], GuestConsole]) -> None:
    """Below vm-data, before and after the start."""
    api.VM.set_xenstore_data(vm, {"vm-data/colour": "green"})
    console = boot()
    assert "green" in console.run("xenstore read vm-data/colour")
    api.VM.set_xenstore_data(vm, {"vm-data/colour": "blue"})
    assert "blue" in console.run("xenstore read vm-data/colour")


def test_an_appliance_runs_its_guests(api: Any, vm: str) -> None:
    """And shuts them down by asking them."""
    appliance = api.VM_appliance.create({"name_label": "app", "name_description": ""})
    api.VM.set_appliance(vm, appliance)
    api.VM_appliance.start(appliance, False)
    assert api.VM.get_power_state(vm) == "Running"
    eventually(api, lambda: "clean_shutdown" in api.VM.get_allowed_operations(vm))
    api.VM_appliance.clean_shutdown(appliance)
    assert api.VM.get_power_state(vm) == "Halted"
    api.VM_appliance.destroy(appliance)
