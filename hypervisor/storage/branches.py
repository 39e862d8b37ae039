"""Snapshot, clone, reset and copy: the requests that make one volume out of another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

from hypervisor.api import Description, Volume
from hypervisor.disks import copying, raw, snapshot, vhd
from hypervisor.disks.copying import Progress
from hypervisor.disks.disk import SECTOR, DiskError
from hypervisor.disks.snapshot import unfinished
from hypervisor.disks.vhd import VhdDisk
from hypervisor.disks.vhd_layout import DATA_PLACE
from hypervisor.storage.catalogue import Record
from hypervisor.storage.errors import Code, StorageError, failing
from hypervisor.storage.layout import Found
from hypervisor.storage.volume import Format, rounded

if TYPE_CHECKING:
    from hypervisor.storage.repository import FileRepository

MAX_CHAIN = 30
"""Images of a chain, as XCP's storage manager counts (vhdutil: MAX_CHAIN_SIZE)."""


def branch(repository: FileRepository, uuid: str, new: str | None, description: Description, code: Code) -> Volume:
    """Make a new leaf that holds what a volume holds now.

    A leaf that nothing was written to becomes the sibling of the new one: the chain grows by what was written, not by
    how often it was snapshotted. Otherwise the leaf is split.
    """
    with repository.claimed(uuid) as record, _still(record):
        _refuse_raw(repository, uuid)
        found = Found(_uuid(new), Format.VHD, record.found.size, record.found.parent, False)
        with repository.catalogue.lock:
            if fixed := repository.catalogue.needed(uuid):
                _refuse_deep(repository, uuid)
                found = replace(found, parent=uuid)
            if beside := fixed or _is_empty(repository, record):
                repository.reserve(found, description)
        if not beside:
            _split(repository, record, [(found, description)], code)
    if beside:
        with repository.making(found, code) as path:
            repository.make_image(found, path)
    return repository.volume(found.uuid)


def freeze(repository: FileRepository, uuid: str) -> Volume:
    """Split a leaf, without a copy, unless it is empty."""
    with repository.claimed(uuid) as record, _still(record):
        _refuse_raw(repository, uuid)
        repository.catalogue.changeable(uuid)
        if not _is_empty(repository, record):
            _split(repository, record, [], Code.VDISnapshot)
    return repository.volume(uuid)


def reset(repository: FileRepository, uuid: str) -> Volume:
    """Put an empty leaf in the place of a leaf."""
    with repository.claimed(uuid) as record:
        _refuse_raw(repository, uuid)
        repository.catalogue.changeable(uuid)
        if record.found.parent is None:
            raise StorageError(Code.Unimplemented, f"volume {uuid} has nothing to go back to")
        if record.handles:
            raise StorageError(Code.VDIInUse, f"volume {uuid} is open")
        path = repository.layout.image(uuid, Format.VHD)
        if not _is_empty(repository, record):
            with failing(Code.VDISnapshot, path):
                try:
                    repository.make_image(record.found, unfinished(path))
                    os.rename(unfinished(path), path)
                finally:
                    unfinished(path).unlink(missing_ok=True)
                repository.layout.sync()
    return repository.volume(uuid)


def copy(
    repository: FileRepository,
    uuid: str,
    target: FileRepository,
    new: str | None,
    description: Description,
    format: Format,
    progress: Progress,
) -> Volume:
    """Read one volume and write another, which exists when it is whole."""
    source = repository.open(uuid, read_only=True)
    try:
        found = Found(_uuid(new), format, rounded(source.size, format), None, False)
        target.reserve(found, description)
        with target.making(found, Code.VDICreate) as path:
            target.make_image(found, path)
            disk = raw.open(path) if format is Format.RAW else vhd.open(path)
            try:
                copying.copy(source, disk, progress, blank=True)
            finally:
                disk.close()
    finally:
        source.close()
    return target.volume(found.uuid)


def _uuid(given: str | None) -> str:
    return str(uuid4()) if given is None else given


@contextmanager
def _still(record: Record) -> Iterator[None]:
    """Let a volume's writers wait."""
    with record.shared.lock if record.shared is not None else nullcontext():
        yield


def _refuse_raw(repository: FileRepository, uuid: str) -> None:
    record = repository.catalogue.visible(uuid)
    if record.found.format is not Format.VHD:
        raise StorageError(Code.Unimplemented, f"volume {uuid} is {record.found.format.value}")


def _refuse_deep(repository: FileRepository, uuid: str) -> None:
    if repository.catalogue.depth(uuid) >= MAX_CHAIN:
        raise StorageError(Code.SnapshotChainTooLong, f"volume {uuid} has {MAX_CHAIN} images already")


def _is_empty(repository: FileRepository, record: Record) -> bool:
    """Tell whether a leaf holds nothing of its own; it is still."""
    if record.found.parent is None:
        return False
    if record.shared is not None:
        disk = record.shared.disk
        return isinstance(disk, VhdDisk) and disk.leaf.empty
    try:
        length = repository.layout.image(record.found.uuid, Format.VHD).stat().st_size
    except OSError:
        return False
    return length == DATA_PLACE + SECTOR  # our images without blocks; others are believed to hold some


def _split(repository: FileRepository, record: Record, copies: list[tuple[Found, Description]], code: Code) -> None:
    """Make the leaf's image the hidden parent of an empty leaf and of the copies."""
    catalogue, layout, leaf = repository.catalogue, repository.layout, record.found
    _refuse_deep(repository, leaf.uuid)
    base = replace(leaf, uuid=str(uuid4()), hidden=True)
    copies = [(replace(found, parent=base.uuid), description) for found, description in copies]
    reserved: list[str] = []
    path = layout.image(leaf.uuid, Format.VHD)
    try:
        with failing(code, path):
            catalogue.reserve_base(base)
            reserved.append(base.uuid)
            for found, description in copies:
                repository.reserve(found, description)
                reserved.append(found.uuid)
                layout.describe(found.uuid, description)
            layout.record_split(leaf.uuid, base.uuid)
            _split_image(repository, record, base, [found for found, _ in copies])
    except BaseException:
        for uuid in reversed(reserved):
            repository.forget_description(uuid)
            catalogue.cancel(uuid)
        record.half_split = base.uuid
        take_back(repository, record)
        raise
    with catalogue.lock:
        record.found = replace(leaf, parent=base.uuid)
        for uuid in reserved:
            catalogue.settle(uuid)
    with suppress(OSError):
        layout.split(leaf.uuid, base.uuid).unlink()


def take_back(repository: FileRepository, record: Record) -> None:
    """Undo what a failed split could not, once nobody has the volume open; else `attach` will."""
    if record.half_split is not None and not record.handles:
        with suppress(OSError, DiskError):
            repository.layout.recover_split(record.found.uuid, record.half_split)
            record.half_split = None


def _split_image(repository: FileRepository, record: Record, base: Found, copies: list[Found]) -> None:
    """Split the leaf's file, whether it is open or not."""
    layout = repository.layout
    paths = [layout.image(found.uuid, Format.VHD) for found in (base, *copies)]
    if record.shared is not None and isinstance(disk := record.shared.disk, VhdDisk):
        disk.push(snapshot.split(disk.leaf, paths[0], paths[1:], clock=repository.clock))
        return
    # Readers' locks are shared ones, and of our own process: they need not be kept out.
    image = snapshot.open_leaf(layout.image(record.found.uuid, Format.VHD), lock=not record.handles)
    try:
        snapshot.split(image, paths[0], paths[1:], clock=repository.clock).file.close()
    finally:
        image.file.close()
