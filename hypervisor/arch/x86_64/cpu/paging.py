"""Page walks as the CPU's modes have them (Intel SDM volume 3, chapter 4), for our own look at a guest's memory.

Permissions are not looked at: what asks here acts for the guest's kernel. An entry outside of the memory is none.
"""

from __future__ import annotations

from hypervisor.memory.guest_memory import BadAddress, Memory

_FRAME = 0x000F_FFFF_FFFF_F000
_PRESENT, _LARGE = 1, 0x80


def walk64(memory: Memory, table: int, address: int) -> int:
    """Return the physical address of a virtual one in 64-bit mode: four levels. Raises BadAddress."""
    words, size = memory.words, memory.size
    table &= _FRAME
    for shift in (39, 30, 21, 12):
        at = table + (address >> shift & 511) * 8
        if at + 8 > size:
            break
        entry = words[at >> 3]
        if not entry & _PRESENT:
            break
        table = entry & _FRAME
        if shift == 12 or (entry & _LARGE and shift != 39):
            inside = (1 << shift) - 1
            return (table & ~inside) | (address & inside)
    raise BadAddress(f"virtual address {address:#x} is not mapped")


def walk_pae(memory: Memory, table: int, address: int) -> int:
    """Return the physical address of a virtual one of 32 bits with PAE: four entries, then two levels."""
    address &= 0xFFFFFFFF
    table = table & 0xFFFF_FFE0
    for shift in (30, 21, 12):
        entry = memory.read_u64(table + (address >> shift & (3 if shift == 30 else 511)) * 8)
        if not entry & _PRESENT:
            break
        table = entry & _FRAME
        if shift == 12 or (entry & _LARGE and shift == 21):
            inside = (1 << shift) - 1
            return (table & ~inside) | (address & inside)
    raise BadAddress(f"virtual address {address:#x} is not mapped")


def walk32(memory: Memory, table: int, address: int, *, large: bool) -> int:
    """Return the physical address of a virtual one with 32-bit entries; `large`: pages of 4 MiB are on (CR4.PSE)."""
    address &= 0xFFFFFFFF
    entry = memory.read_u32((table & 0xFFFF_F000) + (address >> 22) * 4)
    if entry & _PRESENT:
        if entry & _LARGE and large:
            return (entry >> 13 & 0xFF) << 32 | entry & 0xFFC0_0000 | address & 0x3F_FFFF
        entry = memory.read_u32((entry & 0xFFFF_F000) + (address >> 12 & 0x3FF) * 4)
        if entry & _PRESENT:
            return entry & 0xFFFF_F000 | address & 0xFFF
    raise BadAddress(f"virtual address {address:#x} is not mapped")
