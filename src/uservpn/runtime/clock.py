"""The clocks and the randomness of a real node; everything below is handed these as values."""

from __future__ import annotations

import os
import time
from typing import Final

monotonic: Final = time.monotonic
random_bytes: Final = os.urandom


def wall_offset() -> float:
    """Seconds to add to the monotonic clock to get the wall clock (Unix time)."""
    return time.time() - time.monotonic()


def suspended_for() -> float:
    """Seconds this machine has been suspended since it booted, where the system tells."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    if boottime is None:
        return 0.0
    return time.clock_gettime(boottime) - time.clock_gettime(time.CLOCK_MONOTONIC)
