"""Screen, keyboard and pointer against Linux's own drivers, xen-fbfront and xen-kbdfront, in Debian's kernels.

The kernel for clouds has the screen's driver, but not the keyboard's: those tests boot Debian's other kernel.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest

from hypervisor import api
from hypervisor.api import Area
from hypervisor.split.keyboard import BUTTON_LEFT
from hypervisor.toolstack.devices.screen import Screen
from hypervisor.toolstack.toolstack import Toolstack
from tests.guests.conftest import MODULES, Linux, fetched, initrd

WIDTH, HEIGHT = 640, 480
SECONDS = 30
EV_KEY, EV_REL, EV_ABS = 1, 2, 3
KEY_A, KEY_B, KEY_ENTER, REL_WHEEL = 30, 48, 28, 8


class Display:
    """A Linux with a screen and a keyboard plugged before it boots."""

    def __init__(self, linux: Linux) -> None:
        self.linux = linux
        self.run = linux.run
        self.described = api.Display(width=WIDTH, height=HEIGHT)
        linux.toolstack.plug(linux.uuid, self.described)
        plugged = linux.toolstack.guest(linux.uuid).devices.find(Screen)
        self.screen, self.keyboard = plugged.framebuffer, plugged.keyboard
        self._news = threading.Event()
        self.follower = self.screen.follow(self._news.set)
        linux.boot()
        # The console's cursor would blink into our pictures.
        linux.run("echo 0 >/sys/class/graphics/fbcon/cursor_blink")

    def changes(self) -> tuple[Area, ...]:
        """Wait for damage and return it."""
        assert self._news.wait(SECONDS), "nothing has changed"
        self._news.clear()
        return self.follower.take().areas

    def settle(self) -> None:
        """Forget the damage of before."""
        self._news.clear()
        self.follower.take()

    def events(self, device: str, count: int, act: Callable[[], None]) -> list[tuple[int, int, int]]:
        """Return the events (type, code, value) that an input device tells, but for EV_SYN, when somebody acts."""
        self.run(f"dd if=/dev/input/{device} of=/tmp/events bs=24 count={count} 2>/dev/null &")
        self.linux.wait_for(f"ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q input/{device}")
        act()
        self.linux.wait_for(f"[ $(stat -c %s /tmp/events) = {24 * count} ]")
        data = bytes.fromhex("".join(self.run("od -An -v -tx1 /tmp/events").split()))
        events = [struct.unpack_from("<HHi", data, at + 16) for at in range(0, len(data), 24)]
        return [event for event in events if event[0]]


@pytest.fixture(scope="module")
def display(make_linux: Callable[[], Any]) -> Display:
    return Display(make_linux())


@pytest.fixture(scope="module")
def desk(toolstack: Toolstack, tmp_path_factory: pytest.TempPathFactory) -> Display:
    files = fetched("linux-image-amd64")
    ramdisk = tmp_path_factory.mktemp("desk") / "initrd"
    ramdisk.write_bytes(initrd(files, [*MODULES, "kernel/drivers/input/evdev.ko"]))
    return Display(Linux(toolstack, files.kernel, ramdisk))


def test_linux_takes_the_size_that_we_wish(display: Display) -> None:
    """And connects, with updates."""
    assert display.run("cat /proc/fb /sys/class/graphics/fb0/virtual_size").split() == ["0", "xen", "640,480"]
    assert display.screen.shape is not None and display.screen.tells
    assert (display.screen.shape.width, display.screen.shape.height, display.screen.shape.depth) == (WIDTH, HEIGHT, 32)


def test_what_linux_draws_is_what_we_see(display: Display) -> None:
    """Every byte of /dev/fb0, and that it has changed."""
    display.settle()
    display.run(
        f"dd if=/dev/urandom of=/tmp/picture bs={WIDTH * 4} count={HEIGHT} 2>/dev/null; cat /tmp/picture >/dev/fb0"
    )
    assert Area(0, 0, WIDTH, HEIGHT) in display.changes()
    digest = hashlib.md5(display.screen.picture().data).hexdigest()
    assert display.run("md5sum </tmp/picture").split()[0] == digest
    display.run(f"printf 'wxyz' | dd of=/dev/fb0 bs=4 seek={WIDTH * 100 + 50} conv=notrunc 2>/dev/null")
    assert display.screen.pixels(50, 100, 1, 1) == b"wxyz"


def test_text_on_the_console_damages_only_its_lines(display: Display) -> None:
    """The kernel's text console draws letters: some of the screen changes, and is not black."""
    display.run("clear >/dev/tty0")
    display.settle()
    display.run("echo hello there >/dev/tty0")
    areas = display.changes()
    assert sum(area.size for area in areas) < WIDTH * HEIGHT // 4
    drawn = [display.screen.pixels(area.x, area.y, area.width, area.height) for area in areas]
    assert any(any(data[0::4]) for data in drawn)


