"""How long a site takes to answer through an exit: samples in, a robust mean out.

A sample is a *first round trip* in ms: from the last data that a program sent before the first reply to
that reply (R44), as the client saw it. Data that was sent ahead of the exit's result waited there while
the exit connected; it counts from when the result left the exit, so that every sample is the way to the
exit and on to the site, once there and back. A test of an exit (flight time and connect time) is the
same way without the site's own thinking, and is kept apart from the real ones.

    Trip        one connection: when did what go out, what came back, when
    Series      the last 16 samples of one (site, exit): mean, weight, age
    Knowledge   all series, bounded; what is expected of an exit, like with like

**The mean** is an interquartile mean (a 25 % trimmed mean, Tukey 1962) over samples weighted by age,
half as much every two days: a quarter of the weight may lie anywhere without moving it far. It says
nothing until it has three samples; a single value never decides. A reply that never came is a sample
of ten seconds, so an exit that is near and carries nothing becomes a slow one. There are few tests, and
chance only ever makes them longer: their mean is that of the lower half.

**The way to the exit** is known at every moment, from its link: only what is beyond the exit is
remembered, and the flight time of now is added. So a way that becomes longer soon counts for all sites.

**Like with like**: real averages are compared with real ones. Where an exit has only tests, what the
site itself takes (the real average less the test's, at exits that have both) is added.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from uservpn.types import NodeId

SAMPLES_MAX: Final = 16
"""Samples kept of one series; the oldest goes."""
SAMPLES_MIN: Final = 3
"""Below this a mean does not decide."""
HALF_LIFE_S: Final = 2 * 86_400.0
TESTS_AGAIN: Final = 2
"""Good tests after which an exit that carried nothing is thought of again."""
FLIGHT_EVERY_S: Final = 10.0
"""Flight times are looked at so often, when they are needed."""
FLIGHT_KEPT_S: Final = 600.0
FORGET_S: Final = 21 * 86_400.0
"""Older samples (a thousandth of the weight) count as none."""
NEVER_MS: Final = 10_000.0
"""What a reply that never came counts as, at least."""
PATIENCE_S: Final = 2.0
"""A program that leaves sooner than this (or four expected round trips) has proved nothing."""
SITES_MAX: Final = 4096
EXITS_PER_SITE_MAX: Final = 32
PAIRS_MAX: Final = 20_000


class Trip:
    """The first round trip of one connection. Times are monotonic seconds."""

    __slots__ = ("_opened_at", "is_over", "sent_at")

    def __init__(self) -> None:
        self.sent_at = 0.0
        """When data last went; 0: none has."""
        self._opened_at = 0.0
        self.is_over = False
        """Nothing more to learn: tell it nothing more."""

    def sent(self, now: float) -> None:
        """The program sent data."""
        self.sent_at = now

    def opened(self, now: float) -> None:
        """The exit's result came: it is connected."""
        self._opened_at = now

    def replied(self, now: float, flight_s: float) -> float | None:
        """The first data came: the round trip in ms. None: nothing had been sent before it."""
        self.is_over = True
        return self._since(now, flight_s) * 1000 if self.sent_at else None

    def ended(self, now: float, flight_s: float, expected_ms: float | None) -> float | None:
        """The connection ended without a reply: what that counts as, in ms, or None: as nothing."""
        self.is_over = True
        if not self.sent_at:
            return None
        waited_s = self._since(now, flight_s)
        patience_s = max(PATIENCE_S, 4 * (expected_ms or 0.0) / 1000)
        return max(NEVER_MS, waited_s * 1000) if waited_s >= patience_s else None

    def broken(self, now: float, flight_s: float) -> float | None:
        """The site's side broke off without a reply."""
        self.is_over = True
        return max(NEVER_MS, self._since(now, flight_s) * 1000) if self.sent_at else None

    def _since(self, now: float, flight_s: float) -> float:
        left_at = self.sent_at
        if self._opened_at - flight_s > left_at:
            left_at = min(self._opened_at - flight_s, now)
        return max(0.0, now - left_at)


