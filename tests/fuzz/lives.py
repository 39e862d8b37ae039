"""What befalls the domains of a machine besides what they do: people type, they end, are saved and are cloned.

Of each step that others may not notice: who still has a view of a domain that ended, or its console, reads zeros and
reaches nobody.
"""

from __future__ import annotations

import io
from contextlib import suppress

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from hypervisor.domains.domain import Domain
from hypervisor.domains.event_channel import PORTS
from hypervisor.domains.life import Reason, State
from hypervisor.errors import XenError
from hypervisor.host import Host, NoMemory
from hypervisor.hypercalls.hvm_op import CONSOLE_PFN, STORE_PFN
from hypervisor.memory.guest_memory import PAGE, BadAddress
from hypervisor.migration.clone import Template
from hypervisor.migration.live import LiveCopy
from hypervisor.migration.reading import NotSuspended
from hypervisor.migration.records import ImageError
from hypervisor.migration.restore import Image
from hypervisor.migration.save import save
from hypervisor.split.console import Console
from tests.fuzz.steps import counted

STALE = b"who writes this has no domain any more"
_KEPT = 4
"""Domains that have ended, of which views and consoles are kept."""


def console_of(domain: Domain, frame: int) -> Console | None:
    """Return a console at a frame of a domain, None where the guest has taken all ports."""
    if len(domain.events.channels) >= PORTS - 1:
        return None
    with suppress(XenError, BadAddress):
        return Console(domain, frame, domain.events.alloc_unbound(0))
    return None


def is_saved(host: Host, domain: Domain, clone: bool, live: bool = False) -> None:
    """Save a domain as if it had suspended itself, let a copy of it come and go, and let it be as it was."""
    before = domain.life.state, domain.life.reason, dict(domain.params)
    domain.params |= {STORE_PFN: 0, CONSOLE_PFN: 1}
    made: Domain | None = None
    with suppress(NotSuspended, ImageError, NoMemory):
        if live and domain.memory.freed is None:
            with LiveCopy(host, domain, io.BytesIO()) as copy:
                copy.rounds(2)
        domain.life.state, domain.life.reason = State.SHUTDOWN, Reason.SUSPEND
        if clone:
            with Template(host, domain) as template:
                made = template.clone(host)
        else:
            file = io.BytesIO()
            save(host, domain, file)
            file.seek(0)
            made = Image(file).build(host)
    if made is not None:
        host.destroy(made)
    domain.life.state, domain.life.reason, domain.params = before


class Lives(RuleBasedStateMachine):
    """To be mixed into a machine; `subject` gives a domain of its, `begin_anew` replaces one that has ended."""

    CONSOLE_FRAME = 1000

    def __init__(self) -> None:
        super().__init__()
        self.consoles: dict[Domain, Console] = {}
        self.ended: list[tuple[memoryview, Console | None]] = []

    def subject(self, which: int) -> tuple[Host, Domain]:
        """Return one of the domains, by any number, and its host."""
        raise NotImplementedError

    def begin_anew(self, which: int) -> None:
        """Put another domain in the place of one that has ended."""
        raise NotImplementedError

    def destroy(self, host: Host, domain: Domain) -> None:
        """End a domain."""
        host.destroy(domain)

    @rule(which=st.integers(0, 1), count=st.sampled_from([1, 100, 1024, 70_000]))
    def is_typed_to(self, which: int, count: int) -> None:
        """Type into a domain's console; one is made for it if it has none."""
        counted()
        _, domain = self.subject(which)
        console = self.consoles.get(domain) or console_of(domain, self.CONSOLE_FRAME)
        if console is not None:
            self.consoles[domain] = console
            assert 0 <= console.write(b"t" * count) <= count
            assert len(console._typed) <= 64 * 1024

    @rule(which=st.integers(0, 1), frame=st.integers(4, 30))
    def ends_now(self, which: int, frame: int) -> None:
        """End a domain of which somebody has a view, whatever it is about."""
        counted()
        host, domain = self.subject(which)
        view, console = domain.memory.bytes[frame * PAGE : (frame + 1) * PAGE], self.consoles.pop(domain, None)
        self.destroy(host, domain)
        assert domain.memory.closed and domain.domid not in host.domains and not any(view)
        self.begin_anew(which)
        self.ended.append((view, console))
        del self.ended[:-_KEPT]

    @rule(which=st.integers(0, 1), clone=st.booleans(), live=st.booleans())
    def is_saved_now(self, which: int, clone: bool, live: bool) -> None:
        """Save a domain, live or not, or freeze it and make a clone."""
        counted()
        is_saved(*self.subject(which), clone, live)

    @rule()
    def the_dead_are_written_to(self) -> None:
        """Let who still has views of domains that ended write to them, and type."""
        for view, console in self.ended:
            view[: len(STALE)] = STALE
            if console is not None:
                assert console.ended and console.write(b"typed") == 0 and not console._typed
        if self.ended:
            for which in range(2):
                assert STALE not in bytes(self.subject(which)[1].memory.bytes)
