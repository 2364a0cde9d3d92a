"""The share of a tunnel's bulk that leaves over relays, and how much of it is still owed to the way.

A set share of the bulk (`relay_share`) leaves over a relayed way while one stands, counted in bytes: what is
owed to the way is sent over it first. It carries nothing else, so nobody waits for a relay's flight time but
the streams whose bytes it carries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from uservpn.mesh.liveness import LinkState
from uservpn.tunnel.path import Path

OWED_START: Final = 16 << 10
OWED_HOLD: Final = 128 << 10
"""When the way is owed so much, and can carry its share, other bulk waits for it."""
OWED_MAX: Final = 1 << 20
"""What the relayed way may be owed: more is forgiven, when there was no way or it is slow."""
OPENING_S: Final = 1.0
OPENING_MAX: Final = 16 << 20
"""So long after a way was sought, or was still getting up to speed, it may be owed so much: at 10 Gbit/s a
short transfer is half over by then."""
SPAN_S: Final = 0.05
FAST_ENOUGH: Final = 0.9
FAR_TOO_SLOW: Final = 0.5
"""Of the rate at which the way would carry its share beside the direct link."""
SEEK_EVERY_S: Final = 5.0
FLOWS: Final = 256 << 10
"""A tunnel that carried so much within SEEK_EVERY_S gets a relayed way."""
UNUSED_S: Final = 30.0
"""A relayed way that carried nothing for so long is closed, where there is a direct one."""


def _able_rate(way: Path) -> float:
    """What this way may carry, bytes/s: one slow report does not make it a slow one."""
    return way.rate if way.controller is None else max(way.rate, way.controller.pace)


@dataclass(slots=True)
class RelayedShare:
    """What one peer's tunnel owes to its relayed way, and whether it needs one."""

    owed: float = 0.0
    """Bytes; below zero the way is ahead."""
    carried_at: float = 0.0
    """When a relayed way last carried something of the tunnel, either way."""
    seek_at: float = 0.0
    direct_bytes: int = 0
    """Wire bytes of the tunnel that left over direct links."""
    _seen_bytes: int = 0
    _seen_at: float = 0.0
    _span_at: float = 0.0
    _span_bytes: int = 0
    _span_rate: float = float("inf")
    """Bytes/s that left over direct links, over one to four times SPAN_S."""
    _opening_until: float = 0.0
    """Until then what a way that is being opened is owed is remembered to more than OWED_MAX."""

    def sent_direct(self, size: int, share: float, now: float) -> None:
        """So many bytes of the tunnel left over a direct link: the way is owed its share."""
        most = OPENING_MAX if now < self._opening_until else OWED_MAX
        self.owed = min(self.owed + share * size, max(most, self.owed))

    def sent_relayed(self, size: int, share: float, now: float) -> None:
        """So many left over the relayed way."""
        self.owed -= (1.0 - share) * size
        self.carried_at = now

    def note_way(self, way: Path, direct: Path, share: float, now: float) -> None:
        """The way stands: its debt is remembered while it starts or pauses; a slow one is forgiven."""
        span = now - self._span_at
        if span >= SPAN_S:  # one with a pause in it tells nothing
            left = self.direct_bytes - self._span_bytes
            self._span_rate = left / span if span < 4 * SPAN_S else float("inf")
            self._span_at, self._span_bytes = now, self.direct_bytes
        if way.silent_count:
            self._opening_until = max(self._opening_until, way.heard_at + OPENING_S)
        if not way.rate or way.is_starting:
            self._opening_until = now + OPENING_S
        elif _able_rate(way) < FAR_TOO_SLOW * self._fair_rate(direct, share):
            self.owed = min(self.owed, OWED_MAX)

    def holds(self, way: Path, direct: Path, share: float) -> bool:
        """Should bulk wait until the way got what it is owed? Not if that way is the slower one."""
        if self.owed < OWED_HOLD:
            return False
        if way.silent_count or not way.rate:
            return False
        return way.is_starting or _able_rate(way) >= FAST_ENOUGH * self._fair_rate(direct, share)

    def unused_at(self, way: LinkState) -> float:
        """When this relayed way counts as unused, though there is a direct link."""
        return max(self.carried_at, way.up_at) + UNUSED_S

    def way_closed(self) -> None:
        """It was unused: another one is opened when much flows again."""
        self._seen_bytes = self.direct_bytes

    def wants_way(self, now: float) -> bool:
        """Should a relayed way be opened? Asked while none stands; True once in a while, if much flows."""
        if self.direct_bytes - self._seen_bytes < FLOWS:
            if now >= self._seen_at + SEEK_EVERY_S:
                self._seen_at = now
                self._seen_bytes = self.direct_bytes
            return False
        if now < self.seek_at:
            return False
        self.seek_at = self._seen_at = self.carried_at = now
        self.seek_at += SEEK_EVERY_S
        self._opening_until = now + OPENING_S
        self._seen_bytes = self.direct_bytes
        return True

    # --- inside ----------------------------------------------------------------------------------

    def _fair_rate(self, direct: Path, share: float) -> float:
        """How fast the relayed way has to be to carry its share beside the direct link, bytes/s; share < 1.

        The link's latest rate may be that of a burst, so what left over it in a longer span counts, too.
        """
        return share / (1.0 - share) * min(direct.rate, self._span_rate)
