"""Emulated machines for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hypervisor.host import Host


@contextmanager
def machine(memory: int, pcpus: int = 1, *, threads: bool = False) -> Iterator[Host]:
    """A host, with its pCPU threads running or none; what is left on it at the end is destroyed."""
    host = Host(memory, pcpus)
    if threads:
        host.start()
    try:
        yield host
    finally:
        for domain in list(host.domains.values()):
            host.destroy(domain)
        if threads:
            host.stop()
