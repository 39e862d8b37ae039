"""Writing a domain that is suspended to a stream.

The domain stays as it is: destroy it then, or let it go on with `hypervisor.migration.resume`. Backends may
still finish what they had begun; what they write into memory that is being copied the guest asks for again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hypervisor.arch.x86_64.pv import context as pv_context
from hypervisor.domains.domain import Domain
from hypervisor.domains.life import Reason, State
from hypervisor.host import Host
from hypervisor.memory.guest_memory import BadAddress
from hypervisor.migration.context import DomainContext, Shape, capture
from hypervisor.migration.pages import RUNS, PageWriter, encode_runs, parts
from hypervisor.migration.reading import NotSuspended, Reading
from hypervisor.migration.records import Kind, Sink, Writer


@contextmanager
def held(host: Host, domain: Domain) -> Iterator[tuple[DomainContext, Reading]]:
    """Keep a suspended domain where it is and give its state, and access to its memory. Raises NotSuspended."""
    host.pause(domain)
    try:
        with host.lock:
            if domain.life.state is not State.SHUTDOWN or domain.life.reason is not Reason.SUSPEND:
                raise NotSuspended(f"domain {domain.domid} is not suspended")
            try:
                context = capture(domain)
            except BadAddress as error:
                raise NotSuspended(f"domain {domain.domid} cannot be saved: {error}") from error
            reading = Reading(domain)
        try:
            yield context, reading
        finally:
            reading.close()
    finally:
        host.unpause(domain)


def save(host: Host, domain: Domain, file: Sink, config: bytes = b"", compress: bool = True) -> int:
    """Write a suspended domain, with bytes of the toolstack's; return the stream's length.

    Takes a few MiB of memory besides the domain's own. Raises NotSuspended, and what the file raises.
    """
    with held(host, domain) as (context, reading):
        writer = Writer(file)
        write_head(writer, reading.shape, config)
        pages = PageWriter(writer, reading.shape.end, compress)
        for start, end in reading.each(domain.memory.extents()):
            for part in reading.each(parts(domain.memory, start, end)):
                pages.add_part(*part, zeros=False)
        pages.flush()
        write_tail(writer, context)
        return writer.written


def write_head(writer: Writer, shape: Shape, config: bytes) -> None:
    """Write what comes before the pages."""
    writer.put(Kind.CONFIG, config)
    writer.put(Kind.PV_DOMAIN if shape.is_pv else Kind.DOMAIN, shape.encode())


def write_tail(writer: Writer, context: DomainContext) -> None:
    """Write what comes after the pages."""
    writer.put(Kind.STATE, context.encode())
    for at in range(0, len(context.ballooned), RUNS):
        writer.put(Kind.BALLOONED, encode_runs(context.ballooned[at : at + RUNS]))
    pinned = list(context.pinned.items())
    for at in range(0, len(pinned), RUNS):
        writer.put(Kind.PINNED, pv_context.encode_pinned(pinned[at : at + RUNS]))
    for vcpu in context.vcpus:
        writer.put(Kind.VCPU, vcpu.encode())
        if vcpu.pv is not None:
            writer.put(Kind.PV_VCPU, pv_context.encode(vcpu.pv))
    writer.put(Kind.END)
