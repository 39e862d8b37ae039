"""Guests in this process: a machine, and consoles that tell when something was printed."""

from __future__ import annotations

import threading
import time
import uuid
from pathlib import Path
from types import TracebackType

from hypervisor.api import NIC, Device, DirectBoot, Disk, DomainConfig
from hypervisor.domains.life import Reason
from hypervisor.guests import DEMO_KERNEL, DEMO_PROMPT
from hypervisor.host import Host
from hypervisor.toolstack.guest import Guest
from hypervisor.toolstack.toolstack import Toolstack

MIB = 1 << 20
SECONDS = 120.0
"""How long a guest may take for anything, before the benchmark fails."""


def kernel_config(
    kernel: Path, ramdisk: Path | None = None, command_line: str = "", memory: int = 8 * MIB, *devices: Device
) -> DomainConfig:
    """Describe a guest of one vCPU that starts a kernel by PVH."""
    return DomainConfig(
        str(uuid.uuid4()), "benchmark", memory, memory, 1,
        DirectBoot(str(kernel), str(ramdisk) if ramdisk else "", command_line),
        disks=tuple(each for each in devices if isinstance(each, Disk)),
        nics=tuple(each for each in devices if isinstance(each, NIC)),
        xenstore={f"control/feature-{name}": "" for name in ("suspend", "shutdown", "poweroff", "balloon")},
    )  # fmt: skip


def demo_config(memory: int = 4 * MIB) -> DomainConfig:
    """Describe a demo guest."""
    return kernel_config(DEMO_KERNEL, memory=memory)


class Terminal:
    """A guest's console, seen by somebody who waits for words."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.heard = bytearray()
        self._news = threading.Condition()
        guest.console.listen(self._hear)

    def _hear(self, data: bytes) -> None:
        with self._news:
            self.heard += data
            self._news.notify_all()

    def expect(self, words: bytes) -> bytes:
        """Return what was printed before some words, and forget it with them. Raises TimeoutError."""
        with self._news:
            if not self._news.wait_for(lambda: words in self.heard, SECONDS):
                raise TimeoutError(f"no {words!r} in {bytes(self.heard[-1000:])!r}; {self.guest.domain.life.crash}")
            before, _, rest = bytes(self.heard).partition(words)
            self.heard = bytearray(rest)
        return before

    def type(self, text: bytes) -> None:
        """Type something."""
        self.guest.console.write(text)

    def ended(self, reason: Reason) -> None:
        """Wait until the domain is down for a reason. Raises TimeoutError, RuntimeError."""
        end = time.monotonic() + SECONDS
        while self.guest.domain.life.reason is None:
            if time.monotonic() > end:
                raise TimeoutError(f"the guest does not end: {bytes(self.heard[-1000:])!r}")
            time.sleep(0.0005)
        if self.guest.domain.life.reason is not reason:
            raise RuntimeError(f"{self.guest.domain.life.reason} instead of {reason}: {self.guest.domain.life.crash}")


class Machine:
    """A host with a toolstack, its threads running; `with` ends all of it."""

    def __init__(self, pcpus: int | None = None) -> None:
        self.host = Host(8 << 30, pcpus)
        self.toolstack = Toolstack(self.host)
        self.toolstack.start()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.toolstack.stop()

    def build(self, config: DomainConfig) -> Terminal:
        """Build a guest, paused."""
        return Terminal(self.toolstack.build(config))

    def unpause(self, terminal: Terminal) -> None:
        """Let a guest run."""
        self.toolstack.unpause(terminal.guest.config.uuid)

    def demo(self, memory: int = 4 * MIB) -> Terminal:
        """Boot a demo guest to its prompt."""
        terminal = self.build(demo_config(memory))
        self.unpause(terminal)
        terminal.expect(DEMO_PROMPT)
        return terminal

    def destroy(self, terminal: Terminal) -> None:
        """End a guest."""
        self.toolstack.destroy(terminal.guest.config.uuid)
