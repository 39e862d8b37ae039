"""console_io: the emergency console (public/xen.h, CONSOLEIO_*)."""

from __future__ import annotations

from collections.abc import Sequence

from hypervisor.arch.vcpu import VCPU
from hypervisor.domains.domain import Domain
from hypervisor.errors import ENOSYS, XenError

_LONGEST = 4096


def console_io(domain: Domain, cpu: VCPU, arguments: Sequence[int]) -> int:
    """Write to the hypervisor's own log of the domain; there is nothing to read."""
    command, count, buffer = arguments[0] & 0xFFFFFFFF, arguments[1] & 0xFFFFFFFF, arguments[2]
    if command == 0:
        domain.platform.console.log(cpu.read(buffer, min(count, _LONGEST)))
        return min(count, _LONGEST)
    if command == 1:
        return 0
    raise XenError(ENOSYS)
