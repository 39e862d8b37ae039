"""The frames of a PV domain that are Xen's: what a guest sees of the hypervisor, above its own RAM.

On hardware these are pages of the host; here they lie in the domain's `Memory`, behind its RAM, so that the
CPU's page walks and our own checked ones find them. Frame numbers are the same for guest and machine:
`mfn == pfn`, and the M2P table says so. An image of a domain has its RAM only: `context`.

    frame 0      the shared page (start_info.shared_info)
    frame 1      Xen's part of the GDT: page 14 of each vCPU's (FIRST_RESERVED_GDT_PAGE of public/arch-x86/xen.h)
    frame 2, 3   top tables of the two slots below
    frame 4      zeros: the GDT's other pages
    then         two tables for each vCPU's descriptors, grant frames, status frames, the M2P table, its tables,
                 one frame for each grant that the domain may have mapped: it shows the granted frame meanwhile

Two slots of each top-level page table are Xen's, as a guest expects: slot 256, where the M2P table is read-only
at 0xffff_8000_0000_0000 (MACH2PHYS_VIRT_START), and slot 257 with a window of 128 KiB per vCPU, its GDT (16
pages) and then its LDT (16 pages). A guest runs at CPL 0 here (see `cpu`), so nothing of this is out of its
reach: it can spoil it for itself. Nothing outside depends on its content.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from hypervisor.memory import foreign
from hypervisor.memory.guest_memory import PAGE, Memory

M2P, WINDOW = 0xFFFF_8000_0000_0000, 0xFFFF_8080_0000_0000
M2P_SLOT, WINDOW_SLOT = 256, 257
FIRST_XEN_SLOT, END_XEN_SLOT = 256, 272
"""Slots of a top-level table that are Xen's (HYPERVISOR_VIRT_START and _END); ours use two of them."""
GDT_PAGES, LDT_PAGES, RESERVED_GDT_PAGE = 16, 16, 14
WINDOW_SIZE = (GDT_PAGES + LDT_PAGES) * PAGE
VCPUS = 16
"""Most vCPUs: their windows share one page of level-1 entries."""
KERNEL_CODE, KERNEL_STACK, USER_CODE, USER_STACK = 0xE030, 0xE028, 0xE033, 0xE02B
"""Flat selectors of public/arch-x86/xen-x86_64.h; the kernel's with a requested privilege of 0, for it runs there."""
GRANT_FRAMES, STATUS_FRAMES = 64, 8
LARGEST = 512 << 30
"""Most bytes of RAM: what Linux's p2m and one slot for the M2P table allow."""

PRESENT, WRITABLE, USER, ACCESSED, DIRTY = 1, 2, 4, 0x20, 0x40
LARGE, GRANTED, NO_EXECUTE = 0x80, 1 << 62, 1 << 63
"""GRANTED is Xen's mark of an entry that a mapped grant has written (_PAGE_GNTTAB)."""
FRAME_MASK = 0x000F_FFFF_FFFF_F000
_TABLE = PRESENT | WRITABLE | USER | ACCESSED | DIRTY
_INVALID = (1 << 64) - 1
_DESCRIPTORS = {
    0xE020: 0x00CF_FB00_0000_FFFF,  # FLAT_RING3_CS32
    0xE028: 0x00CF_9300_0000_FFFF,  # data of the kernel's level
    0xE030: 0x00AF_9B00_0000_FFFF,  # 64-bit code of the kernel's level
}
"""Xen's own descriptors, as the guest's CPU finds them: those for the kernel have DPL 0."""


def canonical(address: int) -> bool:
    """Tell whether an address is one of 48 bits, sign-extended."""
    return address >> 47 in (0, 0x1FFFF)


