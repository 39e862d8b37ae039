"""Pixels of a guest's screen: the formats that fronts may use, turned into one, and areas of a screen.

What comes out is 32 bits a pixel, in memory blue, green, red and a byte without meaning (0x00RRGGBB, little-endian;
VNC's and Pillow's "BGRX"), rows from the top, no gaps.
"""

from __future__ import annotations

from hypervisor.api import Area

DEPTHS = (8, 16, 24, 32)
"""Bits of a pixel; 8 is red, green, blue of 3, 3 and 2 bits, 16 of 5, 6 and 5, both with red in the high bits."""
MOST_AREAS = 16
"""How many areas are kept apart before they are joined into one."""


def clipped(rectangle: tuple[int, int, int, int], screen: Area) -> Area | None:
    """Return the part of x, y, width and height, of any numbers, that is on the screen; None when none is."""
    x, y, width, height = rectangle
    left, top = max(x, screen.x), max(y, screen.y)
    right, bottom = min(x + width, screen.x + screen.width), min(y + height, screen.y + screen.height)
    return Area(left, top, right - left, bottom - top) if left < right and top < bottom else None


def merged(areas: list[Area], new: Area) -> list[Area]:
    """Return areas that cover the old and a new one: no more than `MOST_AREAS`, at no more pixels unless too many."""
    kept: list[Area] = []
    for area in areas:
        both = area.around(new)
        if both.size <= area.size + new.size:  # one covers the other, or they fit together
            new = both
        else:
            kept.append(area)
    kept.append(new)
    if len(kept) > MOST_AREAS:
        whole = kept[0]
        for area in kept:
            whole = whole.around(area)
        return [whole]
    return kept


def _spread(bits: int, shift: int) -> bytes:
    """Return a table from a byte to 8 bits of a colour that lies in it: `bits` of them, above `shift`."""
    most = (1 << bits) - 1
    return bytes((byte >> shift & most) * 255 // most for byte in range(256))


_RED_332, _GREEN_332, _BLUE_332 = _spread(3, 5), _spread(3, 2), _spread(2, 0)
_RED_565, _BLUE_565 = _spread(5, 3), _spread(5, 0)
# Green lies in both bytes of a pixel: its six bits, then the first two of them again.
_GREEN_565_HIGH = bytes((byte & 7) << 5 | (byte & 7) >> 1 for byte in range(256))
_GREEN_565_LOW = bytes(byte >> 5 << 2 for byte in range(256))


def converted(depth: int, data: bytes) -> bytes:
    """Return pixels of one of `DEPTHS`, without gaps, in the format of this module. O(bytes), no loop in Python."""
    if depth == 32:
        return data
    pixels = len(data) * 8 // depth
    out = bytearray(4 * pixels)
    if depth == 24:
        out[0::4], out[1::4], out[2::4] = data[0::3], data[1::3], data[2::3]
    elif depth == 16:
        low, high = data[0::2], data[1::2]
        green = int.from_bytes(low.translate(_GREEN_565_LOW), "little")
        green |= int.from_bytes(high.translate(_GREEN_565_HIGH), "little")
        out[0::4], out[2::4] = low.translate(_BLUE_565), high.translate(_RED_565)
        out[1::4] = green.to_bytes(pixels, "little")
    else:
        out[0::4], out[1::4] = data.translate(_BLUE_332), data.translate(_GREEN_332)
        out[2::4] = data.translate(_RED_332)
    return bytes(out)
