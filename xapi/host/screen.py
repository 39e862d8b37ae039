"""A domain's screen, keyboard and pointer on the reactor's thread."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from hypervisor.api import Area, Code, Damage, HostError

if TYPE_CHECKING:
    from hypervisor.split.framebuffer import Framebuffer
    from hypervisor.split.keyboard import Keyboard
    from xapi.host.threads import Threads


class ScreenView:
    """`hypervisor.api.Screen` of a domain in this process."""

    def __init__(self, screen: Framebuffer, keyboard: Keyboard, threads: Threads) -> None:
        self._screen = screen
        self._keyboard = keyboard
        self._threads = threads

    async def follow(self) -> AsyncIterator[Damage]:
        """Yield what has changed, at first all there is, until the screen is taken away."""
        news: Deferred[None] = Deferred()

        def came() -> None:
            if not news.called:
                news.callback(None)

        def heard() -> None:
            self._threads.back(came)

        follower = self._screen.follow(heard)
        try:
            while not follower.ended:
                await news
                news = Deferred()  # before it is taken, or what comes between would not be heard
                yield follower.take()
        finally:
            follower.close()

    async def pixels(self, area: Area) -> bytes:
        """Return a part of the screen. Raises HostError."""
        try:
            found: bytes = await self._threads.run(self._screen.pixels, area.x, area.y, area.width, area.height)
        except ValueError as error:
            raise HostError(Code.OFF_SCREEN, str(error)) from error
        return found

    async def key(self, code: int, pressed: bool) -> bool:
        """Press or release a key or button. Raises HostError."""
        try:
            return self._keyboard.key(code, pressed)
        except ValueError as error:
            raise HostError(Code.NO_KEY, str(error)) from error

    async def point(self, x: int, y: int, wheel: int = 0) -> bool:
        """Put the pointer somewhere on the screen as it is now, and turn the wheel."""
        shape = self._screen.shape
        return self._keyboard.move_to(x, y, wheel, None if shape is None else (shape.width, shape.height))
