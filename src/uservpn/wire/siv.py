"""AES-256-SIV (RFC 5297) of message headers, many at a time.

A header is 32 bytes, two blocks A and B, sealed without associated data. For this one shape RFC 5297 comes
down to five block operations, under the key's halves K1 and K2:

    V  = E1(E1(A) ^ B ^ C)                      C: a constant of K1 (the two subkeys' part, below)
    A' = A ^ E2(Q)    B' = B ^ E2(Q + 1)        Q: V without the two bits that RFC 5297 clears

and the sealed header is V, A', B'. One by one, most of the time goes into setting up the library's cipher for
each; here each step is one call for all headers: ECB over blocks side by side, and one exclusive-or of
large integers. Headers of a burst have their first block in common. A single header, or something of another
length, is the library's own AESSIV; the tests hold one against the other.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from uservpn.kit.series import COUNT_MAX, ones, series
from uservpn.wire.constants import ASSOCIATED_SIZE, FIELDS_SIZE, HEADER_SIZE

BLOCK: Final = 16
PREPARED_MAX: Final = 16
"""First blocks (peers, directions, lengths) that are kept, with 8 KiB each."""
NUMBER_SHIFT: Final = 8 * (FIELDS_SIZE - ASSOCIATED_SIZE)
"""Where the message's number ends in the second block, as a number."""
_MASKS: Final = ones(COUNT_MAX, BLOCK) * ((1 << 8 * BLOCK) - 1 ^ (1 << 63 | 1 << 31))


class HeaderSiv:
    """Seals and opens headers under one key of 64 bytes."""

    __slots__ = ("_constant", "_mac", "_prepared", "_stream", "decrypt", "encrypt")

    def __init__(self, key: bytes) -> None:
        siv = AESSIV(key)
        self.encrypt = siv.encrypt
        self.decrypt = siv.decrypt
        half = len(key) // 2
        # modes.ECB is the bare block cipher: what the modes of RFC 5297 are made of
        self._mac = Cipher(algorithms.AES(key[:half]), modes.ECB()).encryptor().update
        self._stream = Cipher(algorithms.AES(key[half:]), modes.ECB()).encryptor().update
        # S2V (section 2.4) of one string: CMAC of the string with CMAC(zero) over its end; CMAC (RFC 4493) of
        # whole blocks takes K1's first subkey into the last one
        subkey = _doubled(int.from_bytes(self._mac(bytes(BLOCK)), "big"))
        of_zero = self._mac(subkey.to_bytes(BLOCK, "big"))
        self._constant = int.from_bytes(of_zero, "big") ^ subkey
        self._prepared: dict[bytes, tuple[int, int]] = {}

    def seal_run(self, fields: bytes, count: int) -> bytes:
        """`count` headers, one behind the other: these fields, then the same with the number counting up.

        The number's lower 40 bits, which the second block holds, must not overflow.
        """
        firsts, mixed = self._prepared.get(fields[:BLOCK]) or self._prepare(fields[:BLOCK])
        size = BLOCK * count
        unused = 8 * BLOCK * (COUNT_MAX - count)
        seconds = series(int.from_bytes(fields[BLOCK:], "big"), count, BLOCK, NUMBER_SHIFT)
        marks = self._mac((mixed >> unused ^ seconds).to_bytes(size, "big"))
        counters = int.from_bytes(marks, "big") & _MASKS >> unused
        # with bit 31 cleared, plus 1 goes no further than its own counter
        counters = counters << 8 * size | counters + ones(count, BLOCK)
        stream = int.from_bytes(self._stream(counters.to_bytes(2 * size, "big")), "big")
        hidden = stream ^ (firsts >> unused << 8 * size | seconds)
        return _woven(marks, hidden.to_bytes(2 * size, "big"))

    def _prepare(self, block: bytes) -> tuple[int, int]:
        """What depends on the first block, which a peer's bursts have in common, for the longest run."""
        if len(self._prepared) >= PREPARED_MAX:
            self._prepared.clear()
        each = ones(COUNT_MAX, BLOCK)
        mixed = int.from_bytes(self._mac(block), "big") ^ self._constant
        found = self._prepared[block] = each * int.from_bytes(block, "big"), each * mixed
        return found


def _woven(marks: bytes, hidden: bytes) -> bytes:
    """V, A' and B' of each header side by side; `hidden` has all A' and then all B'."""
    out = bytearray(HEADER_SIZE // BLOCK * len(marks))
    words, mark, rest = (memoryview(some).cast("Q") for some in (out, marks, hidden))
    middle = len(mark)
    words[0::6], words[1::6] = mark[0::2], mark[1::2]
    words[2::6], words[3::6] = rest[0:middle:2], rest[1:middle:2]
    words[4::6], words[5::6] = rest[middle::2], rest[middle + 1 :: 2]
    return bytes(out)


def _doubled(value: int) -> int:
    """dbl of RFC 5297: times x in the field of 2**128 elements."""
    doubled = value << 1
    return doubled ^ (1 << 128 | 0x87) if doubled >> 128 else doubled
