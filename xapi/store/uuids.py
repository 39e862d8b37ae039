"""Where the uuids of new objects come from, and their references: from chance, or, for tests, from a seed.

With a seed each class has a sequence of its own, which follows from the seed, the class's name and the generation at
which the daemon has started: the same calls make the same objects whatever else goes on beside them, also after a
restart, and no sequence is used twice. Whoever knows a session's reference is logged in, and secrets are found by
theirs, so these come from chance in any case.
"""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Iterator

GUESSED_BY_NOBODY = frozenset({"session", "secret"})


def random_uuids() -> Iterator[str]:
    """Yield uuids of version 4, many for one system call: at each of those the interpreter goes to other threads."""
    while True:
        drawn = os.urandom(16 * 256)
        for at in range(0, len(drawn), 16):
            yield str(uuid.UUID(bytes=drawn[at : at + 16], version=4))


def seeded_uuids(seed: str) -> Iterator[str]:
    """Yield the uuids of version 4 that follow from a seed."""
    rng = random.Random(seed)
    while True:
        yield str(uuid.UUID(int=rng.getrandbits(128), version=4))


class Uuids:
    """The sequences of one run of the daemon, which begins at a generation."""

    def __init__(self, seed: int | None = None, generation: int = 0) -> None:
        self._start = None if seed is None else f"{seed}/{generation}"
        self._random = random_uuids()
        self._sequences: dict[str, Iterator[str]] = {}

    def draw(self, purpose: str) -> str:
        """Return the next uuid for an object of a class, or whatever else the purpose names."""
        sequence = self._sequences.get(purpose)
        if sequence is None:
            chance = self._start is None or purpose in GUESSED_BY_NOBODY
            sequence = self._random if chance else seeded_uuids(f"{self._start}/{purpose}")
            self._sequences[purpose] = sequence
        return next(sequence)
