"""Emulated devices on a domain's bus, found by guest code at ports and at guest-physical addresses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hypervisor.arch.vcpu import Outcome
from hypervisor.arch.x86_64.cpu.overlay import RAX, RBX, RCX, RDX, long_mode
from hypervisor.domains.domain import Domain
from hypervisor.domains.life import Reason
from hypervisor.memory.guest_memory import BadAddress
from hypervisor.platform.bus import Claimed
from hypervisor.platform.debug_console import LONGEST
from tests.machines import machine
from tests.x86_64 import cpu_of

CODE, SIZE, DEVICE, PORT = 0x100000, 4 << 20, 0x4000_0000, 0x300
ONES = (1 << 64) - 1


class Scratch:
    """All that it takes to add a device: sixteen bytes that keep what is written to them."""

    def __init__(self, domain: Domain) -> None:
        self.content = bytearray(16)
        domain.platform.bus.ports.claim(PORT, 16, self)
        domain.platform.bus.memory.claim(DEVICE + 0x10, 16, self)

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.content[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.content[offset : offset + size] = value.to_bytes(size, "little")


@pytest.fixture(params=[1, 2], ids=["one vCPU", "two vCPUs"])
def domain(request: pytest.FixtureRequest) -> Iterator[Domain]:
    with machine(64 << 20) as host:
        made = host.create(((0, SIZE),), vcpus=request.param)
        for vcpu in reversed(made.vcpus):
            cpu = cpu_of(made, vcpu.cpu.number)
            cpu.reside()
            long_mode(cpu.engine, cpu.overlay)
        yield made


def run(domain: Domain, code: str, rax: int = 0, rbx: int = 0, rdx: int = 0, number: int = 0) -> int:
    """Run code on a vCPU; return RAX."""
    cpu = cpu_of(domain, number)
    cpu.reside()
    domain.memory.write(CODE, bytes.fromhex(code) + b"\xfa\xf4")  # cli; hlt
    domain.vcpus[number].cpu.forget_code(CODE, CODE + 64)
    cpu.overlay.regs.rip, cpu.general[RAX], cpu.general[RBX], cpu.general[RDX] = CODE, rax, rbx, rdx
    assert cpu.run() is Outcome.OFF, cpu.crash
    return int(cpu.general[RAX])


OUTS, INS = {1: "ee", 2: "66 ef", 4: "ef"}, {1: "ec", 2: "66 ed", 4: "ed"}
STORES = {1: "88 03", 2: "66 89 03", 4: "89 03", 8: "48 89 03"}
LOADS = {1: "8a 03", 2: "66 8b 03", 4: "8b 03", 8: "48 8b 03"}


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_device_answers_at_its_ports(domain: Domain, size: int) -> None:
    """By offsets, in each size, whichever vCPU asks."""
    device, value = Scratch(domain), 0x8877665544332211
    last = len(domain.vcpus) - 1
    run(domain, OUTS[size], rax=value, rdx=PORT + 4, number=last)
    assert device.content == bytes(4) + value.to_bytes(8, "little")[:size] + bytes(12 - size)
    assert run(domain, INS[size], rdx=PORT + 4) & (1 << 8 * size) - 1 == value & (1 << 8 * size) - 1


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_device_answers_at_its_addresses(domain: Domain, size: int) -> None:
    """The rest of its page is nobody's: it reads as all ones, and writes to it are lost."""
    device, value = Scratch(domain), 0x8877665544332211
    map_device(domain)
    last = len(domain.vcpus) - 1
    run(domain, STORES[size], rax=value, rbx=VIRTUAL + 0x18, number=last)
    assert device.content == bytes(8) + value.to_bytes(8, "little")[:size] + bytes(8 - size)
    assert run(domain, LOADS[size], rbx=VIRTUAL + 0x18) & (1 << 8 * size) - 1 == value & (1 << 8 * size) - 1
    run(domain, STORES[size], rax=value, rbx=VIRTUAL)
    assert run(domain, LOADS[size], rbx=VIRTUAL) & (1 << 8 * size) - 1 == (1 << 8 * size) - 1
    assert device.content == bytes(8) + value.to_bytes(8, "little")[:size] + bytes(8 - size)


