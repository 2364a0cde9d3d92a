"""Trains: what is sealed when it leaves is what was to be sent, however it is cut, delayed or refused."""

from __future__ import annotations

import errno
import random

import pytest

from test_runs import RINGS, STAMP, _sessions
from test_udp_link import CODEC, Bench, Kernel, run  # noqa: F401
from uservpn.kit.slots import Slots
from uservpn.links.udp_socket import SEALING_SIZE
from uservpn.wire.constants import HEADER_SIZE, TAG_SIZE, Kind
from uservpn.wire.keys import KeyRing
from uservpn.wire.session import Session
from uservpn.wire.train import STRETCH_MAX, Train
from world import KEY

SIZE = 700


def _payloads(seed: int, count: int, size: int = SIZE) -> list[tuple[int, bytes]]:
    rng = random.Random(seed)
    return [(Kind.DATA, rng.randbytes(size)) for _ in range(count)]


@pytest.mark.parametrize("ring", RINGS.values(), ids=RINGS)
@pytest.mark.parametrize("most", [1, 5, 44, 1000])
def test_stretches_hold_what_would_be_sealed_one_by_one(ring, most):
    _, session, _ = _sessions(ring(KEY))
    _, singly, _ = _sessions(ring(KEY))
    messages = _payloads(1, 150)
    (train,) = session.seal_trains(messages, STAMP, 0, 0x0203)
    wanted = [b"".join(singly.seal(*message, STAMP, 0, 0, 0x0203)) for message in messages]
    into = Slots(SEALING_SIZE)
    got = []
    for stretch in train.sealed(into, most):
        count, rest = divmod(len(stretch), train.size)
        assert rest == 0 and count <= min(most, STRETCH_MAX)
        got += [bytes(stretch[at * train.size :][: train.size]) for at in range(count)]
    assert got == wanted
    assert train.size == HEADER_SIZE + SIZE + TAG_SIZE


def test_a_train_is_a_sequence_of_headers_and_payloads_for_whoever_looks():
    _, session, _ = _sessions(KeyRing((KEY,)))
    _, singly, _ = _sessions(KeyRing((KEY,)))
    messages = _payloads(2, 20)
    (train,) = session.seal_trains(messages, STAMP, 0)
    wanted = [part for message in messages for part in singly.seal(*message, STAMP, 0)]
    assert len(train) == 40 and train[0] == wanted[0] and train[38:] == wanted[38:]
    assert list(train) == wanted, "looking again seals nothing again"


def test_a_train_is_sealed_once():
    """Were its payloads changed meanwhile, a nonce would have served for two messages."""
    _, session, _ = _sessions(KeyRing((KEY,)))
    (train,) = session.seal_trains(_payloads(3, 20), STAMP, 0)
    assert list(train)
    with pytest.raises(AssertionError, match="nonce"):
        next(train.sealed(Slots(SEALING_SIZE), 44))


@pytest.mark.parametrize("seed", range(10))
def test_trains_and_what_is_between_them_keep_their_order(seed):
    rng = random.Random(seed)
    number = rng.choice((0, (1 << 40) - 30))
    _, session, _ = _sessions(KeyRing((KEY,)), number)
    _, singly, _ = _sessions(KeyRing((KEY,)), number)
    messages: list[tuple[int, bytes]] = []
    while len(messages) < 500:
        kind, size = rng.choice((Kind.DATA, Kind.SINK)), rng.choice((10, SIZE))
        messages += [(kind, rng.randbytes(size)) for _ in range(rng.choice((1, 4, 50, 300)))]
    batches = session.seal_trains(messages, STAMP, 0)
    assert any(type(batch) is Train for batch in batches)
    into = Slots(SEALING_SIZE)
    sealed: dict[int, bytes] = {}
    for index in rng.sample(range(len(batches)), len(batches)):  # whenever each is sent
        batch = batches[index]
        stretches = batch.sealed(into, 44) if type(batch) is Train else batch
        sealed[index] = b"".join(map(bytes, stretches))
    wanted = b"".join(part for message in messages for part in singly.seal(*message, STAMP, 0))
    assert b"".join(sealed[index] for index in range(len(batches))) == wanted
    assert session._number == singly._number


def _ends(chacha: bool) -> tuple[Session, Session]:
    """Under the key of the links' bench."""
    ring = KeyRing((KEY,))
    source, sink = (
        Session(ring, CODEC, 7, 70, 1, chacha),
        Session(ring, CODEC, 1, 10, 7, chacha),
    )
    for one, other in ((source, sink), (sink, source)):
        head, body = one.seal(Kind.KEEPALIVE, b"", STAMP, 0, boot=other.my_boot)
        header = CODEC.open(head)
        assert header is not None and other.open_bound(header, body) is not None
    return source, sink


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize("chacha", [True, False])
@pytest.mark.parametrize("refused_at", [None, 0, 1, 2])
def test_what_waits_for_a_full_socket_is_not_what_was_sealed_later(
    run,  # noqa: F811
    offload,
    chacha,
    refused_at,
):
    """The buffer in which a train is sealed is used again at once: whatever waits has to be a copy."""
    source, sink = _ends(chacha)
    messages = _payloads(4, 3 * 150)

    async def work() -> None:
        async with Bench() as bench:
            kernel = Kernel(bench.link.sock)
            bench.link.sock.has_segments = offload
            kernel.failures = [] if refused_at is None else [0] * refused_at + [errno.EAGAIN]
            opened: list[bytes | None] = []

            def link_runs(link, runs):
                pairs = [pair for run in runs for pair in run.messages()]
                opened.extend(sink.open_bound(header, body) for header, body in pairs)
                bench.there.news.set()

            bench.there.link_runs = link_runs
            for start in range(0, len(messages), 150):
                for batch in source.seal_trains(messages[start : start + 150], STAMP, 0):
                    assert type(batch) is Train
                    bench.link.send(batch)
            await bench.there.until(lambda: len(opened) == len(messages))
            assert opened == [payload for _, payload in messages]

    run(work)


@pytest.mark.parametrize("number", [errno.EIO, errno.EMSGSIZE])
def test_what_the_kernel_does_not_cut_goes_one_by_one(run, number):  # noqa: F811
    source, _ = _ends(False)
    messages = _payloads(5, 100)

    async def work() -> None:
        async with Bench() as bench:
            kernel = Kernel(bench.link.sock)
            kernel.cannot_cut = number
            for batch in source.seal_trains(messages, STAMP, 0):
                bench.link.send(batch)
            await bench.there.until(lambda: len(bench.there.got) == len(messages))
            numbers = [serial for serial, _ in bench.there.got]
            assert numbers == list(range(numbers[0], numbers[0] + len(messages)))
            assert bench.link.sock.has_segments == (number == errno.EMSGSIZE)

    run(work)
