"""Booting: Debian's unmodified kernel to a typed command's answer, against qemu's emulator, and the demo guest.

Each Linux boot is a process of its own, ours and qemu's by turns, with the same kernel, initrd and command line but
for the name of the console; the time is from the start of the process to the answer.
"""

from __future__ import annotations

import os
import selectors
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from hypervisor.guests import DEMO_PROMPT
from tests.benchmarks import linux
from tests.benchmarks.figures import Figure, median, ms, times
from tests.benchmarks.linux import NotHere
from tests.benchmarks.machine import MIB, SECONDS, Machine, demo_config
from tests.benchmarks.processes import ROOT, run
from tests.benchmarks.stage import Stage, say

ROUNDS = 5
DEMO_ROUNDS = 30
MEMORY = 256
QEMU = "qemu-system-x86_64"
MACHINES = ("pc", "q35")
"""What qemu is asked for; the faster one is the peer. (Its microvm does not boot every time.)"""
COMMAND_LINES = ("quiet", "quiet cryptomgr.notests")


@dataclass(frozen=True)
class Boot:
    """What one boot took, in seconds: until the answer, and of CPU of the whole process."""

    wall: float
    cpu: float


def benchmark(stage: Stage) -> list[Figure]:
    """Boot Debian and the demo guest."""
    demo = run("tests.benchmarks.boot", given=None)
    figures = [
        Figure("demo guest, built and booted to its prompt, in a process that runs: p50",
               ms(demo["boot"]), ms(demo["limit"]), times(demo["boot"] / demo["limit"]), "<= 100 ms",
               demo["boot"] * 1000, "The limit is a bare Unicorn engine with as much memory, made and closed."),
    ]  # fmt: skip
    try:
        found = linux.files()
    except NotHere as error:
        return [*figures, Figure(f"boot of Debian's kernel: not measured, {error}", "")]
    ramdisk = linux.write(stage.directory, "boot.initrd", linux.small_initrd(found))
    for line in COMMAND_LINES:
        say(f"booting Debian's kernel, {line}")
        figures += _compare(stage, found.kernel, ramdisk, line)
    return figures


def _compare(stage: Stage, kernel: Path, ramdisk: Path, line: str) -> list[Figure]:
    commands = {"ours": _ours(kernel, ramdisk, line)}
    if shutil.which(QEMU):
        commands |= {machine: _qemu(machine, kernel, ramdisk, line) for machine in MACHINES}
    environment = os.environ | {"PYTHONPYCACHEPREFIX": str(stage.directory / "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    boots: dict[str, list[Boot]] = {name: [] for name in commands}
    answered(commands["ours"], environment)  # the page cache, and our bytecode
    for _ in range(ROUNDS):
        for name, command in commands.items():
            boots[name].append(answered(command, environment))
    wall = {name: median([boot.wall for boot in found]) for name, found in boots.items()}
    cpu = {name: median([boot.cpu for boot in found]) for name, found in boots.items()}
    what = f"Debian's kernel to a typed command's answer, {line!r}"
    ours = f"{wall['ours']:.2f} s"
    if len(wall) == 1:
        return [Figure(f"{what}; no {QEMU} to compare with", ours)]
    peer = min(MACHINES, key=wall.__getitem__)
    note = (
        f"From the start of `python -m hypervisor` and of {QEMU} -accel tcg, medians of {ROUNDS} boots by turns; "
        f"{MEMORY} MiB, one vCPU, the peer is the faster of qemu's {' and '.join(MACHINES)}."
    )
    ratio, cpu_ratio = wall["ours"] / wall[peer], cpu["ours"] / cpu[peer]
    theirs = f"{wall[peer]:.2f} s"
    return [
        Figure(f"{what}; peer: {QEMU} -M {peer}", ours, theirs, f"{ratio:.2f}x", "<= 0.9 x", ratio, note),
        Figure("the same, seconds of CPU of the process", f"{cpu['ours']:.2f} s", f"{cpu[peer]:.2f} s",
               f"{cpu_ratio:.2f}x", note=note),
    ]  # fmt: skip


def _ours(kernel: Path, ramdisk: Path, line: str) -> list[str]:
    command = [sys.executable, "-m", "hypervisor", "boot", "--kernel", str(kernel), "--initrd", str(ramdisk)]
    return [*command, "--memory", f"{MEMORY}M", "--append", f"console=hvc0 {line}"]


def _qemu(machine: str, kernel: Path, ramdisk: Path, line: str) -> list[str]:
    command = [QEMU, "-accel", "tcg", "-M", machine, "-m", str(MEMORY), "-smp", "1", "-nodefaults", "-no-user-config"]
    command += ["-no-reboot", "-display", "none", "-serial", "stdio", "-kernel", str(kernel), "-initrd", str(ramdisk)]
    return [*command, "-append", f"console=ttyS0 {line}"]


def answered(command: list[str], environment: dict[str, str]) -> Boot:
    """Run a guest until its shell has answered. Raises TimeoutError, RuntimeError when it ends before."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        wall = _talk(process, begun)
    finally:
        process.kill()
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
    return Boot(wall, usage.ru_utime + usage.ru_stime)


def _talk(process: subprocess.Popen[bytes], begun: float) -> float:
    """Return the seconds until the answer."""
    assert process.stdin is not None and process.stdout is not None
    heard, typed = bytearray(), False
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while b"42-answer" not in heard:
            if not selector.select(begun + SECONDS - time.perf_counter()):
                raise TimeoutError(f"no answer: {bytes(heard[-1000:])!r}")
            part = os.read(process.stdout.fileno(), 65536)
            if not part:
                raise RuntimeError(f"the guest ended: {bytes(heard[-1000:])!r}")
            heard += part
            if not typed and linux.READY in heard:
                typed = True
                process.stdin.write(b"echo $((6*7))-answer\n")
                process.stdin.flush()
    return time.perf_counter() - begun


def demo_boots() -> dict[str, float]:
    """Return the median seconds of a demo guest's boot, and of a bare engine."""
    boots: list[float] = []
    limits: list[float] = []
    with Machine(1) as machine:
        for _ in range(DEMO_ROUNDS):
            begun = time.perf_counter()
            terminal = machine.build(demo_config())
            machine.unpause(terminal)
            terminal.expect(DEMO_PROMPT)
            boots.append(time.perf_counter() - begun)
            machine.destroy(terminal)
            limits.append(_bare_engine())
    return {"boot": statistics.median(boots), "limit": statistics.median(limits)}


def _bare_engine() -> float:
    from unicorn import UC_ARCH_X86, UC_MODE_64, Uc

    begun = time.perf_counter()
    engine = Uc(UC_ARCH_X86, UC_MODE_64)
    engine.ctl_set_tcg_buffer_size(MIB)
    engine.mem_map(0, 4 * MIB)
    engine.mem_write(0, b"\xf4")
    engine.emu_start(0, 0)
    del engine
    return time.perf_counter() - begun


if __name__ == "__main__":
    import json

    print(json.dumps(demo_boots()))
