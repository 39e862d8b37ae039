"""The backend's half of the xenbus handshake (public/io/xenbus.h), the same for all kinds of device.

Two directories of xenstore tell of a device, as libxl lays them out: the front's, which the guest owns,
`/local/domain/<domid>/device/<kind>/<number>`, and the back's, which it may only read,
`/local/domain/0/backend/<kind>/<domid>/<number>`. Each half writes its own `state` and watches the other's:

    front          back
    Initialising   InitWait      we have said what we offer
    Initialised    InitWait      the front has written its ring and event channel (network fronts: Connected)
    Connected      Connected     we serve
    Closing        Closing       either may begin it; rings are still served
    Closed         Closed        the rings are dropped, nothing of ours touches the guest any more
    Initialising   InitWait      it came back: another kernel (kexec), the driver loaded again

`Backend` looks at the state that the front is in, never at what happened, so that lost, doubled or merged watch
events do no harm. What a device class must do is `DeviceClass`. Everything runs under the lock of the domain's
host. A front that breaks the rules gets an error node and Closing, as from Linux's xenbus_dev_fatal.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import IntEnum
from typing import Protocol

from hypervisor.domains.domain import Domain
from hypervisor.xenstore.client import Client
from hypervisor.xenstore.errors import Exists, NoEntry, XenstoreError
from hypervisor.xenstore.permissions import NONE, READ, Permissions
from hypervisor.xenstore.store import Store, WatchHandle


class BusState(IntEnum):
    """XenbusState of public/io/xenbus.h."""

    UNKNOWN = 0
    INITIALISING = 1
    INIT_WAIT = 2
    INITIALISED = 3
    CONNECTED = 4
    CLOSING = 5
    CLOSED = 6
    RECONFIGURING = 7
    RECONFIGURED = 8


class FrontendError(Exception):
    """What a front wrote cannot be used; the text goes into its error node."""


class Frontend:
    """What the front has written, checked as it is read, and remembered: it must stay so while connected."""

    def __init__(self, store: Client, path: str) -> None:
        self.path = path
        self._store = store
        self._seen: dict[str, str | None] = {}

    def text(self, key: str, default: str | None = None) -> str:
        """Return a value; without a default, a missing one raises FrontendError."""
        value = self._seen[key] = self._store.read_text(f"{self.path}/{key}")
        if value is None:
            value = default
        if value is None:
            raise FrontendError(f"{key} is missing")
        return value

    def number(self, key: str, least: int, most: int, default: int | None = None) -> int:
        """Return a decimal number in a range. Raises FrontendError."""
        value = self.text(key, None if default is None else str(default))
        if not (value.isascii() and value.isdigit() and len(value) <= 20):
            raise FrontendError(f"{key} is no number")
        if not least <= int(value) <= most:
            raise FrontendError(f"{key} is not in {least} … {most}")
        return int(value)

    def has(self, key: str) -> bool:
        """Tell whether there is a key."""
        value = self._seen[key] = self._store.read_text(f"{self.path}/{key}")
        return value is not None

    def flag(self, key: str) -> bool:
        """Tell whether a feature is there and not 0."""
        return self.text(key, "0") not in ("", "0")

    def now(self, key: str) -> str | None:
        """Return a value, None if there is none, that may change while connected."""
        return self._store.read_text(f"{self.path}/{key}")

    def changed(self) -> str | None:
        """Return a key whose value is another now than when it was read."""
        for key, value in self._seen.items():
            if self._store.read_text(f"{self.path}/{key}") != value:
                return key
        return None


class DeviceClass(Protocol):
    """One device of some kind: what `Backend` asks of it, always under the host's lock."""

    @property
    def kind(self) -> str:
        """Name the kind in paths: vbd, vif, vfb, vkbd, console."""

    @property
    def ready(self) -> frozenset[BusState]:
        """Return the front's states in which its keys are complete."""

    def back_nodes(self) -> Mapping[str, str]:
        """Return what stands in the back's directory as long as the device is plugged."""

    def front_nodes(self) -> Mapping[str, str]:
        """Return what the toolstack puts into the front's directory."""

    def features(self) -> Mapping[str, str]:
        """Return what we offer: read by the front before it writes its keys."""

    def connect(self, frontend: Frontend, bus: Backend) -> Mapping[str, str]:
        """Begin to serve and return nodes to be written before Connected. Raises FrontendError, with nothing begun."""

    def disconnect(self, done: Callable[[], None], drop: bool = False) -> None:
        """Stop serving, harmless when not connected; call `done` under the lock when that is done, at once or later.

        Requests already taken are finished first, and nothing touches the guest afterwards. To `drop` is for good
        and without the front's consent: only a transfer that is under way is finished, and the device behind is
        not used afterwards; rings may be told so as long as the guest has them.
        """


