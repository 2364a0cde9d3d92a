"""The shared key, and what is derived from it.

A configured key is 32 random bytes. From it HKDF-SHA256 (RFC 5869) derives one header key
(AES-256-SIV, RFC 5297: 64 bytes) and, for every (origin, boot, destination), one payload key
(AES-256-GCM or ChaCha20-Poly1305: 32 bytes). Several keys may be listed: the first seals, all open, so a mesh
changes its key without going down. There is no forward secrecy: who learns the key reads what was
recorded (docs/wire.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from uservpn.errors import UsageError
from uservpn.types import Buffer
from uservpn.wire.constants import KEY_SIZE
from uservpn.wire.siv import HeaderSiv


class Cipher(Protocol):
    """Seals payloads under one key; `InvalidTag` where they do not open."""

    def encrypt(self, nonce: bytes, data: Buffer, associated_data: bytes | None, /) -> bytes:
        """The sealed payload."""

    def encrypt_into(
        self, nonce: bytes, data: Buffer, associated_data: bytes | None, buf: Buffer, /
    ) -> int:
        """The sealed payload is put into `buf`, which has its size."""

    def decrypt(self, nonce: bytes, data: Buffer, associated_data: bytes | None, /) -> bytes:
        """The payload."""

    def decrypt_into(
        self, nonce: bytes, data: Buffer, associated_data: bytes | None, buf: Buffer, /
    ) -> int:
        """The payload is put into `buf`, which has its size."""


class HeaderCipher(Protocol):
    """Seals header fields under one key, the same for the same fields."""

    def encrypt(self, data: Buffer, associated_data: list[bytes] | None, /) -> bytes:
        """Watermark and sealed fields."""

    def decrypt(self, data: Buffer, associated_data: list[bytes] | None, /) -> bytes:
        """The fields."""

    def seal_run(self, fields: bytes, count: int) -> bytes:
        """`count` headers, one behind the other, whose numbers count up (wire/siv.py)."""


class Ring(Protocol):
    """What sessions and headers need of a key ring: this one, or the simulator's."""

    @property
    def sivs(self) -> Sequence[HeaderCipher]:
        """The header ciphers; the first one seals."""

    def payload(self, slot: int, origin: int, boot: int, destination: int, chacha: bool) -> Cipher:
        """The cipher for payloads from `origin`, started as `boot`, to `destination`."""


def _derive(key: bytes, size: int, info: bytes) -> bytes:
    return HKDF(SHA256(), size, None, info).derive(key)


class KeyRing:
    """The keys of one mesh; immutable. `slot` numbers them from 0, the one that seals."""

    __slots__ = ("_keys", "sivs")

    def __init__(self, keys: Sequence[bytes]) -> None:
        """Derives the header keys of `keys` (each 32 bytes, at least one).

        Raises:
            UsageError: no key, or one that is not 32 bytes.
        """
        if not keys or any(len(key) != KEY_SIZE for key in keys):
            raise UsageError(f"keys must be {KEY_SIZE} bytes each, and at least one")
        self._keys = tuple(keys)
        self.sivs = tuple(HeaderSiv(_derive(key, 64, b"uservpn header")) for key in keys)

    def __repr__(self) -> str:
        """Tells how many keys there are, never what they are."""
        return f"KeyRing({len(self._keys)} keys)"

    def payload(self, slot: int, origin: int, boot: int, destination: int, chacha: bool) -> Cipher:
        """The cipher for payloads from `origin`, started as `boot`, to `destination`."""
        suite = b"chacha" if chacha else b"aesgcm"
        info = b"uservpn payload " + suite + bytes((origin, destination)) + boot.to_bytes(8, "big")
        key = _derive(self._keys[slot], KEY_SIZE, info)
        return ChaCha20Poly1305(key) if chacha else AESGCM(key)
