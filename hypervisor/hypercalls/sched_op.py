"""sched_op: giving up the CPU, and ending (public/sched.h)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hypervisor.arch.vcpu import VCPU
from hypervisor.domains.domain import Domain
from hypervisor.domains.life import Reason
from hypervisor.errors import EINVAL, ENOSYS, XenError

_MOST_POLLED = 128
"""As in Xen's do_poll."""


def sched_op(domain: Domain, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Do one of SCHEDOP_*."""
    command, address = arguments[0] & 0xFFFFFFFF, arguments[1]
    if command == 0:  # yield
        cpu.give_up()
    elif command == 1:  # block, with events unmasked
        info = domain.events.info_of(cpu.number)
        if info >= 0:
            domain.memory.bytes[info + 1] = 0
        if not domain.events.upcall_pending(cpu.number):
            domain.vcpus.block(cpu.number)
    elif command in (2, 5):  # shutdown, shutdown_code
        reason = struct.unpack("<I", cpu.read(address, 4))[0]
        if reason > 5:
            raise XenError(EINVAL)
        if command == 2:
            domain.life.shut_down(Reason(reason))
    elif command == 3:  # poll: {handle of u32 ports; u32 count; u64 timeout}
        at, count, timeout = struct.unpack("<QIxxxxQ", cpu.read(address, 24))
        if count > _MOST_POLLED:
            raise XenError(EINVAL)
        domain.vcpus.poll(cpu.number, frozenset(struct.unpack(f"<{count}I", cpu.read(at, 4 * count))), timeout or None)
    elif command == 6:
        return domain.time.set_watchdog(*struct.unpack("<II", cpu.read(address, 8)))
    else:
        raise XenError(ENOSYS)
    return 0
