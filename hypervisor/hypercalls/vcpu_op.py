"""vcpu_op: virtual CPUs, their timers and their structures (public/vcpu.h)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hypervisor.arch.vcpu import VCPU
from hypervisor.domains.domain import Domain
from hypervisor.errors import EEXIST, EINVAL, ENOENT, ENOSYS, XenError
from hypervisor.memory.guest_memory import PAGE

_ETIME = 62
_FUTURE = 1
"""VCPU_SSHOTTMR_future: refuse a time that has passed."""


def vcpu_op(domain: Domain, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Do one of VCPUOP_*."""
    command, number, address = arguments[0] & 0xFFFFFFFF, arguments[1] & 0xFFFFFFFF, arguments[2]
    if number >= len(domain.vcpus):
        raise XenError(ENOENT)
    if command <= 2:
        _start_or_stop(domain, cpu, command, number, address)
    elif command == 3:  # is_up
        return int(domain.vcpus[number].up)
    elif command == 5:  # register_runstate_memory_area: a virtual address of the caller
        domain.time.place_runstate(number, cpu, struct.unpack("<Q", cpu.read(address, 8))[0])
    elif command in (7, 9):  # stop_periodic_timer, stop_singleshot_timer
        if command == 9:
            domain.time.set_timer(number, None)
    elif command == 8:  # set_singleshot_timer: {u64 timeout_abs_ns; u32 flags}
        when, flags = struct.unpack("<QI", cpu.read(address, 12))
        if flags & _FUTURE and when < domain.time.clock.now():
            return -_ETIME
        domain.time.set_timer(number, when)
    elif command == 10:  # register_vcpu_info: {u64 mfn; u32 offset}
        frame, offset = struct.unpack("<QI", cpu.read(address, 12))
        if offset >= PAGE:
            raise XenError(EINVAL)
        domain.events.place_vcpu_info(number, frame * PAGE + offset)
        domain.time.write_time(number)
    elif command == 4:  # get_runstate_info
        cpu.write(address, domain.vcpus[number].runstate.encode())
    else:
        raise XenError(ENOSYS)
    return 0


def _start_or_stop(domain: Domain, cpu: VCPU, command: int, number: int, address: int) -> None:
    """Do VCPUOP_initialise, _up or _down; a PV domain's vCPUs but the first stay offline."""
    vcpu = domain.vcpus[number]
    if not domain.vcpus.startable:
        raise XenError(ENOSYS)
    if command == 0:
        state = cpu.read(address, vcpu.cpu.initial_size)
        if vcpu.up or vcpu.held or vcpu.cpu is cpu:
            raise XenError(EEXIST)
        vcpu.cpu.initialise(state)
        vcpu.held, vcpu.blocked = True, False
    elif command == 2:
        domain.vcpus.hold(number)
    elif vcpu.up or vcpu.held:
        domain.vcpus.release(number)
    else:
        raise XenError(EINVAL)
