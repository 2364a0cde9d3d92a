"""Tells the C library to keep message-sized blocks instead of mapping each one anew.

glibc hands blocks of 128 KiB and more to mmap at first, and every such block then costs its page faults
again on each message. With a higher threshold they come from the heap and are reused. Elsewhere nothing
is done.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_MADV_DONTNEED: Final = 4
_KEEP_SIZE: Final = 16 * 1024 * 1024


def keep_message_blocks() -> None:
    """Raises the thresholds for mapping and trimming; harmless where the library is not glibc."""
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEEP_SIZE)
        mallopt(_M_TRIM_THRESHOLD, _KEEP_SIZE)
        mallopt(_M_ARENA_MAX, 1)  # threads here are few and brief: none needs a heap of its own


def give_back() -> None:
    """Returns what is no longer needed to the system: after the start, and after what is done seldom.

    That is free memory, and pages of code: of the libraries' 20 MiB most ran at the start only. What is
    needed again comes back from the page cache, some microseconds for 64 KiB.
    """
    malloc_trim, madvise = _glibc("malloc_trim"), _glibc("madvise")
    if malloc_trim is not None:
        malloc_trim(0)
    if madvise is not None:
        for start, size in _code():
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _MADV_DONTNEED)


def _code() -> list[tuple[int, int]]:
    """Where code of files is mapped (proc_pid_maps(5)): executable, hence never written to."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        place, rights, _, _, inode, *_ = line.split(maxsplit=5)
        if rights == "r-xp" and inode != "0":
            start, end = (int(text, 16) for text in place.split("-"))
            found.append((start, end - start))
    return found


def _glibc(name: str) -> Callable[..., object] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)
