"""The whole daemon on a thread of the test's process: its clients speak HTTP, and consoles are at hand."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import XenAPI
from twisted.internet.defer import Deferred, maybeDeferred

from hypervisor.guests import DEMO_PROMPT
from xapi.process.config import Config
from xapi.process.service import XapiService, make_service
from xapi.testing.reactor_thread import running_reactor, wait_for

_SECONDS = 60
"""How long anything may take, before the test fails."""
MIB = 1 << 20


class ReactorThread:
    """The process's reactor on its thread, which serves other tests too."""

    def __init__(self) -> None:
        self.reactor = running_reactor()

    def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function there, wait for its Deferred or coroutine, and return the result."""
        return wait_for(
            self.reactor,
            lambda: maybeDeferred(lambda: _deferred(function(*arguments))).addTimeout(_SECONDS, self.reactor),
        )


def _deferred(result: Any) -> Any:
    return Deferred.fromCoroutine(result) if hasattr(result, "cr_await") else result


class ServedPool:
    """One daemon with a fresh pool in a state directory, and root's session with it."""

    def __init__(self, thread: ReactorThread, state: Path) -> None:
        self.thread = thread
        password = state.parent / f"{state.name}-password"
        password.write_text("xenroot")
        config = Config(state, listen=("127.0.0.1:0",), tls=(), root_password_file=password)
        self.service: XapiService = thread.do(make_service, config, thread.reactor)
        thread.do(self.service.startService)
        addresses = thread.do(lambda: self.service.ready)
        self._session = XenAPI.Session(next(each for each in addresses if each.startswith("http:")))
        self._session.login_with_password("root", "xenroot")

    @property
    def api(self) -> Any:
        """The API, as root."""
        return self._session.xenapi

    def stop(self) -> None:
        self._session("close")()
        self.thread.do(self.service.stopService)

    def call(self, method: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """Call a coroutine function of the daemon's on its thread."""
        return self.thread.do(method, *arguments)

    def make_vm(self, name: str = "guest", **fields: Any) -> str:
        """Return a VM made of the template "Demo guest"."""
        template = self.api.VM.get_by_name_label("Demo guest")[0]
        vm: str = self.api.VM.clone(template, name)
        self.api.VM.provision(vm)
        return vm

    def make_vdi(self, size: int = 16 * MIB, **fields: Any) -> str:
        """Return a disk of the local storage."""
        srs = self.api.SR.get_all_records()
        sr = next(ref for ref, record in srs.items() if record["type"] == "ext")
        given = {"name_label": "disk", "name_description": "", "SR": sr, "virtual_size": str(size), "type": "user"}
        given |= {"sharable": False, "read_only": False, "other_config": {}, "sm_config": {}}
        vdi: str = self.api.VDI.create(given | fields)
        return vdi

    def make_vbd(self, vm: str, vdi: str = "OpaqueRef:NULL", **fields: Any) -> str:
        """Return a drive of a VM: a disk, or a CD drive without a VDI."""
        empty = vdi == "OpaqueRef:NULL"
        given = {"VM": vm, "VDI": vdi, "userdevice": "autodetect", "empty": empty, "bootable": False,
                 "type": "CD" if empty else "Disk", "mode": "RO" if empty else "RW", "other_config": {},
                 "qos_algorithm_type": "", "qos_algorithm_params": {}}  # fmt: skip
        vbd: str = self.api.VBD.create(given | fields)
        return vbd

    def make_vif(self, vm: str, network: str, **fields: Any) -> str:
        """Return a card of a VM."""
        given = {"VM": vm, "network": network, "device": self.api.VM.get_allowed_VIF_devices(vm)[0], "MAC": "",
                 "MTU": "1500", "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {}}  # fmt: skip
        vif: str = self.api.VIF.create(given | fields)
        return vif

    def shell(self, vm: str) -> Shell:
        """Return a running VM's console, at its prompt."""
        daemon = self.service.daemon
        row: Any = daemon.db.VM[vm]

        async def stream() -> Any:
            return await daemon.backends.of(daemon.db.host[row.resident_on]).console(row.uuid)

        return Shell(self.thread, self.call(stream))

    def boot(self, vm: str) -> Shell:
        """Start a VM and return its console."""
        self.api.VM.start(vm, False, False)
        return self.shell(vm)


class Shell:
    """The demo guest's shell behind `Backend.console`: what it prints is followed from the stream."""

    def __init__(self, thread: ReactorThread, stream: Any) -> None:
        self._thread = thread
        self.stream = stream
        self._news = threading.Condition()
        self._heard = bytearray()
        self._following: Any = None

        def follow() -> None:
            self._following = Deferred.fromCoroutine(self._follow())
            self._following.addErrback(lambda failure: None)

        thread.do(follow)
        self.wait_for(lambda: self._heard.endswith(DEMO_PROMPT), "no prompt")

    async def _follow(self) -> None:
        async for data in self.stream.follow():
            with self._news:
                self._heard += data
                self._news.notify_all()

    def wait_for(self, true: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + _SECONDS
        with self._news:
            while not true():
                assert time.monotonic() < end, f"{what}: {bytes(self._heard[-2000:])!r}"
                self._news.wait(0.1)

    def type(self, text: str) -> None:
        """Type something, without waiting."""
        with self._news:
            self._heard.clear()
        self._thread.do(self.stream.write, text.encode())

    def run(self, command: str) -> dict[str, str]:
        """Run a command; return its lines `key: value`."""
        self.type(command + "\r")
        self.wait_for(lambda: self._heard.endswith(DEMO_PROMPT), f"{command} does not end")
        text = self._heard.decode().removesuffix(DEMO_PROMPT.decode()).replace("\r", "").partition("\n")[2]
        return dict(re.findall(r"^([^:\n]+): ?(.*)$", text, re.MULTILINE))

    def until(self, command: str, true: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """Run a command until its lines are so; return them."""
        end = time.monotonic() + _SECONDS
        while not true(said := self.run(command)):
            assert time.monotonic() < end, said
        return said

    def fields(self, line: str) -> dict[str, str]:
        """Return the `name=value` pairs of a line."""
        return dict(part.split("=", 1) for part in line.split() if "=" in part)

    def close(self) -> None:
        """Follow no longer."""
        self._thread.do(lambda: self._following.cancel())
