"""Flight times, one way, between nodes whose clocks nobody has set: from stamps and rare probes.

A PROBE goes out over zero to two relays and its ANSWER comes back over the same. Every node stamps both
with its own clock, so the time from any node to the destination and back is a difference of one
clock, and each hop's round trip is the difference of two such times:

    origin   t1 ---> a1 ---> r   destination         round trip of the first hop:
             t2 <--- b1 <--- s                       (t2 - t1) - (b1 - a1)

The offset between two clocks is taken where the round trip was shortest: half of what the one-way
differences disagree by (Cristian, "Probabilistic clock synchronization", 1989; the clock filter of NTP,
RFC 5905, section 10: the last eight samples, older ones trusted less). It is off by half of how much the two
ways differ when nothing queues; no measurement between two nodes can tell that apart. With the offset
known, every stamp of an ordinary message tells how long that message flew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

SAMPLES: Final = 8
DRIFT: Final = 50e-6
"""How fast two clocks may drift apart, seconds a second: two ordinary crystals."""
STAMP_S: Final = 0.001
"""Stamps are whole milliseconds."""
STAMP_WRAP: Final = 1 << 24


class Leg(NamedTuple):
    """One hop of a way, seconds."""

    node: int
    """Where it ends."""
    rtt_s: float
    out_s: float
    """One way, to `node`."""
    back_s: float
    offset_s: float
    """That node's clock minus ours."""


class Sample(NamedTuple):
    """One measurement of another node's clock."""

    at: float
    offset_s: float
    delay_s: float
    """Of the round trip that it was taken from: it is wrong by half of it at most."""


class ClockFilter:
    """What another node's clock says, compared with this node's monotonic one.

    So that steps of our own wall clock do not matter; steps of the other's are found, and what was
    known before them is forgotten. At most SAMPLES samples.
    """

    __slots__ = ("_best", "_samples")

    def __init__(self) -> None:
        self._samples: list[Sample] = []
        self._best: Sample | None = None

    @property
    def is_known(self) -> bool:
        """Has there been a sample?"""
        return self._best is not None

    def add(self, at: float, offset_s: float, delay_s: float) -> None:
        """One more sample, taken at `at` (monotonic)."""
        new = Sample(at, offset_s, delay_s)
        if any(_contradict(new, old) for old in self._samples):
            self._samples = []  # the other clock was stepped
        self._samples = [*self._samples[1 - SAMPLES :], new]
        self._best = min(self._samples, key=lambda s: s.delay_s / 2 + DRIFT * (at - s.at))

    def clear(self) -> None:
        """What is known is wrong."""
        self._samples = []
        self._best = None

    def offset(self) -> float:
        """The other node's wall clock minus our monotonic one, seconds; `is_known` must hold."""
        assert self._best is not None
        return self._best.offset_s

    def error(self, now: float) -> float:
        """By how much `offset` may be wrong, seconds: half the round trip, the drift since, and stamps."""
        assert self._best is not None
        return self._best.delay_s / 2 + DRIFT * (now - self._best.at) + 2 * STAMP_S


def unwrap(stamp: bytes, near_s: float) -> float:
    """The time that a stamp of 3 bytes tells, seconds: the one closest to `near_s`, within 2.3 hours."""
    near_ms = int(near_s * 1000)
    ahead = (int.from_bytes(stamp, "big") - near_ms) % STAMP_WRAP
    if ahead >= STAMP_WRAP // 2:
        ahead -= STAMP_WRAP
    return (near_ms + ahead) / 1000 + STAMP_S / 2  # in the middle of its millisecond


def offsets(out: Sequence[float], back: Sequence[float]) -> list[tuple[float, float]]:
    """(offset to the origin's clock, round trip to there) of every node behind the origin.

    `out` and `back` are what each node's clock said, the origin first, as the probe and its answer
    left it; of the destination as they came and left.
    """
    whole = back[0] - out[0]
    return [
        ((there - out[0] + here - back[0]) / 2, max(0.0, whole - (here - there)))
        for there, here in zip(out[1:], back[1:], strict=True)
    ]


def legs(
    nodes: Sequence[int], out: Sequence[float], back: Sequence[float], known: Sequence[float]
) -> tuple[Leg, ...]:
    """The hops of one probe and its answer; `known` are the offsets of `nodes` to our clock."""
    clocks = (0.0, *known)
    flown = [(o - c, b - c) for o, b, c in zip(out, back, clocks, strict=True)]
    found = []
    for index, node in enumerate(nodes, 1):
        there = flown[index][0] - flown[index - 1][0]
        here = flown[index - 1][1] - flown[index][1]
        rtt_s = max(0.0, there + here)
        there = min(max(0.0, there), rtt_s)
        found.append(Leg(node, rtt_s, there, rtt_s - there, known[index - 1]))
    return tuple(found)


def _contradict(a: Sample, b: Sample) -> bool:
    """Can both be right? Each is wrong by half its round trip and the rounding of stamps at most."""
    slack = (a.delay_s + b.delay_s) / 2 + 2 * STAMP_S + DRIFT * abs(a.at - b.at)
    return abs(a.offset_s - b.offset_s) > slack
