"""What a toolstack says to a guest through xenstore, and hears from it (docs/misc/xenstore-paths.pandoc).

It says: go down (control/shutdown), hold so much memory (memory/target). It hears whether the guest has taken a
request, which it does by emptying the key, and what the guest tells of itself: the keys that xapi's guest agent reads,
see `Control.metrics`. How far a balloon has come is not told here: `Memory.present` is.

Everything is done at once, by a caller that holds the lock of the domain's host; callbacks come under it too. Time
is the caller's: one that does not want to wait for ever withdraws its request. A guest may write what it likes, as
much as its quota allows and as often: what is returned is bounded, and changes are told once until they are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from hypervisor.api import Shutdown
from hypervisor.xenstore.errors import Invalid, NoEntry
from hypervisor.xenstore.paths import absolute
from hypervisor.xenstore.permissions import NONE, Permissions
from hypervisor.xenstore.store import Store, WatchHandle

TREES = ("attr", "data", "drivers", "feature")
"""Where a guest tells of itself; of memory/ and control/ only some keys are the guest's, see `Control.metrics`."""
MOST_KEYS, MOST_VISITS, DEEPEST, MOST_BYTES = 512, 2048, 8, 64 * 1024
"""Limits on what `metrics` returns and looks at: keys, nodes, names in a path, bytes of paths and values."""
_REQUESTS = (Shutdown.POWEROFF, Shutdown.REBOOT, Shutdown.SUSPEND)
_FEATURE = "control/feature-"
_no_text = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML cannot carry: a guest must not be able to spoil the answer to somebody who asks for its metrics."""


class Progress(Enum):
    """What has become of a request."""

    WAITING = "waiting"
    ACKNOWLEDGED = "acknowledged"
    WITHDRAWN = "withdrawn"


class Request:
    """A request to a guest to go down; made by `Control.request`."""

    def __init__(self, control: Control, how: Shutdown, acknowledged: Callable[[], None]) -> None:
        self.how = how
        self.progress = Progress.WAITING
        self._control = control
        self._acknowledged = acknowledged
        self._watch: WatchHandle | None = None

    def send(self) -> None:
        """Write the request and wait for the answer."""
        control = self._control
        with control.store.transaction() as transaction:
            transaction.write(control.shutdown, self.how.value)
            # The guest may have removed the node, and what we made would be ours alone.
            transaction.set_perms(control.shutdown, Permissions(control.domid, NONE))
        watch = control.store.watch(control.shutdown, lambda _: self._look())
        self._watch = watch
        if self.progress is not Progress.WAITING:
            watch.cancel()

    def _look(self) -> None:
        value = self._control.store.read_text(self._control.shutdown)
        if self.progress is not Progress.WAITING or value:
            return
        if value is None and not self._control.store.exists(self._control.home):  # not the guest's doing
            self._settle(Progress.WITHDRAWN)
        else:
            self._settle(Progress.ACKNOWLEDGED)
            self._acknowledged()

    def withdraw(self) -> None:
        """Take the request back, unless the guest has acknowledged it; it may act on it all the same."""
        if self.progress is Progress.WAITING:
            self._settle(Progress.WITHDRAWN)
            if self._control.store.read_text(self._control.shutdown):
                self._control.store.write(self._control.shutdown, "")

    def _settle(self, progress: Progress) -> None:
        self.progress = progress
        if self._watch is not None:
            self._watch.cancel()


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a guest says of itself: paths below its home, and values as text that XML can carry."""

    values: Mapping[str, str]
    complete: bool
    """False when the guest has written more than the limits allow; then the rest is left out."""


def may_be_told(values: Mapping[str, str]) -> bool:
    """Tell whether `Control.metrics` may have returned this: what is kept of a guest is not always what was written."""
    if len(values) > MOST_KEYS or sum(len(name) + len(value) for name, value in values.items()) > MOST_BYTES:
        return False
    try:
        names = [absolute(f"/{name}")[1:] for name in values]
    except Invalid:
        return False
    return all(name.startswith(_FEATURE) or name.partition("/")[0] in (*TREES, "memory") for name in names)


