"""The shared key as text: base64 of 32 random bytes.

No function here, and no error that it raises, ever shows a key or a part of one. What may be
shown is the fingerprint: it tells two keys apart and tells nothing about either.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from typing import Final

KEY_SIZE: Final = 32
KEY_FORM: Final = "base64 of 32 random bytes (44 characters; make one with: uservpn key new)"


def new_key() -> str:
    """A fresh key from the system's random source, as the text that the configuration holds."""
    return base64.b64encode(secrets.token_bytes(KEY_SIZE)).decode("ascii")


def decode_key(text: str) -> bytes:
    """The 32 bytes of a key; ValueError names what was found instead, without showing it."""
    try:
        key = base64.b64decode(text.strip().encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError(f"{len(text.strip())} characters that are not base64") from None
    if len(key) != KEY_SIZE:
        raise ValueError(f"base64 of {len(key)} bytes")
    return key


def fingerprint(key: bytes) -> str:
    """Eight bytes of a hash, in hex, for people to compare between nodes."""
    digest = hashlib.sha256(b"uservpn key fingerprint\0" + key).hexdigest()[:16]
    return "-".join(digest[start : start + 4] for start in range(0, 16, 4))
