"""File descriptors: as many as connections need, and a line in the log when there are no more.

Every connection of a program takes one, and so does every connection to a site. Systems start a process with
a soft limit of about a thousand, for the sake of programs that use `select`, and let it raise that up to
the hard limit.
"""

from __future__ import annotations

import errno
import logging
import resource
from typing import Final

from uservpn.runtime.clock import monotonic

log: Final = logging.getLogger("uservpn")
MAC_MAX: Final = 10_240
"""macOS takes no more than this, whatever its hard limit says."""
NEAR: Final = 16
"""Descriptors get the lowest free number: one that is so near the limit tells that few are left."""
TELL_EVERY_S: Final = 60.0
RAISE: Final = " (a larger hard limit of them, such as LimitNOFILE of systemd, lets in more)"
_NONE_LEFT: Final = (errno.EMFILE, errno.ENFILE)


def raise_limit(wanted: int) -> int:
    """Raises the soft limit to `wanted`, or as far as the hard one allows; what it is then, 0: none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    for limit in (most, MAC_MAX):
        if soft == resource.RLIM_INFINITY or limit <= soft:
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        except (OSError, ValueError):
            continue
        soft = limit
    SHORTAGE.limit = _told(soft)
    return SHORTAGE.limit


def _told(soft: int) -> int:
    """0: there is no limit."""
    return 0 if soft == resource.RLIM_INFINITY else soft


class Shortage:
    """Tells, at most once in TELL_EVERY_S, that connections fail for want of descriptors."""

    def __init__(self) -> None:
        self.limit = _told(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        """0: there is none."""
        self._told_at = float("-inf")

    def look(self, descriptor: int) -> None:
        """A connection came in with this number: who comes when none is left, uvloop ends in silence."""
        if 0 < self.limit - NEAR <= descriptor:
            self._tell(f"the limit of {self.limit} open files is nearly reached: beyond it", RAISE)

    def met(self, error: BaseException | None) -> bool:
        """Something could not be opened: was that the reason?"""
        if not isinstance(error, OSError) or error.errno not in _NONE_LEFT:
            return False
        if error.errno == errno.ENFILE or not self.limit:
            self._tell("this system has no more open files to give:")
        else:
            self._tell(f"the limit of {self.limit} open files is reached:", RAISE)
        return True

    def _tell(self, what: str, advice: str = "") -> None:
        now = monotonic()
        if now - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            log.warning("%s connections are turned away%s", what, advice)


SHORTAGE: Final = Shortage()
"""Of this process."""
