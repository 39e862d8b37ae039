"""vcpu_op: virtual CPUs, their timers and their structures (public/vcpu.h)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hypervisor.cpu.vcpu import VCPU
from hypervisor.domain import Domain
from hypervisor.errors import EINVAL, ENOENT, ENOSYS, XenError
from hypervisor.memory import PAGE

_ETIME = 62
_FUTURE = 1
"""VCPU_SSHOTTMR_future: refuse a time that has passed."""


def vcpu_op(domain: Domain, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Do one of VCPUOP_*."""
    command, number, address = arguments[0] & 0xFFFFFFFF, arguments[1] & 0xFFFFFFFF, arguments[2]
    if number >= len(domain.vcpus):
        raise XenError(ENOENT)
    if command == 3:  # is_up
        return int(domain.vcpus[number].up)
    if command == 5:  # register_runstate_memory_area: a virtual address of the caller
        domain.place_runstate(number, cpu, struct.unpack("<Q", cpu.read(address, 8))[0])
    elif command in (7, 9):  # stop_periodic_timer, stop_singleshot_timer
        if command == 9:
            domain.set_timer(number, None)
    elif command == 8:  # set_singleshot_timer: {u64 timeout_abs_ns; u32 flags}
        when, flags = struct.unpack("<QI", cpu.read(address, 12))
        if flags & _FUTURE and when < domain.clock.now():
            return -_ETIME
        domain.set_timer(number, when)
    elif command == 10:  # register_vcpu_info: {u64 mfn; u32 offset}
        frame, offset = struct.unpack("<QI", cpu.read(address, 12))
        if offset >= PAGE:
            raise XenError(EINVAL)
        domain.events.place_vcpu_info(number, frame * PAGE + offset)
        domain.write_time(number)
    elif command == 4:  # get_runstate_info
        cpu.write(address, domain.runstate(number))
    else:
        raise XenError(ENOSYS)
    return 0
