"""Which frames of a PV domain are page tables, and of what level: Xen's page types, as far as guests see.

Xen validates page tables because a guest's entries are machine addresses. Here they are not: an entry can reach
nothing but the domain's own memory, and the frames of others that it shows for as long as they are mapped, so
safety needs no validation, and there is less of it than in Xen (xen/arch/x86/mm.c). What is kept is what a
sane guest can notice: a table is counted for each pin, each entry and each base pointer that uses it, with its
level; the wrong level, a frame that is not the guest's, a large page and a write to Xen's slots are refused.
What is not: writable mappings of tables are not hunted for, and the descriptors in a GDT are not looked at. A
guest that writes to its upper tables behind Xen's back (which Xen prevents) only makes its own counts wrong.

Xen emulates a kernel's write to a level-1 table that it has mapped read-only ("writable page tables"), and Linux
counts on it. `is_level1` tells the CPU when such a write is to be let through.
"""

from __future__ import annotations

from hypervisor.arch.x86_64.pv.area import (
    ACCESSED,
    DIRTY,
    END_XEN_SLOT,
    FIRST_XEN_SLOT,
    FRAME_MASK,
    LARGE,
    PRESENT,
    WRITABLE,
    Area,
)
from hypervisor.errors import EINVAL, ENOMEM, XenError
from hypervisor.memory.guest_memory import PAGE, Memory

_MOST = 4096
"""Upper tables looked at in one operation; a guest of 512 GiB has some 600 in all."""
_NO_ENTRIES = [0] * 512
_CHECKED = PRESENT | WRITABLE | FRAME_MASK
"""What is looked at again when an entry of a mapped grant is changed; the other bits are the guest's (mod_l1_entry)."""