VIRTUAL = 0x20_0000
"""Where the guest's page tables show the device."""


def map_device(domain: Domain) -> None:
    """Let the tables that `long_mode` has made show the device's page in place of some of the RAM."""
    for vcpu in domain.vcpus:
        cpu = cpu_of(domain, vcpu.cpu.number)
        memory, table = domain.memory, cpu.overlay.cr[3]
        for shift in (39, 30):
            table = memory.read_u64(table + (VIRTUAL >> shift & 511) * 8) & 0x000F_FFFF_FFFF_F000
        memory.write_u64(table + (VIRTUAL >> 21 & 511) * 8, DEVICE | 0x83)
        assert cpu.translate(VIRTUAL + 0x18) == DEVICE + 0x18


def test_a_device_that_has_gone_answers_no_more(domain: Domain) -> None:
    """Its ports and addresses read as all ones, and can be claimed again."""
    device = Scratch(domain)
    map_device(domain)
    domain.platform.bus.ports.release(device)
    domain.platform.bus.memory.release(device)
    assert run(domain, INS[4], rdx=PORT) == 0xFFFFFFFF
    assert run(domain, LOADS[8], rbx=VIRTUAL + 0x10) == ONES
    Scratch(domain)
    assert run(domain, LOADS[8], rbx=VIRTUAL + 0x10) == 0


@pytest.mark.parametrize("address", [0, SIZE - 4096])
def test_no_device_can_be_where_the_guest_has_memory(domain: Domain, address: int) -> None:
    with pytest.raises(BadAddress, match="no device"):
        domain.platform.bus.memory.claim(address, 16, domain.platform.console)
    assert domain.platform.bus.memory.claims() == ()


def test_two_devices_cannot_have_a_port(domain: Domain) -> None:
    """Nor may anything take the hypervisor's console."""
    Scratch(domain)
    for start, length in ((PORT + 15, 1), (PORT - 1, 2), (0, 0x10000), (0xE9, 1)):
        with pytest.raises(Claimed, match="overlaps"):
            domain.platform.bus.ports.claim(start, length, domain.platform.console)


def test_the_console_is_a_device_that_keeps_the_newest(domain: Domain) -> None:
    """It is one port wide, and nothing is to be read there."""
    console = domain.platform.console
    console.log(b"x" * LONGEST)
    for letter in b"hi":
        run(domain, "ee", rax=letter, rdx=0xE9)
    run(domain, "ef", rax=0x21212121, rdx=0xE9)
    assert len(console.text) == LONGEST and console.text.endswith(b"xxhi")
    assert run(domain, "ec", rdx=0xE9) & 0xFF == 0xFF


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Unicorn's binding returns None then
@pytest.mark.parametrize("code", ["ec", "ee", "8a 03", "88 03"])
def test_an_error_of_a_device_crashes_its_domain_only(
    domain: Domain, code: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At ports and at addresses, read or written."""

    def fail(*_: object) -> int:
        raise RuntimeError("a bug")

    Scratch(domain)
    map_device(domain)
    monkeypatch.setattr(Scratch, "read", fail)
    monkeypatch.setattr(Scratch, "write", fail)
    cpu = cpu_of(domain)
    cpu.reside()
    domain.memory.write(CODE, bytes.fromhex(code) + b"\xeb\xfe")
    cpu.overlay.regs.rip, cpu.general[RBX], cpu.general[RDX], cpu.general[RCX] = CODE, VIRTUAL + 0x10, PORT, 0
    domain.vcpus[0].up = True
    domain.life.unpause()
    assert not domain.run()
    assert (domain.life.reason, domain.life.crash) == (Reason.CRASH, "internal error: RuntimeError: a bug")
    assert "Traceback" in caplog.text
