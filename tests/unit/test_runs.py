"""What is done for many messages at a time is what is done one by one: headers, payloads, replays."""

from __future__ import annotations

import os
import random

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from uservpn.kit import series as series_module
from uservpn.kit.series import COUNT_MAX, ones, records, series, unpacked
from uservpn.kit.slots import CUTS_MAX, Slots
from uservpn.sim.plain import Nonces, PlainRing, PlainSiv
from uservpn.wire.constants import FLAG_BOUND, HEADER_SIZE, Kind
from uservpn.wire.header import HeaderCodec, Run, pack_fields
from uservpn.wire.keys import KeyRing
from uservpn.wire.replay import ReplayWindow
from uservpn.wire.session import Session
from uservpn.wire.siv import HeaderSiv
from world import KEY

ROUNDS = int(os.environ.get("USERVPN_FUZZ", "1"))
OTHER = bytes(range(1, 33))
STAMP = b"\1\2\3"
RINGS = {
    "real": lambda *keys: KeyRing(keys or (KEY,)),
    "simulated": lambda *keys: PlainRing(keys or (KEY,), Nonces()),
}


@pytest.mark.parametrize("width", [1, 12, 16, 25, 29])
def test_a_series_is_its_records(width):
    rng = random.Random(width)
    for count in (1, 2, 44, COUNT_MAX):
        shift = rng.randrange(8 * width - 7)
        first = rng.randrange((1 << 8 * width) - (count - 1 << shift))
        wanted = tuple((first + (n << shift)).to_bytes(width, "big") for n in range(count))
        assert series(first, count, width, shift).to_bytes(count * width, "big") == b"".join(wanted)
        if not shift:
            assert records(first, count, width) == wanted
        same = ones(count, width) * first
        assert same.to_bytes(count * width, "big") == wanted[0] * count
        apart = b"".join(b"xyz" + one + b"x" for one in wanted)
        assert unpacked(f"3x{width}sx", count, b"??" + apart, 2) == wanted


@pytest.mark.parametrize("seed", range(10))
def test_headers_sealed_together_are_those_that_aes_siv_seals(seed):
    rng = random.Random(seed)
    key = rng.randbytes(64)
    library = AESSIV(key)
    for siv in (HeaderSiv(key), PlainSiv(key)):
        seal = library.encrypt if isinstance(siv, HeaderSiv) else siv.encrypt
        block = rng.randbytes(16)
        for count in (1, 2, 44, 44, COUNT_MAX):
            if rng.random() < 0.7:
                block = rng.randbytes(16)
            number, rest = rng.randrange((1 << 40) - count), rng.randbytes(11)
            fields = [block + (number + n).to_bytes(5, "big") + rest for n in range(count)]
            assert siv.seal_run(fields[0], count) == b"".join(seal(one, None) for one in fields)


@pytest.mark.parametrize("ring", RINGS.values(), ids=RINGS)
@pytest.mark.parametrize("seed", range(20 * ROUNDS))
def test_headers_opened_together_are_those_that_open_one_by_one(seed, ring):
    """Gaps, other kinds and stamps, other keys, absurd fields, foreign bytes."""
    rng = random.Random(seed)
    sealing = [HeaderCodec(ring(KEY)), HeaderCodec(ring(OTHER))]
    codec = HeaderCodec(ring(KEY, OTHER))
    slot = rng.random() < 0.2
    heads = []
    number = rng.choice((0, 1000, (1 << 40) - 20, (1 << 48) - 60))
    for _ in range(rng.randrange(1, 60)):
        number += 1 if rng.random() < 0.9 else rng.randrange(5)
        origin = 0 if seed % 5 == 4 and rng.random() < 0.05 else 9
        kind = Kind.DATA if rng.random() < 0.95 else Kind.SINK
        stamp = STAMP if rng.random() < 0.95 else rng.randbytes(3)
        hops = 0x0203 if seed % 3 == 0 else 0
        fields = pack_fields(
            kind | FLAG_BOUND, origin, 1, 100, 5, number & (1 << 48) - 1, stamp, hops
        )
        other = seed % 5 == 3 and rng.random() < 0.1
        heads.append(sealing[slot ^ other].seal(fields))
        if seed % 5 == 2 and rng.random() < 0.05:
            heads[-1] = rng.randbytes(HEADER_SIZE)
    singly = [codec.open(head) for head in heads]
    strangers = codec.stranger_count
    lying = b"".join(head + bytes(100) for head in heads)
    runs = codec.open_runs(memoryview(lying), len(heads), HEADER_SIZE + 100)
    together: list = []
    for header, count in runs:
        if header is None:
            together += [None] * count
        else:
            together += [one for one, _ in Run(header, [b""] * count).messages()]
    assert together == singly
    assert codec.stranger_count == 2 * strangers


