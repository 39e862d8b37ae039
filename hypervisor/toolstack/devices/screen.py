"""Screens, each with its keyboard and pointer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hypervisor.api import Display
from hypervisor.split.framebuffer import Framebuffer
from hypervisor.split.keyboard import Keyboard
from hypervisor.split.xenbus import DeviceClass
from hypervisor.toolstack.devices.plugged import Plugged, Slot


class Screen(Plugged[Display]):
    """A framebuffer and a keyboard that come and go together."""

    describes = Display

    def __init__(self, slot: Slot, described: Display) -> None:
        super().__init__(slot, described)
        width, height, memory = described.width, described.height, described.memory
        self.framebuffer = Framebuffer(slot.domain, width=width, height=height, video_memory=memory)
        self.keyboard = Keyboard(slot.domain, width=width, height=height)

    def parts(self) -> Mapping[DeviceClass, int]:
        """Return both."""
        return {self.framebuffer: self.described.number, self.keyboard: self.described.number}

    def free(self, done: Callable[[], None]) -> None:
        """Tell those who look that there is nothing more to see."""
        self.framebuffer.close()
        done()
