"""A host behind a connection, as clients of the API see it: cut for a while, cut for good, and restarted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from hypervisor.api import Shutdown
from tests.api.test_power import running
from tests.conftest import Pool
from tests.fakes import FakeBackend
from tests.wires import InMemory
from xapi.host.remote import RemoteBackend
from xapi.host.served import Served


class Far(Pool):
    """A pool whose host is a fake behind a connection in memory."""

    def __init__(self, directory: Path) -> None:
        self.lines: list[InMemory] = []
        super().__init__(directory)

    def make_backend(self, host: Any) -> Any:
        """Return what acts for a host from afar."""
        fake = self.backends.setdefault(host._ref, FakeBackend(directory=self.storage_directory))
        self.lines.append(InMemory(self.served(fake, "one life"), self.clock))
        return RemoteBackend(self.lines[-1], self.clock)

    def served(self, fake: FakeBackend, life: str) -> Served:
        """Return the other end."""
        return Served(fake, self.clock, life, lambda: None)

    @property
    def backend(self) -> FakeBackend:
        """The fake behind the first host."""
        return next(iter(self.backends.values()))

    def turn(self) -> None:
        """Let the reactor turn, and all arrive, until nothing more is due now."""
        for _ in range(3):
            super().turn()
            for line in self.lines:
                line.turn()

    def cut(self) -> None:
        """Lose the host."""
        (line,) = self.lines
        line.refuses = True
        line.cut()
        self.turn()

    def mend(self) -> None:
        """Let the host be found again."""
        self.lines[0].refuses = False
        self.advance(2.5)

    def advance(self, seconds: float) -> None:
        """Let time pass, little by little."""
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)
            self.turn()

    def live(self) -> bool:
        """Tell whether the host's metrics say that it lives."""
        host = next(iter(self.db.host))
        return bool(self.db.host_metrics[host.metrics].live)


@pytest.fixture
def far(tmp_path: Path) -> Far:
    return Far(tmp_path)


def test_a_host_that_is_cut_off_for_five_seconds_is_looked_at_when_it_is_back(far: Far) -> None:
    """Meanwhile nothing is believed of it, and nothing asked; what its guests did then is followed."""
    stays, goes = running(far), running(far)
    far.cut()
    far.backend.goes_down(goes.uuid, Shutdown.POWEROFF)
    far.advance(5)
    assert not far.live() and {stays.power_state, goes.power_state} == {"Running"}
    assert far.fails("VM.pause", stays._ref)[0] == "HOST_OFFLINE"
    far.mend()
    assert far.live() and (stays.power_state, goes.power_state) == ("Running", "Halted")
    far("VM.pause", stays._ref)
    assert stays.power_state == "Paused"


def test_a_call_that_is_under_way_when_its_host_is_lost_fails_and_holds_nothing(far: Far) -> None:
    """Also where the host stays away for good."""
    vm = running(far)
    far.backend.held["shutdown"] = Deferred()
    shutdown = far.start("VM.clean_shutdown", far.session, vm._ref)
    far.turn()
    far.cut()
    with pytest.raises(Exception, match="HOST_OFFLINE"):
        far.outcome(shutdown)
    far.advance(600)
    assert (vm.power_state, vm.current_operations, far.live()) == ("Running", {}, False)


def test_a_host_whose_process_is_another_one_has_lost_its_guests(far: Far) -> None:
    """Their VMs are halted, and start again there."""
    vm = running(far)
    far.cut()
    far.backend.doms.clear()
    far.lines[0].factory = far.served(far.backend, "another life")
    far.mend()
    assert far.live() and vm.power_state == "Halted"
    far("VM.start", vm._ref, False, False)
    assert vm.power_state == "Running"
