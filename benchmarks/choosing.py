"""Thirty days of one user, twelve exits and 500 sites in simulated time: how well are exits chosen?

The shipped `Chooser` runs unchanged; the network around it is made up, from one seed:

**Delays.** A round trip is distance / (speed of light in fibre) * inflation, there and back, and a little
for each end. Distances are great circles between cities. The inflation's median is 2.1, the rule of thumb
of I. N. Bozkurt and others, "Dissecting Latency in the Internet's Fiber Infrastructure" (2018); it is drawn
for each pair of cities (log-normal, sigma 0.22), and once more a little for each pair of an exit and a site,
whose providers differ.

**Sites.** Four of ten are on a content network (the nearest of 24 cities answers), one of ten in three
regions, the others in one city. Visits are Zipf (exponent 1). A site takes its own time to answer.

**Weather.** Every round trip has noise (some 4 %, and one in fifty is up to five times as long). Paths
change: each way of an exit to a city, and of the client to an exit, about once in ten days; three of four
changes are detours (10 to 90 % longer) of some hours, one of four is for good (-15 to +30 %). Exits fail,
each about every twelve days for an hour (median); and one of them carries nothing for two days while it
answers everything else.

**The user** opens some 150 pages a day in working hours, each with a few connections.

Compared, on the same visits over the same network:

    uservpn           the shipped chooser
    url-test          as in Clash and sing-box, with 300 s and a tolerance of 50 ms: one URL is fetched
                      through each exit now and then, and all sites leave at the fastest, unless the
                      present one is hardly slower
    nearest country   the exit whose country is nearest to the site's
    nearest exit      the exit that is nearest to the client
    random            one exit for each site's session, by chance

A visit is *good* when its exit's first round trip, the site's own time in it (R44) and noise not, is
within 10 % of the best that any living exit has at that moment. The column beside it leaves the site's own
time out, which makes the ways to near sites differ by more. Run it with `make sim-chooser`.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import math
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from uservpn.chooser.cases import Choice, ExitState
from uservpn.chooser.chooser import Chooser
from uservpn.chooser.geo import Place, distance_km, great_circle_km
from uservpn.chooser.targets import Candidate
from uservpn.chooser.testing import Finding, Trial
from uservpn.errors import Fault
from uservpn.types import NodeId

DAY_S: Final = 86_400.0
GOOD: Final = 1.10
FIBRE_KM_PER_MS: Final = 100.0
"""Distance covered there and back in one millisecond, at two thirds of the speed of light."""
INFLATION: Final = 2.1
CITIES: Final[dict[str, tuple[str, float, float]]] = {
    "amsterdam": ("NL", 52.4, 4.9), "ashburn": ("US", 39.0, -77.5), "atlanta": ("US", 33.7, -84.4),
    "berlin": ("DE", 52.5, 13.4), "chicago": ("US", 41.9, -87.6), "dallas": ("US", 32.8, -96.8),
    "dublin": ("IE", 53.3, -6.3), "frankfurt": ("DE", 50.1, 8.7), "helsinki": ("FI", 60.2, 24.9),
    "hongkong": ("HK", 22.3, 114.2), "jakarta": ("ID", -6.2, 106.8),
    "johannesburg": ("ZA", -26.2, 28.0), "lagos": ("NG", 6.5, 3.4), "london": ("GB", 51.5, -0.1),
    "losangeles": ("US", 34.1, -118.2), "madrid": ("ES", 40.4, -3.7), "milan": ("IT", 45.5, 9.2),
    "mumbai": ("IN", 19.1, 72.9), "nairobi": ("KE", -1.3, 36.8), "newyork": ("US", 40.7, -74.0),
    "paris": ("FR", 48.9, 2.4), "saopaulo": ("BR", -23.5, -46.6), "seoul": ("KR", 37.6, 127.0),
    "singapore": ("SG", 1.35, 103.8), "stockholm": ("SE", 59.3, 18.1),
    "sydney": ("AU", -33.9, 151.2), "tokyo": ("JP", 35.7, 139.7), "toronto": ("CA", 43.7, -79.4),
    "vienna": ("AT", 48.2, 16.4), "warsaw": ("PL", 52.2, 21.0),
}  # fmt: skip
EXITS: Final = (
    "frankfurt", "london", "stockholm", "newyork", "losangeles", "saopaulo",
    "tokyo", "singapore", "mumbai", "sydney", "johannesburg", "nairobi",
)  # fmt: skip
CONTENT: Final = (
    "amsterdam", "ashburn", "atlanta", "chicago", "dallas", "frankfurt", "helsinki", "hongkong",
    "johannesburg", "london", "losangeles", "madrid", "milan", "mumbai", "newyork", "paris",
    "saopaulo", "seoul", "singapore", "stockholm", "sydney", "tokyo", "vienna", "warsaw",
)  # fmt: skip
HOMES: Final = (
    ("ashburn", 22), ("losangeles", 10), ("dallas", 5), ("frankfurt", 12), ("amsterdam", 8),
    ("london", 8), ("paris", 6), ("warsaw", 4), ("vienna", 3), ("tokyo", 5), ("singapore", 4),
    ("mumbai", 4), ("saopaulo", 3), ("sydney", 2), ("hongkong", 2), ("seoul", 1), ("toronto", 1),
)  # fmt: skip
REGIONS: Final = ("ashburn", "frankfurt", "singapore")


def place(city: str) -> Place:
    return Place(*CITIES[city][1:])


class Path:
    """One way through the network: its delay, and how that changes."""

    def __init__(self, base_ms: float, rng: random.Random, end_s: float) -> None:
        self._base_ms = base_ms
        self._times = [0.0]
        self._factors = [1.0]
        now, usual = 0.0, 1.0
        while (now := now + rng.expovariate(1 / (10 * DAY_S))) < end_s:
            if rng.random() < 0.25:
                usual *= rng.uniform(0.85, 1.30)
                self._add(now, usual)
            else:
                self._add(now, usual * rng.uniform(1.1, 1.9))
                now += rng.lognormvariate(math.log(5 * 3600), 0.8)
                self._add(now, usual)

    def _add(self, at: float, factor: float) -> None:
        self._times.append(at)
        self._factors.append(factor)

    def ms(self, now: float) -> float:
        return self._base_ms * self._factors[bisect.bisect_right(self._times, now) - 1]


@dataclass
class Site:
    name: str
    cities: tuple[str, ...]
    country: str
    own_ms: float
    paths: dict[int, list[Path]] = field(default_factory=dict)


class Network:
    """Everything that is outside of the client."""

    def __init__(self, seed: int, client: str, days: int, site_count: int) -> None:
        self.rng = rng = random.Random(f"network/{seed}")
        self.noise_rng = random.Random(f"noise/{seed}")
        self.end_s = days * DAY_S
        self.exits = {NodeId(n): city for n, city in enumerate(EXITS, 1)}
        self._inflation: dict[tuple[str, str], float] = {}
        self._city_paths: dict[tuple[str, str], Path] = {}
        self.to_exit = {
            exit: Path(self._base(client, city) + 8.0, rng, self.end_s)
            for exit, city in self.exits.items()
        }
        self.down = {exit: list(self._failures()) for exit in self.exits}
        mute = rng.choice(sorted(self.exits, key=lambda e: self.to_exit[e].ms(0))[:4])
        mute_at = rng.uniform(0.3, 0.8) * self.end_s
        self.mute = (mute, mute_at, mute_at + 2 * DAY_S)
        self.sites = [self._site(n) for n in range(site_count)]

    def _base(self, a: str, b: str) -> float:
        pair = (min(a, b), max(a, b))
        if pair not in self._inflation:
            drawn = INFLATION * self.rng.lognormvariate(0, 0.22)
            self._inflation[pair] = min(max(drawn, 1.25), 4.0)
        km = great_circle_km(place(a), place(b))
        return 1.0 + km / FIBRE_KM_PER_MS * self._inflation[pair]

    def _site(self, number: int) -> Site:
        rng = self.rng
        kind = rng.random()
        if kind < 0.4:
            cities: tuple[str, ...] = CONTENT
        elif kind < 0.5:
            cities = REGIONS
        else:
            names, weights = zip(*HOMES, strict=True)
            cities = (rng.choices(names, weights)[0],)
        home = cities[0] if len(cities) == 1 else "ashburn"
        own_ms = rng.lognormvariate(math.log(15), 0.8)
        site = Site(f"site{number}.test", cities, CITIES[home][0], own_ms)
        for exit, city in self.exits.items():
            near = sorted(cities, key=lambda other: self._base(city, other))[:1]
            site.paths[exit] = [
                Path(self._base(city, other) * rng.lognormvariate(0, 0.06), rng, self.end_s)
                for other in near
            ]
        return site

    def _failures(self) -> Iterator[tuple[float, float]]:
        now = 0.0
        while (now := now + self.rng.expovariate(1 / (12 * DAY_S))) < self.end_s:
            until = now + self.rng.lognormvariate(math.log(3600), 1.0)
            yield now, until
            now = until

    def is_up(self, exit: NodeId, now: float) -> bool:
        return not any(start <= now < end for start, end in self.down[exit])

    def is_mute(self, exit: NodeId, now: float) -> bool:
        return exit == self.mute[0] and self.mute[1] <= now < self.mute[2]

    def carries(self, exit: NodeId, now: float) -> bool:
        return self.is_up(exit, now) and not self.is_mute(exit, now)

    def flight_ms(self, exit: NodeId, now: float) -> float:
        return self.to_exit[exit].ms(now)

    def site_ms(self, exit: NodeId, site: Site, now: float) -> float:
        return min(path.ms(now) for path in site.paths[exit])

    def true_ms(self, exit: NodeId, site: Site, now: float) -> float:
        """The way there and back, without noise and without the site's own time."""
        return self.flight_ms(exit, now) + self.site_ms(exit, site, now)

    def noisy(self, ms: float) -> float:
        rng = self.noise_rng
        ms *= 1 + abs(rng.gauss(0, 0.04))
        return ms * rng.uniform(1, 5) if rng.random() < 0.02 else ms

    def best_ms(self, site: Site, now: float) -> float:
        return min(self.true_ms(e, site, now) for e in self.exits if self.carries(e, now))


