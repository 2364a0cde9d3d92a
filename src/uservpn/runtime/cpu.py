"""Which payload cipher this machine is fast at."""

from __future__ import annotations

import platform
from pathlib import Path


def lacks_aes() -> bool:
    """True where the CPU is known to have no AES instructions: then ChaCha20 is faster."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.machine().lower() not in {"x86_64", "amd64", "arm64", "aarch64"}
    words = set(text.split())
    return "flags" in text.lower() and "aes" not in words
