"""The laws of the mesh, checked while it runs.

After every step of a node: nobody is forgotten (no lost wake-up), its own record is what it declared,
no message of others passes it twice, and what it relays has a possible way. Once a second, everywhere:
tables and queues keep their limits (where a node has done something since), every record in every list is
word for word what its owner declared, no nonce was used twice, what ended an exit ended its connections in
time, and who has nothing to do says little.
(Delivered bytes and doubled messages are checked where they arrive: `flow.py`, `letters.py`, `member.py`.)
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Final

from uservpn.mesh.records import Record, decode
from uservpn.node import admission, relay, relaying, table
from uservpn.sim.link import UdpLink
from uservpn.sim.network import Batch
from uservpn.tunnel import limits

if TYPE_CHECKING:
    from uservpn.sim.member import Member
    from uservpn.sim.world import World

_ORIGIN, _DESTINATION, _HOP1, _HOP2 = 1, 2, 21, 22  # places among the header's fields
_PASSED_MAX: Final = 200_000
FORGOTTEN_SMALL: Final = 6
"""In worlds of up to so many nodes the search for forgotten peers is made after every step."""
FORGOTTEN_EVERY: Final = 7
FORGOTTEN_RARE: Final = 199
"""In worlds of more than SAMPLE nodes."""
SAMPLE: Final = 20
"""Members whose tables and lists are looked through in one second."""
QUIET_S: Final = 200.0
"""So long after the last change, all that follows from it (digests, for up to 191 s) has been said."""
MINUTE_S: Final = 60.0
PASSED: Final = 3
"""Messages that one passed on for others may cost: itself, and two probes of a datagram link so used."""
OUTBOX_MAX: Final = 2000
ANSWER_S: Final = 8.0
"""A silent link is given up after so long (mesh/liveness.py: twice ANSWER_S), or 8 round trips."""


def messages_a_minute(
    link_count: int,
    keepalive_s: float,
    dial_count: int,
    opened_count: int,
    binding_s: float,
    is_natted: bool,
) -> int:
    """What a node may say in a minute when nothing happens and nothing has happened lately.

    Each link carries a PROBE or its answer each way in 0.9 to 1 keep-alive times (a datagram link counts
    thrice: one that falls silent is asked again), and the digest of once an
    hour may fall into this minute, with a summary on either side. A dial to somebody who is gone costs at
    most the probes that a datagram link sends before it is given up. A link that comes up, as when a
    router has forgotten and a KEEPALIVE arrives from a new port, is proved and measured, and the one that
    it replaces is asked until it is given up. Who keeps bindings of a router alive, to be reached through
    them, speaks every `binding_s` seconds, or 10 % earlier, and now and then asks for a trial. Behind a
    router that forgets (`is_natted`), each KEEPALIVE is one from a new port, which is proved and measured.
    """
    keepalive_s = min(keepalive_s, binding_s)
    kept = link_count * ceil(MINUTE_S / (0.9 * keepalive_s))
    if is_natted:
        kept *= 12
    return kept + 6 * dial_count + 24 * opened_count + 8


class Laws:
    """Watches one world. What does not hold raises InvariantBroken."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.busiest_minute = 0.0
        """The most that an idle node said in a minute, as a share of what it may."""
        self._declared: dict[tuple[int, int, int], Record] = {}
        self._passed: set[tuple[int, bytes]] = set()
        self._generations: dict[int, tuple[int, int]] = {}
        self._died: dict[tuple[int, int], float] = {}
        self._minute: dict[int, tuple[int, int, int, int, int, int]] = {}
        self._unchecked: set[Member] = set()
        """Who has done something since its limits were checked: only a step changes its tables."""
        self._minute_at = 0.0
        self._minute_is_quiet = False
        self._count = 0
        self._turn = 0

    # --- every step ------------------------------------------------------------------------------

    def declared(self, own: Record) -> None:
        """A node has a new version of its record."""
        key = own.node, own.boot, own.version
        if self._declared.setdefault(key, own) != own:
            self.world.broken(f"node {own.node} declared version {own.version} twice")

    def died(self, member: Member) -> None:
        """A node ended."""
        self._died[member.seat.node, member.seat.start_count] = self.world.agenda.now

    def step(self, member: Member) -> None:
        """A node has done something."""
        self._count += 1
        self._unchecked.add(member)
        count = len(self.world.seats)
        every = 1 if count <= FORGOTTEN_SMALL else FORGOTTEN_EVERY
        if self._count % (every if count <= SAMPLE else FORGOTTEN_RARE) == 0:
            forgotten = member.node.forgotten()
            if forgotten:
                self.world.broken(f"node {member.seat.node} forgot {forgotten}")

    def sent(self, member: Member, batch: Batch) -> None:
        """A node sends: what is not its own passes it once, on a way that can be."""
        me = member.seat.node
        for head, _ in batch:
            fields = member.fields(head)
            if fields[_ORIGIN] == me:
                continue
            way = [fields[_ORIGIN], fields[_HOP1], fields[_HOP2], fields[_DESTINATION]]
            nodes = [node for node in way if node]
            if len(set(nodes)) != len(nodes) or me not in (fields[_HOP1], fields[_HOP2]):
                self.world.broken(f"node {me} passes on what goes {way}")
            key = me, fields[:21]
            if key in self._passed:
                self.world.broken(f"node {me} passes one message of {way} on twice")
            if len(self._passed) > _PASSED_MAX:
                self._passed.clear()
            self._passed.add(key)

    # --- every second ----------------------------------------------------------------------------

    def second(self) -> None:
        """Everywhere."""
        world = self.world
        if world.nonces.repeated:
            world.broken(world.nonces.repeated[0])
        for member in self._some(world.alive() + world.twins):
            if member in self._unchecked:
                self._unchecked.remove(member)
                self._check_limits(member)
            self._check_records(member)
        world.letters.second()
        self._check_flows()
        self._check_quiet()

    def _some(self, members: list[Member]) -> list[Member]:
        """All of them, or where there are many, others each time."""
        if len(members) <= SAMPLE:
            return members
        start = self._turn % len(members)
        self._turn += SAMPLE
        return (members + members)[start : start + SAMPLE]

    def _check_limits(self, member: Member) -> None:
        node = member.node
        broken = self.world.broken
        me = member.seat.node
        for to, queue in node.relay.queues.items():
            if queue.size > relay.QUEUE_MAX:
                broken(f"node {me} queues {queue.size} bytes for node {to}")
        if len(node.relay.freshness) > relay.FLOWS_MAX:
            broken(f"node {me} has {len(node.relay.freshness)} windows as a relay")
        ways: dict[int, int] = {}
        for entry in node.links.values():
            if entry.hops and entry.peer is not None:
                ways[entry.peer.id] = ways.get(entry.peer.id, 0) + 1
                nodes = {me, *entry.hops, entry.peer.id}
                if len(entry.hops) > 2 or len(nodes) != len(entry.hops) + 2:
                    broken(f"node {me} has a way {entry.hops} to {entry.peer.id}")
        if max(ways.values(), default=0) > relaying.RELAYED_MAX:
            broken(f"node {me} has {ways} ways")
        for peer in node.peers.values():
            if (
                len(peer.held) > admission.HELD_MAX
                or len(peer.probes) > table.PROBES_MAX + 1
                or len(peer.outbox) > OUTBOX_MAX
                or peer.tunnel.cache_size > limits.CACHE_MAX + (1 << 20)
            ):
                broken(f"node {me} keeps too much for node {peer.id}")

    def _check_records(self, member: Member) -> None:
        """Only the owner writes its record."""
        directory = member.node.directory
        mark = member.boot, directory.generation
        if self._generations.get(member.seat.node) == mark:
            return
        self._generations[member.seat.node] = mark
        for record in directory:
            declared = self._declared.get((record.node, record.boot, record.version))
            if declared != record and declared is not None:
                declared = _as_sent(declared)
            if declared != record:
                self.world.broken(f"node {member.seat.node} has a forged {record}")

    def _check_flows(self) -> None:
        """An exit that is gone ends its connections, at the latest when its grace time is over."""
        world = self.world
        for flow in world.flows.values():
            if flow.is_over or flow.near is None:
                continue
            client = world.members[flow.client]
            died_at = self._died.get((flow.exit, flow.exit_start))
            if died_at is None or not client.is_up:
                continue
            late_s = world.agenda.now - max(died_at, flow.opened_at)
            if late_s > dead_exit_s(client.seat.keepalive_s, client.seat.grace_s):
                world.broken(f"flow {flow.number} is {late_s:.0f} s older than its exit's end")

    def _check_quiet(self) -> None:
        world = self.world
        now = world.agenda.now
        if any(not flow.is_over for flow in world.flows.values()):
            world.flowed_at = now
        is_quiet = now - max(world.changed_at, world.flowed_at) > QUIET_S
        self._minute_is_quiet = self._minute_is_quiet and is_quiet
        if now < self._minute_at + MINUTE_S:
            return
        for member in world.alive():
            me = member.seat.node
            passed_now = member.node.relay.counters.passed
            boot, sent, dials, opened, passed, before = self._minute.get(me, (0, 0, 0, 0, 0, 0))
            links = sum(3 if isinstance(link, UdpLink) else 1 for link in member.links.values())
            if self._minute_is_quiet and boot == member.boot:
                most = messages_a_minute(
                    max(before, links),  # one that was closed in this minute has had its say
                    member.seat.keepalive_s,
                    member.dial_count - dials,
                    member.opened_count - opened,
                    _binding_s(member),
                    member.seat.host.nat is not None,
                )
                said = member.sent_count - sent
                most += PASSED * (passed_now - passed)  # what others say over it
                self.busiest_minute = max(self.busiest_minute, said / most)
                if said > most:
                    world.broken(
                        f"node {me} is idle and said {said} messages in a minute, not {most}"
                    )
            counts = (
                member.sent_count,
                member.dial_count,
                member.opened_count,
                passed_now,
                links,
            )
            self._minute[me] = member.boot, *counts
        self._minute_at = now
        self._minute_is_quiet = is_quiet


def _binding_s(member: Member) -> float:
    """How often a node speaks on its links to keep the bindings of a router."""
    bindings = member.node.reach.bindings
    return bindings.binding.interval_s if bindings.is_kept else member.seat.keepalive_s


def dead_exit_s(keepalive_s: float, grace_s: float) -> float:
    """By when a connection through an exit that is silent is over, seconds.

    Its link is probed after at most the keep-alive time of silence, given up after twice ANSWER_S,
    and the grace time begins; a link that is slow has a little more.
    """
    return keepalive_s + 2 * ANSWER_S + grace_s + 10.0


def _as_sent(record: Record) -> Record:
    """What a record is for those who got it: round trips in 0.1 ms."""
    return decode(record.encode())
