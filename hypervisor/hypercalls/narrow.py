"""The hypercalls of kernels of 32 bits, as far as what they pass has the same layout as of those of 64 (public/xen.h).

The others would be misread: memory_op, most of the grant table, multicall, polls, run states; and the shared page,
whose words are 32 bits wide for such a kernel, is not to be had, so there are no events either. All that is not here is
ENOSYS. With it a kernel of 32 bits can ask who Xen is, write to its console, read its parameters, map grants and shut
down.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from hypervisor.arch.vcpu import VCPU
from hypervisor.domains.domain import Domain
from hypervisor.errors import ENOSYS, XenError
from hypervisor.hypercalls import console_io, event_channel_op, grant_table_op, hvm_op, sched_op, vcpu_op
from hypervisor.hypercalls import version as xen_version

_Hypercall = Callable[[Domain, VCPU, Sequence[int]], int]


def _only(function: _Hypercall, commands: Collection[int]) -> _Hypercall:
    """Return a hypercall with these commands of its own only."""

    def narrow(domain: Domain, cpu: VCPU, arguments: Sequence[int]) -> int:
        if arguments[0] not in commands:
            raise XenError(ENOSYS)
        return function(domain, cpu, arguments)

    return narrow


TABLE: Mapping[int, _Hypercall] = {
    17: _only(xen_version.xen_version, (0, 1, 2, 3, 4, 6, 7, 8)),
    18: console_io.console_io,
    20: _only(grant_table_op.grant_table_op, (0, 1, 6, 8, 10)),  # map, unmap, query_size, set_version, get_version
    24: _only(vcpu_op.vcpu_op, (1, 2, 3)),
    29: _only(sched_op.sched_op, (0, 1, 2, 5, 6)),
    32: event_channel_op.event_channel_op,
    34: hvm_op.hvm_op,
}
