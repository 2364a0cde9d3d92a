"""The 48-byte header in front of every message: who, to whom, which way, when.

    0                16                                              48
    +----------------+-----------------------------------------------+
    | watermark (SIV)| 32 bytes of fields, AES-256-SIV (RFC 5297)     |
    +----------------+-----------------------------------------------+

    fields: kind+flags 1 | origin 1 | destination 1 | length 4 | boot 8 | number 6   <- 21, authenticated
            hop1 1 | hop2 1 | stamp origin 3 | stamp hop1 3 | stamp hop2 3              with the payload too

All integers are big-endian. The synthetic IV is the watermark: only a holder of the key can make or
recognise one. SIV is deterministic, so a header needs no nonce; it is unique because origin, boot and
number never repeat together.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag

from uservpn.kit.series import ones, series
from uservpn.types import Buffer
from uservpn.wire.constants import (
    ASSOCIATED_SIZE,
    FIELDS_SIZE,
    KIND_MASK,
    PAYLOAD_SIZE_MAX,
)
from uservpn.wire.keys import Ring

FIELDS: Final = struct.Struct(">BBBIQQ3s3s3s")
assert FIELDS.size == FIELDS_SIZE
_FLAGS_MASK: Final = 0xFF & ~KIND_MASK
_pack: Final = FIELDS.pack
_unpack: Final = FIELDS.unpack
_new: Final = tuple.__new__
NO_STAMP: Final = b"\0\0\0"
NUMBER_AT: Final = 15
"""Where the number begins in the fields."""
_HALF: Final = FIELDS_SIZE // 2
NUMBER_STEP: Final = 1 << 8 * (FIELDS_SIZE - ASSOCIATED_SIZE)
"""One more in the number, in the fields' second half, which holds all but its highest byte."""
_NUMBERS: Final = 1 << 8 * (ASSOCIATED_SIZE - _HALF)
_DATAGRAM: Final = [b"uservpn datagram"]
"""Associated data: nothing sealed so opens as a header, nor the other way round."""


class Header(NamedTuple):
    """A genuine header, opened. Stamps are 3 raw bytes: milliseconds modulo 2**24."""

    kind: int
    flags: int
    origin: int
    destination: int
    length: int
    """Bytes of the sealed payload that follows."""
    boot: int
    number: int
    hop1: int
    hop2: int
    stamp: bytes
    stamp_hop1: bytes
    stamp_hop2: bytes
    associated: bytes
    """The field bytes that no relay changes."""
    slot: int
    """Which of the keys opened it."""


class Run(NamedTuple):
    """Messages whose headers differ in nothing but the number, which is one more from each to the next."""

    header: Header
    """Of the first one."""
    bodies: Sequence[Buffer]

    def messages(self) -> Iterator[tuple[Header, Buffer]]:
        """Header and payload of each."""
        for index, body in enumerate(self.bodies):
            yield self.after(index).header if index else self.header, body

    def after(self, count: int) -> Run:
        """What is left behind the first `count` messages, which are not all."""
        header = self.header
        number = header.number + count
        associated = header.associated[:NUMBER_AT] + number.to_bytes(6, "big")
        return Run(header._replace(number=number, associated=associated), self.bodies[count:])


def pack_fields(
    kind_flags: int,
    origin: int,
    destination: int,
    length: int,
    boot: int,
    number: int,
    stamp: bytes,
    hops: int = 0,
) -> bytes:
    """The 32 field bytes of a message about to leave its origin; `hops` is hop1 << 8 | hop2."""
    return _pack(
        kind_flags,
        origin,
        destination,
        length,
        boot,
        number << 16 | hops,
        stamp,
        NO_STAMP,
        NO_STAMP,
    )


def run_max(number: int) -> int:
    """How many headers, of messages from `number` on, differ in the fields' second half only."""
    return _NUMBERS - number % _NUMBERS


