"""Messages of one kind and length, numbered in a row, which are sealed only when their link sends them.

Whoever sends datagrams seals a stretch of them into a buffer of its own, header and payload of each side by
side, gives that to the kernel in one piece, and seals the next one over it: nothing is allocated for what
is sealed, and the buffer stays in the processor's cache. To every other link a train is a sequence of
headers and payloads like any, and they are sealed when it looks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final, overload

from uservpn.kit.series import AT_ONCE, packed_into
from uservpn.kit.slots import Slots
from uservpn.types import Buffer
from uservpn.wire.constants import HEADER_SIZE, TAG_SIZE
from uservpn.wire.keys import Cipher

STRETCH_MAX: Final = AT_ONCE
"""Messages that are sealed together."""


class Train(Sequence[Buffer]):
    """Headers and sealed payloads, in turn; each message has its number already, and is sealed once."""

    __slots__ = ("_cipher", "_heads", "_known", "_nonces", "_parts", "_payloads", "size")

    def __init__(
        self,
        cipher: Cipher,
        heads: Sequence[bytes],
        nonces: Sequence[bytes],
        payloads: Sequence[Buffer],
        known: Sequence[bytes],
    ) -> None:
        """`heads` are sealed, `known` is the associated data; `payloads` stay as they are until then."""
        self.size = HEADER_SIZE + len(payloads[0]) + TAG_SIZE
        """Bytes of each message, header included."""
        self._cipher = cipher
        self._heads = heads
        self._nonces = nonces
        self._payloads: Sequence[Buffer] | None = payloads
        self._known = known
        self._parts: list[Buffer] | None = None

    def sealed(self, into: Slots, most: int) -> Iterator[memoryview]:
        """All of them, at most `most` (and STRETCH_MAX) at a time, side by side at the start of `into`.

        What is yielded is overwritten when the next one is asked for.
        """
        payloads, size = self._take(), self.size
        most = min(most, STRETCH_MAX, into.size // size)
        seal, layout = self._cipher.encrypt_into, f"{HEADER_SIZE}s{size - HEADER_SIZE}x"
        for start in range(0, len(payloads), most):
            some = slice(start, start + most)
            count = len(payloads[some])
            packed_into(layout, self._heads[some], into.view)
            slots = into.cut(size, 0, count, HEADER_SIZE)
            deque(map(seal, self._nonces[some], payloads[some], self._known[some], slots), 0)
            yield into.view[: count * size]

    # --- as a sequence ---------------------------------------------------------------------------

    def __len__(self) -> int:
        """Headers and payloads."""
        return 2 * len(self._heads)

    def __iter__(self) -> Iterator[Buffer]:
        """In turn."""
        return iter(self._sealed_parts())

    @overload
    def __getitem__(self, index: int) -> Buffer: ...

    @overload
    def __getitem__(self, index: slice) -> list[Buffer]: ...

    def __getitem__(self, index: int | slice) -> Buffer | list[Buffer]:
        """One part, or some."""
        return self._sealed_parts()[index]

    # --- inside ----------------------------------------------------------------------------------

    def _sealed_parts(self) -> list[Buffer]:
        parts = self._parts
        if parts is None:
            payloads = self._take()
            parts = self._parts = [b""] * (2 * len(payloads))
            parts[0::2] = self._heads
            parts[1::2] = map(self._cipher.encrypt, self._nonces, payloads, self._known)
        return parts

    def _take(self) -> Sequence[Buffer]:
        """The payloads, once: were they sealed again after a change, a nonce would have served for two."""
        payloads = self._payloads
        assert payloads is not None, "a nonce would repeat"
        self._payloads = None
        return payloads
