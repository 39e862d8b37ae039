"""What a domain shows: its console and its screen."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


class ByteStream(Protocol):
    """A console, until its domain ends. Raises HostError LOST when its host is lost: it must be asked for anew then."""

    async def write(self, data: bytes) -> int:
        """Type; return how many bytes were taken, after waiting for room for one. None are once the domain has ended.

        Who is cancelled while it waits has typed nothing.
        """

    def follow(self) -> AsyncIterator[bytes]:
        """Yield what was written lately, then output as it comes, until the domain ends.

        Who takes it too slowly misses the oldest: no more than is kept for all is kept for it.
        """


@dataclass(frozen=True, slots=True)
class Area:
    """A rectangle of pixels, never empty; (0, 0) is the top left of the screen."""

    x: int
    y: int
    width: int
    height: int

    def __contains__(self, other: Area) -> bool:
        return (
            self.x <= other.x
            and self.y <= other.y
            and other.x + other.width <= self.x + self.width
            and other.y + other.height <= self.y + self.height
        )

    @property
    def size(self) -> int:
        """Return how many pixels it has."""
        return self.width * self.height

    def around(self, other: Area) -> Area:
        """Return the smallest area that holds both."""
        left, top = min(self.x, other.x), min(self.y, other.y)
        right = max(self.x + self.width, other.x + other.width)
        bottom = max(self.y + self.height, other.y + other.height)
        return Area(left, top, right - left, bottom - top)


@dataclass(frozen=True, slots=True)
class Damage:
    """What has changed on a screen that is `width` x `height` now, 0 x 0 while the guest has no driver for it."""

    width: int
    height: int
    areas: tuple[Area, ...]


class Screen(Protocol):
    """A domain's screen, keyboard and pointer, to be asked for anew when its host was lost (HostError LOST).

    Input is put in as it was asked for, in order, and tells whether it was taken: not without a driver in the guest.
    """

    def follow(self) -> AsyncIterator[Damage]:
        """Yield what has changed, at first the whole screen; what changes while nobody waits comes at once.

        Ends when the screen is taken away, and with its domain.

        Of a guest whose driver does not tell of changes only a new shape is heard: look at the whole at times.
        """

    async def pixels(self, area: Area) -> bytes:
        """Return a part of the screen, 4 bytes a pixel: blue, green, red and none. Raises HostError for one off it."""

    async def key(self, code: int, pressed: bool) -> bool:
        """Press or release a key or a button of the pointer, by Linux's code. Raises HostError for one of none."""

    async def point(self, x: int, y: int, wheel: int = 0) -> bool:
        """Put the pointer at a place of the screen as it is now, and turn the wheel by steps, up is positive."""