def a_mode(width: int, height: int) -> str:
    """A fb_videomode of Linux's at 60 Hz, for printf in the guest: sysfs takes new ones in binary."""
    data = struct.pack("<Q13I4x", 0, 60, width, height, 39721, 40, 24, 32, 11, 96, 2, 0, 0, 0)
    return "".join(f"\\{byte:03o}" for byte in data)


def test_linux_changes_the_resolution(display: Display) -> None:
    """A smaller screen in the same memory, and back."""
    graphics = "/sys/class/graphics/fb0"
    display.run(f"printf '{a_mode(320, 200)}{a_mode(WIDTH, HEIGHT)}' >/tmp/modes; cat /tmp/modes >{graphics}/modes")
    for width, height in ((320, 200), (WIDTH, HEIGHT)):
        display.settle()
        display.run(f"echo U:{width}x{height}p-60 >{graphics}/mode; echo x >/dev/tty0")
        assert display.changes()
        assert display.screen.shape is not None
        assert (display.screen.shape.width, display.screen.shape.height) == (width, height)
        assert display.screen.shape.stride == WIDTH * 4


def test_the_screen_can_be_unplugged(display: Display) -> None:
    """Linux gives its device up, and follows when there is a new one of another size."""
    toolstack, uuid, gone = display.linux.toolstack, display.linux.uuid, threading.Event()
    toolstack.unplug(uuid, display.described, gone.set)
    assert gone.wait(SECONDS)
    assert display.screen.picture().width == 0
    display.linux.wait_for("[ ! -e /sys/devices/vfb-0 ]")
    toolstack.plug(uuid, api.Display(width=400, height=300))
    screen = toolstack.guest(uuid).devices.find(Screen).framebuffer
    display.linux.wait_for("[ -e /dev/fb0 ]")
    assert display.run("cat /sys/class/graphics/fb0/virtual_size") == "400,300"
    display.run("printf 'wxyz' >/dev/fb0")
    assert screen.pixels(0, 0, 1, 1) == b"wxyz"


def test_keys_reach_linux(desk: Display) -> None:
    """Press and release, as the input device tells them."""

    def act() -> None:
        assert desk.keyboard.key(KEY_A, True) and desk.keyboard.key(KEY_A, False)

    assert desk.events("event0", 4, act) == [(EV_KEY, KEY_A, 1), (EV_KEY, KEY_A, 0)]


def test_the_pointer_reaches_linux(desk: Display) -> None:
    """Places scaled to the screen, a button, and the wheel upwards."""

    def act() -> None:
        assert desk.keyboard.move_to(799, 300, within=(800, 600))
        assert desk.keyboard.key(BUTTON_LEFT, True)
        assert desk.keyboard.move_by(-600, 5, wheel=1)

    assert desk.events("event1", 9, act) == [
        *((EV_ABS, 0, 639), (EV_ABS, 1, 239)),
        (EV_KEY, BUTTON_LEFT, 1),
        *((EV_ABS, 0, 39), (EV_ABS, 1, 244), (EV_REL, REL_WHEEL, 1)),
    ]


def test_typed_text_reaches_the_console_and_the_screen(desk: Display) -> None:
    """More keys at once than the ring holds, in order, through the kernel's console, which shows them."""
    desk.run("clear >/dev/tty1; head -n 2 </dev/tty1 | tail -n 1 >/tmp/line &")
    desk.linux.wait_for("ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q dev/tty1")
    desk.settle()
    before = desk.screen.picture().data
    # The first line is what was typed before, for the console hears all keys.
    for key in [KEY_ENTER, *[*[KEY_A] * 30, KEY_B] * 3, KEY_ENTER]:
        assert desk.keyboard.key(key, True) and desk.keyboard.key(key, False)
    desk.linux.wait_for("[ -s /tmp/line ]")
    assert desk.run("cat /tmp/line") == ("a" * 30 + "b") * 3
    assert desk.changes() and desk.screen.picture().data != before
    assert desk.keyboard.dropped == 0
