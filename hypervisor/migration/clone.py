"""Copy-on-write clones of a suspended guest: what a restore would give, in milliseconds.

`Template` freezes the memory of a domain: its content so far becomes a file that nobody writes any more, the
domain itself and each clone map it privately, and the host kernel copies a page when one of them first writes to
it. So a clone costs its engine and the pages that it changes. The source may go on (`resume.cancel`) or be
destroyed; the template stays good until it is closed, and clones outlive it.

A guest must have suspended itself: it holds numbers of ports and grants, and paths that contain its domid, which
only it can change. A clone resumes as from a suspend, into a domain that is new to it.
"""

from __future__ import annotations

from types import TracebackType

from hypervisor.domains.domain import Domain
from hypervisor.host import Host
from hypervisor.memory.guest_memory import Memory
from hypervisor.memory.shared import SharedFrames
from hypervisor.migration.restore import place
from hypervisor.migration.save import held


class Template:
    """A suspended domain's memory and state, frozen. Raises NotSuspended, OSError."""

    def __init__(self, host: Host, domain: Domain) -> None:
        self._size = domain.memory.size
        with held(host, domain) as (self.context, reading), reading:
            self.shape = reading.shape
            self._shared: SharedFrames | None = domain.freeze()

    def __enter__(self) -> Template:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the frozen memory go when no domain uses it any more."""
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.drop()

    def clone(self, host: Host, uuid_text: str = "", code_cache: int = 1 << 20) -> Domain:
        """Return a new domain, paused, with the template's memory; console and xenstore are to be joined to it.

        Raises ValueError once the template is closed, NoMemory, OSError, and ImageError for a PV guest that has spoilt
        its page tables behind Xen's back, with nothing left behind.
        """
        if self._shared is None:
            raise ValueError("the template is closed")
        memory = Memory.clone(self._shared, self._size)
        try:
            return place(host, self.shape, memory, self.context, uuid_text, code_cache)
        except BaseException:
            memory.close()
            raise