def test_a_whole_burst_is_one_run():
    """And what follows a gap is another: the work for each is worth it."""
    codec = HeaderCodec(KeyRing((KEY,)))

    def sealed(numbers: range) -> list[bytes]:
        return [codec.seal(pack_fields(1, 9, 1, 100, 5, number, STAMP)) for number in numbers]

    heads = [*sealed(range(10, 54)), *sealed(range(55, 99)), *sealed(range(200, 240))]
    runs = codec.open_runs(b"".join(heads), len(heads), HEADER_SIZE)
    assert [(header.number, count) for header, count in runs] == [(10, 44), (55, 44), (200, 40)]


def test_disorder_is_not_looked_into_for_runs_again_and_again():
    sealed = 0
    codec = HeaderCodec(KeyRing((KEY,)))
    seal_run = codec._sivs[0].seal_run

    class Siv:
        decrypt = codec._sivs[0].decrypt

        def seal_run(self, fields, count):
            nonlocal sealed
            sealed += count
            return seal_run(fields, count)

    codec._sivs = (Siv(),)
    numbers = list(range(COUNT_MAX))
    random.Random(1).shuffle(numbers)
    heads = [codec.seal(pack_fields(1, 9, 1, 100, 5, number, STAMP)) for number in numbers]
    runs = codec.open_runs(b"".join(heads), len(heads), HEADER_SIZE)
    assert sum(count for _, count in runs) == COUNT_MAX
    assert sealed < 2 * COUNT_MAX


def _sessions(ring, number: int = 0) -> tuple[HeaderCodec, Session, Session]:
    """Two ends that know each other; the first one's next number."""
    codec = HeaderCodec(ring)
    one, other = Session(ring, codec, 7, 70, 1, False), Session(ring, codec, 1, 10, 7, False)
    for a, b in ((one, other), (other, one)):
        head, body = a.seal(Kind.KEEPALIVE, b"", STAMP, 0, boot=b.my_boot)
        assert b.open_bound(codec.open(head), body) is not None
    one._number = max(number, 1)
    return codec, one, other


@pytest.mark.parametrize("seed", range(10))
def test_messages_sealed_together_are_those_sealed_one_by_one(seed):
    rng = random.Random(seed)
    number = rng.choice((0, 7, (1 << 40) - 30, (1 << 48) - (1 << 20)))
    _, together, _ = _sessions(KeyRing((KEY,)), number)
    _, singly, _ = _sessions(KeyRing((KEY,)), number)
    messages = []
    while len(messages) < 700:
        kind, size = rng.choice((Kind.DATA, Kind.SINK)), rng.choice((10, 1408))
        messages += [(kind, rng.randbytes(size)) for _ in range(rng.choice((1, 3, 4, 50, 300)))]
    hops = rng.choice((0, 0x0203))
    wanted = [part for m in messages for part in singly.seal(*m, STAMP, 0, 0, hops)]
    assert together.seal_batch(messages, STAMP, 0, hops) == wanted
    assert together._number == singly._number


