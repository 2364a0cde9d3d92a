"""Ciphers that hide nothing, for speed: the wire keeps its layout, its sizes and its checks.

A `PlainRing` stands where a `KeyRing` does, so `HeaderCodec` and `Session` run unchanged. A message
still opens only under the key, for the nodes and boots that it was sealed for, and undamaged. What
real ciphers cannot tell is watched here: no nonce is ever used twice under one key (`Nonces`).
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from cryptography.exceptions import InvalidTag

from uservpn.kit.ranges import RangeSet
from uservpn.types import Buffer
from uservpn.wire.constants import FIELDS_SIZE, TAG_SIZE, WATERMARK_SIZE
from uservpn.wire.siv import NUMBER_SHIFT

_PayloadKey = tuple[bytes, int, int, int, bool]


class Nonces:
    """The nonces of every payload key of a world, over all restarts; used in any order."""

    def __init__(self) -> None:
        self._used: dict[_PayloadKey, RangeSet] = {}
        self.repeated: list[str] = []
        """What must stay empty."""

    def use(self, key: _PayloadKey, nonce: bytes) -> None:
        """One message is sealed."""
        used = self._used.get(key)
        if used is None:
            used = self._used[key] = RangeSet()
        number = int.from_bytes(nonce, "big")
        if number in used:
            self.repeated.append(f"nonce {nonce.hex()} of {key[1:]}")
        used.add(number, number + 1)


class PlainSiv:
    """In place of AES-SIV: the key's mark and a sum in front of the fields."""

    def __init__(self, key: bytes) -> None:
        self._mark = key[: WATERMARK_SIZE - 4]

    def encrypt(self, fields: Buffer, _: list[bytes] | None) -> bytes:
        """The sealed header."""
        return b"".join((self._mark, crc32(fields).to_bytes(4, "big"), fields))

    def decrypt(self, data: Buffer, _: list[bytes] | None) -> bytes:
        """The fields. Raises InvalidTag."""
        data = bytes(data)
        fields = data[WATERMARK_SIZE:]
        sealed = data[: WATERMARK_SIZE - 4] == self._mark
        if not sealed or data[WATERMARK_SIZE - 4 : WATERMARK_SIZE] != crc32(fields).to_bytes(
            4, "big"
        ):
            raise InvalidTag
        return fields

    def seal_run(self, fields: bytes, count: int) -> bytes:
        """Headers whose numbers count up."""
        first = int.from_bytes(fields, "big")
        numbers = range(first, first + (count << NUMBER_SHIFT), 1 << NUMBER_SHIFT)
        return b"".join(self.encrypt(one.to_bytes(FIELDS_SIZE, "big"), None) for one in numbers)


class PlainAead:
    """In place of AES-GCM: the payload, and a tag that depends on everything a real one depends on."""

    def __init__(self, key: _PayloadKey, nonces: Nonces) -> None:
        self._key = key
        self._nonces = nonces
        secret, origin, boot, destination, chacha = key
        about = secret + bytes((origin, destination, chacha)) + boot.to_bytes(8, "big")
        self._start = crc32(about)
        self._rest = bytes(TAG_SIZE - 4)

    def encrypt(self, nonce: bytes, data: Buffer, associated: bytes | None) -> bytes:
        """The sealed payload."""
        self._nonces.use(self._key, nonce)
        return b"".join((data, self._sum(nonce, data, associated), self._rest))

    def encrypt_into(
        self, nonce: bytes, data: Buffer, associated: bytes | None, buf: Buffer
    ) -> int:
        """The sealed payload into `buf`."""
        sealed = self.encrypt(nonce, data, associated)
        memoryview(buf)[:] = sealed
        return len(sealed)

    def decrypt(self, nonce: bytes, data: Buffer, associated: bytes | None) -> bytes:
        """The payload. Raises InvalidTag."""
        data = bytes(data)
        payload = data[:-TAG_SIZE]
        if len(data) < TAG_SIZE or data[-TAG_SIZE:-12] != self._sum(nonce, payload, associated):
            raise InvalidTag
        return payload

    def decrypt_into(
        self, nonce: bytes, data: Buffer, associated: bytes | None, buf: Buffer
    ) -> int:
        """The payload into `buf`. Raises InvalidTag."""
        payload = self.decrypt(nonce, data, associated)
        memoryview(buf)[:] = payload
        return len(payload)

    def _sum(self, nonce: bytes, payload: Buffer, associated: bytes | None) -> bytes:
        return crc32(payload, crc32(associated or b"", crc32(nonce, self._start))).to_bytes(
            4, "big"
        )


class PlainRing:
    """In place of a `KeyRing`."""

    def __init__(self, keys: Sequence[bytes], nonces: Nonces) -> None:
        self._keys = tuple(keys)
        self._nonces = nonces
        self.sivs = tuple(PlainSiv(key) for key in keys)

    def payload(
        self, slot: int, origin: int, boot: int, destination: int, chacha: bool
    ) -> PlainAead:
        """The cipher for payloads from `origin`, started as `boot`, to `destination`."""
        return PlainAead((self._keys[slot], origin, boot, destination, chacha), self._nonces)
