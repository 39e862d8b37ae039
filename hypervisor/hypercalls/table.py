"""The hypercall page's table: number to function (public/xen.h, __HYPERVISOR_*)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

from hypervisor.arch.vcpu import VCPU
from hypervisor.domains.domain import Domain
from hypervisor.errors import E2BIG, EFAULT, EINVAL, ENOSYS, XenError
from hypervisor.hypercalls import (
    console_io,
    event_channel_op,
    grant_table_op,
    hvm_op,
    memory_op,
    narrow,
    sched_op,
    vcpu_op,
)
from hypervisor.hypercalls import version as xen_version
from hypervisor.memory.guest_memory import BadAddress

MULTICALL = 13
NUMBERS = 64
"""Numbers below this are counted; Xen's hypercall page has 56 of its own and 8 of the architecture's."""

Hypercall = Callable[[Domain, VCPU, Sequence[int]], int]


def _vm_assist(domain: Domain, cpu: VCPU, arguments: Sequence[int]) -> int:
    """vm_assist: the assists are for PV page tables, which a translated guest does not have."""
    raise XenError(ENOSYS)


def _set_timer_op(domain: Domain, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Arm the calling vCPU's single-shot timer at a system time, or disarm it with 0."""
    domain.time.set_timer(cpu.number, arguments[0] or None)
    return 0


def _multicall(domain: Domain, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Do a list of hypercalls; each result is written into its entry (public/xen.h, multicall_entry)."""
    address, count = arguments[0], arguments[1]
    if count > 64:
        raise XenError(E2BIG)
    for number in range(count):
        entry = address + 64 * number
        operation, _, *parameters = struct.unpack("<8Q", cpu.read(entry, 64))
        # As in Xen a list has no lists in it: five levels of 64 would be a billion calls, under the host's lock.
        nested = operation & 0xFFFFFFFF == MULTICALL
        result = -EINVAL if nested else dispatch(domain, cpu, operation & 0xFFFFFFFF, parameters[:5])
        cpu.write(entry + 8, struct.pack("<q", result))
    return 0


TABLE: Mapping[int, Hypercall] = {
    12: memory_op.memory_op,
    MULTICALL: _multicall,
    15: _set_timer_op,
    17: xen_version.xen_version,
    18: console_io.console_io,
    20: grant_table_op.grant_table_op,
    21: _vm_assist,
    24: vcpu_op.vcpu_op,
    29: sched_op.sched_op,
    32: event_channel_op.event_channel_op,
    34: hvm_op.hvm_op,
}


def dispatcher(table: Mapping[int, Hypercall]) -> Callable[[Domain, VCPU, int, Sequence[int]], int]:
    """Return what does the hypercalls of a table."""

    def dispatch(domain: Domain, cpu: VCPU, number: int, arguments: Sequence[int]) -> int:
        """Do a hypercall for a vCPU and return its result; nothing that a guest passes raises."""
        function = table.get(number)
        if number < NUMBERS:
            domain.hypercalls[number] = domain.hypercalls.get(number, 0) + 1
        if function is None:
            return -ENOSYS
        try:
            return function(domain, cpu, arguments)
        except XenError as error:
            return -error.number
        except BadAddress:
            return -EFAULT

    return dispatch


dispatch = dispatcher(TABLE)
"""Does the hypercalls of HVM and PVH domains in 64-bit mode."""
_narrow = dispatcher(narrow.TABLE)


def serve(domain: Domain, cpu: VCPU, number: int, arguments: Sequence[int]) -> int:
    """Do a hypercall of an HVM or PVH domain in any mode."""
    return (dispatch if cpu.wide else _narrow)(domain, cpu, number, arguments)