@pytest.mark.parametrize("ring", RINGS.values(), ids=RINGS)
@pytest.mark.parametrize("seed", range(20 * ROUNDS))
def test_runs_open_as_their_messages_do_one_by_one(seed, ring):
    """Damaged ones among them, whole runs again, runs in another order."""
    rng = random.Random(seed)
    codec, source, together = _sessions(ring(KEY), rng.choice((0, (1 << 40) - 300)))
    _, _, singly = _sessions(ring(KEY))
    batches: list[tuple[list[bytes], list[bytes]]] = []
    slots = Slots(20_000)  # less than the longest run
    count = taken = 0
    for _ in range(12):
        payloads = [rng.randbytes(300) for _ in range(rng.choice((4, 44, 200)))]
        parts = source.seal_batch([(Kind.DATA, payload) for payload in payloads], STAMP, 0)
        batches.append((parts[0::2], parts[1::2]))
        if rng.random() < 0.3:
            rng.shuffle(batches)
        heads, bodies = rng.choice(batches) if rng.random() < 0.5 else batches[-1]
        bodies = list(bodies)
        for at in range(len(bodies)):
            if rng.random() < 0.02:
                bodies[at] = bodies[at][:-1] + bytes((bodies[at][-1] ^ 1,))
        wanted = [
            singly.open_bound(codec.open(head), body)
            for head, body in zip(heads, bodies, strict=True)
        ]
        got: list = []
        for header, length in codec.open_runs(b"".join(heads), len(heads), HEADER_SIZE):
            end = len(got) + length
            run = Run(header, bodies[len(got) : end])
            while len(got) < end:
                opened = together.open_run(run, slots)
                taken += opened
                if opened:
                    got += map(bytes, slots.cut(300, 0, opened))
                else:
                    got.append(together.open_bound(run.header, run.bodies[0]))
                run = run.after(opened or 1)
        assert got == wanted
        count += len(got)
    assert together.forged_count == singly.forged_count
    assert together.replayed_count == singly.replayed_count
    assert 50 < taken < count


@pytest.mark.parametrize("seed", range(30))
def test_numbers_marked_together_are_those_marked_one_by_one(seed):
    rng = random.Random(seed)
    together, singly = ReplayWindow(256), ReplayWindow(256)
    number = top = 0
    for _ in range(60):
        number += rng.choice((0, 0, 1, 5, 100, 1000))
        count = rng.choice((1, 2, 44, 256, 700))
        if rng.random() < 0.3:
            back = max(0, number - rng.randrange(300))
            assert together.admit(back) == singly.admit(back)
            top = max(top, back + 1)
        elif number >= together.top:
            together.admit_run(number, count)
            for one in range(number, number + count):
                assert singly.admit(one)
            number = top = number + count
        assert together.top == top
        for near in range(max(0, number - 400), number + 400):
            assert together.is_new(near) == singly.is_new(near)


def test_what_is_kept_for_runs_is_bounded():
    """However many lengths come by; and views are made of no more than was there."""
    for width in range(1, 40):
        for count in range(1, COUNT_MAX + 1):
            records(5, count, width)
    info = series_module._repeated.cache_info()
    assert info.maxsize is not None and info.currsize <= info.maxsize <= 512
    slots = Slots(1 << 16)
    for size in range(60, 200):
        views = slots.cut(size, 3, 9, 48)
        assert len(views) == 6 and all(len(view) == size - 48 for view in views)
    assert len(slots._cuts) <= CUTS_MAX
    assert all(len(cut) <= 9 for cut in slots._cuts.values())


@pytest.mark.parametrize("seed", range(20))
def test_cut_slots_are_where_they_should_be(seed):
    rng = random.Random(seed)
    slots = Slots(5000)
    slots.view[:] = data = rng.randbytes(5000)
    for _ in range(100):
        size = rng.choice((60, 61, 700, 5000))
        skip = rng.choice((0, 48))
        end = rng.randrange(5000 // size) + 1
        start = rng.randrange(end)
        wanted = [data[at * size + skip : (at + 1) * size] for at in range(start, end)]
        assert slots.cut(size, start, end, skip) == wanted
