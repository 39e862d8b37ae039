"""A small CD: an ISO 9660 image (ECMA-119, level 1) whose root directory holds a few files."""

from __future__ import annotations

import struct
from collections.abc import Mapping

SECTOR = 2048
_DESCRIPTOR = 16
"""The sector of the primary volume descriptor; the terminator and both path tables follow it."""
_ROOT = _DESCRIPTOR + 4
_NO_DATE = b"0" * 16 + b"\0"


def image(label: str, files: Mapping[str, bytes]) -> bytes:
    """Return a CD with files in its root; names are of the form README.TXT.

    Raises ValueError for more files than one sector of directory holds.
    """
    at, extents = _ROOT + 1, dict[str, tuple[int, int]]()
    for name, data in sorted(files.items()):
        extents[name] = at, len(data)
        at += _sectors(len(data))
    root = _directory(extents)
    if len(root) > SECTOR:
        raise ValueError(f"{len(files)} files are too many for a small CD")
    sectors = {
        _DESCRIPTOR: _primary(label, at),
        _DESCRIPTOR + 1: b"\xffCD001\x01",
        _DESCRIPTOR + 2: struct.pack("<BBIH2x", 1, 0, _ROOT, 1),
        _DESCRIPTOR + 3: struct.pack(">BBIH2x", 1, 0, _ROOT, 1),
        _ROOT: root,
        **{extents[name][0]: data for name, data in files.items()},
    }
    disc = bytearray(at * SECTOR)
    for sector, data in sectors.items():
        disc[sector * SECTOR : sector * SECTOR + len(data)] = data
    return bytes(disc)


def _sectors(size: int) -> int:
    return -(-size // SECTOR)


def _both(number: int, *, wide: bool = True) -> bytes:
    """Return a number in both byte orders, as the standard wants it."""
    return struct.pack("<I" if wide else "<H", number) + struct.pack(">I" if wide else ">H", number)


def _record(name: bytes, sector: int, size: int, *, directory: bool = False) -> bytes:
    """Return a directory record, without a date."""
    length = 33 + len(name) + (len(name) + 1) % 2
    flags = bytes((2 if directory else 0, 0, 0))
    record = bytes((length, 0)) + _both(sector) + _both(size) + bytes(7) + flags + _both(1, wide=False)
    return (record + bytes((len(name),)) + name).ljust(length, b"\0")


def _directory(extents: Mapping[str, tuple[int, int]]) -> bytes:
    own = [_record(name, _ROOT, SECTOR, directory=True) for name in (b"\0", b"\1")]
    return b"".join([*own, *(_record(f"{name};1".encode("ascii"), *extents[name]) for name in sorted(extents))])


def _primary(label: str, sectors: int) -> bytes:
    def text(value: str, length: int) -> bytes:
        return value.encode("ascii", "replace")[:length].ljust(length)

    return b"".join(
        (
            b"\x01CD001\x01\0",
            text("", 32),
            text(label, 32),
            bytes(8),
            _both(sectors),
            bytes(32),
            _both(1, wide=False) * 2,
            _both(SECTOR, wide=False),
            _both(10),
            struct.pack("<II", _DESCRIPTOR + 2, 0),
            struct.pack(">II", _DESCRIPTOR + 3, 0),
            _record(b"\0", _ROOT, SECTOR, directory=True),
            text("", 128 * 4 + 37 * 3),
            _NO_DATE * 4,
            b"\x01\0",
        )
    )
