"""What operations under way have made and are about to delete, known durably, so that a crash leaves nothing of it.

The uuid of a new image is noted with its SR (`SR.unfinished`) before there is a file, and the note goes when the
message that makes it ends; those of a larger operation, a VM's clone for example, go in the change that makes its rows.
So do notes of images that an operation replaces: they are made when nothing refers to these any more. What is noted
when the daemon starts is nobody's, and goes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from xapi.calls.work import Work
from xapi.datamodel.errors import Fault
from xapi.log.guests import named

if TYPE_CHECKING:
    from xapi.datamodel import records
    from xapi.store.memory import Store

log = Logger()


class Making:
    """The notes of one operation."""

    def __init__(self, db: Store) -> None:
        self._db = db
        self._noted: list[tuple[str, str]] = []
        """SRs, and uuids of images on them."""

    def note(self, sr: str, image: str) -> None:
        """Note an image."""
        with self._db.atomic():
            row = self._db.SR[sr]
            row.unfinished = (*row.unfinished, image)
        self._noted.append((sr, image))

    def replaced(self, vdis: Iterable[records.VDI]) -> None:
        """Note images that are about to be deleted, as nothing refers to them any more."""
        for vdi in vdis:
            self.note(vdi.SR, vdi.uuid)

    def done(self) -> None:
        """Let all notes go. Call this in the operation's last change."""
        with self._db.atomic():
            for sr, image in self._noted:
                row = self._db.SR.get(sr)
                if row is not None and image in row.unfinished:
                    _forget(row, image)


@contextmanager
def making(work: Work) -> Iterator[Making]:
    """Note what a call and its parts make; notes go when the outermost such block of an operation ends, if not before.

    Where the operation has failed by then, what it made is destroyed, or logged as what stays.
    """
    outer = work.making
    if isinstance(outer, Making):
        yield outer
        return
    work.making = made = Making(work.db)
    try:
        yield made
    finally:
        made.done()
        work.making = None


@asynccontextmanager
async def new_image(work: Work, sr: records.SR) -> AsyncIterator[str]:
    """Return the uuid of an image that is to be made on an SR, when its note is durable. Raises Fault."""
    with making(work) as noted:
        image = work.db.uuids.draw("VDI")
        noted.note(sr._ref, image)
        await durable(work.db)
        yield image


@asynccontextmanager
async def leaving(work: Work, vdi: records.VDI) -> AsyncIterator[None]:
    """Delete an image inside, with its row; a crash does not end that. Raises Fault."""
    with making(work) as noted:
        noted.replaced([vdi])
        await durable(work.db)
        yield


async def durable(db: Store) -> None:
    """Wait until all changes so far are on disk. Raises Fault when they are undone instead."""
    told: Deferred[None] = Deferred()

    def tell(fault: Fault | None) -> None:
        if not told.called:
            told.callback(None) if fault is None else told.errback(fault)

    db.when_flushed(db.last_written, tell)
    await told


async def sweep(work: Work, discard: Callable[[Work, records.SR, str], Awaitable[None]]) -> None:
    """Delete what operations have left that a crash has ended; what cannot be deleted now waits for the next start."""
    for sr, image in [(row, image) for row in work.db.SR for image in row.unfinished]:
        try:
            await discard(work, sr, image)
        except Fault as fault:
            log.error("{image}, which nobody has, stays on {sr}: {fault}", image=image, sr=named(sr), fault=fault)
            continue
        _forget(sr, image)


def _forget(sr: records.SR, image: str) -> None:
    sr.unfinished = tuple(each for each in sr.unfinished if each != image)
