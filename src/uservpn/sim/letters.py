"""Out-of-band messages between simulated nodes: each arrives as it was sent, where it was sent to, once.

A confirmed one ends within its time; what was told to be delivered was. One that its receiver handed on is
handed on again only after a restart there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final

from uservpn.mesh.mailbox import GIVE_UP_S, LETTER_SIZE_MAX
from uservpn.node.options import Message, MessageResult
from uservpn.types import NodeId

if TYPE_CHECKING:
    from uservpn.sim.member import Member
    from uservpn.sim.world import World

TOPIC: Final = "sim.letter"
LATE_S: Final = 1.0
"""A result may come so much later than GIVE_UP_S: the node's deadlines are coarse."""
WATCHED: Final = 200
"""The newest so many are looked through each second: no scenario sends more in GIVE_UP_S."""
_NUMBER_SIZE: Final = 4


@dataclass(slots=True)
class Letter:
    """One message and its fate."""

    number: int
    origin: int
    destination: int
    is_confirmed: bool
    payload: bytes
    sent_at: float
    author: Member
    """The start of the origin's node that sent it."""
    read_by: set[int] = field(default_factory=set)
    """Starts of the destination's node that handed it on."""
    is_delivered: bool | None = None
    """What the author was told."""


class Letters:
    """All messages of one world."""

    def __init__(self, world: World, rng: Random) -> None:
        self.letters: list[Letter] = []
        self._world = world
        self._rng = rng
        self._by_token: dict[tuple[int, int], Letter] = {}
        """By the boot of the author, and the token."""

    def send(self, author: Member, destination: int, is_confirmed: bool) -> Letter:
        """A program of this node sends some bytes to that one."""
        world = self._world
        number = len(self.letters)
        size = self._rng.randrange(LETTER_SIZE_MAX - _NUMBER_SIZE)
        payload = number.to_bytes(_NUMBER_SIZE, "big") + self._rng.randbytes(size)
        now = world.flowed_at = world.agenda.now
        me = author.seat.node
        letter = Letter(number, me, destination, is_confirmed, payload, now, author)
        self.letters.append(letter)
        world.note(me, "writes", number, destination, len(payload), is_confirmed)
        to = NodeId(destination)
        token = author.node.send_message(to, TOPIC, payload, now, confirmed=is_confirmed)
        if is_confirmed:
            self._by_token[author.boot, token] = letter
        author.settle()
        return letter

    def arrived(self, reader: Member, message: Message) -> None:
        """A node hands one on. Raises InvariantBroken."""
        me = reader.seat.node
        number = int.from_bytes(message.payload[:_NUMBER_SIZE], "big")
        letter = self.letters[number] if number < len(self.letters) else None
        if letter is None or (message.topic, message.payload) != (TOPIC, letter.payload):
            self._world.broken(f"node {me} reads from node {message.peer} what nobody wrote")
        if (message.peer, me) != (letter.origin, letter.destination):
            self._world.broken(f"node {me} reads letter {number} as one of node {message.peer}")
        if reader.seat.start_count in letter.read_by:
            self._world.broken(f"node {me} reads letter {number} twice")
        letter.read_by.add(reader.seat.start_count)

    def told(self, author: Member, result: MessageResult) -> None:
        """A node says how one ended. Raises InvariantBroken."""
        letter = self._by_token.get((author.boot, result.token))
        if letter is None or letter.author is not author or letter.is_delivered is not None:
            self._world.broken(f"node {author.seat.node} tells an end that is none: {result}")
        letter.is_delivered = result.delivered
        if result.delivered and not letter.read_by:
            self._world.broken(f"letter {letter.number} is said to be delivered, and was not")

    def second(self) -> None:
        """Once a second. Raises InvariantBroken."""
        now = self._world.agenda.now
        for letter in self.letters[-WATCHED:]:
            is_open = letter.is_confirmed and letter.is_delivered is None and letter.author.is_up
            if is_open and now > letter.sent_at + GIVE_UP_S + LATE_S:
                self._world.broken(f"letter {letter.number} has had no end for {GIVE_UP_S} s")