class View:
    """The mesh as the client's chooser sees it."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.now = 0.0
        self._rtt: dict[NodeId, tuple[float, float]] = {}

    def exits(self) -> list[ExitState]:
        return [
            ExitState(
                Candidate(exit, city, CITIES[city][0]), self.is_linked(exit), self.flight_ms(exit)
            )
            for exit, city in self.network.exits.items()
        ]

    def is_linked(self, exit: NodeId) -> bool:
        return self.network.is_up(exit, self.now)

    def is_lost(self, exit: NodeId) -> bool:
        return not self.is_linked(exit)

    def heard_at(self, exit: NodeId) -> float:
        return self.now if self.is_linked(exit) else 0.0

    def flight_ms(self, exit: NodeId) -> float:
        """Smoothed as a link's round trip is: one sample now, one every ten minutes before (keep-alives)."""
        seen = self.network.noisy(self.network.flight_ms(exit, self.now))
        old, at = self._rtt.get(exit, (seen, self.now))
        usual = self.network.flight_ms(exit, self.now)
        old += (usual - old) * (1 - (7 / 8) ** ((self.now - at) // 600))
        self._rtt[exit] = (old + (seen - old) / 8, self.now)
        return self._rtt[exit][0]


class Uservpn:
    """The shipped chooser, with its tests played through."""

    name = "uservpn"

    def __init__(self, network: Network) -> None:
        self.network = network
        self.view = View(network)
        self.waits: list[tuple[float, float, float]] = []
        """Of each first visit: until the choice, more than without a test, flight to the exit (ms)."""
        self.chooser = Chooser(
            self.view, site_of=lambda host: host, wall_s=lambda: 1.7e9, near=distance_km
        )

    def visit(self, site: Site, now: float, connections: int) -> NodeId | None:
        """One page; its exit, None: the first connection failed, and the program gave up."""
        self.view.now = now
        exit: NodeId | None = None
        for number in range(connections):
            self.view.now = now + number * 0.2
            choice = self._connect(site, self.view.now)
            exit = choice.exit if choice is not None else None
        return exit

    def _connect(self, site: Site, now: float) -> Choice | None:
        chooser, network = self.chooser, self.network
        found = chooser.choose(site.name, 443, "", now)
        if isinstance(found, Trial):
            found.waiters.append(None)
            now = self._play(site, now, found)
            ((_, choice),) = chooser.take_decided()
        else:
            choice = found
            self._play(site, now, None)
        chooser.take_moved()
        chooser.take_begun()
        if not choice.exit:
            return None
        if not network.carries(choice.exit, now):
            if not network.is_up(choice.exit, now):
                chooser.outcomes.exit_died(choice.exit)
            chooser.outcomes.failed(choice, site.name, 443, Fault.TIMEOUT, now + 10)
            return choice
        chooser.outcomes.connected(choice, site.name, 443)
        ms = network.noisy(network.true_ms(choice.exit, site, now)) + network.noisy(site.own_ms)
        chooser.outcomes.replied(choice, ms, now)
        return choice

    def _play(self, site: Site, now: float, waited: Trial | None) -> float:
        """Carries tests out; when the one that is waited for was decided."""
        network, chooser = self.network, self.chooser
        answers = []
        needed = {}
        for exit, inquiry in chooser.take_requests():
            if not network.carries(exit, now):
                continue
            connect = network.noisy(network.site_ms(exit, site, now))
            resolve = network.noise_rng.choice((0.2, 0.2, 5, 20, 60))
            at = now + (network.noisy(network.flight_ms(exit, now)) + resolve + connect) / 1000
            finding = Finding(inquiry.token, Fault.NONE, int(resolve), connect, site.country)
            needed[exit] = connect + resolve
            answers.append((at, exit, finding))
        decided_at = None
        for at, exit, finding in sorted(answers, key=lambda answer: answer[:2]):
            if waited is not None and not waited.is_decided and waited.cut_at < at:
                decided_at = waited.cut_at
                chooser.cut(waited, decided_at)
            chooser.tested(exit, finding, at)
            if waited is not None and waited.is_decided and decided_at is None:
                decided_at = at
        if waited is None:
            return now
        if not waited.is_decided:
            decided_at = waited.cut_at
            chooser.cut(waited, decided_at)
        assert decided_at is not None
        chosen = waited.key
        session = chooser.sessions.peek(chosen)
        if session is not None:
            flight = network.flight_ms(session.exit, now)
            wait = (decided_at - now) * 1000
            without = flight + needed.get(session.exit, 0.0)
            self.waits.append((wait, max(0.0, wait - without), flight))
        return decided_at


class UrlTest:
    """One exit for everything: the one through which one URL came fastest, with a tolerance."""

    name = "url-test"
    EVERY_S = 300.0
    TOLERANCE_MS = 50.0

    def __init__(self, network: Network) -> None:
        self.network = network
        self._url = next(site for site in network.sites if len(site.cities) > 3)
        self._exit: NodeId | None = None
        self._next = 0.0

    def visit(self, site: Site, now: float, connections: int) -> NodeId | None:
        network = self.network
        if now >= self._next or self._exit is None or not network.is_up(self._exit, now):
            self._next = now + self.EVERY_S
            found = {
                exit: network.noisy(network.true_ms(exit, self._url, now))
                for exit in network.exits
                if network.carries(exit, now)
            }
            best = min(found, key=lambda exit: found[exit])
            mine = found.get(self._exit) if self._exit is not None else None
            if mine is None or found[best] + self.TOLERANCE_MS < mine:
                self._exit = best
        return self._exit


class BySession:
    """One exit for each site, for as long as a session lasts."""

    def __init__(
        self, name: str, network: Network, pick: Callable[[Site, list[NodeId], float], NodeId]
    ) -> None:
        self.name = name
        self.network = network
        self._pick = pick
        self._sessions: dict[str, tuple[NodeId, float]] = {}

    def visit(self, site: Site, now: float, connections: int) -> NodeId | None:
        exit, until = self._sessions.get(site.name, (NodeId(0), 0.0))
        if now >= until or not self.network.is_up(exit, now):
            exits = [e for e in self.network.exits if self.network.is_up(e, now)]
            exit = self._pick(site, exits, now)
        self._sessions[site.name] = (exit, now + 12 * 3600)
        return exit


@dataclass
class Score:
    visits: int = 0
    good: int = 0
    near: int = 0
    """Within 10 % also without the site's own time: the way alone."""
    failed: int = 0
    ratios: list[float] = field(default_factory=list)
    trips: list[float] = field(default_factory=list)
    moves: int = 0
    """Changes of exit within a session."""
    needless: int = 0
    """Of these, those whose old exit still carried."""


def visits(
    seed: int, days: int, site_count: int, hours: tuple[float, float]
) -> Iterator[tuple[float, int]]:
    """When which site is visited."""
    rng = random.Random(f"user/{seed}")
    weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(site_count)))
    start, end = hours
    for day in range(days):
        times = sorted(rng.uniform(start, end) * 3600 for _ in range(150))
        for at in times:
            site = rng.choices(range(site_count), cum_weights=weights)[0]
            yield day * DAY_S + at, site


