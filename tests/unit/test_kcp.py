"""KCP links without a network: how large the window is, and what a sealed datagram shows."""

from __future__ import annotations

import os

import pytest

from uservpn.links.kcp import WINDOW_MAX, WINDOW_MIN, WINDOW_START, Window
from uservpn.wire.header import HeaderCodec
from uservpn.wire.keys import KeyRing


def _run(window: Window, rtts_ms, is_used_up: bool = True, start_ms: int = 1000) -> int:
    now_ms = start_ms
    for rtt_ms in rtts_ms:
        now_ms += rtt_ms
        window.look(now_ms, rtt_ms, is_used_up)
    return now_ms


def test_the_window_grows_while_the_round_trip_stays_and_only_when_it_is_used():
    used, unused = Window(), Window()
    _run(used, [100] * 60)
    _run(unused, [100] * 60, is_used_up=False)
    assert used.size == WINDOW_MAX
    assert unused.size == WINDOW_START


def test_a_queue_on_the_path_shrinks_it_and_it_finds_the_way_back():
    window = Window()
    now_ms = _run(window, [100] * 60)
    now_ms = _run(window, [200] * 100, start_ms=now_ms)
    assert window.size == WINDOW_MIN
    _run(window, [100] * 60, start_ms=now_ms)
    assert window.size == WINDOW_MAX


def test_a_path_that_has_become_longer_is_not_taken_for_a_queue_for_ever():
    window = Window()
    now_ms = _run(window, [50] * 40)
    _run(window, [300] * 250, start_ms=now_ms)
    assert window.size == WINDOW_MAX


def test_a_window_is_looked_at_once_a_round_trip():
    window = Window()
    assert window.look(1000, 100, True)
    assert not window.look(1050, 100, True)
    assert not window.look(5000, 0, True), "nothing was measured"


def test_a_sealed_datagram_opens_under_any_listed_key_and_is_never_the_same():
    old, new = os.urandom(32), os.urandom(32)
    sender, receiver = HeaderCodec(KeyRing([old])), HeaderCodec(KeyRing([new, old]))
    sealed = [sender.seal_datagram(b"segment" * 10) for _ in range(50)]
    assert len(set(sealed)) == 50
    assert {receiver.open_datagram(data) for data in sealed} == {b"segment" * 10}


@pytest.mark.parametrize("size", [0, 1, 15, 16, 48, 1000])
def test_anything_else_is_foreign(size):
    codec = HeaderCodec(KeyRing([bytes(32)]))
    assert codec.open_datagram(os.urandom(size)) is None
    sealed = bytearray(codec.seal_datagram(os.urandom(size)))
    sealed[-1] ^= 1
    assert codec.open_datagram(bytes(sealed)) is None
    assert codec.open(codec.seal_datagram(bytes(28))) is None, "a datagram is no header"
