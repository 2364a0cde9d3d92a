"""The search for the largest message of a path (RFC 8899): it ends, is right, and notices a change."""

from __future__ import annotations

import random

import pytest

from uservpn.mesh.pathmtu import CONFIRM_S, DOUBT_S, RAISE_S, SMALL, TRIES, PathMtu, candidates
from uservpn.node.table import OVERHEAD
from world import BASE, pair

ETHERNET = 1500 - 76
LOOPBACK = 65_535 - 76


class Path:
    """A path of one size in simulated time; answers take `rtt`, and are lost at random."""

    def __init__(self, mtu: PathMtu, size: int, rtt: float = 0.1, loss: float = 0.0, seed: int = 1):
        self.mtu = mtu
        self.size = size
        self.rtt = rtt
        self.loss = loss
        self.rng = random.Random(seed)
        self.now = 100.0
        self.heard_at = 0.0
        self.probes: list[int] = []
        self._answers: list[tuple[float, int]] = []

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            for size in self.mtu.take_probes():
                if size != SMALL:
                    self.probes.append(size)
                if 0 < self.size >= size and self.rng.random() >= self.loss:
                    self._answers.append((self.now + self.rtt, size))
            due = self.mtu.next_deadline()
            times = [at for at, _ in self._answers] + ([] if due is None else [due])
            if not times or min(times) > end:
                self.now = end
                return
            self.now = max(self.now, min(times))
            if self._answers and self._answers[0][0] <= self.now:
                self.heard_at = self.now
                size = self._answers.pop(0)[1]
                if size != SMALL:
                    self.mtu.answered(size, self.now)
            self.mtu.on_deadline(self.heard_at, self.now)

    def started(self) -> Path:
        self.mtu.start(self.now)
        self.run(100)
        return self


def _found(size: int, limit: int) -> int:
    """The largest candidate that passes."""
    return max([BASE, *(candidate for candidate in candidates(limit) if candidate <= size)])


@pytest.mark.parametrize("limit", [BASE, 1204, ETHERNET, 9000 - 76, LOOPBACK])
def test_a_path_as_wide_as_the_local_network_takes_one_probe(limit):
    path = Path(PathMtu(BASE, limit), limit).started()
    assert path.mtu.size == limit
    assert path.probes == ([limit] if limit > BASE else [])
    assert path.mtu.next_deadline() is None


@pytest.mark.parametrize("mtu", [1280, 1333, 1400, 1420, 1450, 1492, 1499, 4000, 9000, 65_534])
@pytest.mark.parametrize("limit", [ETHERNET, 9000 - 76, LOOPBACK])
def test_the_search_finds_the_largest_candidate_that_passes(mtu, limit):
    size = min(mtu - 76, limit)
    path = Path(PathMtu(BASE, limit), size).started()
    assert path.mtu.size == _found(size, limit)
    assert not path.mtu.is_searching
    assert len(path.probes) <= TRIES * 7  # halving, not one by one


@pytest.mark.parametrize("seed", range(50))
def test_lost_probes_cost_time_and_never_make_the_size_wrong(seed):
    """A third of all answers lost: at most too small, never larger than the path."""
    rng = random.Random(seed)
    size = rng.randint(BASE, LOOPBACK)
    path = Path(PathMtu(BASE, LOOPBACK), size, loss=0.3, seed=seed)
    path.started()
    assert BASE <= path.mtu.size <= size
    for _ in range(20):  # and what was missed is found later
        path.run(RAISE_S)
        path.mtu.used(0, path.now)
        path.run(100)
    assert path.mtu.size <= size


def test_a_long_round_trip_is_waited_for():
    mtu = PathMtu(BASE, ETHERNET)
    mtu.rtt_s = 2.0
    path = Path(mtu, ETHERNET, rtt=2.0).started()
    assert mtu.size == ETHERNET and path.probes == [ETHERNET]


def test_nothing_is_sent_before_the_peer_answered_and_nothing_while_nobody_uses_the_link():
    mtu = PathMtu(BASE, ETHERNET)
    mtu.used(100, 1e6)
    mtu.doubt(1e6)
    assert not mtu.take_probes() and mtu.next_deadline() is None
    path = Path(mtu, ETHERNET).started()
    path.probes.clear()
    path.run(1e6)
    assert not path.probes


def test_a_link_in_use_is_searched_for_more_after_a_while():
    path = Path(PathMtu(BASE, ETHERNET), 1420 - 76).started()
    assert path.mtu.size == 1420 - 76
    path.size = ETHERNET
    path.run(RAISE_S - 200)
    path.mtu.used(0, path.now)
    path.run(1)
    assert path.mtu.size == 1420 - 76
    path.run(200)
    path.mtu.used(0, path.now)
    path.run(10)
    assert path.mtu.size == ETHERNET


def test_a_black_hole_is_left_within_seconds_of_the_first_losses():
    """The path narrows; only small messages pass. Resent messages raise doubt, probes decide."""
    path = Path(PathMtu(BASE, ETHERNET), ETHERNET).started()
    path.run(DOUBT_S)
    path.size = 1280 - 76
    began = path.now
    path.mtu.used(10, path.now)
    while path.mtu.size == ETHERNET:
        path.run(0.1)
        assert path.now - began <= TRIES * CONFIRM_S + 0.2
    assert path.mtu.size == BASE  # at once usable, then the search goes on below what failed
    path.run(20)
    assert path.mtu.size == 1280 - 76


