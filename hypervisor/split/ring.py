"""The shared ring of public/io/ring.h, from the backend's side.

A power of two of slots lies behind a header of 64 bytes, in one granted page or several that need not be
neighbours; requests and responses use the same slots. Indexes are free-running 32-bit numbers. All that the
front can do to us is to move its own two: `requests` believes a producer index only as far as there are slots
not yet answered, and takes anything beyond for a broken ring, which is not served any more.

Call everything here on the domain's own thread (in a hook, or through `EventChannels.post`). The protocol needs
a full memory barrier on both sides between "I write my index" and "I read yours"; Unicorn, which runs one CPU
at a time, translates a guest's barriers and locked instructions to plain ones, so that from another thread of
the host a wake-up could be lost.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from hypervisor.memory.guest_memory import PAGE

HEADER = 64
_REQUEST_PRODUCER, _REQUEST_EVENT, _RESPONSE_PRODUCER, _RESPONSE_EVENT = 0, 4, 8, 12
_MASK = 0xFFFF_FFFF
_INDEX = struct.Struct("<I")


def slots_of(pages: int, slot: int) -> int:
    """Return how many slots of `slot` bytes a ring of so many pages has (__RING_SIZE)."""
    return 1 << ((pages * PAGE - HEADER) // slot).bit_length() - 1


class Ring:
    """A ring in `pages`, each a writable view of one granted frame; `slot` bytes hold a request or a response.

    Begins where an earlier backend has left off, which for a fresh ring is 0.
    """

    def __init__(self, pages: Sequence[memoryview], slot: int) -> None:
        self.slots = slots_of(len(pages), slot)
        self.broken = False
        self._pages = tuple(pages)
        self._slot = slot
        self._consumed = self._answered = self._read(_RESPONSE_PRODUCER)

    def _read(self, at: int) -> int:
        return int(_INDEX.unpack_from(self._pages[0], at)[0])

    def _write(self, at: int, index: int) -> None:
        _INDEX.pack_into(self._pages[0], at, index)

    @property
    def unanswered(self) -> int:
        """Return how many requests were taken whose responses are not in the ring yet."""
        return self._consumed - self._answered & _MASK

    def requests(self, most: int) -> list[bytes]:
        """Take up to `most` requests, copied: the front may change a slot at any time.

        When it returns fewer than `most`, the front will send an event for its next request.
        """
        taken: list[bytes] = []
        while len(taken) < most:
            ahead = self._ahead()
            if not ahead:
                # Ask for an event, then look again for what came before the front could know.
                self._write(_REQUEST_EVENT, self._consumed + 1 & _MASK)
                ahead = self._ahead()
            if not ahead:
                break
            for _ in range(min(ahead, most - len(taken))):
                taken.append(self._copy(HEADER + (self._consumed & self.slots - 1) * self._slot))
                self._consumed = self._consumed + 1 & _MASK
        return taken

    def waiting(self) -> int:
        """Return how many requests could be taken now, without asking for an event for the next."""
        return self._ahead()

    def _ahead(self) -> int:
        """Return how many requests wait; a producer index beyond the free slots breaks the ring."""
        produced = self._read(_REQUEST_PRODUCER)
        if produced - self._answered & _MASK > self.slots or produced - self._consumed & _MASK > self.slots:
            self.broken = True
        return 0 if self.broken else produced - self._consumed & _MASK

    def _copy(self, offset: int) -> bytes:
        page, at = divmod(offset, PAGE)
        data = bytes(self._pages[page][at : at + self._slot])
        if len(data) < self._slot:
            data += bytes(self._pages[page + 1][: self._slot - len(data)])
        return data

    def respond(self, responses: Sequence[bytes]) -> bool:
        """Put responses, none longer than a slot, into the ring; tell whether the front wants an event.

        There must be a request taken for each.
        """
        if len(responses) > self.unanswered:
            raise ValueError("more responses than requests")
        before = self._answered
        for response in responses:
            page, at = divmod(HEADER + (self._answered & self.slots - 1) * self._slot, PAGE)
            here = response[: PAGE - at]
            self._pages[page][at : at + len(here)] = here
            if len(here) < len(response):
                self._pages[page + 1][: len(response) - len(here)] = response[len(here) :]
            self._answered = self._answered + 1 & _MASK
        self._write(_RESPONSE_PRODUCER, self._answered)
        wanted = self._read(_RESPONSE_EVENT)
        return self._answered - wanted & _MASK < self._answered - before & _MASK
