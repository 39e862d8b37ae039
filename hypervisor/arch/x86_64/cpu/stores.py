"""Stores at full speed to pages that hold no code, and none unnoticed to pages that do: a mend of Unicorn 2.1.4.

A store to a page from which code was translated must drop that code. So QEMU keeps such pages out of the fast path:
a page's first code takes the fast path from every entry of the TLB that leads to it (``tlb_protect_code``), and the
next store gives it back once the page holds no code (``notdirty_write``). Unicorn has neither. It takes the fast path
from the page's *virtual* address only, with a walk through the whole TLB for each block that it translates, and gives
it back whenever the address cannot be executed, code or not: what is written at another address of the same page is
not noticed. And it never gives it back where the address can be executed, as all of Linux's data can until the end of
its boot: a third of the time of a boot was spent in such stores, and a twentieth in the walks (measured).

`mend` makes it QEMU's way again. `proof`, beside this module, proves that no code is missed, the tests that stores
are fast.
"""

from __future__ import annotations

import ctypes
import re
import struct

from hypervisor.arch.x86_64.cpu.patch import JUMP, address, divert, find, write

_RETURN = b"\xc3"

_RAM_ADDRESS = bytes.fromhex(
    "4f8d1c2c"  # lea r11, [r12 + r13]
    "498bbfa8810000"  # mov rdi, [r15 + 0x81a8]
    "4489f2"  # mov edx, r14d
    "4889442418"  # mov [rsp + 0x18], rax
    "4c01da4c89de"  # add rdx, r11; mov rsi, r11
    "4c895c2410"  # mov [rsp + 0x10], r11
)
"""In ``notdirty_write``: R15 is the CPU, which leads to the engine; the store's RAM address is at [RSP + 16]."""
_EXECUTABLE = bytes.fromhex(
    "f6808800000004"  # test byte [rax + 0x88], 4
    "7535"  # jne: the region of memory, RAX and R9, can be executed: look for code
)
_CONDITION = bytes.fromhex(
    "48837d10ff"  # cmp qword [rbp + 0x10], -1
    "747c"  # je: the address cannot be executed: give the fast path back
    "4883c428"  # add rsp, 0x28: leave
)
_GIVE_BACK, _LEAVE = 7 + 0x7C, 7
"""Where the condition leads, from its beginning."""
_FIND_PAGE = (
    re.escape(bytes.fromhex("8b87f00200008b8ff402000083e801"))  # mov eax, [rdi + 0x2f0]; mov ecx, [rdi + 0x2f4]; …
    + b".{0,16}"
    + re.escape(
        bytes.fromhex("488b97e0020000488d14c28b87f8020000")
    )  # mov rdx, [rdi + 0x2e0]; …; mov eax, [rdi + 0x2f8]
)
"""How ``tb_invalidate_phys_page_fast`` goes to what the engine knows of a page, as `_HAS_CODE` does."""

_HAS_CODE = bytes.fromhex(
    "41f6818800000004 746e"  # test byte [r9 + 0x88], 4; jz to the first target: there can be no code
    "498bbfa8810000 488b742410 48c1ee0c"  # mov rdi, [r15 + 0x81a8]; mov rsi, [rsp + 16]; shr rsi, 12
    "8b8ff4020000 4889f2 48d3ea"  # mov ecx, [rdi + 0x2f4]; mov rdx, rsi; shr rdx, cl
    "8b87f0020000 ffc8 4821d0"  # mov eax, [rdi + 0x2f0]; dec eax; and rax, rdx
    "488b97e0020000 488d14c2"  # mov rdx, [rdi + 0x2e0]; lea rdx, [rdx + 8 * rax]
    "8b87f8020000 8d0c80 01c9"  # mov eax, [rdi + 0x2f8]; lea ecx, [rax + 4 * rax]; add ecx, ecx
    "488b12 4885d2 7429"  # next: mov rdx, [rdx]; test rdx, rdx; jz to the first target
    "85c9 7414"  # test ecx, ecx; jz to page
    "4889f0 48d3e8 25ff030000"  # mov rax, rsi; shr rax, cl; and eax, 1023
    "488d14c2 83e90a ebe0"  # lea rdx, [rdx + 8 * rax]; sub ecx, 10; jmp to next
    "81e6ff030000 488d0476"  # page: and esi, 1023; lea rax, [rsi + 2 * rsi]
    "48833cc200 7505"  # cmp qword [rdx + 8 * rax], 0; jne to the second target: there is code
)
"""``page_find(ram_address >> 12)->first_tb``: goes to its first target without code in the page, else to its second."""


def mend() -> None:
    """Make the change, once, for all engines of this process. Raises UnknownCode."""
    protect = address("tlb_protect_code_x86_64")
    if ctypes.string_at(protect, 1) == JUMP:
        return
    start, end = address("tlb_set_dirty_x86_64"), address("tlb_set_page_with_attrs_x86_64")
    find(start, end, re.escape(_EXECUTABLE))
    find(start, end, re.escape(_RAM_ADDRESS))
    condition, _ = find(start, end, re.escape(_CONDITION))
    invalidate = address("tb_invalidate_phys_page_fast_x86_64")
    find(invalidate, invalidate + 256, _FIND_PAGE)
    divert(condition, _HAS_CODE, condition + _GIVE_BACK, condition + _LEAVE)
    divert(protect, _protect())
    write(address("tlb_reset_dirty_by_vaddr_x86_64"), _RETURN)


def _protect() -> bytes:
    """Return ``tlb_reset_dirty(uc->cpu, qemu_map_ram_ptr(uc, NULL, ram_address), 4096)``."""
    return (
        bytes.fromhex("53 4889fb 4889f2 31f6 48b8")  # push rbx; mov rbx, rdi; mov rdx, rsi; xor esi, esi; mov rax, …
        + struct.pack("<Q", address("qemu_map_ram_ptr_x86_64"))
        + bytes.fromhex("ffd0 488bbbb8010000 4889c6")  # call rax; mov rdi, [rbx + 440]; mov rsi, rax
        + bytes.fromhex("ba00100000 5b 48b8")  # mov edx, 4096; pop rbx; mov rax, …
        + struct.pack("<Q", address("tlb_reset_dirty_x86_64"))
        + bytes.fromhex("ffe0")  # jmp rax
    )
