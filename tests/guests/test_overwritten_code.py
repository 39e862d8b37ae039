"""Code that the host overwrites after a guest has executed it: the guest must run the new one, as hardware would."""

from __future__ import annotations

import struct

import pytest

from hypervisor.disks.anonymous import AnonymousDisk
from hypervisor.domains.domain import Domain
from hypervisor.host import Host
from hypervisor.hypercalls.table import dispatch
from hypervisor.memory.guest_memory import PAGE
from tests.unit.block_front import DATA_FRAME, MIB, Front, a_domain, request
from tests.x86_64 import cpu_of, x86

CODE, RESULT = DATA_FRAME * PAGE, 0x1000


def returning(value: int) -> bytes:
    """mov eax, value; mov [RESULT], eax; sti; hlt; and back to the start."""
    code = b"\xb8" + struct.pack("<I", value) + b"\xa3" + struct.pack("<I", RESULT) + b"\xfb\xf4"
    return (code + b"\xeb" + bytes([256 - len(code) - 2])).ljust(PAGE, b"\xf4")


def start(host: Host, domain: Domain) -> None:
    vcpu = domain.vcpus[0]
    x86(vcpu.cpu).reside()
    x86(vcpu.cpu).overlay.enter_flat32()
    x86(vcpu.cpu).overlay.regs.rip = CODE
    vcpu.up = True
    host.unpause(domain)


def run(host: Host, domain: Domain) -> int:
    """Run the code once more and return what it says."""
    domain.vcpus[0].blocked = False
    domain.memory.write_u32(RESULT, 0)
    host.step(domain)
    assert not domain.life.crash
    return domain.memory.read_u32(RESULT)


def test_a_block_read_over_executed_code_runs_the_new_code() -> None:
    """On a disk thread, as the guest has stopped meanwhile; several times, since it is executed each time."""
    disk = AnonymousDisk(MIB)
    for number in range(1, 4):
        disk.write(number * PAGE, returning(number))
    front = Front(disk).connect()
    front.grant(20, DATA_FRAME)
    front.memory.write(CODE, returning(99))
    start(front.host, front.domain)
    assert run(front.host, front.domain) == 99
    for number in (1, 2, 3, 1):
        assert front.do(request(0, 8 * number, [(20, 0, 7)])) == [0]
        assert run(front.host, front.domain) == number


def test_only_the_bytes_that_were_read_are_translated_anew() -> None:
    """What lies beside them in memory costs nothing: its translation is used on."""
    disk = AnonymousDisk(MIB)
    front = Front(disk).connect()
    front.grant(20, DATA_FRAME + 1)
    front.memory.write(CODE, returning(99))
    start(front.host, front.domain)
    assert run(front.host, front.domain) == 99
    assert front.do(request(0, 0, [(20, 0, 7)])) == [0]
    front.memory.write(CODE, returning(77))  # behind the CPU's back, as nothing in the product does
    assert run(front.host, front.domain) == 99


def test_a_grant_copy_over_executed_code_runs_the_new_code() -> None:
    """From another domain, while the target waits."""
    host, target = a_domain()
    source = host.create([(0, 4 * MIB)])
    cpu_of(source).overlay.enter_flat32()
    target.memory.write(CODE, returning(1))
    start(host, target)
    assert run(host, target) == 1
    target.memory.write(10 * PAGE + 64, struct.pack("<HHI", 1, source.domid, DATA_FRAME))
    source.memory.write(5 * PAGE, returning(2))
    copy = struct.pack("<QHHIQHHIHHI", 5, 0x7FF0, 0, 0, 8, target.domid, 0, 0, PAGE, 2, 99)
    source.memory.write(6 * PAGE, copy)
    assert dispatch(source, cpu_of(source), 20, (5, 6 * PAGE, 1, 0, 0)) == 0
    assert struct.unpack("<h", source.memory.read(6 * PAGE + 36, 2)) == (0,)
    assert run(host, target) == 2


@pytest.mark.parametrize("place", [0x100000, (3 << 30) - PAGE, (4 << 30) + PAGE])
def test_code_is_forgotten_wherever_it_lies(place: int) -> None:
    """Below and above the hole, where the engine's numbers for memory are not the guest's."""
    host = Host(8 << 30, 1)
    domain = host.create([(0, 3 << 30), (4 << 30, (4 << 30) + 4 * MIB)])
    cpu = cpu_of(domain)
    for number in (1, 2, 3):
        cpu.memory.write(place, b"\xb8" + struct.pack("<I", number) + b"\xf4")
        if number == 2:
            cpu.forget_code(place, place + 6)
        cpu.engine.emu_start(place, 0)
        assert cpu.general[0] == min(number, 2)
    host.destroy(domain)
