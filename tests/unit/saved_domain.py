"""A small domain that looks suspended, without a guest in it, and its image, for tests of the stream."""

from __future__ import annotations

import io
import os

from hypervisor.domain import Domain, Reason
from hypervisor.host import Host
from hypervisor.hypercalls.hvm_op import CONSOLE_PFN, STORE_PFN
from hypervisor.memory import PAGE
from hypervisor.snapshot.records import Kind, Reader
from hypervisor.snapshot.save import save

SIZE = 2 << 20
CONFIG = b'{"name": "saved"}'


def a_host() -> Host:
    """A machine that runs nothing."""
    return Host(64 << 20, 1)


def suspended(host: Host, size: int = SIZE) -> Domain:
    """A domain of two CPUs whose guest, if it had one, would have suspended itself."""
    domain = host.create(((0, size),), vcpus=2)
    for frame in (1, 2, 9, 300, 301):
        domain.memory.write(frame * PAGE, bytes([frame & 0xFF]) * PAGE)
    domain.memory.write(40 * PAGE, os.urandom(2 * PAGE))
    domain.params |= {STORE_PFN: 500, CONSOLE_PFN: 501, 0: 2 << 56 | 0xF3}
    domain.callback_vector = 0xF3
    domain.memory_map = [(0, size, 1), (0xF0000000, 0x10000000, 2)]
    domain.release(20, 3)
    domain.release(60, 1)
    domain.memory.place_extra(0x80000)
    domain.vcpus[0].up = True
    domain.vcpus[0].cpu.overlay.enter_flat32()
    domain.vcpus[0].cpu.overlay.regs.rip = 0x1234
    domain.shut_down(Reason.SUSPEND)
    return domain


def image_of(domain: Domain, host: Host, compress: bool = True) -> bytes:
    """Return a domain's image."""
    file = io.BytesIO()
    save(host, domain, file, CONFIG, compress)
    return file.getvalue()


def records_of(image: bytes) -> list[tuple[Kind, bytes]]:
    """Return an image's records, with the last."""
    reader = Reader(io.BytesIO(image))
    records = [reader.take()]
    while records[-1][0] is not Kind.END:
        records.append(reader.take())
    return records


def left(host: Host) -> tuple[int, int, int]:
    """Return what a failed restore could leave behind: domains, memory set aside, open files."""
    return len(host.domains), host.free_memory(), len(os.listdir("/proc/self/fd"))
