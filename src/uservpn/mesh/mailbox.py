"""Out-of-band messages to and from one peer: small, ahead of the streams, beside the tunnel.

A *letter* is a topic and some bytes. One that is sent at *best effort* leaves once, over whatever link
there is. A *confirmed* one is kept and sent again, ever more rarely, until the peer has confirmed it or
GIVE_UP_S are over; its receiver hands it on once, however often it came, for as long as both
nodes run. Layout (docs/wire.md, section 18): number 8 (0: best effort), topic length 1, topic, size 2,
bytes, padding.

Confirmed letters are numbered, and the numbers of those under way lie within SPAN: so a receiver needs
a window of that size, and none of them can ever fall out of it.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import Final, NamedTuple

from uservpn.errors import PeerFault, UsageError

LETTER_SIZE_MAX: Final = 1000
"""Bytes of one message: it fits into a datagram."""
TOPIC_SIZE_MAX: Final = 32
QUEUE_MAX: Final = 128
"""Letters of one peer that wait for a link or for room. Beyond it the oldest one at best effort goes;
where all are confirmed ones, the new one."""
CONFIRMED_MAX: Final = 128
"""Confirmed letters of one peer under way; another one fails at once."""
SPAN: Final = 1024
GIVE_UP_S: Final = 30.0
"""How long a confirmed letter is tried."""
STALE_S: Final = 10.0
"""How long one at best effort waits for a link."""
PATIENCE_S: Final = 0.25
PATIENCE_UNKNOWN_S: Final = 1.0
PATIENCE_MAX_S: Final = 8.0
_HEAD: Final = struct.Struct(">QB")
_SIZE: Final = struct.Struct(">H")
_NUMBER: Final = struct.Struct(">Q")


class Arrived(NamedTuple):
    """A letter of the peer."""

    number: int
    """To be confirmed; 0: not."""
    topic: str
    payload: bytes
    is_new: bool
    """False: it was handed on before, and only its confirmation was lost."""


@dataclass(slots=True)
class Letter:
    """One message on its way."""

    number: int
    sealed: bytes
    """As it stands in the payload of a MESSAGE."""
    until: float
    due_at: float = 0.0
    tries: int = 0


class Mailbox:
    """The letters between this node and one peer. Bounds and what happens there: see the constants."""

    __slots__ = (
        "_last",
        "_newest",
        "_seen",
        "_unconfirmed",
        "dropped_count",
        "outgoing",
        "results",
    )

    def __init__(self) -> None:
        self.dropped_count = 0
        """Letters at best effort that were given up."""
        self._last = 0
        self.outgoing: deque[Letter] = deque()
        """What waits for a link or for room."""
        self._unconfirmed: dict[int, Letter] = {}
        self.results: list[tuple[int, bool]] = []
        """(number, was it delivered?) of confirmed letters that are over, until they are taken."""
        self._seen: set[int] = set()
        self._newest = 0

    # --- outside events --------------------------------------------------------------------------

    def receive(self, payload: bytes) -> Arrived:
        """A MESSAGE of the peer.

        Raises:
            PeerFault: it is malformed.
        """
        number, topic, data = decode(payload)
        if not number:
            return Arrived(0, topic, data, True)
        return Arrived(number, topic, data, self._admit(number))

    def confirmed(self, payload: bytes) -> None:
        """A CONFIRM of the peer; one that we did not wait for changes nothing."""
        if len(payload) < _NUMBER.size:
            raise PeerFault("a confirmation is cut off")
        letter = self._unconfirmed.pop(_NUMBER.unpack_from(payload)[0], None)
        if letter is not None:
            if letter in self.outgoing:
                self.outgoing.remove(letter)
            self.results.append((letter.number, True))

    def peer_restarted(self) -> None:
        """The peer counts anew; what we have for it still goes to it."""
        self._seen.clear()
        self._newest = 0

    def link_lost(self) -> None:
        """What was on it may be lost: confirmed letters go again as soon as there is a way."""
        for letter in self._unconfirmed.values():
            self._again(letter)

    # --- commands --------------------------------------------------------------------------------

    def post(self, topic: str, payload: bytes, confirmed: bool, now: float) -> int:
        """Queues a letter; its number, for `take_results`, or 0 for one at best effort.

        Raises:
            UsageError: the topic or the payload is too long, or the topic is not ASCII or is empty.
        """
        if len(payload) > LETTER_SIZE_MAX or not 0 < len(topic) <= TOPIC_SIZE_MAX:
            raise UsageError("a message or its topic is too long, or the topic is empty")
        if not topic.isascii():
            raise UsageError("the topic of a message must be ASCII")
        number = 0
        if confirmed:
            number = self._last = self._last + 1
            oldest = next(iter(self._unconfirmed), number)
            if len(self._unconfirmed) >= CONFIRMED_MAX or number - oldest >= SPAN:
                self.results.append((number, False))
                return number
        elif len(self.outgoing) >= QUEUE_MAX and not self._drop_oldest():
            return 0
        until = now + (GIVE_UP_S if confirmed else STALE_S)
        letter = Letter(number, encode(number, topic, payload), until)
        if confirmed:
            self._unconfirmed[number] = letter
        self.outgoing.append(letter)
        return number

    # --- time ------------------------------------------------------------------------------------

    def on_deadline(self, now: float) -> None:
        """Gives up what is too old, sends again what was not confirmed; harmless when early."""
        for letter in list(self._unconfirmed.values()):
            if now >= letter.until:
                del self._unconfirmed[letter.number]
                if letter in self.outgoing:
                    self.outgoing.remove(letter)
                self.results.append((letter.number, False))
            elif letter.due_at and now >= letter.due_at:
                self._again(letter)
        if any(now >= letter.until for letter in self.outgoing):
            kept = [letter for letter in self.outgoing if now < letter.until]
            self.dropped_count += len(self.outgoing) - len(kept)
            self.outgoing = deque(kept)

    def next_deadline(self) -> float | None:
        """When `on_deadline` wants to be called."""
        if not self._unconfirmed and not self.outgoing:
            return None
        times = [letter.until for letter in self.outgoing]
        times += [
            min(letter.until, letter.due_at) if letter.due_at else letter.until
            for letter in self._unconfirmed.values()
        ]
        return min(times)

    # --- takes and questions ---------------------------------------------------------------------

    def is_again(self) -> bool:
        """Did the next one leave before, and nobody confirmed it? There must be something in `outgoing`."""
        return self.outgoing[0].tries > 0

    def take(self, rtt_s: float | None, now: float) -> bytes:
        """The payload of the next MESSAGE; there must be something in `outgoing`."""
        letter = self.outgoing.popleft()
        if letter.number:
            patience = PATIENCE_UNKNOWN_S if rtt_s is None else max(PATIENCE_S, 3 * rtt_s)
            letter.due_at = now + min(patience * 2.0 ** min(letter.tries, 8), PATIENCE_MAX_S)
            letter.tries += 1
        return letter.sealed

    def is_busy(self) -> bool:
        """Does something wait for a link, for room, or for its confirmation?"""
        return bool(self.outgoing or self._unconfirmed)

    def take_results(self) -> list[tuple[int, bool]]:
        """(number, was it delivered?) of confirmed letters that are over."""
        results = self.results
        self.results = []
        return results

    # --- inside ----------------------------------------------------------------------------------

    def _admit(self, number: int) -> bool:
        """Is it new? At most 2 x SPAN numbers are remembered."""
        if number <= self._newest - SPAN or number in self._seen:
            return False
        self._seen.add(number)
        self._newest = max(self._newest, number)
        if len(self._seen) > 2 * SPAN:
            self._seen = {seen for seen in self._seen if seen > self._newest - SPAN}
        return True

    def _again(self, letter: Letter) -> None:
        if letter.due_at:  # it has left, and does not wait already
            letter.due_at = 0.0
            self.outgoing.append(letter)

    def _drop_oldest(self) -> bool:
        """Room for one at best effort: the oldest of its kind goes."""
        self.dropped_count += 1
        oldest = next((letter for letter in self.outgoing if not letter.number), None)
        if oldest is None:
            return False
        self.outgoing.remove(oldest)
        return True


def encode(number: int, topic: str, payload: bytes) -> bytes:
    """The payload of a MESSAGE, without padding."""
    name = topic.encode("ascii")
    return b"".join((_HEAD.pack(number, len(name)), name, _SIZE.pack(len(payload)), payload))


def decode(payload: bytes) -> tuple[int, str, bytes]:
    """(number, topic, bytes) of a MESSAGE.

    Raises:
        PeerFault: it is malformed.
    """
    try:
        number, name_size = _HEAD.unpack_from(payload)
        at = _HEAD.size + name_size
        size = _SIZE.unpack_from(payload, at)[0]
        topic = payload[_HEAD.size : at].decode("ascii")
    except (struct.error, UnicodeDecodeError) as error:
        raise PeerFault(f"a message is malformed: {error}") from None
    at += _SIZE.size
    if at + size > len(payload) or size > LETTER_SIZE_MAX or not 0 < name_size <= TOPIC_SIZE_MAX:
        raise PeerFault("a message is cut off, or too long")
    return number, topic, payload[at : at + size]


def confirmation(number: int) -> bytes:
    """The payload of a CONFIRM, without padding."""
    return _NUMBER.pack(number)
