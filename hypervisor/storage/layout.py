"""The directory of a repository: which files there are, and what a crash may have left of them.

`repository.json`   marks the directory as ours, whole; made last
`lock`              flock'ed by the process that has it attached
`<uuid>.vhd` `.raw` the volumes, visible and hidden
`<uuid>.json`       their descriptions
`.new-*`            files that are not finished
`.split-<leaf>-<base>`  an empty file: the record that a leaf is being split (see `hypervisor.disks.snapshot`)

The directory is the journal. Every operation becomes true by one rename(2) or unlink(2), and what was there before
and after it is found out by `recover`:

- create, copy: image made whole under its `.new-` name, description, rename. Before: both go.
- delete: the image goes (or is hidden, if it has children), then its description, then hidden images that have no
  child left. After: `recover` does the rest. No image goes while another one cannot be read, for it may be its child.
- snapshot, clone: record, description, split, record removed. Before: children of the base go, the leaf is what it was.
- reset: an empty leaf made under its `.new-` name, rename.
- resize, set description: one file, changed at once.

A power cut is as a crash, since files are durable before they get their names, and the directory is before a request
is answered.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from hypervisor.api import Description
from hypervisor.disks import snapshot, vhd
from hypervisor.disks import vhd_format as form
from hypervisor.disks.disk import SECTOR, DiskError, Kind
from hypervisor.disks.image_file import ImageFile, failure, sync_directory
from hypervisor.disks.snapshot import UNFINISHED, unfinished
from hypervisor.storage.volume import MAX_DESCRIPTION, Format, decode, encode

MARKER = "repository.json"
LOCK = "lock"
_VERSION = 1
_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_IMAGE = re.compile(rf"({_UUID})\.(vhd|raw)")
_DESCRIPTION = re.compile(rf"({_UUID})\.json")
_SPLIT = re.compile(rf"\.split-({_UUID})-({_UUID})")
_CANONICAL = re.compile(_UUID)


def is_uuid(text: str) -> bool:
    """Tell whether a text is a uuid as it stands in names of files."""
    return _CANONICAL.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Found:
    """What an image's file tells."""

    uuid: str
    format: Format
    size: int
    parent: str | None
    hidden: bool


