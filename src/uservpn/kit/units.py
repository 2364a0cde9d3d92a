"""Durations as people write them: `"500ms"`, `"60s"`, `"12h"`.

One number and one unit, nothing else: no bare numbers (seconds or milliseconds?), no sums, no
signs. Inside the program every duration is a float of seconds.
"""

from __future__ import annotations

import re
from typing import Final

_DURATION: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s?(ms|s|m|h|d)", re.ASCII)
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

DURATION_FORM: Final = 'a number and one of ms, s, m, h, d, such as "500ms", "60s" or "12h"'
"""What `parse_duration` takes, in words fit for an error message."""


def parse_duration(text: str) -> float:
    """The seconds that `text` stands for; ValueError with a sentence when it is no duration."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration: write {DURATION_FORM}")
    return float(match[1]) * _SECONDS[match[2]]


def format_duration(seconds: float) -> str:
    """The shortest exact form in one unit; `parse_duration` reads it back to the millisecond."""
    milliseconds = round(seconds * 1000)
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds and milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"
