"""Control and metrics with a guest that answers: the demo guest."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from hypervisor.api import Shutdown
from hypervisor.domains.life import Reason
from hypervisor.host import Host
from hypervisor.toolstack.control import Control, Progress
from tests.guests.demo_guest import MIB, DemoGuest


class Controlled:
    """A booted demo guest and its control, whose callbacks are counted."""

    def __init__(self, host: Host) -> None:
        self.guest = DemoGuest(host)
        self.guest.boot()
        self.acknowledged = threading.Event()
        self.changed = threading.Event()
        with host.lock:
            self.control = Control(host.xenstore, self.guest.domain.domid, self.changed.set)

    def request(self, how: Shutdown) -> Progress:
        """Ask, wait for the acknowledgement and the end of the domain, and tell what became of the request."""
        with self.guest.host.lock:
            assert self.control.supports(how)
            request = self.control.request(how, self.acknowledged.set)
        assert self.acknowledged.wait(30)
        return request.progress

    def metrics(self) -> dict[str, str]:
        with self.guest.host.lock:
            metrics = self.control.metrics()
        assert metrics.complete
        return dict(metrics.values)


@pytest.fixture
def controlled() -> Iterator[Controlled]:
    host = Host(64 * MIB, 1)
    host.start()
    made = Controlled(host)
    yield made
    with host.lock:
        made.control.close()
    for domain in list(host.domains.values()):
        host.destroy(domain)
    host.stop()


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (Shutdown.POWEROFF, Reason.POWEROFF),
        (Shutdown.REBOOT, Reason.REBOOT),
        (Shutdown.SUSPEND, Reason.SUSPEND),
    ],
)
def test_the_guest_acknowledges_and_goes_down(controlled: Controlled, how: Shutdown, reason: Reason) -> None:
    """It empties the key, then the domain ends in the way that was asked for."""
    assert controlled.request(how) is Progress.ACKNOWLEDGED
    assert controlled.guest.ended() is reason


def test_a_guest_that_is_busy_does_not_acknowledge_a_withdrawn_request(controlled: Controlled) -> None:
    """A paused guest hears nothing; when it goes on, it finds nothing to do."""
    guest = controlled.guest
    guest.host.pause(guest.domain)
    with guest.host.lock:
        request = controlled.control.request(Shutdown.POWEROFF, controlled.acknowledged.set)
        request.withdraw()
    guest.host.unpause(guest.domain)
    assert guest.run("info")["domid"] == str(guest.domain.domid)
    assert not controlled.acknowledged.is_set() and guest.domain.life.reason is None


def test_the_balloon_follows_the_target(controlled: Controlled) -> None:
    """Down and up again, to the frame."""
    guest = controlled.guest
    for kib in (6 * 1024, 8 * 1024):
        with guest.host.lock:
            controlled.control.set_memory_target(kib)
        guest.wait_for(lambda: guest.domain.memory.present == kib // 4)  # noqa: B023


def test_metrics_have_the_agents_keys(controlled: Controlled) -> None:
    """Those that xapi reads, with values of the right kind."""
    metrics = controlled.metrics()
    expected = {
        *(f"attr/PVAddons/{key}" for key in ("Installed", "MajorVersion", "MinorVersion", "MicroVersion")),
        *("attr/PVAddons/BuildVersion", "attr/os/class"),
        *(f"data/{key}" for key in ("os_name", "os_uname", "os_distro", "os_majorver", "os_minorver")),
        *("data/meminfo_free", "data/meminfo_total", "data/updated"),
        *(f"control/feature-{key}" for key in ("shutdown", "poweroff", "reboot", "suspend", "balloon")),
    }
    assert expected <= set(metrics)
    assert 0 < int(metrics["data/meminfo_free"]) < int(metrics["data/meminfo_total"]) < 8 * 1024


def test_a_change_is_told_and_read(controlled: Controlled) -> None:
    """What is typed in the guest's shell arrives, and one notice stands for many changes."""
    guest = controlled.guest
    assert not controlled.changed.is_set(), "nothing is told before the first reading"
    controlled.metrics()
    assert guest.run("xenstore write data/spoken first") == {"done": "ok"}
    assert controlled.changed.is_set()
    controlled.changed.clear()
    assert guest.run("xenstore write data/spoken second") == {"done": "ok"}
    assert not controlled.changed.is_set() and controlled.metrics()["data/spoken"] == "second"
