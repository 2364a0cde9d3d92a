"""What two nodes share on the wire: numbers, payload keys, boots, and the replay window.

A `Session` is one node's end towards one peer. It seals what goes there and opens what comes from
there. Once the peer's boot is known every message is *bound* to it (the boot is in the associated data),
so what was captured before a restart is dead after it. A *first contact*, sent before the boot is known,
carries its full wall-clock time inside the sealed payload instead; the caller judges it with
`first_contact_is_fresh` and holds a stale one until the origin has answered a challenge.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag

from uservpn.kit.series import records, unpacked
from uservpn.kit.slots import Slots
from uservpn.types import Buffer
from uservpn.wire.constants import (
    ASSOCIATED_SIZE,
    FLAG_BOUND,
    FLAG_CHACHA,
    FRESH_MS,
    HEADER_SIZE,
    NUMBER_MAX,
    NUMBERS_KEPT,
    TAG_SIZE,
    Kind,
)
from uservpn.wire.header import (
    FIELDS,
    NO_STAMP,
    NUMBER_AT,
    RUN_MIN,
    Header,
    HeaderCodec,
    Run,
    run_max,
)
from uservpn.wire.keys import Cipher, Ring
from uservpn.wire.replay import ReplayWindow
from uservpn.wire.train import Train

_pack: Final = FIELDS.pack
NONCE_SIZE: Final = 12
NUMBER_SIZE: Final = 6
BOOT_SIZE: Final = 8
TIME_SIZE: Final = 8
"""Bytes in front of the payload of a first contact."""


class FirstContact(NamedTuple):
    """A payload that was sent before its origin knew our boot."""

    payload: bytes
    sent_ms: int
    """The origin's wall clock, milliseconds since 1970."""


