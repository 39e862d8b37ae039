"""Turn a leaf into a parent of two: the way to snapshot and to clone without copying."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

from hypervisor.disks import vhd
from hypervisor.disks.chain import layer_of
from hypervisor.disks.disk import DiskError, Kind
from hypervisor.disks.storage import ImageFile, failure, sync_directory
from hypervisor.disks.vhd import Clock
from hypervisor.disks.vhd_image import VhdImage


def split(leaf: Path, base: Path, copy: Path, *, clock: Clock, uuids: tuple[UUID, UUID] | None = None) -> None:
    """Let `base` be what `leaf` was, hidden from writers, and `leaf` and `copy` two empty children of it.

    All three lie in one directory; the leaf must not be open. A crash at any moment leaves `leaf` whole: first the
    image gets its second name, then a child takes the first name by one rename(2). `uuids` are the children's.
    """
    if len({leaf.parent.resolve(), base.parent.resolve(), copy.parent.resolve()}) > 1:
        raise DiskError(Kind.REFUSED, f"{base}: parent and children belong into one directory")
    mine, other = uuids or (uuid4(), uuid4())
    child = leaf.with_name(f".{leaf.name}.{mine}")
    lock = ImageFile.open(leaf, writable=True)  # nobody may use or open the leaf until it is a child
    image = layer_of(lock, refuse_hidden=True)  # closes it on failure
    made: list[Path] = []
    try:
        os.link(leaf, base)
        made.append(base)
        vhd.create(copy, parent=base, clock=clock, uuid=other)
        made.append(copy)
        vhd.create(child, parent=base, clock=clock, uuid=mine)
        made.append(child)
        os.rename(child, leaf)
        made.clear()
        sync_directory(leaf.absolute().parent)
        # Last: a hidden leaf could not be used again. Its children's locks guard the base meanwhile.
        if isinstance(image, VhdImage):
            image.change_footer(replace(image.footer, hidden=True))
    except OSError as error:
        raise failure(error, leaf) from error
    finally:
        for path in made:
            path.unlink()
        lock.close()
