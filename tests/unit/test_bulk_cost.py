"""What a bulk chunk costs in calls, from the pump's read to the sink's data: a budget that only shrinks.

Calls of Python functions and of C functions are both counted; a change that adds one has to say why.
"""

from __future__ import annotations

import asyncio

from uservpn.kit.endpoint import Endpoint
from uservpn.links.udp import UdpPlugin
from uservpn.links.udp_socket import Stretch
from uservpn.runtime.chunks import joined
from uservpn.runtime.pump import READ_SIZE, Pump
from uservpn.tunnel.events import Data
from uservpn.tunnel.tunnel import Tunnel
from uservpn.wire.constants import Kind
from uservpn.wire.header import HeaderCodec, pack_fields
from uservpn.wire.keys import KeyRing
from world import BASE, KEY, ROOM, Member, calls_of, in_runs, pair, take

CHUNK = 64 * 1024
CHUNKS = 32
SEND_CALLS_MAX = 27
"""Queue, take, number, seal: per chunk."""
RECEIVE_CALLS_MAX = 43
"""Open the header, decrypt, parse, deliver, give credit: per chunk."""

DATAGRAM_SEND_CALLS_MAX = 7
DATAGRAM_RECEIVE_CALLS_MAX = 10
"""As above, for one datagram; the header is opened by the link."""
BURST_WRITE_CALLS_MAX = 1.3
BURST_OPEN_CALLS_MAX = 0.5
"""The link's part for one datagram of a burst of 176: written, and its header opened."""


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
    send_calls = calls_of(send)
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
    receive_calls = calls_of(receive)
    assert got == CHUNK * CHUNKS
    print(f"per chunk: {send_calls / CHUNKS:.1f} to send, {receive_calls / CHUNKS:.1f} to receive")
    assert send_calls / CHUNKS <= SEND_CALLS_MAX
    assert receive_calls / CHUNKS <= RECEIVE_CALLS_MAX


def test_calls_per_datagram_stay_within_their_budget():
    """The same over a link of 1,500 bytes, where a chunk is 47 messages: a read brings 44 of them."""
    world, client, server = pair(delay=0.01)
    world.payload_max = 1424
    world.run(2)
    take = client.node.take_transmits
    calls = datagrams = 0

    def counted(room, now):
        nonlocal calls, datagrams
        batches: list = []

        def sealed() -> None:
            batches.extend(take(room, now))
            for _, batch in batches:
                batch[0]  # of a train all are sealed then

        made = calls_of(sealed)
        count = sum(len(batch) // 2 for _, batch in batches)
        if count >= 8:  # of a bulk transfer
            calls += made
            datagrams += count
        return batches

    client.node.take_transmits = counted
    stream = client.node.open(1, "site.test", 80, None, world.now)
    client.send(stream, bytes(1_000_000), finish=True)
    world.settle(client)
    world.run(5)
    assert len(server.received[stream.id]) == 1_000_000 and datagrams > 100
    sent = [
        (client.codec.open(head), body)
        for link, head, body in world.tap
        if world.links[link][0] is client and client.codec.open(head).kind == Kind.DATA
    ]
    sink = Member(world, 1, {}, 1000, (KEY,))
    sink.node.link_up(5, "udp", 1424, "udp://x", world.now, size_base=BASE)
    runs = [in_runs(sent[start : start + 44]) for start in range(0, len(sent), 44)]
    got = 0

    def receive() -> None:
        nonlocal got
        for start in range(0, len(sent), 44):
            assert not [*sink.node.receive_batch(5, runs[start // 44], lambda link: 0, world.now)]
            for event in joined(sink.node.take_events(world.now)):
                if type(event) is Data:
                    got += len(event.chunk)
                    sink.node.tunnel(event.stream).consumed(
                        event.stream, len(event.chunk), world.now
                    )
                else:
                    sink.handle(event)

    receive_calls = calls_of(receive)
    assert got == 1_000_000
    print(
        f"a datagram: {calls / datagrams:.1f} to send, {receive_calls / len(sent):.1f} to receive"
    )
    assert calls / datagrams <= DATAGRAM_SEND_CALLS_MAX
    assert receive_calls / len(sent) <= DATAGRAM_RECEIVE_CALLS_MAX


def test_calls_of_the_udp_link_per_datagram_of_a_burst_stay_within_their_budget():
    """No step is done for each datagram on the way in; on the way out its size is looked at."""
    count = 176
    codec = HeaderCodec(KeyRing((KEY,)))
    heads = [codec.seal(pack_fields(1, 7, 1, 1424, 5, number, b"abc")) for number in range(count)]
    batch = [part for head in heads for part in (head, bytes(1424))]
    written: list[int] = []
    opened: list = []

    class Owner:
        def new_link_id(self) -> int:
            return 1

        def link_opened(self, link) -> None: ...

        def link_runs(self, link, runs) -> None:
            opened.extend(runs)

    async def work() -> tuple[int, int]:
        owner = Owner()
        server, client = UdpPlugin(), UdpPlugin()
        listener = await server.serve(Endpoint("udp", "127.0.0.1", 0), codec, owner)
        sock = listener.sock
        link = await client.connect(Endpoint("udp", "127.0.0.1", sock.port), codec, owner)
        asyncio.get_running_loop().remove_reader(sock._sock.fileno())
        link.sock._put = lambda link, parts, segment: not written.append(len(parts))
        write_calls = calls_of(lambda: link.send(batch))
        sock._landing.grow()
        lying = b"".join(batch)
        sock._landing.view[: len(lying)] = lying
        came = [Stretch(0, len(lying), len(lying) // count)]
        sock._hand_on((("127.0.0.1", 9), b""), came)  # views are made, the link is there
        open_calls = calls_of(lambda: sock._hand_on((("127.0.0.1", 9), b""), came))
        client.close()
        server.close()
        return write_calls, open_calls

    write_calls, open_calls = asyncio.run(work())
    assert written == [88, 88, 88, 88]
    assert [len(run.bodies) for run in opened] == [count, count]
    print(f"a datagram: {write_calls / count:.2f} to write, {open_calls / count:.2f} to open")
    assert write_calls / count <= BURST_WRITE_CALLS_MAX
    assert open_calls / count <= BURST_OPEN_CALLS_MAX


def test_what_a_pump_reads_for_datagrams_leaves_no_short_message_behind():
    """One would cost the sink as much as thirty others, and end its run of them."""
    tunnel = Tunnel(7, 1, lambda limit: 0)
    stream = tunnel.open("site.test", 80, None)
    stream.send_limit = 1 << 20
    pump = Pump(None)  # it is only asked where to read to
    pump.attach(stream)
    assert len(pump.get_buffer(-1)) == READ_SIZE
    tunnel.write(stream, bytes(READ_SIZE))
    first = take(tunnel, ROOM, 1408, 0.0)
    size = len(pump.get_buffer(-1))
    assert stream.piece and READ_SIZE - stream.piece < size < READ_SIZE
    tunnel.write(stream, bytes(size))
    messages = take(tunnel, ROOM, 1408, 0.0)
    assert len(first[-1][1]) < 1408 and {len(payload) for _, payload in messages} == {1408}
    stream.piece = READ_SIZE + 1  # a chunk that credit has cut on a link of larger messages
    assert len(pump.get_buffer(-1)) == READ_SIZE