class Layout:
    """Names and files of one directory. All methods raise DiskError or OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def image(self, uuid: str, format: Format) -> Path:
        """Return where a volume's image lies."""
        return self.path / f"{uuid}.{format.value}"

    def split(self, leaf: str, base: str) -> Path:
        """Return the record of a split under way."""
        return self.path / f".split-{leaf}-{base}"

    def record_split(self, leaf: str, base: str) -> None:
        """Note that a leaf is about to be split."""
        os.close(os.open(self.split(leaf, base), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))

    def sync(self) -> None:
        """Make names durable."""
        sync_directory(self.path)

    # -- the directory itself

    def is_marked(self) -> bool:
        """Tell whether this is a repository that we understand."""
        try:
            with (self.path / MARKER).open("rb") as file:
                found = json.loads(file.read(4096))
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(found, dict) and found.get("version") == _VERSION

    def foreign(self) -> list[str]:
        """Return the names of all that is in the way of a new repository."""
        return sorted(name for name in os.listdir(self.path) if name not in (MARKER, LOCK, "lost+found", _NEW_MARKER))

    def mark(self) -> None:
        """Make the directory a repository."""
        self.replace(self.path / MARKER, json.dumps({"version": _VERSION}).encode() + b"\n")
        self.sync()

    def lock(self) -> int:
        """Take the repository for this process; return the descriptor that holds it. BUSY if another has it."""
        path = self.path / LOCK
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise failure(error, path) from error
        return fd

    def replace(self, path: Path, data: bytes) -> None:
        """Give a small file a new content at once, durable before it is seen."""
        fresh = unfinished(path)
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            if os.write(fd, data) < len(data):
                raise DiskError(Kind.NO_SPACE, f"{path}: a short write")
            os.fdatasync(fd)
            os.rename(fresh, path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)

    # -- descriptions

    def describe(self, uuid: str, description: Description) -> None:
        """Write a volume's description."""
        self.replace(self.path / f"{uuid}.json", encode(description))

    def description(self, uuid: str) -> Description:
        """Read a volume's description; one that is missing or damaged has nothing to tell."""
        try:
            with (self.path / f"{uuid}.json").open("rb") as file:
                return decode(file.read(MAX_DESCRIPTION))
        except OSError:
            return Description()

    def forget_description(self, uuid: str) -> None:
        (self.path / f"{uuid}.json").unlink(missing_ok=True)

    # -- images

    def images(self) -> Iterator[tuple[str, Format]]:
        """Yield the images by their names."""
        for name in os.listdir(self.path):
            if match := _IMAGE.fullmatch(name):
                yield match[1], Format(match[2])

    def strays(self) -> list[str]:
        """Return the names of files that look like images, but for their names, and so are not shown."""
        endings = tuple(f".{format.value}" for format in Format)
        return sorted(
            name
            for name in os.listdir(self.path)
            if name.endswith(endings) and not name.startswith(".") and not _IMAGE.fullmatch(name)
        )

    def inspect(self, uuid: str, format: Format) -> Found:
        """Read what an image tells of itself; it may be in use."""
        path = self.image(uuid, format)
        if format is Format.RAW:
            file = ImageFile.open(path, writable=False, lock=False)
            try:
                return Found(uuid, format, file.size // SECTOR * SECTOR, None, False)
            finally:
                file.close()
        found = vhd.inspect(path)
        parent = None
        if found.kind == form.DIFFERENCING:
            name = found.parent_name.rsplit("/", 1)[-1].rsplit("\\", 1)[-1]
            parent = name.removesuffix(".vhd").removesuffix(".raw")
            if not is_uuid(parent):
                raise DiskError(Kind.NOT_FOUND, f"{path}: its parent {found.parent_name!r} is no volume's")
        return Found(uuid, format, found.size, parent, found.hidden)

    def read(self, known: Mapping[str, Found] = MappingProxyType({})) -> tuple[dict[str, Found], dict[str, str]]:
        """Return the images by uuid, and those that cannot be used, with the reason; `known` ones are not opened."""
        found, broken = dict[str, Found](), dict[str, str]()
        halves = self._halves()
        for uuid, format in self.images():
            if uuid in halves and uuid not in known:
                continue
            try:
                one = known[uuid] if uuid in known else self.inspect(uuid, format)
                if found.setdefault(uuid, one) is not one:
                    broken[uuid] = "two images of one uuid"
            except DiskError as error:
                if error.kind is not Kind.NOT_FOUND or self.image(uuid, format).exists():
                    broken[uuid] = str(error)
        for uuid in broken:
            found.pop(uuid, None)
        return found, broken | _without_ground(found)

    def _halves(self) -> set[str]:
        """Return the uuids that are second names of leaves whose split failed and could not be undone yet."""
        found = set[str]()
        for name in os.listdir(self.path):
            if match := _SPLIT.fullmatch(name):
                with suppress(OSError):
                    if self.image(match[1], Format.VHD).samefile(self.image(match[2], Format.VHD)):
                        found.add(match[2])
        return found

    # -- after a crash

    def recover(self) -> None:
        """Undo or finish what a crash interrupted; the repository must be locked. May be interrupted itself."""
        names = os.listdir(self.path)
        for name in names:
            if name.startswith(UNFINISHED):
                self._remove(name)
        for name in names:
            if match := _SPLIT.fullmatch(name):
                with suppress(DiskError):  # damaged: it stays for the next time, and the others are shown
                    self.recover_split(match[1], match[2])
        found, broken = self.read()
        if not broken:
            for uuid in useless(found):
                self.image(uuid, found[uuid].format).unlink()
                del found[uuid]
        for name in os.listdir(self.path):
            match = _DESCRIPTION.fullmatch(name)
            if match and match[1] not in found and match[1] not in broken:
                self._remove(name)
        self.sync()

    def _remove(self, name: str) -> None:
        """Remove a file; a directory that somebody has made there stays."""
        with suppress(IsADirectoryError):
            (self.path / name).unlink(missing_ok=True)

    def recover_split(self, leaf: str, base: str) -> None:
        """Take a split back that did not happen; its copies go first, so that none is without its parent.

        The leaf may not be open.
        """
        leaf_path, base_path = self.image(leaf, Format.VHD), self.image(base, Format.VHD)
        if leaf_path.exists():
            if base_path.exists() and leaf_path.samefile(base_path):
                for uuid, format in list(self.images()):
                    with suppress(DiskError):  # another's damage is not of this split
                        if self.inspect(uuid, format).parent == base:
                            self.image(uuid, format).unlink()
            if base_path.exists() or not self._has_children(leaf):
                snapshot.undone(leaf_path, base_path)
        self.split(leaf, base).unlink(missing_ok=True)

    def _has_children(self, uuid: str) -> bool:
        found, broken = self.read()
        return bool(broken) or any(one.parent == uuid for one in found.values())


_NEW_MARKER = UNFINISHED + MARKER


def useless(found: dict[str, Found]) -> list[str]:
    """Return the hidden images that no visible one needs, children before parents."""
    needed = set[str]()
    for one in found.values():
        step: str | None = None if one.hidden else one.uuid
        while step is not None and step not in needed:
            needed.add(step)
            step = found[step].parent if step in found else None
    depth = {uuid: len(lineage(found, uuid)) for uuid in found if uuid not in needed}
    return sorted(depth, key=lambda uuid: -depth[uuid])


def lineage(found: dict[str, Found], uuid: str) -> list[str]:
    """Return a volume's uuid and those under it, as far as they are known."""
    chain: list[str] = []
    step: str | None = uuid
    while step is not None and step in found and step not in chain:
        chain.append(step)
        step = found[step].parent
    return chain


def _without_ground(found: dict[str, Found]) -> dict[str, str]:
    """Return the images whose chain of parents does not end, or ends nowhere; they are taken out of `found`."""
    lost = dict[str, str]()
    for uuid in found:
        chain = lineage(found, uuid)
        last = found[chain[-1]].parent
        if last is not None:
            lost[uuid] = f"{last} is its own ancestor" if last in chain else f"its parent {last} is missing"
    for uuid in lost:
        del found[uuid]
    return lost
