"""Reads small files that people write, and notices who else may use them."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

MMDB_MARK: Final = b"\xab\xcd\xefMaxMind.com"
MMDB_TAIL_SIZE: Final = 128 * 1024
"""The mark stands within so many bytes from the end (MaxMind DB specification 2.0)."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds and who may touch it."""

    data: bytes = field(repr=False)
    mode: int


def read_file(path: Path, size_max: int) -> Content | str:
    """The content of a regular file, or what stands in the way; never waits for a writer."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                return "no regular file"
            data = file.read(size_max + 1)
    except FileNotFoundError:
        return "no such file"
    except (OSError, ValueError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"
    return f"larger than {size_max} bytes" if len(data) > size_max else Content(data, mode)


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def database_fault(path: Path) -> str | None:
    """What keeps `path` from being an MMDB file; None: it looks like one, and can be read."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MMDB_TAIL_SIZE))
            tail = file.read(MMDB_TAIL_SIZE)
    except FileNotFoundError:
        return "no such file"
    except (OSError, ValueError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"
    return None if MMDB_MARK in tail else "no MMDB file"


def exposure(path: Path, content: Content) -> list[str]:
    """The warning about a file that others than its owner may use; POSIX modes only."""
    if os.name != "posix" or not content.mode & 0o077:
        return []
    mode = stat.S_IMODE(content.mode)
    return [f"{path}: others can use this file (mode {mode:04o}): run chmod 600 on it"]
