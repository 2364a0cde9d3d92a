"""Signals before the node hears them: none is lost, none kills, none shows a traceback.

`uservpn run` reads its options, becomes another program in the same process, loads its modules and reads the
configuration; that takes from half a second to many, with long lists. Blocked signals stay blocked, and wait,
while a process becomes another program.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Final, NoReturn

_ENDING: Final = (signal.SIGTERM, signal.SIGINT)
_ALL: Final = (*_ENDING, signal.SIGHUP)


def hold() -> None:
    """From here to `release` signals wait, over `exec` too."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)


def release() -> None:
    """They come, also those that were held."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ALL)


class Early:
    """Hears signals until the event loop does: an end ends at once, a reload is remembered."""

    def __init__(self) -> None:
        self.is_reload_wanted = False

    def listen(self) -> None:
        """Begins, with those that were held."""
        for number in _ENDING:
            signal.signal(number, _end)
        signal.signal(signal.SIGHUP, self._remember)
        release()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.is_reload_wanted = True


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """Nothing has begun yet that would have to be ended in order."""
    sys.exit(0)


EARLY: Final = Early()
"""Of this process."""
