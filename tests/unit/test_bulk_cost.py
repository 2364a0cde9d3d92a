"""What a bulk chunk costs in calls, from the pump's read to the sink's data: a budget that only shrinks.

Calls of Python functions and of C functions are both counted; a change that adds one has to say why.
"""

from __future__ import annotations

import sys

from uservpn.tunnel.events import Data
from world import pair

CHUNK = 64 * 1024
CHUNKS = 32
SEND_CALLS_MAX = 27
"""Queue, take, number, seal: per chunk."""
RECEIVE_CALLS_MAX = 44
"""Open the header, decrypt, parse, deliver, give credit: per chunk."""


def _calls(work) -> int:
    count = 0

    def count_calls(frame, event, argument):
        nonlocal count
        if event in ("call", "c_call"):
            count += 1

    sys.setprofile(count_calls)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_calls_per_bulk_chunk_stay_within_their_budget():
    world, client, server = pair(delay=0.0)
    stream = client.node.open(1, "site.test", 80, None, world.now)
    for _ in range(8):  # credit, windows and lanes as in the middle of a transfer
        client.send(stream, bytes(CHUNK))
        world.settle(client)
        world.run(0.05)
    sent: list[bytes] = []
    data = memoryview(bytes(CHUNK))
    tunnel = client.node.tunnel(stream)

    def send() -> None:
        for _ in range(CHUNKS // 4):
            for _ in range(4):
                tunnel.write(stream, data)
            for _, batch in client.node.take_transmits(lambda link: 1 << 20, world.now):
                sent.extend(batch)

    # What the sink grants while it works is not part of this cost: credit is given beforehand.
    stream.send_limit = stream.sent_size + 2 * CHUNK * CHUNKS
    send_calls = _calls(send)
    assert len(sent) >= 2 * CHUNKS
    sink = server.node.peers[7].tunnel.streams[stream.id]
    sink.recv_limit += 2 * CHUNK * CHUNKS
    link = next(iter(server.node.links))
    got = 0

    def receive() -> None:
        nonlocal got
        node, codec = server.node, server.codec
        for index in range(0, len(sent), 2):
            header = codec.open(sent[index])
            node.receive(link, header, sent[index + 1], world.now)
            for event in node.take_events(world.now):
                if type(event) is Data:
                    got += len(event.chunk)
                    sink_tunnel.consumed(sink, len(event.chunk), world.now)

    sink_tunnel = server.node.peers[7].tunnel
    receive_calls = _calls(receive)
    assert got == CHUNK * CHUNKS
    print(f"per chunk: {send_calls / CHUNKS:.1f} to send, {receive_calls / CHUNKS:.1f} to receive")
    assert send_calls / CHUNKS <= SEND_CALLS_MAX
    assert receive_calls / CHUNKS <= RECEIVE_CALLS_MAX