class Series:
    """The newest samples of one kind. `now` and stamps are Unix time."""

    __slots__ = ("_flat",)

    def __init__(self, flat: bytes = b"") -> None:
        """Raises ValueError: `flat` is not from `dump`."""
        if len(flat) % 16 or len(flat) > 16 * SAMPLES_MAX:
            raise ValueError("these are not the samples of a series")
        self._flat = array("d")  # stamp, ms, stamp, ms...: a tenth of the memory of tuples
        self._flat.frombytes(flat)

    def add(self, ms: float, now: float) -> None:
        """One more sample."""
        flat = self._flat
        if len(flat) >= 2 * SAMPLES_MAX:
            del flat[:2]
        flat.append(now)
        flat.append(ms)

    def count(self, now: float) -> int:
        """Samples that are not too old."""
        return sum(1 for at in self._flat[::2] if at > now - FORGET_S)

    def newest(self) -> float | None:
        """When the last one was taken."""
        return self._flat[-2] if self._flat else None

    def mean(self, now: float) -> float | None:
        """The interquartile mean, weighted by age; None: there is nothing to go by."""
        pairs = self._weighted(now)
        return _mean_between(pairs, 1 / 4, 3 / 4) if pairs else None

    def low(self, now: float) -> float | None:
        """The mean of the lower half, for what chance only ever adds to; None: nothing to go by."""
        pairs = self._weighted(now)
        return _mean_between(pairs, 0.0, 1 / 2) if pairs else None

    def _weighted(self, now: float) -> list[tuple[float, float]]:
        flat = self._flat
        return [
            (flat[i + 1], 0.5 ** (max(0.0, now - flat[i]) / HALF_LIFE_S))
            for i in range(0, len(flat), 2)
            if flat[i] > now - FORGET_S
        ]

    def pairs(self) -> list[tuple[float, float]]:
        """Every sample: stamp and ms."""
        return list(zip(self._flat[::2], self._flat[1::2], strict=True))

    def dump(self) -> bytes:
        """For the disk."""
        return self._flat.tobytes()


def _mean_between(pairs: list[tuple[float, float]], start: float, end: float) -> float:
    """Of (value, weight)s in order: the mean of this part of the weight."""
    pairs.sort()
    total = sum(weight for _, weight in pairs)
    low, high = total * start, total * end
    at = sum_ = 0.0
    for value, weight in pairs:
        inside = min(at + weight, high) - max(at, low)
        if inside > 0:
            sum_ += value * inside
        at += weight
    return sum_ / (high - low)


class Pair:
    """All that is known of one (site, exit)."""

    __slots__ = ("bytes_in", "bytes_out", "connections", "real", "tests")

    def __init__(self) -> None:
        self.real = Series()
        self.tests = Series()
        self.connections = 0
        self.bytes_in = 0
        """From the site."""
        self.bytes_out = 0


