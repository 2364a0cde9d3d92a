"""The path emulator does what it is asked: delay, loss, rate, queue, black hole, MTU and the rest."""

from __future__ import annotations

import errno
import itertools
import socket
import statistics
import time
from pathlib import Path

import pytest

from tests.netns.lab import Lab

MTU_DISCOVER, MTU_DO, MTU_PROBE, MTU = 10, 2, 3, 14  # IP_*: Python has no names for them
IP_UDP = 28
PLAIN = {
    "delay_ms": 0, "jitter_ms": 0, "jitter_reorders": 0, "loss": 0, "burst_enter": 0,
    "burst_leave": 0, "reorder": 0, "duplicate": 0, "rate": 0, "queue": 1 << 20, "black_hole": 0,
    "mtu": 1500, "tell_mtu": 0,
}  # fmt: skip


class Way:
    """From a host over an emulated path to its router, as two sockets."""

    def __init__(self, seed: int = 1) -> None:
        self.lab = Lab(seed)
        self.net = net = self.lab.internet()
        self.host = net.host("host", delay_ms=0)
        self.path = self.host.path
        with net:
            self.far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.far.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
            self.far.bind((self.host.ports[0].network + ".1", 9))
        self.near = self._new_near()

    def _new_near(self) -> socket.socket:
        with self.host:
            near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        near.connect(self.far.getsockname())
        return near

    def renew(self) -> None:
        """Plain again, with empty counters, and with a socket that has heard of no trouble."""
        self.path.set("both", **PLAIN)
        self.receive(0.02)
        self.near.close()
        self.near = self._new_near()
        self.path.clear()

    def __enter__(self) -> Way:
        return self

    def __exit__(self, *error: object) -> None:
        self.near.close()
        self.far.close()
        self.lab.__exit__()

    def send(self, count: int, size: int = 100) -> None:
        """Numbered packets of so many bytes of IP, as fast as the devices take them."""
        for number in range(count):
            self.near.send(number.to_bytes(4, "big").ljust(size - IP_UDP, b"."))
            if number % 200 == 199:
                self.settle()

    def settle(self) -> None:
        """Until the emulator has read what was sent."""
        sent = self.count("packets_in") + 1
        while sent != (sent := self.count("packets_in")):
            time.sleep(0.001)

    def receive(self, quiet_s: float = 0.1) -> list[int]:
        """Numbers of the packets that came, in the order in which they came."""
        numbers = []
        self.far.settimeout(quiet_s)
        try:
            while True:
                numbers.append(int.from_bytes(self.far.recv(2048)[:4], "big"))
        except TimeoutError:
            return numbers

    def count(self, name: str, way: str = "ab") -> int:
        """One counter."""
        return self.path.stats()[way][name]


@pytest.fixture(scope="module")
def shared():
    with Way() as made:
        yield made


@pytest.fixture
def way(shared):
    """The one path of this file, as new."""
    shared.renew()
    return shared


def test_delay_is_what_was_asked_and_never_less(way):
    way.path.set("ab", delay_ms=30)
    took = []
    for _ in range(20):
        before = time.monotonic()
        way.send(1)
        way.far.settimeout(5)
        way.far.recv(2048)
        took.append((time.monotonic() - before) * 1e3)
    assert min(took) >= 30
    assert statistics.median(took) < 36, took


def test_the_two_directions_are_set_apart(way):
    way.path.set("ba", delay_ms=200, black_hole=1)
    way.send(3)
    assert way.receive() == [0, 1, 2]


def test_jitter_keeps_the_order_unless_asked_otherwise(way):
    way.path.set("ab", delay_ms=5, jitter_ms=5)
    way.send(500)
    assert way.receive() == list(range(500))
    way.path.set("ab", jitter_reorders=1)
    way.send(500)
    numbers = way.receive()
    assert numbers != sorted(numbers) and sorted(numbers) == list(range(500))


def test_loss_is_as_likely_as_asked(way):
    way.path.set("ab", loss=0.1)
    way.send(10_000)
    lost = 10_000 - len(way.receive())
    assert abs(lost - 1000) < 4 * 30, lost  # the standard deviation is 30
    assert way.count("lost") == lost


def test_the_same_seed_loses_the_same_packets():
    def survivors(seed: int) -> list[int]:
        with Way(seed) as way:
            way.path.set("ab", loss=0.5)
            way.send(200)
            return way.receive()

    assert survivors(7) == survivors(7) != survivors(8)


