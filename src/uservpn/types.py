"""Names for the small values that every layer passes around."""

from __future__ import annotations

from typing import Final, NewType

NodeId = NewType("NodeId", int)
"""A node's number, 1..254; 0 on the wire means "none"."""

LinkId = NewType("LinkId", int)
"""A local handle of one open link; never on the wire."""

Buffer = bytes | bytearray | memoryview

NODE_ID_MIN: Final = 1
NODE_ID_MAX: Final = 254
