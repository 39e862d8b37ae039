"""The hypercalls of PV domains, and the answers that differ for them from those of translated ones."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

from hypervisor.arch.vcpu import VCPU
from hypervisor.arch.x86_64.pv import callbacks, descriptors, mmu
from hypervisor.arch.x86_64.pv.area import GRANT_FRAMES, M2P, STATUS_FRAMES
from hypervisor.arch.x86_64.pv.cpu import pv_cpu
from hypervisor.domains.domain import Domain
from hypervisor.domains.grant_table import GNTST_BAD_DOMAIN, GNTST_GENERAL_ERROR, GNTST_OKAY
from hypervisor.domid import DOMID_SELF
from hypervisor.errors import E2BIG, EACCES, EFAULT, EINVAL, ENOENT, ENOSYS, EPERM, XenError
from hypervisor.hypercalls import grant_map, grant_table_op, memory_op, table, vcpu_op
from hypervisor.hypercalls import version as xen_version
from hypervisor.hypercalls.table import dispatcher
from hypervisor.memory.guest_memory import BadAddress

_FEATURES = 1 << 5 | 1 << 6 | 1 << 7
"""XENFEAT mmu_pt_update_preserve_ad, highmem_assist, gnttab_map_avail_bits: those of Xen for such domains."""
_PAE_ABOVE_4GB = 1 << 4
"""XENFEAT_pae_pgdir_above_4gb, once the assist is on."""
_ASSISTS = frozenset({0, 1, 2, 3, 4, 5, 32})
"""VMASST_TYPE_* that Xen has for 64-bit domains (public/xen.h)."""
_MULTICALLS = 1024

_DECREASE, _INCREASE, _POPULATE, _EXCHANGE = 1, 0, 6, 11
_ADD_TO_PHYSMAP, _MACHPHYS_LIST, _MACHPHYS_MAPPING, _ADD_TO_PHYSMAP_BATCH = 7, 5, 12, 23


def _version(domain: Domain, cpu: VCPU, arguments: Sequence[int]) -> int:
    """xen_version: as for others, but for the features and where Xen's addresses begin."""
    command, buffer = arguments[0] & 0xFFFFFFFF, arguments[1]
    if command == 6:
        (index,) = struct.unpack("<I", cpu.read(buffer, 4))
        if index:
            raise XenError(EINVAL)
        cpu.write(buffer + 4, struct.pack("<I", _FEATURES | _PAE_ABOVE_4GB))
        return 0
    if command == 5:
        cpu.write(buffer, struct.pack("<Q", M2P))
        return 0
    return xen_version.xen_version(domain, cpu, arguments)


def _vm_assist(domain: Domain, cpu: VCPU, arguments: Sequence[int]) -> int:
    """vm_assist: what Xen has is on or off as asked; nothing here behaves otherwise for it."""
    command, kind = arguments[0] & 0xFFFFFFFF, arguments[1] & 0xFFFFFFFF
    if command not in (0, 1):
        raise XenError(ENOSYS)
    if kind not in _ASSISTS:
        raise XenError(EINVAL)
    return 0


