"""What a congestion controller is: told what each report showed of its path, it says how much may be on it.

One controller belongs to one path (a link, or a way over relays). It never sees messages, only their
sizes and times, so that the published algorithms can be written down as they are published and compared
in a simulated path (docs/congestion.md); `Bbr` is the one in use.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Sample(NamedTuple):
    """What one report told about one path."""

    now: float
    acked: int
    """Bytes that it confirmed for the first time."""
    lost: int
    """Bytes found lost since the last sample."""
    inflight: int
    """Bytes sent and neither confirmed nor found lost, after this report."""
    rtt_s: float | None
    """Round trip of the newest message it confirms, without the time the sink held it."""
    rate: float | None
    """Delivery rate in bytes/s over the flight of that message (Cheng et al.,
    draft-cheng-iccrg-delivery-rate-estimation); None: it cannot be told."""
    is_limited: bool
    """The source had too little to send then: the path may carry more than `rate`."""
    is_round: bool
    """A message that left after the last round began is confirmed: a new round begins."""


class Controller(Protocol):
    """How much may be on a path, and how fast it may get there."""

    window: int
    """Bytes that may be unconfirmed."""
    pace: float
    """Bytes per second."""

    @property
    def is_starting(self) -> bool:
        """Is the path's rate still looked for?"""

    def on_sample(self, sample: Sample) -> None:
        """A report came."""

    def on_silence(self, now: float) -> None:
        """No report comes any more, although asked for twice: next to nothing may leave until one does."""

    def on_restart(self, now: float) -> None:
        """Something is sent after a pause in which nothing was on the path."""

    def look_on(self) -> None:
        """The rate may be a higher one: it is looked for as at the start, but from what is known on."""

    def renewed(self) -> Controller:
        """One that looks for the path's rate from the beginning: this one's knowledge is too old."""