class Knowledge:
    """What is known of sites at exits; the site unused for longest goes when there are too many."""

    def __init__(
        self,
        flight_ms: Callable[[NodeId], float | None] = lambda exit: None,
        sites_max: int = SITES_MAX,
        pairs_max: int = PAIRS_MAX,
    ) -> None:
        """`flight_ms` is the way to an exit and back as it is now, None where it is not measured."""
        self._flight_ms = flight_ms
        self._flights: dict[NodeId, tuple[Series, float]] = {}  # as seen lately, and their low mean
        self._sites_max = sites_max
        self._pairs_max = pairs_max
        self._pair_count = 0
        self._sites: OrderedDict[str, dict[NodeId, Pair]] = OrderedDict()
        self._exits: dict[NodeId, Series] = {}
        self.changed: set[tuple[str, NodeId]] = set()
        """Pairs that changed since the owner last emptied this; never more than there are pairs."""

    # --- what happens ----------------------------------------------------------------------------

    def replied(self, site: str, exit: NodeId, ms: float, now: float) -> None:
        """One real first round trip."""
        self.touch(site, exit).real.add(self._beyond(exit, ms, now), now)
        self._of_exit(exit).add(ms, now)

    def tested(self, site: str, exit: NodeId, ms: float, now: float) -> None:
        """One test: flight and connect time."""
        self.touch(site, exit).tests.add(self._beyond(exit, ms, now), now)
        if ms >= NEVER_MS:
            self._of_exit(exit).add(ms, now)

    def moved(self, site: str, exit: NodeId, bytes_in: int, bytes_out: int) -> None:
        """A connection ended: what it carried."""
        pair = self.touch(site, exit)
        pair.connections += 1
        pair.bytes_in += bytes_in
        pair.bytes_out += bytes_out

    def touch(self, site: str, exit: NodeId) -> Pair:
        """The pair, made where it is new; it is marked as changed."""
        pairs = self._sites.get(site)
        if pairs is None:
            pairs = self._sites[site] = {}
        else:
            self._sites.move_to_end(site)
        pair = pairs.get(exit)
        if pair is None:
            pair = Pair()
            self._put(site, pairs, exit, pair)
        self.changed.add((site, exit))
        return pair

    def restore(self, site: str, exit: NodeId, pair: Pair) -> None:
        """From the disk, the site used last at the end."""
        self._put(site, self._sites.setdefault(site, {}), exit, pair)
        of_exit = self._of_exit(exit)
        for at, ms in pair.real.pairs():
            of_exit.add(ms, at)

    def _put(self, site: str, pairs: dict[NodeId, Pair], exit: NodeId, pair: Pair) -> None:
        if len(pairs) >= EXITS_PER_SITE_MAX and exit not in pairs:
            gone = min(pairs, key=lambda node: _newest(pairs[node]))
            del pairs[gone]
            self._pair_count -= 1
            self.changed.add((site, gone))
        self._pair_count += exit not in pairs
        pairs[exit] = pair
        while len(self._sites) > self._sites_max or self._pair_count > self._pairs_max:
            self.forget(next(iter(self._sites)))

    def forget(self, site: str) -> bool:
        """Nothing is known of this site any more; False: nothing was."""
        pairs = self._sites.pop(site, None)
        self._pair_count -= len(pairs or ())
        for exit in pairs or ():
            self.changed.add((site, exit))
        return pairs is not None

    def flight(self, exit: NodeId, now: float) -> float:
        """The way to the exit and back in ms, without what chance adds; 0.0: never measured."""
        series, low = self._flights.get(exit, (None, 0.0))
        if series is not None and now < (series.newest() or 0.0) + FLIGHT_EVERY_S:
            return low
        flight = self._flight_ms(exit)
        if flight is None:
            return low
        if series is None or now >= (series.newest() or 0.0) + FLIGHT_KEPT_S:
            series = Series()  # what was long ago says nothing of now
        series.add(flight, now)
        low = series.low(now) or flight
        self._flights[exit] = (series, low)
        return low

    def _beyond(self, exit: NodeId, ms: float, now: float) -> float:
        """What of a sample is beyond the exit."""
        return ms if ms >= NEVER_MS else max(0.0, ms - self.flight(exit, now))

    def _of_exit(self, exit: NodeId) -> Series:
        series = self._exits.get(exit)
        if series is None:
            series = self._exits[exit] = Series()  # at most 254: node numbers
        return series

    # --- questions -------------------------------------------------------------------------------

    @property
    def sites(self) -> list[str]:
        """Every site something is known of, the one used last at the end."""
        return list(self._sites)

    def pairs(self, site: str) -> dict[NodeId, Pair]:
        """What is known of a site; not to be changed."""
        return self._sites.get(site, {})

    def exit_mean(self, exit: NodeId, now: float) -> float | None:
        """The mean over all sites of the newest first round trips at an exit."""
        series = self._exits.get(exit)
        if series is None or series.count(now) < SAMPLES_MIN:
            return None
        return series.mean(now)

    def expected(self, site: str, now: float) -> dict[NodeId, float]:
        """The first round trip in ms to expect at each exit something is known of."""
        pairs = self._sites.get(site)
        if not pairs:
            return {}
        tests = {exit: pair.tests.low(now) for exit, pair in pairs.items()}
        real = {exit: _real_mean(pair, now) for exit, pair in pairs.items()}
        own = _site_takes(real, tests)
        found: dict[NodeId, float] = {}
        for exit in pairs:
            mean, test = real[exit], tests[exit]
            if mean is not None:
                found[exit] = mean + self.flight(exit, now)
            elif test is not None:
                found[exit] = test + own + self.flight(exit, now)
        return found

    def expected_at(self, site: str, exit: NodeId, now: float) -> float | None:
        """As `expected`, of one exit; mostly without a look at the others."""
        pair = self._sites.get(site, {}).get(exit)
        if pair is None:
            return None
        mean = _real_mean(pair, now)
        if mean is not None:
            return mean + self.flight(exit, now)
        return self.expected(site, now).get(exit)

    def has_answered(self, site: str, exit: NodeId) -> bool:
        """Did this site ever give a reply through this exit?"""
        pair = self.pairs(site).get(exit)
        return pair is not None and any(ms < NEVER_MS for _, ms in pair.real.pairs())

    def samples(self, site: str, exit: NodeId, now: float) -> int:
        """Samples, real ones and tests, that are not too old."""
        pair = self.pairs(site).get(exit)
        return pair.real.count(now) + pair.tests.count(now) if pair else 0

    def newest(self, site: str, exit: NodeId) -> float | None:
        """When this pair was last measured."""
        pair = self.pairs(site).get(exit)
        at = _newest(pair) if pair else 0.0
        return at or None


def _site_takes(real: dict[NodeId, float | None], tests: dict[NodeId, float | None]) -> float:
    """The site's own time, from exits that have both averages: the least, which no detour is in."""
    both = [
        mean - test
        for exit, mean in real.items()
        if mean is not None and (test := tests[exit]) is not None and mean < NEVER_MS > test
    ]
    return max(0.0, min(both, default=0.0))


def _real_mean(pair: Pair, now: float) -> float | None:
    """The mean that counts; None: there are too few samples, or they only tell of a time that is over.

    That is so where most got no reply, and then the exit's tests connected again.
    """
    if pair.real.count(now) < SAMPLES_MIN:
        return None
    mean = pair.real.mean(now)
    if mean is None or mean < NEVER_MS / 2:
        return mean
    last = pair.real.newest() or 0.0
    since = [ms for at, ms in pair.tests.pairs() if at > last]
    is_over = len(since) >= TESTS_AGAIN and max(since) < NEVER_MS
    return None if is_over else mean


def _newest(pair: Pair) -> float:
    return max(pair.real.newest() or 0.0, pair.tests.newest() or 0.0)
