"""How much a link may queue: what it carries in about a tenth of a second, so that nothing waits long.

On a slow link the bytes of a bulk transfer that wait in front of the network are the delay of everything
else; on a fast one a short queue is wasted time. The limit follows what leaves: it doubles whenever a
queue that was used ran empty, and falls towards a tenth of a second of the rate while it does not.
Sans-I/O: time comes in.
"""

from __future__ import annotations

from typing import Final

from uservpn.wire.constants import KIB

LIMIT_START: Final = 16 * KIB
LIMIT_MIN: Final = 4 * KIB
LIMIT_MAX: Final = 512 * KIB
TARGET_S: Final = 0.1
"""What a queue should last for; also the least time over which a rate is measured."""


class Backlog:
    """The limit of one link's queue, bytes, LIMIT_MIN..LIMIT_MAX. Ask `look` before each batch."""

    __slots__ = ("_at", "_left", "limit")

    def __init__(self) -> None:
        self.limit = LIMIT_START
        self._at = 0.0
        self._left = 0

    def look(self, now: float, left: int, queued: int) -> None:
        """`left` bytes have gone out to the network since the start, `queued` still wait."""
        gone = left - self._left
        if queued == 0:
            if gone >= self.limit // 2:
                self.limit = min(LIMIT_MAX, 2 * self.limit)
        elif now - self._at < TARGET_S:
            return
        else:
            carried = int(gone * TARGET_S / (now - self._at))
            limit = max(carried, self.limit // 2)  # bursts: one pause is not yet a slow link
            self.limit = min(LIMIT_MAX, max(LIMIT_MIN, limit))
        self._at = now
        self._left = left

    def drained(self, seconds: float) -> None:
        """A full queue took so long to run down: when it was too long, the limit falls."""
        if seconds > TARGET_S:
            self.limit = max(LIMIT_MIN, min(self.limit // 2, int(self.limit * TARGET_S / seconds)))
