"""A clock to be woken by, whose time can be moved without waking the one who sleeps: a timerfd of the host kernel.

Guests move their timers all the time, most of them before they are due. With a condition variable each move
to an earlier time wakes a thread only for it to sleep again; here it is one system call of the mover's.
"""

from __future__ import annotations

import ctypes
import math
import os
import time

_TFD_TIMER_ABSTIME, _TFD_CLOEXEC = 1, 0o2000000  # <sys/timerfd.h>
_LONGEST = 1e9
"""Seconds; guests name times that struct timespec does not hold."""


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    """struct itimerspec: zero is disarmed."""

    _fields_ = (("interval", _Timespec), ("value", _Timespec))
    value: _Timespec


# PyDLL keeps Python's lock: arming takes less time than giving the lock away.
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.timerfd_create.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.timerfd_settime.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.POINTER(_Setting), ctypes.c_void_p)


class Alarm:
    """An alarm by the clock of `time.monotonic`, silent until it is set. Callers exclude each other, but for `wait`."""

    def __init__(self) -> None:
        self._file = _libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_CLOEXEC)
        if self._file < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"timerfd_create: {os.strerror(code)}")
        self._setting = _Setting()
        self._when: float | None = None

    def set(self, when: float | None) -> None:
        """Let `wait` return at a time in seconds (at once if it has passed) or not at all."""
        if when == self._when:
            return
        self._when = when
        value = self._setting.value
        if when is None:
            value.seconds = value.nanoseconds = 0
        else:
            fraction, whole = math.modf(min(max(when, 0.0), _LONGEST))
            value.seconds, value.nanoseconds = int(whole), max(1, int(fraction * 1e9))
        if _libc.timerfd_settime(self._file, _TFD_TIMER_ABSTIME, ctypes.byref(self._setting), None):
            code = ctypes.get_errno()
            raise OSError(code, f"timerfd_settime: {os.strerror(code)}")

    def wait(self) -> None:
        """Sleep until the alarm goes off; once for each time that it was set to."""
        os.read(self._file, 8)

    def heard(self) -> None:
        """Take note that the alarm went off, so that `set` sets it again to whatever time."""
        self._when = None

    def close(self) -> None:
        """Free the alarm; nobody may wait on it."""
        os.close(self._file)
