"""The constants sheet of the wire: what docs/wire.md fixes, then what this implementation chooses."""

from __future__ import annotations

import enum
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# --- specification (docs/wire.md) -----------------------------------------------------------------

HEADER_SIZE: Final = 48
FIELDS_SIZE: Final = 32
WATERMARK_SIZE: Final = 16
TAG_SIZE: Final = 16
ASSOCIATED_SIZE: Final = 21
"""The leading field bytes that no relay changes: the payload's associated data."""
KEY_SIZE: Final = 32
PAYLOAD_SIZE_MAX: Final = 512 * KIB
"""Largest sealed payload a receiver accepts; a header that claims more is a broken peer."""
NUMBER_MAX: Final = (1 << 48) - 1
BOOT_CHANCE: Final = 16
"""The random bits of a boot, below the milliseconds at which it began."""
BOOT_MAX: Final = (1 << 63) - 1
"""No boot is higher: they follow the clock, in 2**-16 ms since 1970. Higher ones are somebody's invention."""
STAMP_MASK: Final = (1 << 24) - 1
"""Stamps are milliseconds of the sender's clock, modulo 2**24 (4.66 hours)."""
FRESH_MS: Final = 120_000
"""A first contact this close to the receiver's clock is acted on at once."""

FLAG_BOUND: Final = 0x20
"""The associated data also holds the destination's boot."""
FLAG_CHACHA: Final = 0x40
"""The payload is sealed with ChaCha20-Poly1305 instead of AES-256-GCM."""
KIND_MASK: Final = 0x1F


class Kind(enum.IntEnum):
    """What a message is; 5 bits of the header's first byte."""

    DATA = 1
    """Tunnel: a sequenced message, kept by its sender until the sink has it."""
    SINK = 2
    """Tunnel: what the sink has and wants; never sequenced, never resent."""
    KEEPALIVE = 3
    """An empty data message."""
    PROBE = 4
    ANSWER = 5
    NOTICE = 6
    """'Your message is bound to a boot of mine that is gone'; the header tells the new one."""
    CHALLENGE = 7
    ECHO = 8
    GOODBYE = 9
    """The origin stops now."""
    GOSSIP = 10
    """Records of nodes, or what helps to compare two lists of them (mesh/gossip.py)."""
    UNREACHABLE = 11
    """A relay tells the origin that a message could not go on (node/relay.py)."""
    MESSAGE = 12
    """Out of band: a topic and some bytes, beside the tunnel (mesh/mailbox.py)."""
    CONFIRM = 13
    """Of a MESSAGE that asked for it."""
    REACH = 14
    """How its receiver, or its origin, can be reached (node/reach.py)."""
    DUPLICATE = 15
    """Another live node has your number; its claim (node/numbers.py)."""
    CLAIM = 16
    """'This number is mine', flooded (mesh/claims.py)."""
    OUTDATED = 17
    """'Your boot is below one of your number that I have known'."""
    JOIN = 18
    """From somebody who has no number yet: which ones are taken? (node/door.py)."""
    JOINED = 19


CLAIMED_KINDS: Final = frozenset(
    {Kind.NOTICE, Kind.CHALLENGE, Kind.UNREACHABLE, Kind.DUPLICATE, Kind.OUTDATED}
)
"""Answers to a boot that a header only claims: their origin need not take that boot for the right one."""

# --- implementation -------------------------------------------------------------------------------

WINDOW_START: Final = 64
WINDOW_MAX: Final = 65_536
"""Replay window slots: start small, grow with the numbers seen (8 bytes a slot)."""
NUMBERS_KEPT: Final = 1 << 20
"""A sender stops this far from the last number: more than any batch has messages."""
SKEW_LOGGED_MS: Final = FRESH_MS

assert FIELDS_SIZE + WATERMARK_SIZE == HEADER_SIZE
assert ASSOCIATED_SIZE < FIELDS_SIZE  # hops and stamps are left out: relays change them
assert max(Kind) <= KIND_MASK
