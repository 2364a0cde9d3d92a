"""Reads small files that people write, and notices who else may use them."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds and who may touch it."""

    data: bytes = field(repr=False)
    mode: int


def read_file(path: Path, size_max: int) -> Content | str:
    """The content of a regular file, or what stands in the way."""
    try:
        with open(path, "rb") as file:
            data = file.read(size_max + 1)
            mode = os.fstat(file.fileno()).st_mode
    except FileNotFoundError:
        return "no such file"
    except (OSError, ValueError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"
    return f"larger than {size_max} bytes" if len(data) > size_max else Content(data, mode)


def exposure(path: Path, content: Content) -> list[str]:
    """The warning about a file that others than its owner may use; POSIX modes only."""
    if os.name != "posix" or not content.mode & 0o077:
        return []
    mode = stat.S_IMODE(content.mode)
    return [f"{path}: others can use this file (mode {mode:04o}): run chmod 600 on it"]
