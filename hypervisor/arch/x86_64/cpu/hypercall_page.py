"""The page of calls that a guest gets from Xen: entry n, of 32 bytes, does hypercall n and returns.

A PV kernel that names a place for it in its notes finds it there; all others write the frame's address to
the register `msr.HYPERCALL_PAGE`, at any time and as often as they like.
"""

from __future__ import annotations

import struct

PAGE = 4096
_ENTRY = 32
_HYPERCALLS = 64
"""NR_hypercalls of Xen: entries of an HVM guest's page; behind them are breakpoints."""
_IRET = 23
_UNDEFINED = b"\x0f\x0b"


def hvm() -> bytes:
    """Return the page of a guest with hardware virtualisation, in which iret is undefined (vmx_init_hypercall_page)."""
    page = bytearray()
    for number in range(_HYPERCALLS):  # mov eax, number; vmcall; ret
        call = b"\xb8" + struct.pack("<I", number) + bytes.fromhex("0f 01 c1 c3")
        page += (_UNDEFINED if number == _IRET else call).ljust(_ENTRY, b"\xcc")
    return bytes(page.ljust(PAGE, b"\xcc"))


def pv() -> bytes:
    """Return the page of a 64-bit PV guest: SYSCALL with RCX and R11 kept; iret does not come back."""
    page = bytearray()
    for number in range(PAGE // _ENTRY):
        if number == _IRET:  # push rcx; push r11; push rax; mov eax, 23; syscall
            call = bytes.fromhex("51 41 53 50 b8") + struct.pack("<I", number) + bytes.fromhex("0f 05")
        else:  # push rcx; push r11; mov eax, number; syscall; pop r11; pop rcx; ret
            call = bytes.fromhex("51 41 53 b8") + struct.pack("<I", number) + bytes.fromhex("0f 05 41 5b 59 c3")
        page += call.ljust(_ENTRY, b"\xcc")
    return bytes(page)