class Control:
    """The control keys of one domain whose home in xenstore stands; `close` it before the home is removed.

    `changed` is called when the guest has changed what it says of itself: once, until `metrics` is called, and not
    before its first call.
    """

    def __init__(self, store: Store, domid: int, changed: Callable[[], None] | None = None) -> None:
        self.store = store
        self.domid = domid
        self.home = f"/local/domain/{domid}"
        self.shutdown = f"{self.home}/control/shutdown"
        self._changed = changed
        self._told = True
        self._request: Request | None = None
        self.suspends = False
        """Whether the guest was asked to suspend itself since it went on last: a request is withdrawn too late for one
        that has read it."""
        trees = (*TREES, "control", "memory") if changed is not None else ()
        self._watches = [store.watch(f"{self.home}/{tree}", self._heard) for tree in trees]

    def close(self) -> None:
        """Stop: a request that waits is dropped, nothing is called any more."""
        if self._request is not None:
            self._request.withdraw()
        for watch in self._watches:
            watch.cancel()
        self._watches.clear()

    # What is said

    def request(self, how: Shutdown, acknowledged: Callable[[], None] = lambda: None) -> Request:
        """Ask the guest to go down; `acknowledged` is called when it has taken the request.

        An earlier request that still waits is withdrawn. Raises ValueError for what cannot be asked for.
        """
        if how not in _REQUESTS:
            raise ValueError(f"a guest cannot be asked for {how.value}")
        if self._request is not None:
            self._request.withdraw()
        self.suspends = self.suspends or how is Shutdown.SUSPEND
        self._request = Request(self, how, acknowledged)
        self._request.send()
        return self._request

    def supports(self, how: Shutdown) -> bool:
        """Tell whether the guest says that it heeds such a request; older kernels heed them without saying so."""
        return self.store.read_text(f"{self.home}/{_FEATURE}{how.value}") == "1"

    def set_memory_target(self, kib: int) -> None:
        """Tell the guest's balloon how much memory, in KiB, the guest is to hold. Raises ValueError."""
        if kib <= 0:
            raise ValueError(f"a guest cannot hold {kib} KiB")
        self.store.write(f"{self.home}/memory/target", str(kib))

    # What is heard

    def _heard(self, path: str) -> None:
        name = path.removeprefix(f"{self.home}/")
        if not self._told and self._changed is not None and self._counts(name):
            self._told = True
            self._changed()

    def _counts(self, name: str) -> bool:
        """Tell whether a key, or the directory above it, is one that `metrics` reads."""
        top = name.partition("/")[0]
        return top in TREES or name.startswith(_FEATURE) or (top == "memory" and self._is_guests(name))

    def _is_guests(self, name: str) -> bool:
        try:
            return self.store.get_perms(f"{self.home}/{name}").owner == self.domid
        except NoEntry:
            return True

    def metrics(self) -> Metrics:
        """Return what the guest says of itself, and have its next change told.

        That is: attr/ (PVAddons, os, vif/<n>/ipv4/<m> and ipv6, eth<n>/ip), data/ (os_name, os_uname, meminfo_free,
        updated and others), drivers/, feature/, of control/ what begins with feature-, and of memory/ what the guest
        owns (meminfo). Directories without a value are left out, and so are features that are not set.
        """
        self._told = False
        found: dict[str, str] = {}
        visits, size, complete = 0, 0, True
        waiting = [*self._first(), *reversed(TREES)]
        while waiting:
            name = waiting.pop()
            try:
                value, children = self.store.read(f"{self.home}/{name}"), self.store.ls(f"{self.home}/{name}")
            except NoEntry:
                continue
            visits += 1
            if value or (not children and "/" in name and name.partition("/")[0] in TREES):
                size += len(name) + len(value)
                if len(found) == MOST_KEYS or size > MOST_BYTES:
                    return Metrics(found, False)
                found[name] = _no_text.sub("\ufffd", value.decode("utf-8", "replace"))
            if children and name.count("/") + 1 >= DEEPEST:
                complete = False
            elif visits + len(waiting) + len(children) > MOST_VISITS:
                return Metrics(found, False)
            else:
                waiting += [f"{name}/{child}" for child in reversed(children)]
        return Metrics(found, complete)

    def _first(self) -> list[str]:
        """Return the keys of memory/ and control/ that are read, the last first."""
        names: list[str] = []
        for top, wanted in (("memory", self._is_guests), ("control", lambda name: name.startswith(_FEATURE))):
            try:
                children = self.store.ls(f"{self.home}/{top}")
            except NoEntry:
                continue
            names += [f"{top}/{child}" for child in children[:MOST_KEYS] if wanted(f"{top}/{child}")]
        return names[::-1]
