"""Unified kernel images: a kernel, its initrd and command line as sections of one EFI program.

By the UAPI group's specification of that name and the PE format (Microsoft, "PE Format"). The program itself,
systemd's stub, is not run; what it would start is.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hypervisor.bootloader.errors import BootError
from hypervisor.bootloader.menu import Entry
from hypervisor.bootloader.places import File
from hypervisor.bootloader.tree import Content

_MOST_SECTIONS = 96
_SECTION = struct.Struct("<8sIIII")


@dataclass(frozen=True, slots=True)
class Section(File):
    """A section of an EFI program, as a file."""

    section: str = ""

    @property
    def title(self) -> str:
        return f"{self.section} of {File(self.place, self.path).title}"

    def read(self, limit: int) -> Content:
        """Return the section's bytes. Raises BootError."""
        image = File(self.place, self.path).read(limit)
        found = sections(image).get(self.section)
        if found is None:
            raise BootError(f"{self.title} is missing: this is no unified kernel image")
        start, size = found
        return image[start : start + size]


def entry(image: File, title: str, options: str) -> Entry:
    """Return what a unified kernel image starts; `options` replace its own command line if there are any."""
    # Section headers lie in the first pages, but there is no reading a part of a file: it is read whole.
    content = image.read(512 << 20)
    found = sections(content)
    if ".linux" not in found:
        raise BootError(f"{image.title} is an EFI program, not a kernel")
    start, size = found.get(".cmdline", (0, 0))
    own = bytes(content[start : start + size]).decode("utf-8", "replace").strip("\0\n ")
    initrds = (Section(image.place, image.path, ".initrd"),) if ".initrd" in found else ()
    return Entry(title, Section(image.place, image.path, ".linux"), initrds, options or own)


def sections(image: Content) -> dict[str, tuple[int, int]]:
    """Return name, offset and size of the sections of a PE file, {} for other files."""
    if len(image) < 64 or image[:2] != b"MZ":
        return {}
    (header,) = struct.unpack_from("<I", image, 60)
    if header + 24 > len(image) or image[header : header + 4] != b"PE\0\0":
        return {}
    count, optional = struct.unpack_from("<2xH12xH", image, header + 4)
    at = header + 24 + optional
    found = {}
    for _ in range(min(count, _MOST_SECTIONS)):
        if at + 40 > len(image):
            break
        name, virtual, _, size, start = _SECTION.unpack_from(image, at)
        found[name.rstrip(b"\0").decode("ascii", "replace")] = start, min(virtual or size, size)
        at += 40
    return found
