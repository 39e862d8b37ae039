"""event_channel_op: ports (public/event_channel.h, EVTCHNOP_*)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hypervisor.arch.vcpu import VCPU
from hypervisor.domains.domain import Domain
from hypervisor.domains.event_channel import IPI, PIRQ, VIRQ
from hypervisor.domid import DOMID_SELF
from hypervisor.errors import ENOSYS, EPERM, XenError


def event_channel_op(domain: Domain, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Do one of EVTCHNOP_*. FIFO channels are refused, so guests use the 2-level ABI."""
    command, address = arguments[0] & 0xFFFFFFFF, arguments[1]
    function = _OPERATIONS.get(command)
    if function is None:
        raise XenError(ENOSYS)
    function(domain, cpu, address)
    return 0


def _u32(cpu: VCPU, address: int, count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}I", cpu.read(address, 4 * count))


def _put(cpu: VCPU, address: int, value: int) -> None:
    cpu.write(address, struct.pack("<I", value))


def _self(domain: Domain, domid: int) -> None:
    if domid not in (DOMID_SELF, domain.domid):
        raise XenError(EPERM)


def _bind_interdomain(domain: Domain, cpu: VCPU, address: int) -> None:
    remote, remote_port = struct.unpack("<HxxI", cpu.read(address, 8))
    _put(cpu, address + 8, domain.events.bind_interdomain(remote, remote_port))


def _bind_virq(domain: Domain, cpu: VCPU, address: int) -> None:
    virq, vcpu = _u32(cpu, address, 2)
    _put(cpu, address + 8, domain.events.bind_virq(virq, vcpu))


def _close(domain: Domain, cpu: VCPU, address: int) -> None:
    domain.events.close(_u32(cpu, address, 1)[0])


def _send(domain: Domain, cpu: VCPU, address: int) -> None:
    domain.events.send(_u32(cpu, address, 1)[0])


def _status(domain: Domain, cpu: VCPU, address: int) -> None:
    domid, port = struct.unpack("<HxxI", cpu.read(address, 8))
    _self(domain, domid)
    channel = domain.events.status(port)
    first, second = channel.remote, channel.remote_port
    if channel.kind in (VIRQ, PIRQ, IPI):
        first, second = channel.detail, 0
    cpu.write(address + 8, struct.pack("<IIII", channel.kind, channel.vcpu, first, second))


def _alloc_unbound(domain: Domain, cpu: VCPU, address: int) -> None:
    domid, remote = struct.unpack("<HH", cpu.read(address, 4))
    _self(domain, domid)
    port = domain.events.alloc_unbound(domain.domid if remote == DOMID_SELF else remote)
    _put(cpu, address + 4, port)


def _bind_ipi(domain: Domain, cpu: VCPU, address: int) -> None:
    _put(cpu, address + 4, domain.events.bind_ipi(_u32(cpu, address, 1)[0]))


def _bind_vcpu(domain: Domain, cpu: VCPU, address: int) -> None:
    domain.events.bind_vcpu(*_u32(cpu, address, 2))


def _unmask(domain: Domain, cpu: VCPU, address: int) -> None:
    domain.events.unmask(_u32(cpu, address, 1)[0])


def _reset(domain: Domain, cpu: VCPU, address: int) -> None:
    _self(domain, struct.unpack("<H", cpu.read(address, 2))[0])
    domain.events.reset()


_OPERATIONS = {
    0: _bind_interdomain,
    1: _bind_virq,
    3: _close,
    4: _send,
    5: _status,
    6: _alloc_unbound,
    7: _bind_ipi,
    8: _bind_vcpu,
    9: _unmask,
    10: _reset,
}