@dataclass(frozen=True, slots=True)
class Area:
    """Where Xen's frames are in a domain with `ram` bytes of RAM, a multiple of the page size."""

    ram: int

    @property
    def frames(self) -> int:
        """How many frames are the guest's: the first that is Xen's."""
        return self.ram // PAGE

    @property
    def shared_info(self) -> int:
        """The shared page's frame."""
        return self.frames

    @property
    def _windows(self) -> int:
        return self.frames + 5

    @property
    def grants(self) -> int:
        """The first frame of the grant table."""
        return self._windows + 2

    @property
    def statuses(self) -> int:
        """The first frame of the grants' status words (version 2)."""
        return self.grants + GRANT_FRAMES

    @property
    def table(self) -> int:
        """The first frame of the M2P table."""
        return self.statuses + STATUS_FRAMES

    @property
    def table_frames(self) -> int:
        """How many frames the M2P table has."""
        return -(-self.frames * 8 // PAGE)

    @property
    def foreign(self) -> range:
        """The frames that show other domains', by the handle of the grant."""
        level1 = -(-self.table_frames // 512)
        level2 = -(-level1 // 512)
        first = self.table + self.table_frames + level1 + level2
        return range(first, first + foreign.MOST)

    @property
    def size(self) -> int:
        """Bytes of RAM and Xen's frames together: the size of the domain's `Memory`."""
        return self.foreign.stop * PAGE

    def may_map(self, frame: int) -> bool:
        """Tell whether a guest may map a frame: its own, the shared page, the grant table, or the M2P table."""
        if 0 <= frame <= self.shared_info:
            return True
        return self.grants <= frame < self.table + self.table_frames

    def window(self, vcpu: int) -> int:
        """Return the virtual address of a vCPU's GDT; the LDT is `GDT_PAGES` behind."""
        return WINDOW + vcpu * WINDOW_SIZE

    def window_entry(self, vcpu: int, page: int) -> int:
        """Return the guest-physical address of the entry that maps a page of a vCPU's window."""
        return (self._windows + 1) * PAGE + (vcpu * (GDT_PAGES + LDT_PAGES) + page) * 8

    def build(self, memory: Memory) -> None:
        """Fill Xen's frames of fresh memory."""
        words, first = memory.words, self.frames
        for selector, descriptor in _DESCRIPTORS.items():
            words[(first + 1) * PAGE + (selector & 0xFFF) >> 3] = descriptor
        numbers = array("Q", range(self.frames))
        numbers.extend([_INVALID] * (self.table_frames * 512 - self.frames))
        memory.write(self.table * PAGE, numbers.tobytes())
        # The tables of the M2P slot: level 1 of all, then level 2, under the top table in frame 2.
        level1 = self.table + self.table_frames
        count1 = -(-self.table_frames // 512)
        level2 = level1 + count1
        for number in range(self.table_frames):
            words[level1 * 512 + number] = (self.table + number) * PAGE | PRESENT | ACCESSED | NO_EXECUTE
        for number in range(count1):
            words[level2 * 512 + number] = (level1 + number) * PAGE | _TABLE
        for number in range(-(-count1 // 512)):
            words[(first + 2) * 512 + number] = (level2 + number) * PAGE | _TABLE
        words[(first + 3) * 512] = self._windows * PAGE | _TABLE
        words[self._windows * 512] = (self._windows + 1) * PAGE | _TABLE
        for vcpu in range(VCPUS):
            self.place_gdt(memory, vcpu)

    def place_gdt(self, memory: Memory, vcpu: int, frames: Sequence[int] = ()) -> None:
        """Let frames that the caller has checked, before `RESERVED_GDT_PAGE`, be a vCPU's GDT; Xen's part is behind."""
        flags = PRESENT | ACCESSED | DIRTY | NO_EXECUTE
        entries = [(self.frames + 4) * PAGE | flags] * GDT_PAGES
        entries[RESERVED_GDT_PAGE] = (self.frames + 1) * PAGE | flags
        entries[: len(frames)] = (frame * PAGE | flags | WRITABLE for frame in frames)
        memory.write(self.window_entry(vcpu, 0), struct.pack(f"<{GDT_PAGES}Q", *entries))

    def install(self, memory: Memory, root: int) -> None:
        """Put Xen's slots into a top-level table, a frame that the caller has checked."""
        at = root * PAGE + 8 * M2P_SLOT
        entries = struct.pack("<QQ", (self.frames + 2) * PAGE | _TABLE, (self.frames + 3) * PAGE | _TABLE)
        memory.write(at, entries)
