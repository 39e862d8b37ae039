"""The demo guest under test: booted through the toolstack, driven by its shell."""

from __future__ import annotations

import re
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Self

from hypervisor.api import DirectBoot, DomainConfig
from hypervisor.disks.disk import Disk
from hypervisor.domains.domain import Domain
from hypervisor.domains.life import Reason
from hypervisor.guests import DEMO_KERNEL, DEMO_PROMPT
from hypervisor.host import Host
from hypervisor.split.block import BlockConfig, BlockDevice, number_of
from hypervisor.split.block_queue import DiskThreads
from hypervisor.split.xenbus import Backend, DeviceClass
from hypervisor.toolstack.guest import Guest
from hypervisor.toolstack.toolstack import Toolstack
from hypervisor.xenstore.permissions import NONE, Permissions

MIB = 1 << 20
FEATURES = ("shutdown", "poweroff", "reboot", "suspend", "balloon", "static-ip-setting")
"""What the guest says below control/feature- when the toolstack lets it."""
_SECONDS = 30
"""How long the guest may take for anything, before the test fails."""
_WORD = (1 << 64) - 1


def pattern(seed: int, offset: int, length: int) -> bytes:
    """Return what the guest's `write` puts at a place of a disk."""
    words = bytearray()
    for word in range(offset // 8, (offset + length) // 8):
        value = ((word + 1) * 0x9E3779B97F4A7C15 + seed) & _WORD
        value = (value ^ value >> 32) * 0xD6E8FEB86659FD93 & _WORD
        words += (value ^ value >> 32).to_bytes(8, "little")
    return bytes(words)


def checksum(data: bytes) -> str:
    """Return what the guest's commands print for data: FNV-1a over 64-bit words."""
    value = 0xCBF29CE484222325
    for at in range(0, len(data), 8):
        value = (value ^ int.from_bytes(data[at : at + 8], "little")) * 0x100000001B3 & _WORD
    return f"{value:016x}"


class DemoGuest:
    """A demo guest; `boot` it, then `run` commands. Devices may be plugged before and after."""

    def __init__(self, host: Host, memory: int = 8 * MIB, command_line: str = "", kind: str = "pvh") -> None:
        self.host = host
        self.toolstack = Toolstack(host)
        boot = DirectBoot(str(DEMO_KERNEL), command_line=command_line, kind=kind)
        keys = {f"control/feature-{name}": "" for name in FEATURES}
        self.config = DomainConfig(str(uuid.uuid4()), "demo", memory, memory, 1, boot, xenstore=keys)
        self.devices: dict[tuple[str, int], tuple[Backend, Callable[[Domain], DeviceClass]]] = {}
        self._news = threading.Condition()
        self._heard = bytearray()
        self.guest = self._build()
        host.listen(self._changed)

    @property
    def domain(self) -> Domain:
        return self.guest.domain

    def _build(self) -> Guest:
        guest = self.toolstack.build(self.config)
        guest.console.listen(self._hear)
        return guest

    def _hear(self, data: bytes) -> None:
        with self._news:
            self._heard += data
            self._news.notify_all()

    def _changed(self, domain: Domain) -> None:
        with self._news:
            self._news.notify_all()

    def wait_for(self, true: Callable[[], bool], what: str = "it did not come true") -> None:
        """Wait until something is so: looked at when the guest prints or ends, and now and then."""
        end = time.monotonic() + _SECONDS
        while not true():  # without our lock, for it may want the machine's
            assert time.monotonic() < end, f"{what}: {self.domain.life.reason} {bytes(self._heard[-2000:])!r}"
            with self._news:
                self._news.wait(0.01)

    # The shell

    def boot(self) -> Self:
        """Start it and wait for the prompt."""
        self.toolstack.unpause(self.config.uuid)
        return self.prompt()

    def prompt(self) -> Self:
        """Wait for the prompt."""
        self.wait_for(lambda: self._heard.endswith(DEMO_PROMPT), "no prompt")
        return self

    def type(self, text: bytes) -> None:
        """Type something, without waiting."""
        self.guest.console.write(text)

    def start(self, command: str) -> None:
        """Type a command; `finish` waits for it."""
        self._heard.clear()
        self.type(command.encode() + b"\r")

    def finish(self) -> str:
        """Wait for the end of a command and return what it printed, without its echo."""
        self.prompt()
        text = self._heard.decode().removesuffix(DEMO_PROMPT.decode())
        return text.replace("\r", "").partition("\n")[2]

    def run(self, command: str) -> dict[str, str]:
        """Run a command; return its lines `key: value`."""
        self.start(command)
        return dict(re.findall(r"^([^:\n]+): ?(.*)$", self.finish(), re.MULTILINE))

    def output(self) -> str:
        """Return what was printed since the last command began."""
        return self._heard.decode(errors="replace")

    def wait_for_output(self, text: str) -> None:
        """Wait until the guest has printed something."""
        self.wait_for(lambda: text.encode() in self._heard, f"no {text!r}")

    # The toolstack

    def read(self, key: str) -> str | None:
        """Return a value of its home in xenstore."""
        with self.host.lock:
            return self.host.xenstore.read_text(f"{self.guest.path}/{key}")

    def write(self, key: str, value: str) -> None:
        """Set a value of its home in xenstore."""
        with self.host.lock:
            self.host.xenstore.write(f"{self.guest.path}/{key}", value)

    def give(self, path: str) -> None:
        """Let the guest own a node of its home."""
        with self.host.lock:
            self.host.xenstore.set_perms(f"{self.guest.path}/{path}", Permissions(self.domain.domid, NONE))

    def ended(self, command: str = "") -> Reason:
        """Run a command, if one is given, and wait until the domain is down."""
        if command:
            self.start(command)
        self.wait_for(lambda: self.domain.life.reason is not None, "it does not end")
        assert self.domain.life.reason is not None
        return self.domain.life.reason

    def plug(self, number: int, make: Callable[[Domain], DeviceClass]) -> Backend:
        """Plug a device in."""
        device = make(self.domain)
        backend = Backend(self.domain, self.host.xenstore, device, number, lambda _: self._changed(self.domain))
        backend.plug()
        self.devices[device.kind, number] = backend, make
        return backend

    def plug_disk(self, disk: Disk, threads: DiskThreads, name: str = "xvda", read_only: bool = False) -> Backend:
        """Plug a disk in."""
        config = BlockConfig(name, read_only)
        return self.plug(number_of(name), lambda domain: BlockDevice(domain, disk, threads.put, config))

    def cancel(self) -> None:
        """Let a suspended domain go on as it is: SCHEDOP_shutdown returns 1."""
        self.toolstack.resume(self.config.uuid)

    def move(self) -> None:
        """Let a suspended domain go on as another, from an image of it, with the same devices."""
        old_domid = self.domain.domid
        plugged, self.devices = self.devices, {}
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "image"
            self.toolstack.save(self.config.uuid, path)
            self.toolstack.destroy(self.config.uuid)
            self.guest = self.toolstack.restore(self.config, path)
        assert self.domain.domid != old_domid
        self.guest.console.listen(self._hear)
        for (_, number), (_, make) in plugged.items():
            self.plug(number, make)
        self.toolstack.unpause(self.config.uuid)
