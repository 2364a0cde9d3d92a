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
from hmac import compare_digest
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag

from uservpn.kit.series import COUNT_MAX, unpacked
from uservpn.types import Buffer
from uservpn.wire.constants import (
    ASSOCIATED_SIZE,
    FIELDS_SIZE,
    HEADER_SIZE,
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
RUN_MIN: Final = 6
"""Fewer headers are sealed, or opened, one by one: a run has a cost of its own."""
_NUMBERS: Final = 1 << 8 * (ASSOCIATED_SIZE - FIELDS_SIZE // 2)
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
    """How long a run from `number` on may be at most: headers are sealed together within 2**40 numbers."""
    return min(COUNT_MAX, _NUMBERS - number % _NUMBERS)


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
        mixed, origin, destination, length, boot, low, t0, t1, t2 = _unpack(fields)
        if length > PAYLOAD_SIZE_MAX or not 0 < origin < 255 or not 0 < destination < 255:
            self.stranger_count += 1
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

    def seal_run(self, fields: bytes, count: int) -> bytes:
        """`count` headers, one behind the other: numbers count up from that of `fields` (`run_max`)."""
        return self._sivs[0].seal_run(fields, count)

    def open_runs(self, data: Buffer, count: int, apart: int) -> list[tuple[Header | None, int]]:
        """`count` headers, one every `apart` bytes, as runs: the first one, how many; None: not of ours.

        SIV is deterministic. So one header of a burst is opened, those behind it are sealed as they should be
        if the numbers count up, and what came is compared with that. Where that goes wrong again and again,
        as with numbers in disorder, it is tried ever less often.
        """
        heads = unpacked(f"{HEADER_SIZE}s{apart - HEADER_SIZE}x", count, data)
        runs: list[tuple[Header | None, int]] = []
        at = again_at = misses = 0
        guess = count
        while at < count:
            header = self.open(heads[at])
            length = 1
            if header is not None and at >= again_at and count - at >= RUN_MIN:
                guess = min(guess, count - at, run_max(header.number))
                wanted = self._sivs[header.slot].seal_run(_fields_of(header), guess)
                length = _common(heads[at : at + guess], wanted)
                misses = misses + 1 if length < RUN_MIN else 0
                again_at = at + (RUN_MIN << misses if misses else 0)
                guess = count if length == guess else max(2 * length, RUN_MIN)
            runs.append((header, length))
            at += length
        return runs

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


def _fields_of(header: Header) -> bytes:
    """The fields of an opened header."""
    hops = bytes((header.hop1, header.hop2))
    stamps = (header.stamp, header.stamp_hop1, header.stamp_hop2)
    return b"".join((header.associated, hops, *stamps))


def _common(heads: Sequence[bytes], wanted: bytes) -> int:
    """How many headers, from the first one on, are as they should be."""
    if compare_digest(b"".join(heads), wanted):
        return len(heads)
    for index, head in enumerate(heads):
        if not compare_digest(head, wanted[HEADER_SIZE * index : HEADER_SIZE * (index + 1)]):
            return index
    return len(heads)
