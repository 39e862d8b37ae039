"""Where the parts of a VHD file lie.

In the images that we make: 0 footer copy, 512 and 1536 the two headers, 4096 and 32768 their parent locators, 65536
the BAT with room (a hole) for the largest disk, so that growing moves nothing, the batmap behind the BAT, then blocks
with their data on 4 KiB. All parts are found by pointers, so any reader follows, and so do we in others' images.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypervisor.disks import vhd_format as form
from hypervisor.disks.disk import SECTOR, DiskError, Kind
from hypervisor.disks.image_file import ImageFile
from hypervisor.disks.vhd_format import Footer, Header, Locator

BAT_PLACE = 65536
HEADER_PLACES = (512, 1536)
LOCATOR_PLACES = (4096, 32768)
DATA_PLACE = BAT_PLACE + form.padded(form.MAX_ENTRIES * 4) + SECTOR + form.padded(-(-form.MAX_ENTRIES // 8))
_ALIGNED = 8  # sectors: data of a block begin on 4 KiB


def find_footer(file: ImageFile) -> tuple[Footer, bool]:
    """Return the footer and whether it is at the end, where it belongs.

    The copy at offset 0 is believed first: a dynamic file that a power cut left short may end in a sector of guest
    data, which a guest can make look like a footer; and only a fixed image has guest data at offset 0.
    """
    size = file.size
    if size < SECTOR:
        raise DiskError(Kind.DAMAGED, f"{file.path}: too short for a VHD")
    last, copy = _footer(file, size - SECTOR), _footer(file, 0)
    if last and last.kind == form.FIXED and size == last.size + SECTOR:
        return last, True
    if copy and copy.kind != form.FIXED:
        return copy, last == copy
    if last and last.kind != form.FIXED:
        return last, False
    raise DiskError(Kind.DAMAGED, f"{file.path}: no VHD footer")


def _footer(file: ImageFile, offset: int) -> Footer | None:
    try:
        return Footer.decode(file.read(offset, SECTOR))
    except DiskError as error:
        if error.kind is Kind.DAMAGED:
            return None
        raise


def read_header(file: ImageFile, footer: Footer) -> Header:
    """Return the header that a footer points to, compared with the file's size; raise DiskError(DAMAGED)."""
    size, offset = file.size, footer.data_offset
    if footer.kind == form.FIXED or offset % SECTOR or offset + form.HEADER_SIZE > size:
        raise DiskError(Kind.DAMAGED, f"{file.path}: its header at {offset}")
    header = Header.decode(file.read(offset, form.HEADER_SIZE))
    if header.entries * header.block_size < footer.size or header.table_offset + header.table_size > size:
        raise DiskError(Kind.DAMAGED, f"{file.path}: its table is too short or outside the file")
    return header


def extent(offset: int, length: int) -> tuple[int, int]:
    """Return the first sector, and the one behind the last, of a part in bytes."""
    return offset // SECTOR, -(-(offset + length) // SECTOR)


def aligned(sector: int, bitmap_sectors: int) -> int:
    """Return the first place for a block, from a sector on, whose data begin on 4 KiB."""
    return sector + -(sector + bitmap_sectors) % _ALIGNED


def gaps(places: list[tuple[int, int]], first: int, bitmap_sectors: int, span: int) -> list[int]:
    """Return the places for blocks of `span` sectors between sorted parts, from sector `first` on, highest first."""
    step = -(-span // _ALIGNED) * _ALIGNED
    found: list[int] = []
    for (_, end), (start, _) in pairwise(places):
        slot = aligned(max(end, first), bitmap_sectors)
        while slot + span <= start:
            found.append(slot)
            slot += step
    return found[::-1]


def write_batmap(file: ImageFile, header: Header) -> None:
    """Write a batmap without hints behind the BAT."""
    start = header.table_offset + header.table_size
    file.zero(start + SECTOR, form.batmap_size(header) - SECTOR)
    file.write(start, form.batmap(header))


def write_header(file: ImageFile, header: Header, hints: list[tuple[bytes, bytes]], place: int, at: int) -> Header:
    """Write parent locators from `at` on and the header that names them at `place`; return that header."""
    locators: list[Locator] = []
    for code, data in hints:
        file.write(at, data.ljust(form.padded(len(data)), b"\0"))
        locators.append(Locator(code, len(data), at))
        at += form.padded(len(data))
    header = replace(header, locators=tuple(locators))
    file.write(place, header.encode())
    return header


def write_empty(file: ImageFile, footer: Footer, header: Header, hints: list[tuple[bytes, bytes]]) -> None:
    """Make an empty file an image without blocks, durably; the copy at offset 0, last, makes it valid."""
    header = write_header(file, replace(header, table_offset=BAT_PLACE), hints, HEADER_PLACES[0], LOCATOR_PLACES[0])
    file.write(BAT_PLACE, b"\xff" * header.table_size)
    file.write(BAT_PLACE + header.table_size, form.batmap(header))
    encoded = replace(footer, data_offset=HEADER_PLACES[0]).encode()
    file.write(DATA_PLACE, encoded)
    file.sync()
    file.write(0, encoded)
    file.sync()