def nearest_country(site: Site, exits: list[NodeId], now: float) -> NodeId:
    return min(exits, key=lambda e: distance_km(site.country, CITIES[EXITS[e - 1]][0]) or 0.0)


def run(
    seed: int, client: str, days: int, site_count: int, hours: tuple[float, float]
) -> tuple[dict[str, Score], Uservpn]:
    """One run; scores by policy."""
    network = Network(seed, client, days, site_count)
    ours = Uservpn(network)
    chance = random.Random(f"policy/{seed}")
    policies = [
        ours,
        UrlTest(network),
        BySession("nearest country", network, nearest_country),
        BySession(
            "nearest exit",
            network,
            lambda site, exits, now: min(exits, key=lambda e: network.flight_ms(e, now)),
        ),
        BySession("random", network, lambda site, exits, now: chance.choice(exits)),
    ]
    scores = {policy.name: Score() for policy in policies}
    last: dict[tuple[str, str], tuple[NodeId, float]] = {}
    for now, number in visits(seed, days, site_count, hours):
        site = network.sites[number]
        best = network.best_ms(site, now)
        connections = network.rng.randrange(1, 7)
        for policy in policies:
            score = scores[policy.name]
            exit = policy.visit(site, now, connections)
            before, used_at = last.get((policy.name, site.name), (None, 0.0))
            if exit is not None:
                last[policy.name, site.name] = (exit, now)
            if before is None:
                continue  # the first visit is not judged
            score.visits += 1
            if now < used_at + 12 * 3600 and exit != before:
                score.moves += 1
                score.needless += network.carries(before, now)
            if exit is None or not network.carries(exit, now):
                score.failed += 1
                continue
            ms = network.true_ms(exit, site, now)
            own = site.own_ms
            score.good += ms + own <= (best + own) * GOOD
            score.near += ms <= best * GOOD
            score.ratios.append((ms + own) / (best + own))
            score.trips.append(ms)
    return scores, ours


