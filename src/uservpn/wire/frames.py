"""The frames inside a tunnel's messages: layouts and encoders (docs/wire.md, section Frames).

A DATA message is an 8-byte sequence followed by frames; a SINK message is frames only. Decoding is
one loop in `tunnel/tunnel.py`, because it is on the bulk path.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from uservpn.errors import Fault

PAD: Final = 0
DATA: Final = 1
OPEN: Final = 2
OPENED: Final = 3
FIN: Final = 4
RESET: Final = 5
CREDIT: Final = 6
HAVE: Final = 7
WANT: Final = 8
NEXT: Final = 9

SEQ: Final = struct.Struct(">Q")
DATA_HEAD: Final = struct.Struct(">BIQI")  # type, stream, offset, length | bytes
SEQ_DATA_HEAD: Final = struct.Struct(">QBIQI")
OPEN_HEAD: Final = struct.Struct(">BIIHB")  # type, stream, window, port, host length | host
OPENED_HEAD: Final = struct.Struct(">BIBIB")  # type, stream, fault, window, detail length | detail
FIN_FRAME: Final = struct.Struct(">BIQ")  # type, stream, final offset
RESET_FRAME: Final = struct.Struct(">BIB")  # type, stream, fault
CREDIT_FRAME: Final = struct.Struct(">BIQ")  # type, stream, limit
HAVE_HEAD: Final = struct.Struct(">BQH")  # type, all below this, range count | ranges
WANT_HEAD: Final = struct.Struct(">BH")  # type, range count | ranges
RANGE: Final = struct.Struct(">QQ")  # [start, end)
NEXT_FRAME: Final = struct.Struct(">BQ")  # type, next sequence

OPEN_ENDED: Final = (1 << 64) - 1
"""As the end of a WANT range: everything sent from its start on, over links that are gone."""
RANGES_MAX: Final = 64


def open_frame(stream: int, window: int, host: bytes, port: int) -> bytes:
    """OPEN: `host` is at most 255 bytes, an address or a name that the exit resolves."""
    return OPEN_HEAD.pack(OPEN, stream, window, port, len(host)) + host


def opened_frame(stream: int, fault: Fault, window: int, detail: bytes) -> bytes:
    """OPENED: how the exit's dial ended."""
    return OPENED_HEAD.pack(OPENED, stream, fault, window, len(detail)) + detail


def have_frame(below: int, ranges: Iterable[tuple[int, int]]) -> bytes:
    """HAVE: everything below `below`, and these ranges above it (the lowest 64)."""
    some = list(ranges)[:RANGES_MAX]
    return HAVE_HEAD.pack(HAVE, below, len(some)) + b"".join(RANGE.pack(*r) for r in some)


def want_frame(ranges: Iterable[tuple[int, int]]) -> bytes:
    """WANT: please send these again (the lowest 64)."""
    some = list(ranges)[:RANGES_MAX]
    return WANT_HEAD.pack(WANT, len(some)) + b"".join(RANGE.pack(*r) for r in some)
