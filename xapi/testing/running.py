"""A daemon in this process, for as long as a test needs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PASSWORD = "xenroot"
"""Root's, unless a test asks for another."""


@dataclass
class Kronos:
    """A daemon that runs, with a pool of its own."""

    url: str
    """Where it serves HTTP, with no slash at the end."""
    https_url: str
    """Where it serves HTTPS; empty unless that was asked for."""
    socket: Path
    """Local root's."""
    state: Path
    """The state directory; ``storage`` in it has the disks, ``guests`` the kernels that VMs may name."""
    user: str
    password: str
    _sessions: list[Any] = field(default_factory=list, repr=False)

    @property
    def Failure(self) -> type[Exception]:
        """What its sessions raise when a call fails; ``details`` has the error's code and parameters."""
        from xapi.testing import session

        return session.failure()

    def session(self, user: str | None = None, password: str | None = None) -> Any:
        """Return a session of XenAPI's that is logged in, as root unless it is to be another.

        It is the XenAPI package's where that is installed, else one with the same ``xenapi``, ``handle`` and `Failure`.
        """
        from xapi.testing import session

        made = session.login(self.url or self.https_url, user or self.user, password or self.password)
        self._sessions.append(made)
        return made

    def close(self) -> None:
        """Close the sessions' connections."""
        from xapi.testing import session

        while self._sessions:
            session.close(self._sessions.pop())


@contextmanager
def running(
    *,
    password: str = PASSWORD,
    hosts: int = 1,
    vms: int = 0,
    seed: int | None = None,
    inventory: str | Path | None = None,
    http: bool = True,
    https: bool = False,
    **settings: object,
) -> Iterator[Kronos]:
    """Run a daemon with a fresh pool in this process, and end it with all that it has.

    Records are kept in memory and disks in a temporary directory; it listens on loopback at a free port. `hosts`,
    `vms`, `seed` and `inventory` are as the options of the command `xapi`, `settings` any other setting of a
    configuration file, such as ``network_boot`` or ``plugin_directory``. Guests run as they do in the daemon.

    It is served by a reactor that runs already, or by one on a thread of ours; to be used on any other thread.
    Raises RuntimeError on the reactor's own, and what `xapi.process.service.make_service` does for settings that make
    no sense.
    """
    from xapi.access.passwords import CHEAP, Passwords
    from xapi.process.config import IN_MEMORY, make
    from xapi.testing import reactor_thread, serving

    with TemporaryDirectory(prefix="kronos-", ignore_cleanup_errors=True) as directory:
        state = Path(directory)
        Passwords(state / "passwords.json", CHEAP).set("root", password)
        config = make(
            {
                "hosts": hosts,
                "vms": vms,
                "seed": seed,
                "inventory": inventory,
                "listen": ["127.0.0.1:0"] if http else [],
                "tls": ["127.0.0.1:0"] if https else [],
                **settings,
                "state": state,
                "database": IN_MEMORY,
            }
        )
        reactor = reactor_thread.running_reactor()
        service, told = serving.start(reactor, config)
        kronos = Kronos(told["url"], told["https_url"], config.socket, state, "root", password)
        try:
            yield kronos
        finally:
            serving.stop(reactor, service)
            kronos.close()
