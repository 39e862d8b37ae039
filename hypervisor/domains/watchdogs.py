"""The two watchdogs that a domain may set on itself (SCHEDOP_watchdog of public/sched.h)."""

from __future__ import annotations

from hypervisor.errors import EINVAL, XenError

_NUMBERS = (1, 2)


class Watchdogs:
    """Times are system time in ns."""

    def __init__(self) -> None:
        self.times: dict[int, int] = {}
        """When each that is armed ends the domain."""

    def set(self, number: int, seconds: int, now: int) -> int:
        """Arm a watchdog, a free one for number 0, re-arm it, or disarm it with 0 seconds; return its number.

        Raises XenError, EINVAL, for other numbers and when none is free.
        """
        if number == 0:
            free = [slot for slot in _NUMBERS if slot not in self.times]
            if not free or not seconds:
                raise XenError(EINVAL)
            number = free[0]
        elif number not in _NUMBERS:
            raise XenError(EINVAL)
        if seconds:
            self.times[number] = now + seconds * 10**9
        else:
            self.times.pop(number, None)
        return number

    def expired(self, now: int) -> bool:
        """Tell whether one has run out; then all are disarmed."""
        if not any(when <= now for when in self.times.values()):
            return False
        self.times.clear()
        return True
