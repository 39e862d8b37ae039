"""Saved domains that somebody has changed: each is refused, or becomes a guest that is as harmless as any other.

A case is made from a number. It takes the image of a demo guest and either damages its bytes, after which it must
be refused, or changes records and makes the checksums good again, as who can write an image can. What is restored
runs for a while, with whatever registers, page tables and rings it has got, and nothing of it may stay.
"""

from __future__ import annotations

import io
import os
import random
import tempfile
from pathlib import Path

from hypervisor.api import DirectBoot, Display, DomainConfig, HostError, Shutdown
from hypervisor.guests import DEMO_KERNEL, DEMO_MEMORY
from hypervisor.host import Host
from hypervisor.migration.records import Kind, Writer
from hypervisor.toolstack.toolstack import Toolstack
from tests.fuzz import code
from tests.guests.demo_guest import DemoGuest
from tests.unit.saved_domain import records_of

UUID = "00000000-0000-0000-0000-000000000001"
NUMBERS = (0, 1, 2, 0x7F, 0xFF, 0xFFF, 0x1000, 0xFFFF, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 46, 1 << 63,
           (1 << 64) - 1)  # fmt: skip
"""What stands for lengths, frames and addresses that are wrong."""
Record = tuple[Kind, bytes]


def image(kind: str) -> bytes:
    """Return a demo guest that was saved at its prompt."""
    host = Host(64 << 20, 1)
    host.start()
    guest = DemoGuest(host, DEMO_MEMORY, kind=kind).boot()
    try:
        guest.toolstack.request(guest.config.uuid, Shutdown.SUSPEND)
        guest.wait_for(lambda: guest.domain.life.reason is not None)
        with tempfile.TemporaryDirectory() as directory:
            guest.toolstack.save(guest.config.uuid, Path(directory) / "image")
            return (Path(directory) / "image").read_bytes()
    finally:
        guest.toolstack.stop()


def changed(rng: random.Random, records: list[Record]) -> None:
    """Change records in one of the ways that an image may be wrong."""
    at = rng.randrange(len(records))
    kind, body = records[at]
    match rng.randrange(9):
        case 0 | 1 | 2 if body:
            where = rng.randrange(len(body))
            new = rng.randbytes(rng.randrange(1, 9))
            if rng.random() < 0.7:
                size = rng.choice([1, 2, 4, 8])
                where = where // size * size
                new = (rng.choice(NUMBERS) & (1 << 8 * size) - 1).to_bytes(size, "little")
            records[at] = kind, body[:where] + new + body[where + len(new) :]
        case 3:
            records[at] = rng.choice(list(Kind)), body
        case 4 if len(records) > 1:
            del records[at]
        case 5:
            records.insert(rng.randrange(len(records) + 1), records[at])
        case 6:
            other = rng.randrange(len(records))
            records[at], records[other] = records[other], records[at]
        case 7:
            records[at] = kind, body[: rng.randrange(len(body) + 1)]
        case _:
            records[at] = kind, body + rng.randbytes(rng.randrange(1, 40))


def written(records: list[Record]) -> bytes:
    """Return records as an image whose checksums are good."""
    file = io.BytesIO()
    writer = Writer(file)
    for kind, body in records:
        writer.put(kind, body)
    return file.getvalue()


class Streams:
    """Cases on a host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._toolstack = Toolstack(host)
        self._images = [image(kind) for kind in ("pvh", "pv")]
        self._records = [records_of(each) for each in self._images]

    def case(self, number: int, seconds: float) -> str:
        """Make, restore, run and destroy one case; return how it ended."""
        rng = random.Random(number)
        which = rng.randrange(len(self._images))
        damage = rng.random() < 0.2
        before = self._left()
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "image"
            path.write_bytes(self._damaged(rng, which) if damage else self._spoiled(rng, which))
            ending = self._live(path, seconds)
        assert not damage or ending == "bad_image", f"a damaged image is taken: {ending}"
        assert self._left() == before, f"{before} became {self._left()}"
        return ending

    def _damaged(self, rng: random.Random, which: int) -> bytes:
        sound = self._images[which]
        # Behind the last record an image is filled up to a whole sector, which nobody reads.
        end = len(sound) - 512
        at, count = rng.randrange(end), rng.randrange(1, 9)
        new = bytes(byte ^ rng.randrange(1, 256) for byte in sound[at : at + count])
        return rng.choice([sound[:at] + new + sound[at + count :], sound[:at], sound[:at] + sound[at + count :]])

    def _spoiled(self, rng: random.Random, which: int) -> bytes:
        records = list(self._records[which])
        for _ in range(rng.randrange(1, 4)):
            changed(rng, records)
        return written(records)

    def _live(self, path: Path, seconds: float) -> str:
        memory = DEMO_MEMORY
        boot = DirectBoot(str(DEMO_KERNEL))
        config = DomainConfig(UUID, "case", memory, memory, 1, boot, display=Display())
        try:
            guest = self._toolstack.restore(config, path)
        except HostError as error:
            return error.code.value
        try:
            self._host.unpause(guest.domain)
            guest.console.write(b"info\r")
            return code.execute(guest.domain, seconds).word
        finally:
            self._toolstack.destroy(UUID)
            assert guest.console.write(b"late") == 0

    def _left(self) -> tuple[int, int, int, list[str]]:
        """Return what a case could leave behind: domains, memory set aside, open files, homes in xenstore."""
        store = self._host.xenstore
        homes = [home for home in store.ls("/local/domain") if home != "0"] if store.exists("/local/domain") else []
        return len(self._host.domains), self._host.free_memory(), len(os.listdir("/proc/self/fd")), homes
