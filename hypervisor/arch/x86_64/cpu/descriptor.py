"""A segment descriptor as the CPU's tables hold it (Intel SDM volume 3, chapter 3)."""

from __future__ import annotations

from dataclasses import dataclass

from hypervisor.arch.x86_64.cpu.overlay import Segment

_S, _CODE, _WRITABLE, _CONFORMING, _P, _GRANULAR = 1 << 12, 1 << 11, 1 << 9, 1 << 10, 1 << 15, 1 << 23


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A descriptor; `flags` is its second word, as the CPU keeps it."""

    low: int
    flags: int

    @property
    def base(self) -> int:
        """The segment's first address."""
        return self.low >> 16 | (self.flags & 0xFF) << 16 | (self.flags & 0xFF000000)

    @property
    def limit(self) -> int:
        """The segment's last offset."""
        limit = self.low & 0xFFFF | self.flags & 0xF0000
        return limit << 12 | 0xFFF if self.flags & _GRANULAR else limit

    def is_code(self, level: int) -> bool:
        """Tell whether this can be a code segment of a privilege level."""
        flags = self.flags
        if not flags & _S or not flags & _CODE or not flags & _P:
            return False
        return bool(flags & _CONFORMING) or flags >> 13 & 3 == level

    def is_stack(self, level: int) -> bool:
        """Tell whether this can be a stack segment of a privilege level."""
        flags = self.flags
        return bool(flags & _S and flags & _WRITABLE and flags & _P and not flags & _CODE) and flags >> 13 & 3 == level

    def load(self, segment: Segment, selector: int) -> None:
        """Fill a segment register."""
        segment.selector, segment.flags = selector, self.flags
        segment.base, segment.limit = self.base, self.limit
