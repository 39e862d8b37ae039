"""A small domain that looks suspended, without a guest in it, and its image, for tests of the stream."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterable

from hypervisor.arch.x86_64.cpu.overlay import RDX
from hypervisor.arch.x86_64.kinds import PV
from hypervisor.arch.x86_64.pv.cpu import PVCPU
from hypervisor.arch.x86_64.pv.descriptors import set_ldt
from hypervisor.domains.domain import Domain
from hypervisor.domains.life import Reason
from hypervisor.host import Host
from hypervisor.hypercalls.hvm_op import CONSOLE_PFN, STORE_PFN
from hypervisor.loader import pv
from hypervisor.memory.guest_memory import PAGE
from hypervisor.migration.records import Kind, Reader, Writer
from hypervisor.migration.save import save
from tests.unit.loader_images import kernel, note
from tests.x86_64 import cpu_of

ROOM, SIZE, RAM = 64 << 20, 2 << 20, 4 << 20
"""Bytes of the machine, and of the two kinds of domain."""
GDT, LDT = 700, 701
"""Frames of the PV domain's descriptor tables."""
CONFIG = b'{"name": "saved"}'


def a_host() -> Host:
    """A machine that runs nothing."""
    return Host(ROOM, 1)


def written(records: Iterable[tuple[int, bytes]]) -> bytes:
    """Return an image of these records, with good checksums."""
    file = io.BytesIO()
    writer = Writer(file)
    for kind, body in records:
        writer.put(kind, body)  # type: ignore[arg-type]
    return file.getvalue()


def suspended(host: Host, size: int = SIZE) -> Domain:
    """A domain of two CPUs whose guest, if it had one, would have suspended itself."""
    domain = host.create(((0, size),), vcpus=2)
    for frame in (1, 2, 9, 300, 301):
        domain.memory.write(frame * PAGE, bytes([frame & 0xFF]) * PAGE)
    domain.memory.write(40 * PAGE, os.urandom(2 * PAGE))
    domain.params |= {STORE_PFN: 500, CONSOLE_PFN: 501, 0: 2 << 56 | 0xF3}
    domain.callback_vector = 0xF3
    domain.memory_map = [(0, size, 1), (0xF0000000, 0x10000000, 2)]
    domain.physmap.release(20, 3)
    domain.physmap.release(60, 1)
    domain.memory.place_extra(0x80000)
    domain.vcpus[0].up = True
    cpu_of(domain).overlay.enter_flat32()
    cpu_of(domain).overlay.regs.rip = 0x1234
    domain.life.shut_down(Reason.SUSPEND)
    return domain


def suspended_pv(host: Host) -> Domain:
    """A PV domain whose guest, if it had one, would have told Xen all that it can, and suspended itself."""
    content = note(1, struct.pack("<Q", 0x100000)) + note(3, bytes(8))
    domain = host.create(pv.ranges(RAM), vcpus=2, kind=PV)
    image = pv.build(domain.memory, kernel(b"\xf4" * 64, content, size=0x2000), None, "", ram=RAM)
    pv.attach(domain, image, 1, 2)
    cpu = cpu_of(domain)
    assert isinstance(cpu, PVCPU)
    pv.enter(cpu, image)
    domain.vcpus[0].up = True
    state = cpu.state
    state.traps[14], state.traps[3] = (0x100100, 4), (0x100200, 3)
    state.event, state.failsafe, state.syscall, state.syscall32 = 0x100300, (1, False), (2, True), (3, True)
    state.stack, state.debug[7] = 0x180000, 0x400
    state.gdt = (GDT,)
    image.area.place_gdt(domain.memory, 0, state.gdt)
    domain.memory.write_u64(GDT * PAGE + 8 * 6, 0x00AFFB000000FFFF)
    set_ldt(cpu, LDT * PAGE, 4)
    domain.memory.write_u64(LDT * PAGE + 8, 0x00CFF3000000FFFF)
    cpu.tables.use(image.root, 4)
    state.user_root = image.root * PAGE
    domain.physmap.release(900, 3)
    cpu.general[RDX] = image.start_info_frame
    domain.life.shut_down(Reason.SUSPEND)
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
