"""The news that this machine slept, or that its clock was set, without looking at a clock.

On Linux a timer that is to be cancelled when the clock is set (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET)
also ends when the machine resumes. It costs nothing until then. Elsewhere the driver finds out with
whatever happens next.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Final

log: Final = logging.getLogger("uservpn")
FAR_S: Final = 10 * 365 * 86_400
_ABSOLUTE: Final = 1
_CANCEL_ON_SET: Final = 2
_FLAGS: Final = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)


class _When(ctypes.Structure):
    """struct itimerspec: no repetition, one time."""

    _fields_ = (
        ("every_s", ctypes.c_long),
        ("every_ns", ctypes.c_long),
        ("at_s", ctypes.c_long),
        ("at_ns", ctypes.c_long),
    )


class TimeJump:
    """Calls back when time has jumped."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_jump: Callable[[], None], far_s: float = FAR_S
    ) -> None:
        """`far_s`: it also calls back after so long, which is never, but in tests."""
        self._loop = loop
        self._on_jump = on_jump
        self._far_s = far_s
        self._libc: ctypes.CDLL | None = None
        self._fd = -1

    def start(self) -> None:
        """Begins to watch, where the system can tell."""
        if not sys.platform.startswith("linux"):
            return
        self._libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(self._libc, "timerfd_create"):
            return
        self._fd = self._libc.timerfd_create(time.CLOCK_REALTIME, _FLAGS)
        if self._fd < 0 or not self._arm():
            log.info("sleep is noticed with whatever happens next: no timer that tells")
            self.close()
            return
        self._loop.add_reader(self._fd, self._on_readable)

    def close(self) -> None:
        """Watches no more."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _arm(self) -> bool:
        """False: the system cannot. Where the clock was set meanwhile (ECANCELED), the timer stands."""
        assert self._libc is not None
        at = time.time() + self._far_s
        when = _When(0, 0, int(at), int(at % 1 * 1e9))
        flags = _ABSOLUTE | _CANCEL_ON_SET
        if self._libc.timerfd_settime(self._fd, flags, ctypes.byref(when), None) == 0:
            return True
        return ctypes.get_errno() == errno.ECANCELED

    def _on_readable(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        except OSError as error:  # ECANCELED: the clock was set, or the machine resumed
            log.debug("time has jumped: %s", error)
        self._arm()
        self._on_jump()
