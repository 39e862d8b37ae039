"""A guest's virtual memory, as its page tables have it now."""

from __future__ import annotations

from hypervisor.arch.x86_64.cpu import paging
from hypervisor.arch.x86_64.cpu.overlay import Overlay
from hypervisor.memory.guest_memory import Memory

_ALL = (1 << 64) - 1


class VirtualMemory:
    """What a CPU with these registers sees of a memory."""

    overlay: Overlay
    memory: Memory

    def translate(self, address: int, root: int | None = None) -> int:
        """Return the physical address of a virtual one. Raises BadAddress."""
        overlay = self.overlay
        cr = overlay.cr
        if not cr[0] & 0x8000_0000:
            return address
        table = cr[3] if root is None else root
        if overlay.efer.value & 0x400:
            return paging.walk64(self.memory, table, address)
        if cr[4] & 0x20:
            return paging.walk_pae(self.memory, table, address)
        return paging.walk32(self.memory, table, address, large=bool(cr[4] & 0x10))

    def read(self, address: int, length: int) -> bytes:
        """Return a copy of a virtual range. Raises BadAddress."""
        parts = []
        while length > 0:
            here = min(length, 0x1000 - (address & 0xFFF))
            parts.append(self.memory.read(self.translate(address), here))
            address = (address + here) & _ALL
            length -= here
        return b"".join(parts)

    def write(self, address: int, data: bytes) -> None:
        """Overwrite a virtual range. Raises BadAddress, with nothing or the first pages written."""
        view = memoryview(data)
        while view:
            here = min(len(view), 0x1000 - (address & 0xFFF))
            self.memory.write(self.translate(address), view[:here])
            address = (address + here) & _ALL
            view = view[here:]
