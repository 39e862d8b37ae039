"""A domain's life, from a builder's first pause to its end."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, IntEnum


class Reason(IntEnum):
    """Why a domain has shut down (SHUTDOWN_* of public/sched.h)."""

    POWEROFF = 0
    REBOOT = 1
    SUSPEND = 2
    CRASH = 3
    WATCHDOG = 4
    SOFT_RESET = 5


class State(Enum):
    """Where a domain is in its life."""

    PAUSED = "paused"
    RUNNING = "running"
    SHUTDOWN = "shutdown"
    DYING = "dying"


class Life:
    """Whether a domain may run. Under the host's lock; `went_down` is called when it has shut down."""

    def __init__(self, went_down: Callable[[], None]) -> None:
        self.state = State.PAUSED
        self.pauses = 1
        """How many hold the domain back; the builder is the first."""
        self.reason: Reason | None = None
        self.crash = ""
        """Why it crashed, for people."""
        self._went_down = went_down

    def pause(self) -> None:
        """Hold the domain back."""
        self.pauses += 1
        if self.state is State.RUNNING:
            self.state = State.PAUSED

    def unpause(self) -> bool:
        """Take one pause back; with the last, the domain runs: tell whether it does so from now on."""
        self.pauses = max(0, self.pauses - 1)
        if self.pauses or self.state is not State.PAUSED:
            return False
        self.state = State.RUNNING
        return True

    def shut_down(self, reason: Reason) -> None:
        """Stop for good; what happens next is the toolstack's choice."""
        if self.state not in (State.SHUTDOWN, State.DYING):
            self.state, self.reason = State.SHUTDOWN, reason
            self._went_down()

    def crashed(self, why: str) -> None:
        """Shut down, for the guest cannot go on; `why` is for people."""
        self.crash = why
        self.shut_down(Reason.CRASH)

    def resume(self) -> None:
        """Take a suspend back: the domain is paused, with one pause more, behind its hypercall.

        Raises ValueError unless it is suspended.
        """
        if self.state is not State.SHUTDOWN or self.reason is not Reason.SUSPEND:
            raise ValueError("the domain is not suspended")
        self.state, self.reason = State.PAUSED, None
        self.pauses += 1

    def die(self) -> None:
        """Begin the end: the domain is being destroyed."""
        self.state = State.DYING
