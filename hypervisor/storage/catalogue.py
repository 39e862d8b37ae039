"""What a repository knows of its volumes, and who is at work on which.

A request claims the volume that it is about and does its file work without the lock, so requests about different
volumes run side by side. A volume that is being made is reserved: nobody sees it, but its parent is needed already.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from hypervisor.api import Description, Volume
from hypervisor.storage.attachment import Chain, OpenVolume
from hypervisor.storage.errors import Code, StorageError
from hypervisor.storage.layout import Found, Layout, is_uuid

_BASE = Description("base copy", read_only=True)


@dataclass(slots=True)
class Record:
    """A volume; changed by who claims it, under the lock."""

    found: Found
    description: Description
    ready: bool = True
    """False while its file is being made."""
    handles: set[OpenVolume] = field(default_factory=set)
    shared: Chain | None = None
    """The chain of those who have it open for writing."""
    half_split: str | None = None
    """The base of a split that failed and could not be taken back while the volume was open."""


class Catalogue:
    """The volumes of a directory by uuid. `lock` guards all that is here; it is held for short file work, too."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.lock = threading.Condition()
        self.records: dict[str, Record] = {}
        self.broken: dict[str, str] = {}
        """Why images cannot be used; while there are any, no hidden image is removed: it may be their parent."""
        self._claimed: set[str] = set()

    @property
    def busy(self) -> bool:
        """Tell whether a volume is open or a request at work."""
        return bool(self._claimed) or any(one.handles or not one.ready for one in self.records.values())

    def learn(self, *, anew: bool = False) -> None:
        """Take note of files that came or went.

        Those known do not change but by us, so they are not read again; `anew` they are, for somebody may have spoilt
        or replaced one, but for those that are open or that a request is at work on.
        """
        kept = (uuid for uuid, one in self.records.items() if not anew or self._used(uuid) or one.half_split)
        known = {uuid: self.records[uuid].found for uuid in kept}
        found, self.broken = self.layout.read(known)
        for uuid in list(self.records):
            if uuid not in found and not self._used(uuid):
                del self.records[uuid]
        for uuid, one in found.items():
            record = self.records.get(uuid)
            if record is None:
                self.records[uuid] = Record(one, _BASE if one.hidden else self.layout.description(uuid))
            elif not self._used(uuid):
                record.found = one

    def _used(self, uuid: str) -> bool:
        """Tell whether a volume is being made, open, or claimed by a request."""
        record = self.records[uuid]
        return not record.ready or bool(record.handles) or uuid in self._claimed

    def get(self, uuid: str) -> Record:
        """Return a volume's record."""
        record = self.records.get(uuid)
        if record is not None and record.ready:
            return record
        if uuid in self.broken:
            raise StorageError(Code.VDILoad, f"volume {uuid}: {self.broken[uuid]}")
        raise StorageError(Code.VDIUnavailable, f"no volume {uuid}")

    def visible(self, uuid: str) -> Record:
        """Return the record of a volume that users may change."""
        record = self.get(uuid)
        if record.found.hidden:
            raise StorageError(Code.VDIUnavailable, f"volume {uuid} is hidden: others depend on it")
        return record

    def changeable(self, uuid: str) -> Record:
        """Return the record of a volume on whose content no other depends; one put here by hand may have children."""
        record = self.visible(uuid)
        with self.lock:
            if self.needed(uuid):
                raise StorageError(Code.VDIUnavailable, f"others depend on volume {uuid}")
        return record

    def volume(self, record: Record) -> Volume:
        """Return a volume as it is now."""
        found = record.found
        try:
            used = os.stat(self.layout.image(found.uuid, found.format)).st_blocks * 512
        except OSError:
            used = 0
        form, parent = found.format.value, found.parent or ""
        return Volume(found.uuid, found.uuid, form, found.size, used, parent, found.hidden, record.description)

    def volumes(self) -> list[Volume]:
        """Return all that are ready."""
        return [self.volume(record) for record in self.records.values() if record.ready]

    def needed(self, uuid: str) -> bool:
        """Tell whether a volume is the parent of another."""
        return any(record.found.parent == uuid for record in self.records.values())

    def depth(self, uuid: str) -> int:
        """Return the number of images in a volume's chain."""
        count, step = 0, self.records.get(uuid)
        while step is not None and count <= len(self.records):
            count += 1
            step = self.records.get(step.found.parent) if step.found.parent else None
        return count

    @contextmanager
    def claim(self, uuid: str) -> Iterator[None]:
        """Keep all other requests about a volume waiting, whether it exists or not."""
        with self.lock:
            self.lock.wait_for(lambda: uuid not in self._claimed)
            self._claimed.add(uuid)
        try:
            yield
        finally:
            with self.lock:
                self._claimed.discard(uuid)
                self.lock.notify_all()

    # -- volumes that are being made

    def reserve(self, found: Found, description: Description) -> None:
        """Let a volume count as its parent's child before it is there; then call `settle` or `cancel`."""
        if not is_uuid(found.uuid):
            raise StorageError(Code.VDICreate, f"{found.uuid!r} is no uuid")
        with self.lock:
            if found.uuid in self.records or found.uuid in self.broken:
                raise StorageError(Code.VDIExists, f"volume {found.uuid} exists")
            self.records[found.uuid] = Record(found, description, ready=False)

    def reserve_base(self, found: Found) -> None:
        """Reserve the base of a split."""
        self.reserve(found, _BASE)

    def settle(self, uuid: str) -> None:
        """Show a reserved volume."""
        with self.lock:
            self.records[uuid].ready = True

    def cancel(self, uuid: str) -> None:
        """Give a reservation up; what only it needed may go."""
        with self.lock:
            parent = self.records.pop(uuid).found.parent
            self.collect(parent)

    def collect(self, uuid: str | None) -> None:
        """Remove a volume, then its parents, as long as they are hidden and nothing needs them; never raises.

        What cannot be removed now goes when the repository is attached the next time.
        """
        while uuid is not None and not self.broken:
            record = self.records.get(uuid)
            if record is None or not record.found.hidden or not record.ready or record.handles or self.needed(uuid):
                return
            try:
                if any(name not in self.records for name, _ in self.layout.images()):  # put here by somebody
                    self.learn()
                    if self.broken or self.needed(uuid):
                        return
                self.layout.image(uuid, record.found.format).unlink(missing_ok=True)
            except OSError:
                return
            self.records.pop(uuid, None)
            uuid = record.found.parent
