"""AES-256-SIV (RFC 5297) of message headers, many at a time.

A header is 32 bytes, two blocks A and B, sealed without associated data. For this one shape RFC 5297 comes
down to five block operations, under the key's halves K1 and K2:

    V  = E1(E1(A) ^ B ^ C)                      C: a constant of K1 (the two subkeys' part, below)
    A' = A ^ E2(Q)    B' = B ^ E2(Q + 1)        Q: V without the two bits that RFC 5297 clears

and the sealed header is V, A', B'. One by one, most of the time goes into setting up the library's cipher for
each; here each step is one call for all headers: ECB over blocks side by side, and one exclusive-or of
large integers. A single header, or something of another length, is the library's own AESSIV; the tests hold
one against the other.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from uservpn.kit.series import ones, repeated, series
from uservpn.types import Buffer
from uservpn.wire.constants import HEADER_SIZE

BLOCK: Final = 16
_MASK: Final = (1 << 8 * BLOCK) - 1 ^ (1 << 63 | 1 << 31)


class HeaderSiv:
    """Seals and opens headers under one key of 64 bytes."""

    __slots__ = ("_constant", "_mac", "_stream", "decrypt", "encrypt")

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

    def seal_run(self, fields: bytes, step: int, count: int) -> list[bytes]:
        """Headers with the same first block; each second one is the one before plus `step`."""
        size = BLOCK * count
        each = ones(count, BLOCK)
        first = int.from_bytes(fields[:BLOCK], "big")
        seconds = series(int.from_bytes(fields[BLOCK:], "big"), step, count, BLOCK)
        mixed = int.from_bytes(self._mac(fields[:BLOCK]), "big") ^ self._constant
        marks = self._mac((seconds ^ mixed * each).to_bytes(size, "big"))
        hidden = (first * each << 8 * size | seconds) ^ self._keystream(marks, count)
        blocks = repeated("16s", 3 * count).unpack(marks + hidden.to_bytes(2 * size, "big"))
        parts = zip(blocks[:count], blocks[count : 2 * count], blocks[2 * count :], strict=True)
        return list(map(b"".join, parts))

    def open_all(self, sealed: Buffer, count: int, apart: int) -> tuple[bytes, bytes] | None:
        """The first blocks and the second blocks of `count` headers, `apart` bytes from each to the next.

        None: one of them, or several, do not open.
        """
        size = BLOCK * count
        parts = repeated(f"16s16s16s{apart - HEADER_SIZE}x", count).unpack_from(sealed)
        marks = b"".join(parts[0::3])
        hidden = int.from_bytes(b"".join((*parts[1::3], *parts[2::3])), "big")
        fields = (hidden ^ self._keystream(marks, count)).to_bytes(2 * size, "big")
        firsts, seconds = fields[:size], fields[size:]
        mixed = int.from_bytes(self._mac(firsts), "big") ^ self._constant * ones(count, BLOCK)
        wanted = self._mac((mixed ^ int.from_bytes(seconds, "big")).to_bytes(size, "big"))
        return (firsts, seconds) if compare_digest(wanted, marks) else None

    def _keystream(self, marks: bytes, count: int) -> int:
        """E2(Q) of all headers, then E2(Q + 1) of all."""
        size = BLOCK * count
        each = ones(count, BLOCK)
        counters = int.from_bytes(marks, "big") & _MASK * each
        # with bit 31 cleared, plus 1 goes no further than its own counter
        both = counters << 8 * size | counters + each
        return int.from_bytes(self._stream(both.to_bytes(2 * size, "big")), "big")


def _doubled(value: int) -> int:
    """dbl of RFC 5297: times x in the field of 2**128 elements."""
    doubled = value << 1
    return doubled ^ (1 << 128 | 0x87) if doubled >> 128 else doubled
