"""Suspended guests: saved to a file, restored from it, cloned; against writing and reading as many bytes."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hypervisor.api import Shutdown
from hypervisor.domains.domain import Domain
from hypervisor.domains.life import Reason
from hypervisor.guests import DEMO_PROMPT
from hypervisor.migration.clone import Template
from tests.benchmarks import linux
from tests.benchmarks.figures import Figure, ms, times
from tests.benchmarks.linux import Linux, NotHere
from tests.benchmarks.machine import MIB, Machine, Terminal
from tests.benchmarks.stage import Stage, say
from tests.guests.resumed import join, leave

ROUNDS = 5
CLONES = 20
DEMO_MEMORY = 16 * MIB


@dataclass
class Taken:
    """What the rounds with one guest took, in seconds; and the size of its file."""

    save: list[float] = field(default_factory=list)
    write: list[float] = field(default_factory=list)
    restore: list[float] = field(default_factory=list)
    answer: list[float] = field(default_factory=list)
    read: list[float] = field(default_factory=list)
    size: int = 0
    clone: list[float] = field(default_factory=list)
    clone_answer: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Subject:
    """A running guest and how to see that it is well: type something, and hear the answer."""

    name: str
    terminal: Terminal
    typed: bytes
    answer: bytes
    code_cache: int


def benchmark(stage: Stage) -> list[Figure]:
    """Measure with the demo guest, and with Linux where there is one."""
    say("guests saved, restored and cloned")
    figures = []
    with Machine(1) as machine:
        demo = machine.demo(DEMO_MEMORY)
        demo.type(b"touch 1\r")
        demo.expect(DEMO_PROMPT)
        name = f"demo guest, {DEMO_MEMORY // MIB} MiB"
        figures += _figures(stage, machine, Subject(name, demo, b"mem\r", b"held-kib", MIB))
    try:
        found = linux.files()
    except NotHere as error:
        return [*figures, Figure(f"save and restore of Linux: not measured, {error}", "")]
    ramdisk = linux.write(stage.directory, "moves.initrd", linux.small_initrd(found))
    with Machine(1) as machine:
        guest = Linux(machine, found.kernel, ramdisk).boot()
        name = f"Debian Linux, {linux.MEMORY // MIB} MiB"
        figures += _figures(
            stage, machine, Subject(name, guest.terminal, b"echo $((6*7))-answer\n", b"42-answer", 64 * MIB)
        )
    return figures


def _figures(stage: Stage, machine: Machine, subject: Subject) -> list[Figure]:
    taken = Taken()
    terminal = subject.terminal
    for _ in range(ROUNDS):
        _suspend(machine, terminal)
        terminal = _move(stage.directory, machine, subject, terminal, taken)
    _suspend(machine, terminal)
    with Template(machine.host, terminal.guest.domain) as template:
        for _ in range(CLONES):
            _clone(machine, template, subject, taken)
    machine.destroy(terminal)
    note = "The file is compressed (zstd) and synced; the limit writes or reads as many bytes, synced too when written."
    p50 = statistics.median
    name, size = subject.name, f"{taken.size / 1000:,.0f} KB"
    return [
        _against(f"{name}: save to a file of {size}", p50(taken.save), p50(taken.write), note),
        _against(f"{name}: restore from it, paused", p50(taken.restore), p50(taken.read), note),
        Figure(f"{name}: restore to a typed command's answer", ms(p50(taken.answer))),
        Figure(f"{name}: copy-on-write clone, paused", ms(p50(taken.clone))),
        Figure(f"{name}: clone to a typed command's answer", ms(p50(taken.clone_answer))),
    ]


def _against(what: str, ours: float, limit: float, note: str) -> Figure:
    return Figure(what, ms(ours), ms(limit), times(ours / limit), note=note)


def _suspend(machine: Machine, terminal: Terminal) -> None:
    machine.toolstack.request(terminal.guest.config.uuid, Shutdown.SUSPEND)
    terminal.ended(Reason.SUSPEND)


def _timed(seconds: list[float], function: Callable[[], object]) -> None:
    begun = time.perf_counter()
    function()
    seconds.append(time.perf_counter() - begun)


def _move(directory: Path, machine: Machine, subject: Subject, terminal: Terminal, taken: Taken) -> Terminal:
    """Save a suspended guest, destroy it, restore it; return it when it has answered."""
    config, image, copy = terminal.guest.config, directory / "image", directory / "copy"
    _timed(taken.save, lambda: machine.toolstack.save(config.uuid, image))
    machine.destroy(terminal)
    data = image.read_bytes()
    taken.size = len(data)
    _timed(taken.write, lambda: _write(copy, data))
    _timed(taken.read, copy.read_bytes)
    begun = time.perf_counter()
    restored = Terminal(machine.toolstack.restore(config, image))
    taken.restore.append(time.perf_counter() - begun)
    machine.unpause(restored)
    restored.type(subject.typed)
    restored.expect(subject.answer)
    taken.answer.append(time.perf_counter() - begun)
    image.unlink()
    return restored


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


class _Clone(Terminal):
    """A clone's console: the toolstack has no clones yet, so what it joins is joined here."""

    def __init__(self, machine: Machine, domain: Domain) -> None:
        super().__init__(join(machine.host, domain))  # type: ignore[arg-type]


def _clone(machine: Machine, template: Template, subject: Subject, taken: Taken) -> None:
    begun = time.perf_counter()
    domain = template.clone(machine.host, code_cache=subject.code_cache)
    terminal = _Clone(machine, domain)
    taken.clone.append(time.perf_counter() - begun)
    machine.host.unpause(domain)
    terminal.type(subject.typed)
    terminal.expect(subject.answer)
    taken.clone_answer.append(time.perf_counter() - begun)
    leave(machine.host, domain)