def test_many_losses_raise_doubt_sooner_few_seldom():
    """A probe of full size is nothing on a fast path, and something on a slow one."""
    for many, most in ((40, 1 / 0.25), (2, 1 / DOUBT_S)):
        path = Path(PathMtu(BASE, ETHERNET), ETHERNET, rtt=0.01).started()
        path.probes.clear()
        for number in range(1, 101):
            path.mtu.used(many * number, path.now)
            path.run(0.1)
        assert 0.5 * 10 * most <= len(path.probes) <= 10 * most + 1


def test_a_path_that_narrows_while_it_is_searched_is_left_as_soon():
    """What is tried above the present size does not put off the doubt about it."""
    path = Path(PathMtu(BASE, LOOPBACK), 9000 - 76)
    path.mtu.start(path.now)
    while path.mtu.size == BASE:
        path.run(0.1)
    assert path.mtu.is_searching
    path.size = 1280 - 76
    began = path.now
    large = path.mtu.size
    while path.mtu.size >= large:
        path.mtu.used(10 + int(100 * path.now), path.now)
        path.run(0.1)
        assert path.now - began <= TRIES * CONFIRM_S + DOUBT_S + 0.3
    path.run(30)
    assert path.mtu.size == 1280 - 76


def test_a_dead_path_is_no_black_hole():
    """Where nothing is heard at all the size stays: the link's end is for others to judge."""
    path = Path(PathMtu(BASE, ETHERNET), ETHERNET).started()
    path.run(DOUBT_S)
    path.size = 0
    path.mtu.used(10, path.now)
    path.run(60)
    assert path.mtu.size == ETHERNET and path.mtu.next_deadline() is None
    assert path.probes[1:] == [ETHERNET] * TRIES


def test_random_loss_is_not_taken_for_a_narrow_path():
    """Full-size probes get through, so resends have another reason."""
    path = Path(PathMtu(BASE, ETHERNET), ETHERNET).started()
    for resent in range(0, 10_000, 100):
        path.mtu.used(resent, path.now)
        path.run(1)
        assert path.mtu.size == ETHERNET
    assert len(path.probes) <= 100 / DOUBT_S + 2


def test_another_local_network_means_another_search():
    path = Path(PathMtu(BASE, 9000 - 76), 9000 - 76).started()
    path.size = ETHERNET
    path.mtu.resize(ETHERNET, path.now)
    assert path.mtu.size == ETHERNET  # not a byte more than what the socket takes
    path.run(10)
    path.size = 9000 - 76
    path.mtu.resize(9000 - 76, path.now)
    path.run(10)
    assert path.mtu.size == 9000 - 76
    path.mtu.resize(1000, path.now)
    assert path.mtu.size == path.mtu.base == 1000


# --- in a node -----------------------------------------------------------------------------------


def _size(member) -> int:
    (entry,) = (entry for entry in member.node.links.values() if entry.peer is not None)
    return entry.size_max + OVERHEAD


def _datagram_pair(payload_max: int):
    world, client, server = pair()
    world.payload_max = payload_max
    world.run(0.1)
    assert _size(client) == BASE
    return world, client, server


def test_both_ends_find_the_size_of_their_path_and_are_silent_then():
    world, client, server = _datagram_pair(1400 - 76)
    world.run(20)
    assert _size(client) == _size(server) == 1400 - 76
    world.tap.clear()
    world.run(300)
    assert len(world.tap) < 10


def test_no_message_is_larger_than_what_was_found_and_a_transfer_survives_a_narrower_path():
    world, client, server = _datagram_pair(ETHERNET)
    world.run(20)
    stream = client.node.open(1, "site.test", 80, None, world.now)
    client.send(stream, bytes(200_000), finish=True)
    world.settle(client)
    world.run(5)
    assert len(server.received[stream.id]) == 200_000
    sizes = [len(body) for _, _, body in world.tap]
    assert max(sizes) == ETHERNET and sizes.count(ETHERNET) > 100  # not one byte is left unused
    world.payload_max = 1280 - 76
    world.tap.clear()
    stream = client.node.open(1, "site.test", 80, None, world.now)
    client.send(stream, bytes(20_000))
    world.settle(client)
    world.run(30)
    assert _size(client) == 1280 - 76


def test_a_size_that_is_swallowed_is_left_at_once_and_had_again_if_it_was_chance():
    for size, later in ((1300, 1300), (ETHERNET, ETHERNET)):
        mtu = PathMtu(BASE, ETHERNET)
        path = Path(mtu, ETHERNET)
        mtu.start(path.now)
        path.run(2)
        assert mtu.size == ETHERNET
        path.size = size
        mtu.swallowed(path.now)
        assert mtu.size == BASE
        path.run(0.15)
        assert mtu.size == (ETHERNET if size == ETHERNET else BASE)
        path.run(20)
        assert later - 40 <= mtu.size <= later