class Session:
    """Seals to, and opens from, one peer. Not for relays, which open headers only."""

    __slots__ = (
        "_aeads_in",
        "_cipher",
        "_flags",
        "_me",
        "_my_boot",
        "_my_boot_bytes",
        "_number",
        "_peer_boot_bytes",
        "_ring",
        "_seal_header",
        "_seal_headers",
        "_window",
        "first_boot",
        "forged_count",
        "peer",
        "peer_boot",
        "replayed_count",
    )

    def __init__(
        self, ring: Ring, codec: HeaderCodec, me: int, boot: int, peer: int, chacha: bool
    ) -> None:
        self._ring = ring
        self._me = me
        self._my_boot = boot
        self._my_boot_bytes = boot.to_bytes(8, "big")
        self.peer = peer
        self.peer_boot = 0
        """The newest boot proved alive; 0 while none is."""
        self.first_boot = 0
        """The boot that ended our own first-contact phase: the only one whose challenge we echo."""
        self._peer_boot_bytes = b""
        self._number = 0
        self._flags = FLAG_CHACHA if chacha else 0
        self._cipher = ring.payload(0, me, boot, peer, chacha)
        self._seal_header = codec.seal_fields
        self._seal_headers = codec.seal_run
        self._aeads_in: dict[tuple[int, int, int], Cipher] = {}
        self._window = ReplayWindow()
        self.replayed_count = 0
        self.forged_count = 0

    @property
    def is_spent(self) -> bool:
        """Too few numbers are left for one more batch: only a new boot gives new ones."""
        return self._number > NUMBER_MAX - NUMBERS_KEPT

    def seal(
        self,
        kind: int,
        payload: Buffer,
        stamp: bytes,
        wall_ms: int,
        boot: int = 0,
        hops: int = 0,
    ) -> tuple[bytes, bytes]:
        """Header and sealed payload of a new message; never the same number twice (see `is_spent`).

        `boot` binds the message to a boot that a header only claims so far, instead of `peer_boot`;
        `hops` are the relays it goes over, as hop1 << 8 | hop2.
        """
        number = self._number
        assert number <= NUMBER_MAX, "a nonce would repeat"
        self._number = number + 1
        flags = self._flags | kind
        bound_to = boot.to_bytes(8, "big") if boot else self._peer_boot_bytes
        if bound_to:
            flags |= FLAG_BOUND
        else:
            payload = b"".join((wall_ms.to_bytes(TIME_SIZE, "big"), payload))
        fields = _pack(
            flags, self._me, self.peer, len(payload) + TAG_SIZE,
            self._my_boot, number << 16 | hops, stamp, NO_STAMP, NO_STAMP,
        )  # fmt: skip
        body = self._cipher.encrypt(
            number.to_bytes(12, "big"), payload, fields[:ASSOCIATED_SIZE] + bound_to
        )
        return self._seal_header(fields, None), body

    def seal_batch(
        self, messages: Sequence[tuple[int, Buffer]], stamp: bytes, wall_ms: int, hops: int = 0
    ) -> list[Buffer]:
        """As `seal` for many (kind, payload): headers and sealed payloads in turn.

        Neighbours of one kind and length differ in their numbers only, and cost less.
        """
        out: list[Buffer] = []
        for some in self.seal_trains(messages, stamp, wall_ms, hops):
            out += some
        return out

    def seal_trains(
        self, messages: Sequence[tuple[int, Buffer]], stamp: bytes, wall_ms: int, hops: int = 0
    ) -> list[Sequence[Buffer]]:
        """As `seal_batch`, one part of the messages after the other; many alike are a `Train`.

        A train is sealed by whoever sends it: the payloads have to stay as they are until then.
        """
        if len(messages) < RUN_MIN or not self._peer_boot_bytes:
            return [self._seal_each(messages, stamp, wall_ms, hops)]
        out: list[Sequence[Buffer]] = []
        kinds, payloads = zip(*messages, strict=True)
        index = single = 0
        for _, same in groupby(map(len, payloads)):
            behind = index + len(list(same))
            while index < behind:
                end = min(behind, index + run_max(self._number + index - single))
                kind = kinds[index]
                if end - index < RUN_MIN or kinds[index:end].count(kind) < end - index:
                    index = min(end, index + RUN_MIN - 1)
                    continue
                if single < index:
                    out.append(self._seal_each(messages[single:index], stamp, wall_ms, hops))
                out.append(self._train(kind, payloads[index:end], stamp, hops))
                index = single = end
        if single < index:
            out.append(self._seal_each(messages[single:], stamp, wall_ms, hops))
        return out

    def _seal_each(
        self, messages: Sequence[tuple[int, Buffer]], stamp: bytes, wall_ms: int, hops: int
    ) -> list[Buffer]:
        """Headers and sealed payloads, in turn, of a few messages."""
        out: list[Buffer] = []
        bound_to = self._peer_boot_bytes
        if not bound_to:
            for kind, payload in messages:
                out += self.seal(kind, payload, stamp, wall_ms, 0, hops)
            return out
        flags = self._flags | FLAG_BOUND
        me, peer, my_boot, number = self._me, self.peer, self._my_boot, self._number
        pack, seal_header, encrypt = _pack, self._seal_header, self._cipher.encrypt
        for kind, payload in messages:
            fields = pack(
                flags | kind, me, peer, len(payload) + TAG_SIZE, my_boot, number << 16 | hops,
                stamp, NO_STAMP, NO_STAMP,
            )  # fmt: skip
            body = encrypt(number.to_bytes(12, "big"), payload, fields[:ASSOCIATED_SIZE] + bound_to)
            out += (seal_header(fields, None), body)
            number += 1
        assert number <= NUMBER_MAX, "a nonce would repeat"
        self._number = number
        return out

    def _train(self, kind: int, payloads: Sequence[Buffer], stamp: bytes, hops: int) -> Train:
        """Messages of one kind and length."""
        number, count = self._number, len(payloads)
        assert number + count <= NUMBER_MAX, "a nonce would repeat"
        self._number = number + count
        fields = _pack(
            self._flags | FLAG_BOUND | kind, self._me, self.peer, len(payloads[0]) + TAG_SIZE,
            self._my_boot, number << 16 | hops, stamp, NO_STAMP, NO_STAMP,
        )  # fmt: skip
        nonces, known = _counted(number, fields[:NUMBER_AT], self._peer_boot_bytes, count)
        heads = unpacked(f"{HEADER_SIZE}s", count, self._seal_headers(fields, count))
        return Train(self._cipher, heads, nonces, payloads, known)

    def open_bound(self, header: Header, body: Buffer) -> bytes | None:
        """The payload of a message bound to our boot; None: stale, replayed or forged.

        A higher boot in a message that opens is the peer's restart: `peer_boot` moves.
        """
        boot = header.boot
        number = header.number
        if boot != self.peer_boot:
            if boot < self.peer_boot:
                self.replayed_count += 1
                return None
        elif number < self._window.top and not self._window.is_new(number):
            self.replayed_count += 1
            return None
        payload = self._decrypt(header, body, header.associated + self._my_boot_bytes)
        if payload is None:
            return None
        if boot != self.peer_boot:
            self._adopt(boot)
        self._window.admit(number)
        return payload

    def open_run(self, run: Run, into: Slots) -> int:
        """As `open_bound` for a run of DATA or SINK, at less cost for each: how many were opened.

        Ends before the first that does not open, or where `into` is full. The payloads lie there side by
        side. None is opened if they are of another boot, relayed, or not all above every number that came
        before: those are for `open_bound`.
        """
        header = run.header
        number, size = header.number, header.length - TAG_SIZE
        count = min(len(run.bodies), into.size // max(size, 1))
        chacha = header.flags & FLAG_CHACHA
        aead = self._aeads_in.get((header.slot, header.boot, chacha))
        if (
            aead is None
            or header.kind > Kind.SINK
            or header.flags != FLAG_BOUND | chacha
            or (header.origin, header.destination) != (self.peer, self._me)
            or header.hop1
            or header.boot != self.peer_boot
            or number < self._window.top
            or size <= 0
            or not count
        ):
            return 0
        nonces, known = _counted(number, header.associated[:NUMBER_AT], self._my_boot_bytes, count)
        slots, opened = into.cut(size, 0, count), 0
        try:
            for _ in map(aead.decrypt_into, nonces, run.bodies, known, slots):
                opened += 1
        except InvalidTag:
            pass
        if opened:
            self._window.admit_run(number, opened)
        return opened

    def open_first(self, header: Header, body: Buffer) -> FirstContact | None:
        """Opens a message that is not bound to our boot; changes nothing (see `accept_first`)."""
        if header.boot < self.peer_boot or (
            header.boot == self.peer_boot and not self._window.is_new(header.number)
        ):
            self.replayed_count += 1
            return None
        payload = self._decrypt(header, body, header.associated)
        if payload is None or len(payload) < TIME_SIZE:
            return None
        return FirstContact(payload[TIME_SIZE:], int.from_bytes(payload[:TIME_SIZE], "big"))

    def peek(self, header: Header, body: Buffer) -> FirstContact | None:
        """Opens a message of any boot, seen before or not, and changes nothing: it may not act."""
        is_bound = header.flags & FLAG_BOUND
        associated = header.associated + (self._my_boot_bytes if is_bound else b"")
        payload = self._decrypt(header, body, associated)
        if payload is None or is_bound:
            return None if payload is None else FirstContact(payload, 0)
        if len(payload) < TIME_SIZE:
            return None
        return FirstContact(payload[TIME_SIZE:], int.from_bytes(payload[:TIME_SIZE], "big"))

    @property
    def my_boot(self) -> int:
        """The boot that this end uses towards the peer."""
        return self._my_boot

    def renewed(self, boot: int, codec: HeaderCodec) -> Session:
        """The same peer, under a higher boot of ours: to it, this node was started anew.

        What the peer sends is still taken once; what it has bound to the boot before is dead.
        """
        assert boot > self._my_boot
        chacha = bool(self._flags & FLAG_CHACHA)
        new = Session(self._ring, codec, self._me, boot, self.peer, chacha)
        new.peer_boot = self.peer_boot
        new.first_boot = self.first_boot
        new._peer_boot_bytes = self._peer_boot_bytes
        new._window = self._window
        return new

    def accept_first(self, header: Header) -> bool:
        """Acts on a first contact that was found fresh or was confirmed; False: seen before."""
        if header.boot < self.peer_boot:
            return False
        if header.boot != self.peer_boot:
            self._adopt(header.boot)
        return self._window.admit(header.number)

    def _adopt(self, boot: int) -> None:
        if not self.peer_boot:
            self.first_boot = boot
        self.peer_boot = boot
        self._peer_boot_bytes = boot.to_bytes(8, "big")
        self._window = ReplayWindow()
        self._aeads_in = {key: aead for key, aead in self._aeads_in.items() if key[1] == boot}

    def _decrypt(self, header: Header, body: Buffer, associated: bytes) -> bytes | None:
        chacha = header.flags & FLAG_CHACHA
        key = (header.slot, header.boot, chacha)
        known = self._aeads_in.get(key)
        aead = known or self._ring.payload(
            header.slot, self.peer, header.boot, self._me, bool(chacha)
        )
        try:
            payload = aead.decrypt(header.number.to_bytes(12, "big"), body, associated)
        except InvalidTag:
            self.forged_count += 1
            return None
        if known is None and len(self._aeads_in) < 8:  # two boots, two suites, a few keys
            self._aeads_in[key] = aead
        return payload


def _counted(
    number: int, before: bytes, boot: bytes, count: int
) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Nonces and associated data of `count` messages from `number` on.

    `before` stands in front of the number in their headers, `boot` is the one they are bound to.
    """
    numbers = records(number, count, NUMBER_SIZE)
    lead = bytes(NONCE_SIZE - NUMBER_SIZE)
    nonces = lead + lead.join(numbers)
    known = b"".join((before, (boot + before).join(numbers), boot))  # before, number, boot of each
    size = ASSOCIATED_SIZE + BOOT_SIZE
    return (
        unpacked(f"{NONCE_SIZE}s", count, nonces),
        unpacked(f"{size}s", count, known),
    )


def first_contact_is_fresh(sent_ms: int, wall_ms: int, started_ms: int) -> bool:
    """May a first contact be acted on at once, by the receiver's wall clock and start?"""
    return abs(sent_ms - wall_ms) <= FRESH_MS and sent_ms >= started_ms
