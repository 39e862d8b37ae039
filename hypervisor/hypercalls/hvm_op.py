"""hvm_op: parameters of a domain with hardware virtualisation (public/hvm/hvm_op.h, params.h)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hypervisor.arch.vcpu import VCPU
from hypervisor.domains.domain import Domain
from hypervisor.domid import DOMID_SELF
from hypervisor.errors import EINVAL, ENOSYS, EPERM, XenError

CALLBACK_IRQ, STORE_PFN, STORE_EVTCHN, CONSOLE_PFN, CONSOLE_EVTCHN = 0, 1, 2, 17, 18
_GUEST_MAY_SET = frozenset({CALLBACK_IRQ, 5, 6, 7, 8, 9, 10, 14, 15, 16, 19, 35})


def hvm_op(domain: Domain, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Do one of HVMOP_*."""
    command, address = arguments[0] & 0xFFFFFFFF, arguments[1]
    if command in (0, 1):  # set_param, get_param: {u16 domid; u32 index; u64 value}
        domid, index, value = struct.unpack("<HxxIQ", cpu.read(address, 16))
        if domid not in (DOMID_SELF, domain.domid):
            raise XenError(EPERM)
        if command == 1:
            if index not in domain.params:
                raise XenError(EINVAL)
            cpu.write(address + 8, struct.pack("<Q", domain.params[index]))
        else:
            if index not in _GUEST_MAY_SET:
                raise XenError(EPERM)
            domain.params[index] = value
            if index == CALLBACK_IRQ:
                _callback(domain, value)
        return 0
    if command == 9:  # pagetable_dying: nothing to forget
        return 0
    if command == 23:  # set_evtchn_upcall_vector: {u32 vcpu; u8 vector}
        number, vector = struct.unpack("<IB", cpu.read(address, 5))
        if number >= len(domain.vcpus) or vector < 16:
            raise XenError(EINVAL)
        domain.vcpus[number].upcall_vector = vector
        return 0
    raise XenError(ENOSYS)


def _callback(domain: Domain, value: int) -> None:
    """Take HVM_PARAM_CALLBACK_IRQ: its type is in the top byte, 2 for a vector, the only one we deliver."""
    if value >> 56 == 2:
        domain.callback_vector = value & 0xFF
    elif value:
        raise XenError(EINVAL)
    else:
        domain.callback_vector = 0