def _alike(firsts: bytes, seconds: bytes) -> int:
    """How many headers, from the first on, are a run, by the halves of their fields."""
    head = int.from_bytes(seconds[:_HALF], "big")
    count = min(len(seconds) // _HALF, _NUMBERS - head // NUMBER_STEP)
    size = count * _HALF
    same = int.from_bytes(firsts[:_HALF], "big") * ones(count, _HALF)
    counted = series(head, NUMBER_STEP, count, _HALF)
    other = int.from_bytes(firsts[:size], "big") ^ same
    other |= int.from_bytes(seconds[:size], "big") ^ counted
    return count - -(
        -other.bit_length() // (8 * _HALF)
    )  # the highest bit is of the first other one


class HeaderCodec:
    """Seals and opens headers under a key ring. Holds no state but a counter of strangers."""

    __slots__ = ("_datagrams", "_decrypt", "_sivs", "seal_fields", "stranger_count")

    def __init__(self, ring: Ring) -> None:
        self._sivs = ring.sivs
        self.seal_fields = ring.sivs[0].encrypt
        """As `seal`, with None as second argument: one call less."""
        self._decrypt = ring.sivs[0].decrypt
        self._datagrams = 0
        self.stranger_count = 0

    def seal(self, fields: bytes) -> bytes:
        """48 bytes: the watermark and the sealed fields."""
        return self.seal_fields(fields, None)

    def reseal(self, header: Header, is_second: bool, stamp: bytes) -> bytes:
        """The header as a relay sends it on: its own stamp set, under the key it came with."""
        fields = b"".join(
            (
                header.associated,
                bytes((header.hop1, header.hop2)),
                header.stamp,
                header.stamp_hop1 if is_second else stamp,
                stamp if is_second else header.stamp_hop2,
            )
        )
        return self._sivs[header.slot].encrypt(fields, None)

    def open(self, data: Buffer) -> Header | None:
        """The header in these 48 bytes, or None: not one of ours (or one with absurd fields)."""
        slot = 0
        try:
            fields = self._decrypt(data, None)
        except InvalidTag:
            other = self._open_with_others(data)
            if other is None:
                self.stranger_count += 1
                return None
            fields, slot = other
        header = self._header(fields, slot)
        if header is None:
            self.stranger_count += 1
        return header

    def seal_run(self, fields: bytes, count: int) -> list[bytes]:
        """Headers of a run that begins with these fields; see `run_max` for how long it may be."""
        return self._sivs[0].seal_run(fields, NUMBER_STEP, count)

    def open_runs(self, data: Buffer, count: int, apart: int) -> list[tuple[Header, int]] | None:
        """`count` headers (at most COUNT_MAX), one every `apart` bytes, as runs: the first one, how many.

        None: not all of them open with one key. `open` tells which do.
        """
        for slot, siv in enumerate(self._sivs):
            halves = siv.open_all(data, count, apart)
            if halves is not None:
                return self._runs(*halves, count, slot)
        return None

    def _runs(
        self, firsts: bytes, seconds: bytes, count: int, slot: int
    ) -> list[tuple[Header, int]] | None:
        """The fields' halves of `count` headers as runs; None: one of them is absurd."""
        runs: list[tuple[Header, int]] = []
        start = 0
        while start < count:
            first, second = firsts[_HALF * start :], seconds[_HALF * start :]
            header = self._header(first[:_HALF] + second[:_HALF], slot)
            if header is None:
                return None
            length = _alike(first, second)
            runs.append((header, length))
            start += length
        return runs

    def _header(self, fields: bytes, slot: int) -> Header | None:
        """The fields of a genuine header; None: absurd ones."""
        mixed, origin, destination, length, boot, low, t0, t1, t2 = _unpack(fields)
        if length > PAYLOAD_SIZE_MAX or not 0 < origin < 255 or not 0 < destination < 255:
            return None
        return _new(  # what Header(...) does, without the call in Python
            Header,
            (
                mixed & KIND_MASK,
                mixed & _FLAGS_MASK,
                origin,
                destination,
                length,
                boot,
                low >> 16,
                low >> 8 & 0xFF,
                low & 0xFF,
                t0,
                t1,
                t2,
                fields[:ASSOCIATED_SIZE],
                slot,
            ),
        )

    def _open_with_others(self, data: Buffer) -> tuple[bytes, int] | None:
        """The fields, and which of the keys but the first has sealed them."""
        for slot, siv in enumerate(self._sivs[1:], 1):
            try:
                return siv.decrypt(data, None), slot
            except InvalidTag:
                continue
        return None

    # --- whole datagrams, for protocols with a framing of their own -------------------------------

    def seal_datagram(self, data: Buffer, padding: int = 0) -> bytes:
        """`data` and 20 bytes more, all like random ones; `padding` (0..255) hides what its size tells.

        Tells nothing of order, and may be replayed: that is for the protocol inside.
        """
        self._datagrams = (self._datagrams + 1) & 0xFFFFFF
        head = (self._datagrams << 8 | padding).to_bytes(4, "big")
        return self.seal_fields(b"".join((head, bytes(padding), data)), _DATAGRAM)

    def open_datagram(self, data: Buffer) -> bytes | None:
        """What was sealed, or None: not one of ours."""
        for siv in self._sivs:
            try:
                plain = siv.decrypt(data, _DATAGRAM)
            except (InvalidTag, ValueError):
                continue
            if len(plain) >= 4:
                return plain[4 + plain[3] :]
        self.stranger_count += 1
        return None
