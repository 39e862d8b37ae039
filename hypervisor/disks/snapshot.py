"""Turn a leaf into the parent of new leaves: the way to snapshot and to clone without copying.

The leaf's file becomes `base`, hidden; an empty child takes its name, and further empty children are the copies. The
files reach the directory in this order, so that a crash leaves either the leaf as it was or everything done:

1. `base` becomes a second name of the leaf's file.
2. The copies and, under a name of its own, the leaf's child are made whole and durable; each names `base` its parent.
3. The file is marked as hidden (its footer changes in one sector). It still bears both names.
4. One rename(2) gives the leaf's name to the child. This is the moment at which the split has happened.

Until 4 the leaf and the base are one file. `undone` takes such a half split back; who splits leaves a record of the two
names, to find it by (see `hypervisor.storage.layout`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from hypervisor.disks import vhd
from hypervisor.disks.chain import layer_of
from hypervisor.disks.disk import DiskError, Kind
from hypervisor.disks.image_file import ImageFile, failure, sync_directory
from hypervisor.disks.vhd import Clock
from hypervisor.disks.vhd_image import VhdImage

UNFINISHED = ".new-"
"""What the name of a file begins with that nobody needs if its maker is gone."""


def unfinished(path: Path) -> Path:
    """Return the name under which a file is made that is to be `path`."""
    return path.with_name(UNFINISHED + path.name)


def open_leaf(path: Path, *, lock: bool = True) -> VhdImage:
    """Open a leaf without its parents, to split it; without `lock` when our own readers hold it."""
    image = layer_of(ImageFile.open(path, writable=True, lock=lock), refuse_hidden=True)
    if isinstance(image, VhdImage):
        return image
    image.file.close()
    raise DiskError(Kind.REFUSED, f"{path}: neither dynamic nor differencing")


def split(image: VhdImage, base: Path, copies: Sequence[Path] = (), *, clock: Clock) -> VhdImage:
    """Make the leaf `image`, open for writing, into `base`; return the leaf's new image, open for writing.

    `image` stays open, as a parent: only to be read. All files lie in one directory. On a DiskError everything is as
    it was, `image`, too.
    """
    leaf = image.file.path
    if len({path.parent.resolve() for path in (leaf, base, *copies)}) > 1:
        raise DiskError(Kind.REFUSED, f"{base}: parent and children belong into one directory")
    image.commit()
    try:
        with ExitStack() as undo:
            os.link(leaf, base)
            undo.callback(_take_back, image, leaf, base)
            for copy in copies:
                _new_child(undo, copy, base, image, clock)
                _refuse_existing(copy)
                os.rename(unfinished(copy), copy)
                undo.callback(copy.unlink, missing_ok=True)
            _new_child(undo, leaf, base, image, clock)
            child = VhdImage(ImageFile.open(unfinished(leaf), writable=True))
            undo.callback(child.file.close)
            set_hidden(image, True)
            sync_directory(leaf.absolute().parent)
            os.rename(unfinished(leaf), leaf)
            sync_directory(leaf.absolute().parent)
            undo.pop_all()
    except OSError as error:
        raise failure(error, leaf) from error
    child.file.path = leaf
    image.file.freeze(base)
    return child


def _take_back(image: VhdImage, leaf: Path, base: Path) -> None:
    """Make base and leaf one again; stop at the first failure, for the base's name may be the data's only one."""
    if not base.samefile(leaf):
        os.rename(base, leaf)
    set_hidden(image, False)
    base.unlink(missing_ok=True)


def _new_child(undo: ExitStack, path: Path, base: Path, image: VhdImage, clock: Clock) -> None:
    """Make an empty child under its unfinished name."""
    vhd.create(unfinished(path), image.footer.size, base, clock=clock)
    undo.callback(unfinished(path).unlink, missing_ok=True)


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise DiskError(Kind.REFUSED, f"{path}: exists")


def set_hidden(image: VhdImage, hidden: bool) -> None:
    """Mark an image as one that has children, or not, durably."""
    if image.footer.hidden != hidden:
        image.change_footer(replace(image.footer, hidden=hidden))


def undone(leaf: Path, base: Path) -> bool:
    """Take back what a crash left of `split`, but for the copies; tell whether the split had not happened.

    May be called any number of times, and after a crash in it again.
    """
    happened = base.exists() and not leaf.samefile(base)
    if happened:
        return False
    image = layer_of(ImageFile.open(leaf, writable=True))
    try:
        if isinstance(image, VhdImage):
            set_hidden(image, False)
    finally:
        image.file.close()
    base.unlink(missing_ok=True)
    return True
