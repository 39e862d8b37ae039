"""Open an image with all its parents, believing nothing of what a file says of another.

A parent's place is a hint in the child (parent locators, then its name beside the child). It is followed only into
the child's own directory, or others that the caller allows: an image that somebody uploaded must not make us serve
any file of the host. Each parent must bear the uuid that the child expects.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from hypervisor.disks import vhd_format as form
from hypervisor.disks.disk import DiskError, Kind
from hypervisor.disks.image_file import ImageFile
from hypervisor.disks.raw import RawDisk
from hypervisor.disks.vhd_image import VhdImage
from hypervisor.disks.vhd_layout import find_footer

MAX_DEPTH = 64
"""Files of a chain; XenServer stops at 30."""

Layer = VhdImage | RawDisk


def open_layers(path: Path, *, writable: bool, directories: Sequence[Path], force: bool = False) -> list[Layer]:
    """Open a leaf, for writing if asked, and its parents for reading; the leaf is first, the oldest last.

    A hidden image (one that has children) is opened for writing only by `force`.
    """
    allowed = [Path(os.path.realpath(one)) for one in (path.resolve().parent, *directories)]
    layers: list[Layer] = []
    seen: set[tuple[int, int]] = set()
    try:
        file = ImageFile.open(path, writable=writable)
        layers.append(layer := layer_of(file, writable and not force))
        while isinstance(layer, VhdImage) and layer.footer.kind == form.DIFFERENCING:
            seen.add(layer.file.identity)
            if len(layers) == MAX_DEPTH:
                raise DiskError(Kind.DAMAGED, f"{path}: a chain of more than {MAX_DEPTH} images")
            layers.append(layer := _open_parent(layer, allowed, seen))
        return layers
    except BaseException:
        for layer in layers:
            layer.file.close()
        raise


def layer_of(file: ImageFile, refuse_hidden: bool = False) -> Layer:
    """Take over a file as what its footer says; it is closed on failure."""
    try:
        footer, _ = find_footer(file)
        if refuse_hidden and footer.hidden:
            raise DiskError(Kind.READ_ONLY, f"{file.path}: has children")
        if footer.kind == form.FIXED:
            return RawDisk(file, footer.size)
        return VhdImage(file)
    except BaseException:
        file.close()
        raise


def _open_parent(child: VhdImage, allowed: Sequence[Path], seen: set[tuple[int, int]]) -> Layer:
    """Open the first hinted file that is the child's parent."""
    outside, wrong = False, ""
    for path in candidates(child):
        if not any(path.is_relative_to(directory) for directory in allowed):
            outside = True
            continue
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                raise DiskError(Kind.DAMAGED, f"{child.file.path}: is its own ancestor")
            file = ImageFile.open(path, writable=False)
        except (OSError, ValueError):
            continue
        except DiskError as error:
            if error.kind is Kind.NOT_FOUND:
                continue
            raise
        if child.header.parent_uuid == form.NO_UUID:  # XenServer's way to have a raw parent
            return _closing(file)
        layer = _verified(file, child)
        if layer is not None:
            return layer
        wrong = str(path)
    if wrong:
        raise DiskError(Kind.MISMATCH, f"{child.file.path}: {wrong} is not {child.header.parent_uuid}")
    reason = "lies outside its directory" if outside else "is missing"
    raise DiskError(Kind.NOT_FOUND, f"{child.file.path}: its parent {child.header.parent_name!r} {reason}")


def _closing(file: ImageFile) -> RawDisk:
    try:
        return RawDisk(file, file.size // 512 * 512)
    except BaseException:
        file.close()
        raise


def _verified(file: ImageFile, child: VhdImage) -> Layer | None:
    """Return the layer if it is the expected one; otherwise close the file."""
    try:
        expected = find_footer(file)[0].uuid == child.header.parent_uuid
    except BaseException:
        file.close()
        raise
    if expected:
        return layer_of(file)
    file.close()
    return None


def candidates(child: VhdImage) -> Iterator[Path]:
    """Yield the real paths at which the parent may lie, each once."""
    home = os.path.dirname(os.path.realpath(child.file.path))
    names = [name for code, data in child.hints() for name in form.decode_locator(code, data)]
    if child.header.parent_name:
        names.append(os.path.basename(child.header.parent_name))
    done: set[str] = set()
    for name in names:
        with suppress(OSError, ValueError):  # such as a zero byte, or a name too long
            path = os.path.realpath(os.path.join(home, name))
            if path not in done:
                done.add(path)
                yield Path(path)
