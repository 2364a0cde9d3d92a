"""Tells the C library to keep message-sized blocks instead of mapping each one anew.

glibc hands blocks of 128 KiB and more to mmap at first, and every such block then costs its page faults
again on each message. With a higher threshold they come from the heap and are reused. Elsewhere nothing
is done.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_KEEP_SIZE: Final = 16 * 1024 * 1024


def keep_message_blocks() -> None:
    """Raises the thresholds for mapping and trimming; harmless where the library is not glibc."""
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEEP_SIZE)
        mallopt(_M_TRIM_THRESHOLD, _KEEP_SIZE)
        mallopt(_M_ARENA_MAX, 1)  # threads here are few and brief: none needs a heap of its own


def give_back() -> None:
    """Returns free memory to the system: after the start, and after what is done seldom."""
    malloc_trim = _glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _glibc(name: str) -> Callable[..., object] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)
