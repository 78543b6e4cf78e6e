"""A descriptor that becomes readable at a given time, so that a thread which waits for sockets can wait for a time too.

Linux's timerfd, which Python has from 3.13 on; `connection.py` gives it to its session.
"""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Timer(ctypes.Structure):
    _fields_ = (("interval", _Time), ("value", _Time))


_CLOCK_MONOTONIC = 1
_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK
_ABSOLUTE = 1


class Alarm:
    """Rings once at the time it was set to last. `close` it; OSError when there is no descriptor left."""

    def __init__(self) -> None:
        self.fd: int = _libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def set(self, at: float) -> None:
        """Ring at that time (monotonic seconds): the clock of `time.monotonic`. A time that has passed rings now."""
        seconds, rest = divmod(max(at, 0.0), 1.0)
        # A value of zero would stop it instead.
        value = _Time(int(seconds), max(int(rest * 1e9), 0 if seconds else 1))
        if self.fd >= 0:
            _libc.timerfd_settime(self.fd, _ABSOLUTE, ctypes.byref(_Timer(_Time(0, 0), value)), None)

    def clear(self) -> None:
        """It has rung: be silent until it is set again."""
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Let go of the descriptor; again is harmless."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