def table(scores: list[dict[str, Score]]) -> list[str]:
    """One row for each policy, over all runs."""
    rows = [
        "| policy | good visits | worst run | good by the way alone | first round trip / best: mean"
        " | median way ms | failed | moves in a session | of these needless |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in scores[0]:
        all_ = [run[name] for run in scores]
        visits_ = sum(s.visits for s in all_)
        good = [s.good / s.visits for s in all_]
        ratios = [r for s in all_ for r in s.ratios]
        trips = [t for s in all_ for t in s.trips]
        rows.append(
            f"| {name} | {sum(s.good for s in all_) / visits_:.1%} | {min(good):.1%} "
            f"| {sum(s.near for s in all_) / visits_:.1%} | {statistics.fmean(ratios):.3f} "
            f"| {statistics.median(trips):.0f} "
            f"| {sum(s.failed for s in all_) / visits_:.2%} "
            f"| {sum(s.moves for s in all_)} | {sum(s.needless for s in all_)} |"
        )
    return rows


def waits(runs: list[Uservpn]) -> str:
    """What first visits waited."""
    found = [wait for ours in runs for wait in ours.waits]
    until = statistics.median(wait for wait, _, _ in found)
    extra = statistics.median(more / flight for _, more, flight in found)
    high = sorted(more / flight for _, more, flight in found)[int(len(found) * 0.95)]
    return (
        f"{len(found)} first visits and moves waited for a test: median {until:.0f} ms until the choice; "
        f"beyond what the chosen exit needs to resolve and connect, median {extra:.2f} and 95th percentile "
        f"{high:.2f} round trips to it"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="How well are exits chosen?")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--sites", type=int, default=500)
    parser.add_argument("--client", choices=sorted(CITIES), default="berlin")
    parser.add_argument("--hours", type=float, nargs=2, default=(9.0, 19.0))
    options = parser.parse_args()
    results, runs = [], []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        scores, ours = run(seed, options.client, options.days, options.sites, tuple(options.hours))
        results.append(scores)
        runs.append(ours)
    print(
        f"client in {options.client}, {options.seeds} runs of {options.days} days, "
        f"{options.sites} sites, {len(EXITS)} exits, {options.hours[0]:g} to {options.hours[1]:g} h"
    )
    print("\n".join(table(results)))
    print(waits(runs))
    tests = sum(ours.chooser.trials.asked_count for ours in runs) / len(runs) / options.days
    print(f"tests asked of all exits together: {tests:.0f} a day")
    return 0


if __name__ == "__main__":
    sys.exit(main())
