"""What a PV domain takes along besides memory and registers: what its guest has told Xen.

**Nothing is translated.** To another host Xen's toolstack carries page tables with the guest's own frame numbers in
them and puts other machine frames in (tools/libs/guest/xg_sr_common_x86_pv.c). Here each domain has machine frames
of its own memory, `mfn == pfn` (`arch.x86_64.pv.area`); the calls by which a guest could have it otherwise are refused
(`memory_op` exchanges nothing and populates a frame under its own number). So page tables, p2m list and descriptor
tables mean in the new domain what they meant in the old one. Entries for Xen's frames (grants, M2P) do too, for
those lie behind as much RAM again.

Xen's own frames are no part of a stream: they are built anew, or are in the frozen memory of a clone, and what the
guest had there (its shared page, its GDT) is placed again. Page tables are counted again, from those that the guest
has pinned and the CPUs use. What it had written into the M2P table itself is lost, as with Xen.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import replace

from hypervisor.arch.x86_64.pv.area import FRAME_MASK, RESERVED_GDT_PAGE, canonical
from hypervisor.arch.x86_64.pv.cpu import PVCPU
from hypervisor.arch.x86_64.pv.descriptors import set_ldt
from hypervisor.arch.x86_64.pv.page_tables import PageTables
from hypervisor.arch.x86_64.pv.state import PVState
from hypervisor.errors import EINVAL, XenError
from hypervisor.memory.guest_memory import PAGE

_STATE = struct.Struct("<256Q256BQQ?Q?Q?QQQQI8QI")
"""Traps' addresses and flags, callbacks, stack, roots, LDT, debug registers, number of the GDT's frames."""
_PINNED = struct.Struct("<QI")


def copied(state: PVState) -> PVState:
    """Return a copy that has nothing in common with its origin."""
    return replace(state, traps=list(state.traps), debug=list(state.debug))


def encode(state: PVState) -> bytes:
    """Return the body of a record `PV_VCPU`."""
    addresses, flags = zip(*state.traps)
    callbacks = (state.event, *state.failsafe, *state.syscall, *state.syscall32)
    roots = (state.stack, state.kernel_root, state.user_root)
    fixed = _STATE.pack(*addresses, *flags, *callbacks, *roots, *state.ldt, *state.debug, len(state.gdt))
    return fixed + struct.pack(f"<{len(state.gdt)}Q", *state.gdt)


def decode(body: bytes) -> PVState:
    """Return what a body says. Raises ValueError for addresses that no guest can have told; `install` checks frames."""
    if len(body) < _STATE.size:
        raise ValueError("a PV CPU's record is too short")
    values = _STATE.unpack_from(body)
    addresses, flags, rest = values[:256], values[256:512], values[512:]
    callbacks, (stack, *roots), ldt, debug, count = rest[:7], rest[7:10], rest[10:12], rest[12:20], rest[20]
    if count > RESERVED_GDT_PAGE or len(body) != _STATE.size + 8 * count:
        raise ValueError("a PV CPU's descriptor table has another length")
    event, failsafe, syscall, syscall32 = callbacks[0], callbacks[1:3], callbacks[3:5], callbacks[5:7]
    told = (*addresses, event, failsafe[0], syscall[0], syscall32[0])
    if not all(canonical(address) for address in told) or any(root % PAGE for root in roots):
        raise ValueError("a PV CPU has impossible addresses")
    gdt = struct.unpack_from(f"<{count}Q", body, _STATE.size)
    traps = list(zip(addresses, flags))
    return PVState(traps, event, failsafe, syscall, syscall32, stack, roots[0], roots[1], gdt, ldt, list(debug))


def encode_pinned(pinned: Iterable[tuple[int, int]]) -> bytes:
    """Return the body of a record `PINNED`: frames and levels of page tables."""
    return b"".join(_PINNED.pack(*each) for each in pinned)


def decode_pinned(body: bytes) -> list[tuple[int, int]]:
    """Return what a body says. Raises ValueError."""
    if len(body) % _PINNED.size:
        raise ValueError("a list of page tables has a broken length")
    return [(frame, level) for frame, level in _PINNED.iter_unpack(body)]


def pin(tables: PageTables, pinned: Mapping[int, int]) -> None:
    """Pin page tables, levels by frames, whose content is in place. Raises ValueError for what is none."""
    for frame, level in pinned.items():
        try:
            if not 1 <= level <= 4:
                raise XenError(EINVAL)
            tables.pin(frame, level)
        except XenError as error:
            raise ValueError(f"frame {frame:#x} is no page table of level {level}") from error


def install(cpu: PVCPU, state: PVState) -> None:
    """Let a new CPU, whose registers are loaded, have a state. Raises ValueError where it does not fit the memory."""
    cpu.state = state = copied(state)
    if any(frame >= cpu.area.frames for frame in state.gdt):
        raise ValueError("a descriptor table lies outside of the domain's memory")
    if cpu.overlay.cr[3] & FRAME_MASK not in (state.kernel_root, state.user_root):
        raise ValueError("a PV CPU runs on page tables that it was not given")
    try:
        for root in (state.kernel_root, state.user_root):
            if root:
                cpu.tables.use(root // PAGE, 4)
        if state.ldt[1]:
            set_ldt(cpu, *state.ldt)
    except XenError as error:
        raise ValueError("a PV CPU's page tables are none") from error
    cpu.area.place_gdt(cpu.memory, cpu.number, state.gdt)