class Backend:
    """A device plugged into a domain; `plug` begins. `changed` hears of each new state of ours."""

    def __init__(
        self,
        domain: Domain,
        store: Store,
        device: DeviceClass,
        number: int,
        changed: Callable[[BusState], None] | None = None,
    ) -> None:
        self.domain = domain
        self.device = device
        self.number = number
        self.front = f"/local/domain/{domain.domid}/device/{device.kind}/{number}"
        self.back = f"/local/domain/0/backend/{device.kind}/{domain.domid}/{number}"
        self.state = BusState.UNKNOWN
        self.online = False
        self.gone = False
        """True once the nodes are removed."""
        self._store = store
        self._changed = changed
        self._frontend = Frontend(store, self.front)
        self._watches: list[WatchHandle] = []
        self._quieting = False
        self._done: list[Callable[[], None]] = []

    # What the toolstack asks

    def plug(self) -> None:
        """Create the nodes; the front, once there is one, sees them and connects. Raises XenstoreError."""
        with self.domain.host.lock:
            self._store.transact(self._create)
            self.online = True
            self.state = BusState.INIT_WAIT
            self.domain.at_end.append(self._domain_ends)
            self._watches.append(self._store.watch(self.front, lambda _: self._look()))
            self._watches.append(self._store.watch(f"{self.back}/state", lambda _: self._told()))
            if self._changed is not None:
                self._changed(self.state)

    def _create(self, store: Client) -> None:
        domid = self.domain.domid
        if store.exists(self.back):
            raise Exists(self.back)
        _remove(store, self.front)
        # A directory's children get its permissions when they are created.
        store.mkdir(self.back)
        store.set_perms(self.back, Permissions(0, NONE, ((domid, READ),)))
        store.mkdir(self.front)
        store.set_perms(self.front, Permissions(domid, NONE, ((0, READ),)))
        offered = {"hotplug-status": "connected", "state": str(BusState.INIT_WAIT.value)}
        back = {"frontend": self.front, "frontend-id": str(domid), "online": "1", **self.device.back_nodes()}
        front = {"backend": self.back, "backend-id": "0", "state": str(BusState.INITIALISING.value)}
        for key, value in {**back, **self.device.features(), **offered}.items():
            store.write(f"{self.back}/{key}", value)
        for key, value in {**self.device.front_nodes(), **front}.items():
            store.write(f"{self.front}/{key}", value)

    def unplug(self, done: Callable[[], None]) -> None:
        """Ask the front to close; when it has, remove the nodes and call `done` under the lock.

        A front that does not agree can be left to itself, or be made to by `remove`.
        """
        with self.domain.host.lock:
            if self.gone:
                self._call_when_quiet(done)
                return
            self._done.append(done)
            self.online = False
            self._write("online", "0")
            if self.state is not BusState.CLOSED:
                self._enter(BusState.CLOSING)
            self._look()

    def remove(self, done: Callable[[], None] | None = None) -> None:
        """Remove the nodes at once and stop serving, whatever the front thinks of it: its requests fail.

        A number should not be plugged again at once: Linux's driver, which goes when it sees that its nodes have
        gone, last writes Closed, and if there are nodes again it writes it into those.

        `done` is called, under the lock, when the last transfer that was under way has ended.
        """
        with self.domain.host.lock:
            if done is not None:
                self._done.append(done)
            if not self.gone:
                self._vanish()
            self._quieting = True
            self.device.disconnect(self._quiet_at_last, drop=True)

    def restart(self) -> None:
        """Drop the rings and wait for the front to come with new ones: the domain is to be resumed."""
        with self.domain.host.lock:
            if self.online:
                # What stands there tells of the rings of before; our look at it does the rest.
                self._store.write(f"{self.front}/state", str(BusState.INITIALISING.value))

    def update(self, nodes: Mapping[str, str]) -> None:
        """Change nodes of ours and, while connected, tell the front by writing the state again."""
        with self.domain.host.lock:
            if not self.gone:
                self._store.transact(lambda store: self._write_all(store, nodes, self.state))

    def tell(self, nodes: Mapping[str, str]) -> None:
        """Change nodes of the toolstack's in the front's directory."""
        with self.domain.host.lock:
            if not self.gone and self._store.exists(self.front):
                for key, value in nodes.items():
                    self._store.write(f"{self.front}/{key}", value)

    # What the device class and we ourselves do

    def fail(self, text: str) -> None:
        """Note an error of the front's where Linux does, drop the rings and ask the front to close."""
        if self.gone:
            return
        self._store.write(f"/local/domain/0/error{self.back.removeprefix('/local/domain/0')}/error", f"22 {text}")
        if self.state is not BusState.CLOSED:
            self._enter(BusState.CLOSING)
        self._quiet(lambda: None)

    def _write(self, key: str, value: str) -> None:
        self._store.write(f"{self.back}/{key}", value)

    def _write_all(self, store: Client, nodes: Mapping[str, str], state: BusState) -> None:
        for key, value in nodes.items():
            store.write(f"{self.back}/{key}", value)
        store.write(f"{self.back}/state", str(state.value))

    def _enter(self, state: BusState, nodes: Mapping[str, str] | None = None) -> None:
        self.state = state
        self._store.transact(lambda store: self._write_all(store, nodes or {}, state))
        if self._changed is not None:
            self._changed(state)

    def _front_state(self) -> BusState:
        """Return the front's state; none at all is Closed. Raises FrontendError for what is no state."""
        text = self._store.read_text(f"{self.front}/state")
        if text is None:
            return BusState.CLOSED
        try:
            return BusState(int(text)) if len(text) == 1 else BusState(-1)
        except ValueError:
            raise FrontendError("state is none of XenbusState") from None

    def _told(self) -> None:
        """Hear that somebody wrote our state: Closing from a tool of dom0's is an unplug, as from libxl."""
        text = self._store.read_text(f"{self.back}/state")
        if not self.gone and self.online and text == "5" and self.state is not BusState.CLOSING:
            self.unplug(lambda: None)

    def _look(self) -> None:
        """Do what the front's state asks for."""
        if self.gone or self._quieting:
            return
        if not self.online and self.state is BusState.CLOSED:
            self._quiet(self._finish)
            return
        try:
            front = self._front_state()
            if front in self.device.ready:
                self._meet()
                return
        except FrontendError as error:
            if self.state in (BusState.INIT_WAIT, BusState.CONNECTED):
                self.fail(str(error))
            return
        if front in (BusState.CLOSED, BusState.UNKNOWN):
            if self.state is not BusState.CLOSED:
                self._quiet(self._closed)
        elif front is BusState.CLOSING:
            if self.state in (BusState.INIT_WAIT, BusState.CONNECTED):
                self._enter(BusState.CLOSING)
        elif front is BusState.INITIALISING and (self.state is not BusState.INIT_WAIT or not self.online):
            # A new front; or, when we are leaving, one that has not begun yet.
            self._quiet(self._offer if self.online else self._closed)

    def _meet(self) -> None:
        """Connect, or see that a connected front is still what it was. Raises FrontendError."""
        if self.state is BusState.INIT_WAIT and self.online:
            self._frontend = Frontend(self._store, self.front)
            nodes = self.device.connect(self._frontend, self)
            self._enter(BusState.CONNECTED, nodes)
        elif self.state is BusState.CONNECTED:
            key = self._frontend.changed()
            if key is not None:
                raise FrontendError(f"{key} changed while connected")

    # Ends

    def _quiet(self, then: Callable[[], None]) -> None:
        """Disconnect, then go on, with a look at what has happened meanwhile."""
        if self._quieting:
            return
        self._quieting = True

        def quiet() -> None:
            self._quieting = False
            if self.gone:
                self._quiet_at_last()
            else:
                then()
                if not self.gone:
                    self._look()

        self.device.disconnect(quiet)

    def _offer(self) -> None:
        self._enter(BusState.INIT_WAIT, self.device.features())

    def _closed(self) -> None:
        self._enter(BusState.CLOSED)

    def _finish(self) -> None:
        self._vanish()
        self._quiet_at_last()

    def _quiet_at_last(self) -> None:
        self._quieting = False
        done, self._done = self._done, []
        for call in done:
            call()

    def _call_when_quiet(self, done: Callable[[], None]) -> None:
        if self._quieting:
            self._done.append(done)
        else:
            done()

    def _vanish(self) -> None:
        """Remove the nodes; of the directories above, those of the back's that are empty."""
        self.gone, self.online = True, False
        for watch in self._watches:
            watch.cancel()
        if self._domain_ends in self.domain.at_end:
            self.domain.at_end.remove(self._domain_ends)
        above = self.back.rpartition("/")[0]
        for path in (self.front, self.back, f"/local/domain/0/error{self.back.removeprefix('/local/domain/0')}"):
            _remove(self._store, path)
        with suppress(NoEntry):
            if not self._store.ls(above):
                _remove(self._store, above)
        if self._changed is not None:
            self._changed(BusState.UNKNOWN)

    def _domain_ends(self) -> None:
        """Let go of a domain that is destroyed: returns when its memory is not used any more."""
        quiet = threading.Event()
        self.remove(quiet.set)
        quiet.wait()


def _remove(store: Client, path: str) -> None:
    with suppress(XenstoreError):  # the toolstack was there before us
        store.rm(path)