def test_bursts_lose_packets_in_a_row(way):
    way.path.set("ab", burst_enter=0.01, burst_leave=0.1)
    way.send(20_000)
    came = way.receive()
    gaps = [b - a - 1 for a, b in itertools.pairwise(came) if b - a > 1]
    assert 0.05 < 1 - len(came) / 20_000 < 0.14  # 1 in 11 of the time, 1,800 in all
    assert 6 < statistics.mean(gaps) < 15


def test_reordering_holds_single_packets_back(way):
    way.path.set("ab", reorder=0.1, reorder_ms=20)
    way.send(300)
    numbers = way.receive()
    assert sorted(numbers) == list(range(300)) != numbers
    assert 5 < way.count("held_back") < 80


def test_duplicates(way):
    way.path.set("ab", duplicate=1)
    way.send(100)
    assert sorted(way.receive()) == sorted([*range(100)] * 2)
    assert way.count("duplicated") == 100


def test_the_rate_is_what_was_asked(way):
    """Never more; never much less, where the machine has time for it in one of a few tries."""
    way.path.set("ab", rate_mbit=20)
    took = []
    while not took or (min(took) >= 0.3 and len(took) < 5):
        before = time.monotonic()
        way.send(500, 1000)
        numbers = way.receive(0.05)
        took.append(time.monotonic() - before - 0.05)
        assert numbers == list(range(500))
    assert 0.2 <= min(took) < 0.3, took


def test_the_queue_has_a_bound_and_drops_its_tail(way):
    way.path.set("ab", rate_mbit=1, queue=20_000)
    way.send(100, 1000)
    numbers = way.receive()
    assert numbers[:20] == list(range(20)) and len(numbers) < 60
    assert way.count("dropped") == 100 - len(numbers)
    assert way.count("queue_max") == 20_000


def test_a_black_hole_swallows_all_and_tells_nothing(way):
    way.path.set("both", black_hole=1)
    way.send(50)
    assert way.receive() == [] and way.count("swallowed") == 50
    way.path.set("both", black_hole=0)
    way.send(50)
    assert way.receive() == list(range(50))


def test_larger_packets_are_dropped_silently(way):
    way.near.setsockopt(socket.IPPROTO_IP, MTU_DISCOVER, MTU_PROBE)
    way.path.set("ab", mtu=1280)
    way.send(5, 1281)
    way.send(5, 1280)
    assert len(way.receive()) == 5 and way.count("too_big") == 5


def test_or_their_sender_is_told(way):
    way.near.setsockopt(socket.IPPROTO_IP, MTU_DISCOVER, MTU_DO)
    way.path.set("ab", mtu=1280, tell_mtu=1)
    way.send(1, 1400)
    way.settle()
    with pytest.raises(OSError) as caught:
        way.send(1, 1400)
    assert caught.value.errno == errno.EMSGSIZE
    assert way.near.getsockopt(socket.IPPROTO_IP, MTU) == 1280


def test_tcp_goes_on_when_the_mtu_shrinks_and_it_is_told(way):
    with way.net:
        server = socket.create_server((way.host.ports[0].network + ".1", 0))
    with way.host:
        near = socket.create_connection(server.getsockname(), 5)
    far, _ = server.accept()
    with server, near, far:
        way.path.set("ab", mtu=1280, tell_mtu=1)
        near.sendall(bytes(100_000))
        far.settimeout(10)
        left = 100_000
        while left:
            left -= len(far.recv(1 << 16))


def test_settings_that_make_no_sense_are_refused_and_change_nothing(way):
    for wrong in ({"loss": 1.5}, {"speed": 1}, {"mtu": 9000}, {"delay_ms": -1}):
        with pytest.raises(ValueError, match="what is"):
            way.path.set("both", black_hole=1, **wrong)
    with pytest.raises(ValueError, match=r"ab\|ba\|both"):
        way.path.set("up", loss=0)
    way.send(1)
    assert way.receive() == [0]


def test_an_idle_path_sleeps(way):
    way.path.set("both", delay_ms=10)
    way.send(10)
    assert len(way.receive()) == 10

    def wakes() -> int:
        text = Path(f"/proc/{way.path.pid}/status").read_text()
        return int(text.split("voluntary_ctxt_switches:")[1].split()[0])

    before = wakes()
    time.sleep(0.3)
    assert wakes() == before


def test_it_ends_with_its_owner(way):
    lab = Lab()
    path = lab.internet().host("x", delay_ms=1).path
    process = path._process
    lab.__exit__()
    assert process.returncode == 0
