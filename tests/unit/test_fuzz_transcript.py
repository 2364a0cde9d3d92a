"""Genuine transcripts, spoiled: what two tunnels said to each other, with bytes, frames and order changed.

Only PeerFault may come out of the hearer, which then resets its streams as the node does, and goes on.
`USERVPN_FUZZ=N` multiplies the rounds (`make fuzz`).
"""

from __future__ import annotations

import os
import random

import pytest

from uservpn.errors import Fault, PeerFault
from uservpn.tunnel.events import Data, Finished, Offered
from uservpn.tunnel.tunnel import Tunnel
from uservpn.wire.constants import Kind
from world import take

ROUNDS = int(os.environ.get("USERVPN_FUZZ", "1"))
ROOM = 1 << 17
Transcript = list[tuple[int, bytes]]


def _converse(seed: int) -> Transcript:
    """What an opener says while it opens, writes, half-closes, resets and loses messages."""
    rng = random.Random(seed)
    opener, exit = Tunnel(7, 1, rng.randrange), Tunnel(1, 7, rng.randrange)
    said: Transcript = []
    streams = []
    now = 0.0
    for _ in range(60):
        now += rng.random() * 0.1
        choice = rng.random()
        if choice < 0.3 or not streams:
            streams.append(opener.open(f"host{rng.randrange(9)}.test", 443, None))
        stream = rng.choice(streams)
        if choice < 0.8:
            opener.write(stream, rng.randbytes(rng.choice((1, 100, 5000, 40_000))))
        elif choice < 0.9:
            opener.finish(stream)
        elif choice < 0.95:
            opener.reset(stream, Fault.CANCELLED)
        for source, sink in ((opener, exit), (exit, opener)):
            source.on_deadline(now)
            for kind, message in take(source, ROOM, rng.choice((1200, 60_000)), now):
                if source is opener:
                    said.append((kind, bytes(message)))
                if rng.random() > 0.1:
                    sink.receive(kind, bytes(message), now)
            _follow(sink, rng, now)
    return said


def _hearer(rng: random.Random) -> Tunnel:
    """An exit that has sent enough for what the transcripts confirm."""
    hearer = Tunnel(1, 7, rng.randrange)
    mine = hearer.open("site.test", 443, None)
    for _ in range(400):
        hearer.write(mine, b"x")
        take(hearer, ROOM, 60_000, 0.0)
    return hearer


def _follow(tunnel: Tunnel, rng: random.Random, now: float) -> None:
    """What an exit does with what it hears."""
    for event in tunnel.take_events():
        match event:
            case Offered(stream, _, _):
                if rng.random() < 0.9:
                    tunnel.accept(stream)
                else:
                    tunnel.refuse(stream, Fault.REFUSED, b"no")
            case Data(stream, chunk):
                tunnel.consumed(stream, len(chunk), now)
                if rng.random() < 0.3:
                    tunnel.write(stream, bytes(chunk[:2000]) + b"!")
            case Finished(stream):
                tunnel.finish(stream)


def _spoil(rng: random.Random, said: Transcript) -> Transcript:
    """Bytes changed, cut, spliced; messages swapped, doubled, under the wrong kind."""
    spoiled = [(kind, bytearray(message)) for kind, message in said]
    for _ in range(rng.randrange(1, 12)):
        at = rng.randrange(len(spoiled))
        kind, message = spoiled[at]
        other = spoiled[rng.randrange(len(spoiled))][1]
        place = rng.randrange(min(len(message), 200) + 1)
        match rng.randrange(7):
            case 0 if message:
                message[min(place, len(message) - 1)] = rng.choice((0, 1, 127, 128, 255))
            case 1:
                del message[place:]
            case 2:
                message[place:] = other[rng.randrange(len(other) + 1) :]
            case 3:
                message[place:place] = rng.randbytes(rng.randrange(1, 20))
            case 4:
                spoiled.insert(rng.randrange(len(spoiled)), (kind, bytearray(message)))
            case 5:
                spoiled.append(spoiled.pop(at))
            case _:
                spoiled[at] = (rng.choice((Kind.DATA, Kind.SINK)), message)
    return [(kind, bytes(message)) for kind, message in spoiled]


@pytest.mark.parametrize("seed", range(40 * ROUNDS))
def test_a_spoiled_transcript_ends_in_values_or_a_fault(seed):
    rng = random.Random(seed)
    said = _converse(seed % 8)
    for _ in range(3):
        hearer = _hearer(rng)
        for number, (kind, message) in enumerate(_spoil(rng, said)):
            now = number * 0.03
            try:
                hearer.receive(kind, message, now)
            except PeerFault:
                hearer.fail_all(Fault.EXIT_DEAD)
            hearer.on_deadline(now)
            _follow(hearer, rng, now)
            take(hearer, ROOM, 60_000, now)
            due = hearer.next_deadline()
            assert due is None or due > now, "it would be called again and again"


def test_the_transcripts_are_genuine():
    """Unspoiled they are heard without a fault, and hold every kind of message."""
    kinds = set()
    for seed in range(8):
        rng = random.Random(seed)
        hearer = _hearer(rng)
        for number, (kind, message) in enumerate(_converse(seed)):
            kinds.add(kind)
            hearer.receive(kind, message, number * 0.03)
            _follow(hearer, rng, number * 0.03)
    assert kinds == {Kind.DATA, Kind.SINK}
