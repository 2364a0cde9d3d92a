"""Bytes that nobody meant: the header, sessions and the tunnel's frames, with seeds.

`USERVPN_FUZZ=N` multiplies the rounds (`make fuzz`). Only PeerFault may come out, and nothing may grow.
"""

from __future__ import annotations

import os
import random

import pytest

from uservpn.errors import PeerFault
from uservpn.mesh.mailbox import QUEUE_MAX, SPAN, Mailbox, encode
from uservpn.tunnel.tunnel import Tunnel
from uservpn.wire import frames
from uservpn.wire.constants import Kind
from uservpn.wire.header import HeaderCodec
from uservpn.wire.keys import KeyRing
from uservpn.wire.session import Session
from world import KEY, pair, take

ROUNDS = int(os.environ.get("USERVPN_FUZZ", "1"))


def _sessions():
    ring = KeyRing((KEY,))
    codec = HeaderCodec(ring)
    return codec, Session(ring, codec, 7, 70, 1, False), Session(ring, codec, 1, 10, 7, False)


@pytest.mark.parametrize("seed", range(4 * ROUNDS))
def test_only_genuine_headers_open(seed):
    """Random bytes and every damaged genuine header are strangers."""
    rng = random.Random(seed)
    codec, client, _ = _sessions()
    head, _ = client.seal(Kind.DATA, b"payload", b"\0\0\0", 0)
    assert codec.open(head) is not None
    for _ in range(500):
        assert codec.open(rng.randbytes(48)) is None
        damaged = bytearray(head)
        damaged[rng.randrange(48)] ^= 1 << rng.randrange(8)
        assert codec.open(bytes(damaged)) is None


@pytest.mark.parametrize("seed", range(4 * ROUNDS))
def test_damaged_payloads_change_nothing(seed):
    rng = random.Random(seed)
    codec, client, server = _sessions()
    for _ in range(200):
        head, body = client.seal(Kind.DATA, rng.randbytes(rng.randrange(300)), b"\0\0\0", 0)
        header = codec.open(head)
        damaged = bytearray(body)
        if rng.random() < 0.3:
            del damaged[rng.randrange(len(damaged)) :]
        else:
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        assert server.open_first(header, bytes(damaged)) is None
        assert server.open_bound(header, bytes(damaged)) is None
        assert server.peer_boot == 0
    assert server.open_first(header, body) is not None


def _frame(rng: random.Random) -> bytes:
    """A frame that is well formed as a layout; its values are anybody's guess."""
    stream = rng.choice((0, 1, 2, 3, 4, 5, 40, 2**32 - 1))
    number = rng.choice((0, 1, 5, 70_000, 2**40, 2**64 - 1))
    size = rng.choice((0, 1, 30, 4000))
    data = rng.randbytes(size)
    return rng.choice(
        (
            lambda: frames.DATA_HEAD.pack(frames.DATA, stream, number, size) + data,
            lambda: frames.DATA_HEAD.pack(frames.DATA, stream, rng.randrange(9000), size) + data,
            lambda: frames.open_frame(stream, rng.randrange(2**32), b"host.test", 80),
            lambda: (
                frames.OPENED_HEAD.pack(frames.OPENED, stream, rng.randrange(256), 9, 2) + b"ok"
            ),
            lambda: frames.FIN_FRAME.pack(frames.FIN, stream, number),
            lambda: frames.RESET_FRAME.pack(frames.RESET, stream, rng.randrange(256)),
            lambda: frames.CREDIT_FRAME.pack(frames.CREDIT, stream, number),
            lambda: frames.have_frame(
                rng.choice((0, 1, number)), number, [(rng.randrange(3), rng.randrange(3))] * 3
            ),
            lambda: frames.WANT_FRAME.pack(frames.WANT, number),
            lambda: bytes(rng.randrange(20)),
            lambda: rng.randbytes(rng.randrange(40)),
        )
    )()


@pytest.mark.parametrize("seed", range(60 * ROUNDS))
def test_a_peer_that_babbles_gets_a_fault_and_no_memory(seed):
    """A tunnel that hears genuine nonsense raises PeerFault or goes on, and stays small."""
    rng = random.Random(seed)
    tunnel = Tunnel(1, 7, rng.randrange)
    mine = tunnel.open("a.test", 80, None)
    tunnel.write(mine, b"x" * 1000)
    now = 0.0
    faults = 0
    for number in range(400):
        now += rng.random() * 0.2
        body = b"".join(_frame(rng) for _ in range(rng.randrange(1, 4)))
        kind = rng.choice((Kind.DATA, Kind.SINK))
        seq = number if rng.random() < 0.8 else rng.choice((0, number + 9, 2**40, 2**64 - 1))
        payload = frames.SEQ.pack(seq) + body if kind == Kind.DATA else body
        try:
            tunnel.receive(kind, payload, now)
        except PeerFault:
            faults += 1
        tunnel.on_deadline(now)
        tunnel.take_events()
        for _, message in take(tunnel, 1 << 20, 4096, now):
            assert len(message) <= 4096 + 256
        held = sum(
            sum(map(len, stream.held.values())) for stream in tunnel.streams.values() if stream.held
        )
        assert held < 4 << 20 and len(tunnel.streams) < 1000
    assert faults


@pytest.mark.parametrize("seed", range(6 * ROUNDS))
def test_a_node_that_hears_nonsense_under_the_right_key_stays_up(seed):
    """Every kind, known or not, with random payloads: the other peer's stream is not disturbed."""
    rng = random.Random(seed)
    world, client, server = pair(seed=seed)
    rogue = world.add(9, {1: ("sim://10.0.0.1:1",)})
    world.run(1)
    session = rogue.node.peers[1].session
    link = next(iter(rogue.node.links))
    for _ in range(150):
        kind = rng.randrange(32)
        payload = rng.randbytes(rng.randrange(200))
        head, body = session.seal(kind, payload, b"\0\0\0", int((world.now + 1e9) * 1000))
        if link not in world.links:
            world.run(5)
            link = next(iter(rogue.node.links), link)
        world.carry(link, head, body)
        world.run(0.01)
    stream = client.node.open(1, "site.test", 80, None, world.now)
    client.send(stream, b"hello", finish=True)
    world.settle(client)
    world.run(5)
    assert bytes(server.received[stream.id]) == b"hello"
    assert not client.resets


@pytest.mark.parametrize("seed", range(4 * ROUNDS))
def test_nonsense_in_messages_is_a_fault_or_a_message_and_never_grows(seed):
    rng = random.Random(seed)
    box = Mailbox()
    for _ in range(3000):
        payload = bytearray(encode(rng.getrandbits(rng.choice((3, 12, 64))), "t" * 9, bytes(20)))
        for _ in range(rng.randrange(3)):
            payload[rng.randrange(len(payload))] = rng.randrange(256)
        del payload[rng.randrange(len(payload) + 1) :]
        for hear in (box.receive, box.confirmed):
            try:
                hear(bytes(payload))
            except PeerFault:
                pass
        box.post("t", b"", rng.random() < 0.5, 0.0)
    assert len(box._seen) <= 2 * SPAN and len(box.outgoing) <= 2 * QUEUE_MAX
    assert box.next_deadline() is not None
