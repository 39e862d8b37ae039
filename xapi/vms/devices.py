"""Names and numbers of virtual devices, as XenAPI's users write them.

A disk's `userdevice` is its number, or a name that stands for one: xvdc, hdc, sdc and d2 are all the third disk. Here a
drive has nothing but its number, so two names of one number clash; names of partitions are none of drives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import md5

LAST_DISK = 254
"""The last disk that `autodetect` finds; control domains have one more."""
MOST_DISKS = 1 << 14
"""One more than the greatest number of a disk: all that names of three letters can say, and some less."""
LAST_CARD = 15
"""The last card that VM.get_allowed_VIF_devices names."""
MOST_CARDS = 1 << 12
"""One more than the greatest number of a card: a guest has no more event channels."""

_NAME = re.compile(r"(?:xvd|sd|hd)([a-z]{1,3})|d([0-9]{1,5})")
_MAC = re.compile(r"(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}")


def disk_number(text: str) -> int | None:
    """Return the number that a userdevice or a device's name stands for, None for what is neither."""
    found = _digits(text)
    if found is None and (match := _NAME.fullmatch(text)) is not None:
        found = int(match[2]) if match[2] else _letters(match[1])
    return found if found is not None and found < MOST_DISKS else None


def card_number(text: str) -> int | None:
    """Return the number that a VIF's device stands for, None for what is none."""
    found = _digits(text)
    return found if found is not None and found < MOST_CARDS else None


def _digits(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 9 else None


def _letters(text: str) -> int:
    number = 0
    for letter in text:
        number = number * 26 + ord(letter) - ord("a") + 1
    return number - 1


def free(used: Iterable[int | None], last: int) -> list[int]:
    """Return the numbers up to the last one that are not used, in order."""
    taken = set(used)
    return [number for number in range(last + 1) if number not in taken]


def is_mac(text: str) -> bool:
    """Tell whether a text has the form of a MAC address."""
    return _MAC.fullmatch(text) is not None


def mac_address(seed: str, device: int) -> str:
    """Return the address of a VM's n-th network card: local, unicast, the same for the same seed."""
    first = seed.encode()
    for _ in range(2 * device + 1):
        first = md5(first, usedforsecurity=False).digest()
    second = md5(first, usedforsecurity=False).digest()
    octets = (first[0] & 0xFE | 0x02, *first[1:4], *second[1:3])
    return ":".join(f"{octet:02x}" for octet in octets)
