"""The keyboard and pointer of a guest: the virtual keyboard of public/io/kbdif.h (xen-kbdfront in Linux).

Keys are Linux's codes (linux/input-event-codes.h), pointer buttons among them. A pointer's position goes to the
front as it has asked for: as a place on its screen, as a place in 0 … 0x7FFF each way, or as a movement; we keep
where the pointer is to turn one into the other.

The ring has room for 51 events, a little more waits here; what comes beyond is dropped and counted, the newest first,
but never the release of a key whose press was sent.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Mapping

from hypervisor.domains.domain import Domain
from hypervisor.split.shared_page import SharedPage
from hypervisor.split.xenbus import Backend, BusState, Frontend, FrontendError

WIDTH, HEIGHT = 800, 600
"""The pointer's screen if nobody says otherwise, as fronts have it."""
KEY_LAST = 0x2FF
"""KEY_MAX of Linux."""
BUTTON_LEFT, BUTTON_RIGHT, BUTTON_MIDDLE = 0x110, 0x111, 0x112
"""BTN_LEFT and its like."""
WAITING_MOST = 256
"""Events that may wait for room in the ring; releases of pressed keys come on top, one for each key at most."""
_MOTION, _KEY, _POSITION = 1, 3, 4
"""XENKBD_TYPE_*."""
_IN_RING, _OUT_RING = (1024, 2048), (3072, 1024)
_RAW = 0x8000
_LARGEST = (1 << 31) - 1


class Keyboard:
    """A keyboard and pointer to be plugged with `xenbus.Backend`; the pointer moves on `width` x `height` pixels.

    Methods may be called from any thread; they tell whether the event was taken, which it is not while no front is
    connected.
    """

    kind = "vkbd"
    ready = frozenset({BusState.INITIALISED, BusState.CONNECTED})

    def __init__(self, domain: Domain, *, width: int = WIDTH, height: int = HEIGHT) -> None:
        if not (0 < width <= _RAW and 0 < height <= _RAW):
            raise ValueError(f"{width} x {height} is no screen")
        self.domain = domain
        self.sent = self.dropped = 0
        """Events that were taken, and that were not while a front was connected."""
        self._screen = (width, height)
        self._frontend: Frontend | None = None
        self._bus: Backend | None = None
        self._page: SharedPage | None = None
        self._waiting: deque[bytes] = deque()
        self._posted = False
        self._pressed: set[int] = set()
        self._at = (0, 0)

    # For xenbus

    def back_nodes(self) -> Mapping[str, str]:
        """Return nothing: all is said by `features`."""
        return {}

    def front_nodes(self) -> Mapping[str, str]:
        """Return nothing."""
        return {}

    def features(self) -> Mapping[str, str]:
        """Return what we offer."""
        width, height = self._screen
        features = ("feature-abs-pointer", "feature-raw-pointer")
        return dict.fromkeys(features, "1") | {"width": str(width), "height": str(height)}

    def connect(self, frontend: Frontend, bus: Backend) -> Mapping[str, str]:
        """Map the page and begin to send. Raises FrontendError."""
        self._page = SharedPage(self.domain, frontend, _IN_RING, _OUT_RING, self._heard)
        self._frontend, self._bus = frontend, bus
        return {}

    def disconnect(self, done: Callable[[], None], drop: bool = False) -> None:
        """Let go of everything of the guest's; see `DeviceClass`."""
        page, self._page = self._page, None
        if page is not None:
            page.close()
        self._waiting.clear()
        self._pressed.clear()
        if drop:
            self._bus = None
        done()

    @property
    def connected(self) -> bool:
        """Tell whether there is a front that hears."""
        return self._page is not None

    @property
    def absolute(self) -> bool:
        """Tell whether the front has asked for positions; it may do so late, up to Connected."""
        return self._frontend is not None and self._frontend.now("request-abs-pointer") == "1"

    # Input

    def key(self, code: int, pressed: bool) -> bool:
        """Press or release a key or button. Raises ValueError for a code that Linux does not have."""
        if not 0 < code <= KEY_LAST:
            raise ValueError(f"there is no key {code}")
        with self.domain.host.lock:
            release = not pressed and code in self._pressed
            taken = self._put(struct.pack("<BBxxI", _KEY, pressed, code), must=release)
            if taken and pressed:
                self._pressed.add(code)
            self._pressed.difference_update((code,) if release else ())
            return taken

    def move_to(self, x: int, y: int, wheel: int = 0, within: tuple[int, int] | None = None) -> bool:
        """Put the pointer at a place of a screen of `within` pixels (default: the device's own), and turn the wheel.

        The wheel is in steps, up (away from the user) is positive. Places off the screen count as its edge.
        """
        with self.domain.host.lock:
            before, (width, height) = self._at, within or self._screen
            columns, rows = self._screen
            self._at = _scaled(x, width, columns), _scaled(y, height, rows)
            if self.absolute:
                return self._put(self._position(x, y, wheel, width, height))
            return self._put(_event(_MOTION, self._at[0] - before[0], self._at[1] - before[1], wheel))

    def move_by(self, across: int, down: int, wheel: int = 0) -> bool:
        """Move the pointer by pixels of the device's own screen, and turn the wheel."""
        with self.domain.host.lock:
            columns, rows = self._screen
            self._at = x, y = _clamped(self._at[0] + across, columns), _clamped(self._at[1] + down, rows)
            if self.absolute:
                return self._put(self._position(x, y, wheel, columns, rows))
            return self._put(_event(_MOTION, across, down, wheel))

    def _position(self, x: int, y: int, wheel: int, width: int, height: int) -> bytes:
        raw = self._frontend is not None and self._frontend.now("request-raw-pointer") == "1"
        columns, rows = (_RAW, _RAW) if raw else self._screen
        return _event(_POSITION, _scaled(x, width, columns), _scaled(y, height, rows), wheel)

    def _put(self, event: bytes, must: bool = False) -> bool:
        """Let an event wait for the domain's thread; tell whether it does."""
        if self._page is None:
            return False
        if len(self._waiting) >= WAITING_MOST and not must:
            self.dropped += 1
            return False
        self.sent += 1
        self._waiting.append(event)
        if not self._posted:
            self._posted = True
            self.domain.events.post(self._feed)
        return True

    # On the domain's thread

    def _feed(self) -> None:
        self._posted = False
        if self._page is None or self._bus is None:
            return
        try:
            self._page.put(self._waiting)
        except FrontendError as error:
            self._bus.fail(str(error))

    def _heard(self) -> None:
        """Hear that the front has taken events; those of its own, of which none is defined, are let go."""
        if self._page is None or self._bus is None:
            return
        try:
            self._page.take()
        except FrontendError as error:
            self._bus.fail(str(error))
            return
        self._feed()


def _clamped(value: int, size: int) -> int:
    return max(0, min(value, size - 1))


def _scaled(value: int, size: int, wanted: int) -> int:
    """Return a place in 0 … size - 1 as one in 0 … wanted - 1, edge to edge."""
    return _clamped(value, size) * (wanted - 1) // max(1, size - 1)


def _event(kind: int, x: int, y: int, wheel: int) -> bytes:
    """Return xenkbd_motion or xenkbd_position; in rel_z down is positive, other than in Linux's REL_WHEEL."""
    bounded = (max(-_LARGEST, min(value, _LARGEST)) for value in (x, y, -wheel))
    return struct.pack("<B3x3i", kind, *bounded)
