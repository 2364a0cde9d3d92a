"""How much is confirmed at once, beyond what the rate says: paths that let packets go together.

Wi-Fi, mobile networks and jitter that keeps the order deliver in bunches. While one is being gathered the
window has to last, or the rate falls, and with it the window. The measure is BBR's `extra_acked`
(draft-cardwell-iccrg-bbr-congestion-control-02, section 4.5.5; Linux' tcp_bbr.c): bytes confirmed since an
epoch began less rate times its length, the highest of the last rounds; an epoch ends when there are none.
"""

from __future__ import annotations

from typing import Final

from uservpn.tunnel.rates import RateFilter

ROUNDS: Final = 10
"""So long the largest bunch is remembered."""
LONGEST_S: Final = 0.2
"""More than the path's rate times this is no bunch."""


class Bunches:
    """The largest bunch of late, in bytes."""

    __slots__ = ("_acked", "_began", "_sizes")

    def __init__(self) -> None:
        self._sizes = RateFilter()
        self._began = 0.0
        self._acked = 0

    @property
    def size(self) -> float:
        """Bytes beyond the rate."""
        return self._sizes.highest

    def note(self, round_: int, acked: int, rate: float, now: float) -> None:
        """A report of this round confirmed so many bytes; `rate` in bytes/s."""
        due = rate * (now - self._began)
        if self._acked <= due:
            self._began, self._acked, due = now, 0, 0.0
        self._acked += acked
        self._sizes.add(round_, min(self._acked - due, LONGEST_S * rate))
        self._sizes.forget(round_ - ROUNDS)
