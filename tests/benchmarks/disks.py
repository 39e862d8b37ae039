"""The block rings: a Debian guest's own driver against the disk object that it reaches, in this process.

The guest runs guest_load.c with O_DIRECT: random 4 KiB with 32 under way, and 1 MiB one after the other. The limit
does the same to the disk object in a loop, with nothing around it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from hypervisor import api
from hypervisor.api import disk_name
from hypervisor.disks import raw, vhd
from hypervisor.disks.disk import Disk
from hypervisor.storage.repositories import Repositories
from hypervisor.toolstack.devices.drive import open_disk
from tests.benchmarks import linux, machine
from tests.benchmarks.figures import Figure, percent
from tests.benchmarks.linux import Linux, NotHere
from tests.benchmarks.machine import MIB, Machine
from tests.benchmarks.stage import Stage, say

SIZE = 128 * MIB
SECONDS = 2
SMALL, LARGE, DEPTH = 4096, MIB, 32
KINDS = ("anonymous", "raw", "vhd")
WAYS = (("w", LARGE), ("r", LARGE), ("w", SMALL), ("r", SMALL))
"""Large writes come first: then the image has all of its blocks."""


def benchmark(stage: Stage) -> list[Figure]:
    """Measure each kind of image."""
    try:
        found = linux.files()
        ramdisk = linux.write(stage.directory, "disks.initrd", linux.load_initrd(found))
    except NotHere as error:
        return [Figure(f"block rings: not measured, {error}", "")]
    say("disks of a Linux guest")
    figures = []
    with Machine() as made:
        guest = Linux(made, found.kernel, ramdisk).boot()
        for number, kind in enumerate(KINDS):
            figures += _kind(guest, _described(stage.directory, kind, number), kind)
    return figures


def _described(directory: Path, kind: str, number: int) -> api.Disk:
    path = directory / f"disk.{kind}"
    if kind == "anonymous":
        return api.Disk(number, "", kind, size=SIZE)
    if kind == "raw":
        raw.create(path, SIZE).close()
    else:
        vhd.create(path, SIZE, clock=time.time_ns)
    return api.Disk(number, str(path), kind)


def _kind(guest: Linux, described: api.Disk, kind: str) -> list[Figure]:
    name = disk_name(described.number)
    guest.machine.toolstack.plug(guest.uuid, described)
    guest.wait_for(f"[ -b /dev/{name} ]")
    ours = [_guest_rate(guest, name, mode, size) for mode, size in WAYS]
    closed = threading.Event()
    guest.machine.toolstack.unplug(guest.uuid, described, closed.set)
    if not closed.wait(machine.SECONDS):
        raise TimeoutError(f"the guest keeps {name}")
    disk = open_disk(described, Repositories())
    assert disk is not None
    limits = [_bare_rate(disk, mode, size) for mode, size in WAYS]
    disk.close()
    note = f"{SIZE // MIB} MiB, in the page cache; the guest has {DEPTH} small or 4 large transfers under way."
    return [_figure(kind, way, mine, limit, note) for way, mine, limit in zip(WAYS, ours, limits)]


def _figure(kind: str, way: tuple[str, int], ours: float, limit: float, note: str) -> Figure:
    mode, size = way
    what = "reads" if mode == "r" else "writes"
    if size == LARGE:
        what = f"block ring, {kind}: sequential {what} of 1 MiB, MB/s; limit: the disk object"
        return Figure(what, f"{ours * size / 1e6:,.0f}", f"{limit * size / 1e6:,.0f}", percent(ours / limit), note=note)
    what = f"block ring, {kind}: random {what} of 4 KiB, IOPS; limit: the disk object"
    return Figure(what, f"{ours:,.0f}", f"{limit:,.0f}", percent(ours / limit), note=note)


def _guest_rate(guest: Linux, name: str, mode: str, size: int) -> float:
    """Return operations a second in the guest."""
    depth, order = (4, "next") if size == LARGE else (DEPTH, "random")
    found = guest.numbers(f"load disk /dev/{name} {size} {depth} {SECONDS} {mode} {order}")
    return found["operations"] / found["ns"] * 1e9


def _bare_rate(disk: Disk, mode: str, size: int) -> float:
    """Return operations a second on the disk object alone."""
    buffer, places = bytearray(size), SIZE // size
    rng = random.Random(1)
    offsets = [(n if size == LARGE else rng.randrange(places)) % places * size for n in range(1024)]
    operate: Callable[[int, bytearray], None] = disk.write if mode == "w" else disk.readinto
    count, begun = 0, time.perf_counter()
    while (taken := time.perf_counter() - begun) < SECONDS / 2:
        operate(offsets[count % 1024], buffer)
        count += 1
    return count / taken
