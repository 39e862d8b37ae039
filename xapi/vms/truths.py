"""Which truth is written of each VM's domain: what a host said earlier, and comes later, is never written over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hypervisor.api import Truth
    from xapi.datamodel import records


class Truths:
    """The newest truth that was written of each VM on a host. Costs a number a VM."""

    def __init__(self) -> None:
        self._written: dict[str, tuple[str, int]] = {}
        """Host and sequence, by the VM's reference."""

    def may_write(self, vm: records.VM, host: records.host, truth: Truth) -> bool:
        """Tell whether nothing newer than a truth of a host's is written of a VM."""
        where, sequence = self._written.get(vm._ref, ("", 0))
        return where != host._ref or sequence < truth.sequence

    def knows(self, vm: records.VM) -> bool:
        """Tell whether anything is written of a VM since the daemon has started."""
        return vm._ref in self._written

    def forget(self, host: str) -> None:
        """Forget what a host has said, which begins anew."""
        for ref in [ref for ref, (where, _) in self._written.items() if where == host]:
            del self._written[ref]

    def wrote(self, vm: records.VM, host: records.host, truth: Truth) -> None:
        """Hear that all of a truth is written."""
        self._written[vm._ref] = host._ref, truth.sequence

    def keep(self, lives: Callable[[str], bool]) -> None:
        """Forget the VMs that are on no host any more."""
        for ref in [ref for ref in self._written if not lives(ref)]:
            del self._written[ref]