class PageTables:
    """The page tables of one domain."""

    def __init__(self, memory: Memory, area: Area) -> None:
        self.area = area
        self._memory = memory
        self._words = memory.words
        self._levels: dict[int, int] = {}
        self._uses: dict[int, int] = {}
        self._pinned: set[int] = set()
        self._budget = 0

    def is_level1(self, frame: int) -> bool:
        """Tell whether a frame is a table of the lowest level."""
        return self._levels.get(frame) == 1

    def level(self, frame: int) -> int:
        """Return the level of a page table, 0 for a frame that is none."""
        return self._levels.get(frame, 0)

    def pinned(self) -> dict[int, int]:
        """Return the frames that the guest has pinned, with their levels."""
        return {frame: self._levels[frame] for frame in sorted(self._pinned)}

    # Counting

    def use(self, frame: int, level: int) -> None:
        """Count a use of a table, and of all below it with the first. Raises XenError, with nothing counted."""
        self._budget = _MOST
        self._use(frame, level)

    def _use(self, frame: int, level: int) -> None:
        known = self._levels.get(frame)
        if known is not None:
            if known != level:
                raise XenError(EINVAL)
            self._uses[frame] += 1
            return
        if not 0 <= frame < self.area.frames:
            raise XenError(EINVAL)
        self._levels[frame], self._uses[frame] = level, 1
        if level == 1:
            return
        done: list[int] = []
        try:
            for child in self._children(frame, level):
                if self._levels.get(child) != level:  # else a table that maps its own level: "linear" page tables
                    self._use(child, level - 1)
                    done.append(child)
        except XenError:
            del self._levels[frame], self._uses[frame]
            for child in done:
                self._drop(child, level - 1)
            raise
        if level == 4:
            self.area.install(self._memory, frame)

    def _children(self, frame: int, level: int) -> list[int]:
        """Return the frames that a table's present entries point to, Xen's slots left out."""
        if self._budget <= 0:
            raise XenError(ENOMEM)
        self._budget -= 1
        entries = self._words[frame * 512 : frame * 512 + 512].tolist()
        if level == 4:
            entries[FIRST_XEN_SLOT:END_XEN_SLOT] = []
        if entries == _NO_ENTRIES:
            return []
        present = [entry for entry in entries if entry & PRESENT]
        if level < 4 and any(entry & LARGE for entry in present):
            raise XenError(EINVAL)
        return [(entry & FRAME_MASK) >> 12 for entry in present]

    def drop(self, frame: int, level: int) -> None:
        """Count one use less; the last takes the uses of all below with it."""
        self._budget = _MOST
        self._drop(frame, level)

    def _drop(self, frame: int, level: int) -> None:
        if self._levels.get(frame) != level:
            return  # the guest has changed an upper table without telling
        self._uses[frame] -= 1
        if self._uses[frame]:
            return
        del self._levels[frame], self._uses[frame]
        self._pinned.discard(frame)
        if level > 1:
            try:
                children = self._children(frame, level)
            except XenError:  # spoilt by the guest: its tables below stay counted
                return
            for child in children:
                self._drop(child, level - 1)

    def pin(self, frame: int, level: int) -> None:
        """Keep a table in use (MMUEXT_PIN_Ln_TABLE). Raises XenError."""
        if frame in self._pinned:
            raise XenError(EINVAL)
        self.use(frame, level)
        self._pinned.add(frame)

    def unpin(self, frame: int) -> None:
        """Undo `pin`. Raises XenError."""
        if frame not in self._pinned:
            raise XenError(EINVAL)
        self._pinned.discard(frame)
        self.drop(frame, self._levels[frame])

    # Entries

    def update(self, address: int, value: int, keep_marks: bool = False) -> None:
        """Write the entry, or the word of a plain frame, at a guest-physical address. Raises XenError.

        `keep_marks` leaves the accessed and dirty bits as they are (MMU_PT_UPDATE_PRESERVE_AD).
        """
        frame = address >> 12
        if address & 7 or not 0 <= frame < self.area.frames:
            raise XenError(EINVAL)
        level = self._levels.get(frame, 0)
        words, at = self._words, address >> 3
        old = words[at]
        if level == 1:
            frame = (value & FRAME_MASK) >> 12
            if value & PRESENT and not self.area.may_map(frame) and (value ^ old) & _CHECKED:
                raise XenError(EINVAL)
        elif level:
            self._replace_child(level, at & 511, old, value)
        if keep_marks:
            value |= old & (ACCESSED | DIRTY)
        words[at] = value

    def _replace_child(self, level: int, slot: int, old: int, value: int) -> None:
        if level == 4 and FIRST_XEN_SLOT <= slot < END_XEN_SLOT:
            raise XenError(EINVAL)
        was = (old & FRAME_MASK) >> 12 if old & PRESENT else None
        now = (value & FRAME_MASK) >> 12 if value & PRESENT else None
        if now is not None and level < 4 and value & LARGE:
            raise XenError(EINVAL)
        if was == now:
            return
        if now is not None and self._levels.get(now) != level:
            self.use(now, level - 1)
        if was is not None and self._levels.get(was) != level:
            self.drop(was, level - 1)

    def level1(self, address: int) -> int:
        """Return the index in `Memory.words` of a level-1 entry at a guest-physical address. Raises XenError."""
        if address & 7 or not self.is_level1(address >> 12):
            raise XenError(EINVAL)
        return address >> 3

    def plain(self, frame: int) -> int:
        """Return the address of a frame of the guest's that is no page table. Raises XenError."""
        if not 0 <= frame < self.area.frames:
            raise XenError(EINVAL)
        if frame in self._levels:
            raise XenError(EINVAL)
        return frame * PAGE

    def entry(self, root: int, address: int) -> int:
        """Return where the level-1 entry of a virtual address is, under a top-level table. Raises XenError."""
        words = self._words
        table = root >> 12
        for shift in (39, 30, 21):
            entry = words[table * 512 + (address >> shift & 511)]
            table = (entry & FRAME_MASK) >> 12
            if not entry & PRESENT or (entry & LARGE and shift != 39) or table >= self.area.frames:
                raise XenError(EINVAL)
        return table * PAGE + (address >> 12 & 511) * 8