def _multicall(domain: Domain, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Do a list of hypercalls; each result is written into its entry (public/xen.h, multicall_entry)."""
    address, count = arguments[0], arguments[1] & 0xFFFFFFFF
    if count > _MULTICALLS:
        raise XenError(E2BIG)
    try:
        entries = cpu.read(address, 64 * count)
    except BadAddress:
        raise XenError(EFAULT) from None
    for number, (operation, _, *parameters) in enumerate(struct.iter_unpack("<8Q", entries)):
        operation &= 0xFFFFFFFF
        # A call in a call would let a guest nest without end.
        result = -ENOSYS if operation == 13 else dispatch(domain, cpu, operation, parameters[:5])
        cpu.write(address + 64 * number + 8, struct.pack("<q", result))
    return 0


def _memory(domain: Domain, cpu: VCPU, arguments: Sequence[int]) -> int:
    """memory_op: frames keep their numbers here, so a guest cannot exchange them, nor have its own map changed."""
    command, address = arguments[0] & 0x3F, arguments[1]
    pv = pv_cpu(cpu)
    if command == _MACHPHYS_MAPPING:
        size = pv.area.table_frames << 12
        cpu.write(address, struct.pack("<QQQ", M2P, M2P + size, pv.area.frames - 1))
        return 0
    if command == _MACHPHYS_LIST:
        room, frames = struct.unpack("<IxxxxQ", cpu.read(address, 16))
        count = min(room, 1)  # one extent of 2 MiB, by its first frame
        cpu.write(frames, struct.pack("<Q", pv.area.table) * count)
        cpu.write(address + 16, struct.pack("<I", count))
        return 0
    if command in (_ADD_TO_PHYSMAP, _ADD_TO_PHYSMAP_BATCH):
        raise XenError(EACCES)
    if command == 2:
        return pv.area.frames - 1
    if command == 3:
        return domain.memory.present - (domain.memory.size // 4096 - pv.area.frames)
    if command == 4:
        return pv.area.frames
    if command in (_DECREASE, _POPULATE):
        return _reservation(domain, cpu, arguments, command)
    if command in (_INCREASE, _EXCHANGE):
        raise XenError(ENOSYS)
    return memory_op.memory_op(domain, cpu, arguments)


def _reservation(domain: Domain, cpu: VCPU, arguments: Sequence[int], command: int) -> int:
    """Balloon; a page table cannot be given back."""
    if command == _DECREASE:
        buffer, extents, order = struct.unpack("<QQI", cpu.read(arguments[1], 20))
        start = arguments[0] >> 6
        count = max(min(extents, start + 1024) - start, 0)
        frames = struct.unpack(f"<{count}Q", cpu.read(buffer + 8 * start, 8 * count))
        tables = pv_cpu(cpu).tables
        if order <= 9 and any(tables.level(frame + number) for frame in frames for number in range(1 << order)):
            raise XenError(EINVAL)
    return memory_op.memory_op(domain, cpu, arguments)


def _grant_table(domain: Domain, cpu: VCPU, arguments: Sequence[int]) -> int:
    """grant_table_op: the table's frames are Xen's, and the guest asks where they are; to map is `grant_map`'s."""
    command, address = arguments[0] & 0xFFFFFFFF, arguments[1]
    if command in grant_map.LISTS:
        return grant_table_op.each(domain, cpu, grant_map.LISTS[command], address, arguments[2] & 0xFFFFFFFF)
    if command not in (2, 9):
        return grant_table_op.grant_table_op(domain, cpu, arguments)
    area, grants = pv_cpu(cpu).area, domain.grants
    if command == 2:  # setup_table: {u16 dom; u32 nr_frames; s16 status; u64 *frame_list}
        owner, count, frame_list = struct.unpack("<HxxIxxxxxxxxQ", cpu.read(address, 24))
        status_at, first, most = address + 8, area.grants, GRANT_FRAMES
    else:  # get_status_frames: {u32 nr_frames; u16 dom; s16 status; u64 *frame_list}
        count, owner, frame_list = struct.unpack("<IHxxQ", cpu.read(address, 16))
        status_at, first, most = address + 6, area.statuses, STATUS_FRAMES
    status = GNTST_OKAY
    if owner not in (DOMID_SELF, domain.domid):
        status = GNTST_BAD_DOMAIN
    elif count > most or (command == 9 and grants.version != 2):
        status = GNTST_GENERAL_ERROR
    else:
        placed = grants.frames if command == 2 else grants.status_frames
        while len(placed) < count:
            grants.place(len(placed), first + len(placed), status=command == 9)
        cpu.write(frame_list, struct.pack(f"<{count}Q", *range(first, first + count)))
    cpu.write(status_at, struct.pack("<h", status))
    return 0


def _vcpu(domain: Domain, cpu: VCPU, arguments: Sequence[int]) -> int:
    """vcpu_op: only CPUs that are up exist, for a guest cannot start others (Linux takes a refusal for a bug)."""
    number = arguments[1] & 0xFFFFFFFF
    if number >= len(domain.vcpus) or not domain.vcpus[number].up:
        raise XenError(ENOENT)
    return vcpu_op.vcpu_op(domain, cpu, arguments)


def _physdev(domain: Domain, cpu: VCPU, arguments: Sequence[int]) -> int:
    """physdev_op: a domain without devices may choose its I/O privilege; the rest is for those with some."""
    command, address = arguments[0] & 0xFFFFFFFF, arguments[1]
    if command == 6:  # set_iopl {u32 iopl}
        if struct.unpack("<I", cpu.read(address, 4))[0] > 3:
            raise XenError(EINVAL)
        return 0
    if command == 7:  # set_iobitmap {u8 *bitmap; u32 nr_ports}
        if struct.unpack("<QI", cpu.read(address, 12))[1] > 65536:
            raise XenError(EINVAL)
        return 0
    if command in (8, 9, 10, 11):  # the APIC, which is Xen's
        raise XenError(EPERM)
    raise XenError(ENOSYS)


Hypercall = Callable[[Domain, VCPU, Sequence[int]], int]

TABLE: Mapping[int, Hypercall] = {
    **{number: function for number, function in table.TABLE.items() if number != 34},  # hvm_op
    0: callbacks.set_trap_table,
    1: mmu.mmu_update,
    2: descriptors.set_gdt,
    3: callbacks.stack_switch,
    4: callbacks.set_callbacks,
    5: callbacks.fpu_taskswitch,
    8: callbacks.set_debugreg,
    9: callbacks.get_debugreg,
    10: descriptors.update_descriptor,
    12: _memory,
    13: _multicall,
    14: mmu.update_va_mapping,
    17: _version,
    20: _grant_table,
    21: _vm_assist,
    22: mmu.update_va_mapping_otherdomain,
    24: _vcpu,
    25: callbacks.set_segment_base,
    26: mmu.mmuext_op,
    28: callbacks.nmi_op,
    30: callbacks.callback_op,
    33: _physdev,
}


dispatch = dispatcher(TABLE)
"""Does the hypercalls of PV domains."""
