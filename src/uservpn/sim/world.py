"""The simulated world: seats, their nodes, the network, flows, and the laws that hold all the time.

Everything is drawn from one seed, so a run can be had again exactly. What happens is noted in a bounded
story, and summed up in a digest that two runs of one seed share.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from random import Random
from typing import Final, NoReturn
from zlib import crc32

from uservpn.errors import UservpnError
from uservpn.mesh.records import Record
from uservpn.sim.agenda import Agenda
from uservpn.sim.checkers import Laws
from uservpn.sim.flow import Flow, Pattern
from uservpn.sim.letters import Letters
from uservpn.sim.link import Link
from uservpn.sim.member import Member, Seat
from uservpn.sim.network import Batch, Network, Weather
from uservpn.sim.plain import Nonces, PlainRing
from uservpn.types import LinkId
from uservpn.wire.header import HeaderCodec
from uservpn.wire.keys import KeyRing, Ring

STORY_MAX: Final = 120
CAPTURED_MAX: Final = 300
START_S: Final = 1000.0
"""`now` at the beginning."""
WALL_S: Final = 1_700_000_000.0


class InvariantBroken(UservpnError):
    """A law of the mesh did not hold."""


class World:
    """Members by number, and what happens between them."""

    def __init__(
        self, seed: int, weather: Weather, *, is_plain: bool = True, has_story: bool = True
    ) -> None:
        self.seed = seed
        self.agenda = Agenda(START_S)
        self.wall_s = WALL_S
        self.rng = Random(f"{seed}/world")
        self.network = Network(self.agenda, Random(f"{seed}/network"), weather)
        self.pattern = Pattern(Random(f"{seed}/pattern"))
        self.nonces = Nonces()
        self.seats: dict[int, Seat] = {}
        self.members: dict[int, Member] = {}
        """The newest start of each seat."""
        self.flows: dict[int, Flow] = {}
        self.letters = Letters(self, Random(f"{seed}/letters"))
        self.twins: list[Member] = []
        """Other nodes that have the number of one of `members`; by intention they do not last."""
        self.captured: list[tuple[int, bytes, bytes]] = []
        """Messages that somebody on the path has kept: destination, header, payload."""
        self.captures = False
        self.delivered_size = 0
        self.wake_count = 0
        self.changed_at = START_S
        """When a node last started, ended, or changed its record, or the network changed."""
        self.flowed_at = START_S
        """When a connection was last opened or seen open, or a message sent out of band."""
        self.digest = 0
        self.has_story = has_story
        self.laws = Laws(self)
        self.story: deque[tuple[object, ...]] = deque(maxlen=STORY_MAX)
        self._is_plain = is_plain
        self._rings: dict[tuple[bytes, ...], Ring] = {}
        self._eye = Random(f"{seed}/eye")
        self._last_link = 0

    # --- nodes -----------------------------------------------------------------------------------

    def ring(self, keys: Sequence[bytes]) -> Ring:
        """The key ring of nodes that have these keys."""
        chosen = tuple(keys)
        ring: Ring | None = self._rings.get(chosen)
        if ring is None:
            ring = KeyRing(chosen)
            if self._is_plain:
                ring = PlainRing(chosen, self.nonces)
            self._rings[chosen] = ring
        return ring

    def new_link_id(self) -> LinkId:
        """A fresh number."""
        self._last_link += 1
        return LinkId(self._last_link)

    def start(self, seat: Seat) -> Member:
        """The seat's node starts; its host is on."""
        self.seats[seat.node] = seat
        seat.host.is_up = True
        self.note(seat.node, "starts")
        member = self.members[seat.node] = Member(self, seat)
        member.start()
        self.changed_at = self.agenda.now
        return member

    def kill(self, node: int, power: bool = False) -> None:
        """The node dies, and with `power` its machine too."""
        member = self.members[node]
        if member.is_up:
            self.note(node, "loses power" if power else "killed")
            member.kill(power)
            self.laws.died(member)
            self.changed_at = self.agenda.now

    def alive(self) -> list[Member]:
        """Nodes that run."""
        return [member for member in self.members.values() if member.is_up]

    def open_flow(
        self, client: int, exit: int, up_size: int, down_size: int, dial_s: float, refused: bool
    ) -> Flow:
        """A program at `client` connects through `exit`."""
        number = len(self.flows)
        now = self.agenda.now
        flow = Flow(number, client, exit, up_size, down_size, now, dial_s, refused)
        flow.exit_start = self.seats[exit].start_count
        self.flows[number] = flow
        self.flowed_at = now
        self.note(client, "opens flow", number, exit, up_size, down_size)
        self.members[client].open(flow)
        return flow

    # --- what is seen ----------------------------------------------------------------------------

    def note(self, node: int, what: str, *details: object) -> None:
        """One step of the story."""
        if self.has_story:
            step = (round(self.agenda.now, 6), node, what, *details)
            self.digest = crc32(repr(step).encode(), self.digest)
            self.story.append(step)

    def sent(self, member: Member, link: Link, batch: Batch, size: int) -> None:
        """A node sends."""
        if self.has_story:
            self.note(member.seat.node, "sends", link.id, len(batch), size)
        self.laws.sent(member, batch)
        if self.captures and self._eye.random() < 0.05:
            head, body = batch[self._eye.randrange(len(batch))]
            header = member.codec.open(head)
            assert header is not None
            kept = header.destination, head, body
            if len(self.captured) < CAPTURED_MAX:
                self.captured.append(kept)
            else:
                self.captured[self._eye.randrange(CAPTURED_MAX)] = kept

    def replay(self) -> None:
        """Somebody sends a kept message again: on a connection of his own, or in another's name."""
        if not self.captured:
            return
        node, head, body = self.captured[self._eye.randrange(len(self.captured))]
        if self._eye.random() < 0.3:
            node = self._eye.choice(list(self.members))
        member = self.members.get(node)
        if member is None or not member.is_up:
            return
        self.note(node, "is replayed to", head[:8].hex())
        links = list(member.links.values())
        if links and self._eye.random() < 0.7:
            link = links[self._eye.randrange(len(links))]
            member.messages(link, [(head, body)])
        else:
            number = self.new_link_id()
            member.node.link_up(number, "tcp", 4096, "tcp://192.0.2.66:666", self.agenda.now)
            header = HeaderCodec(self.ring(member.seat.keys)).open(head)
            if header is not None:
                member.node.receive(number, header, body, self.agenda.now)
            member.settle()

    def check_step(self, member: Member) -> None:
        """After every step of a node."""
        own = member.node.directory.own
        if own is not member.told:
            member.told = own
            self.laws.declared(own)
            self.changed_at = self.agenda.now
        self.laws.step(member)

    def broken(self, text: str) -> NoReturn:
        """A law does not hold: the end.

        Raises:
            InvariantBroken: always.
        """
        raise InvariantBroken(f"at {self.agenda.now - START_S:.3f} s: {text}")

    # --- time ------------------------------------------------------------------------------------

    @property
    def age_s(self) -> float:
        """Seconds since the beginning."""
        return self.agenda.now - START_S

    def run(self, seconds: float) -> None:
        """So much time passes. Raises InvariantBroken."""
        agenda = self.agenda
        end = agenda.now + seconds
        while agenda.now < end:
            tick = min(end, agenda.now // 1.0 + 1.0)
            while agenda.step(tick):
                pass
            self.laws.second()

    def digests(self) -> set[bytes]:
        """Of the lists of all running nodes: one, where they agree."""
        return {member.node.directory.digest() for member in self.alive()}

    def record(self, node: int) -> Record | None:
        """What the running node says of itself."""
        member = self.members.get(node)
        return member.node.directory.own if member is not None and member.is_up else None
