"""What a message of each kind does, the tunnel's aside; docs/wire.md, section 5, has the kinds.

One method for each kind, found in a table. A peer that sends what makes no sense is named in the log and
loses the link.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from uservpn.errors import PeerFault
from uservpn.node.boots import Boots
from uservpn.node.flights import TOKEN_SIZE, Flights
from uservpn.node.linking import Linking
from uservpn.node.mailing import Mailing
from uservpn.node.members import Members
from uservpn.node.numbers import Numbers
from uservpn.node.options import CloseWanted
from uservpn.node.reach import Reach
from uservpn.node.relay import Reason
from uservpn.node.relaying import Relaying
from uservpn.node.sizing import Sizing
from uservpn.node.table import LinkEntry, Peer, Table
from uservpn.node.vigil import Vigil
from uservpn.types import LinkId
from uservpn.wire.constants import Kind
from uservpn.wire.header import Header


class Arrived(NamedTuple):
    """A message that may act."""

    peer: Peer
    link: LinkId
    entry: LinkEntry
    header: Header
    payload: bytes


class Deeds:
    """Does what single messages ask for, by handing it to the part whose matter it is."""

    def __init__(
        self,
        table: Table,
        *,
        boots: Boots,
        flights: Flights,
        linking: Linking,
        mailing: Mailing,
        members: Members,
        numbers: Numbers,
        reach: Reach,
        relaying: Relaying,
        sizing: Sizing,
        vigil: Vigil,
    ) -> None:
        self._table = table
        self._boots = boots
        self._flights = flights
        self._linking = linking
        self._mailing = mailing
        self._members = members
        self._numbers = numbers
        self._reach = reach
        self._relaying = relaying
        self._sizing = sizing
        self._vigil = vigil

    def act(self, arrived: Arrived, now: float) -> None:
        """Does it; a kind that is not known does nothing."""
        deed = _DEEDS.get(arrived.header.kind)
        if deed is not None:
            deed(self, arrived, now)

    # --- liveness and flight times ---------------------------------------------------------------

    def _keepalive(self, arrived: Arrived, now: float) -> None:
        self._members.directory.heard(arrived.peer.id, now)

    def _probe(self, arrived: Arrived, now: float) -> None:
        peer, link, _, header, payload = arrived
        answer = self._flights.answer(header, payload, now) + self._table.padding()
        peer.outbox.append((link, Kind.ANSWER, answer, 0))
        self._reach.probed(link, now)

    def _answer(self, arrived: Arrived, now: float) -> None:
        """How long one round trip over this link took, or how large a message may be."""
        peer, link, entry, _, payload = arrived
        token = payload[:TOKEN_SIZE]
        if peer.rival is not None:
            self._numbers.answered(peer, token, now)
        probe = peer.probes.pop(token, None)
        if probe is not None and probe[0] != link:
            self._strayed(peer, probe[0], now)
        elif probe is not None and entry.state is not None:
            self._returned(arrived, probe[1], now)
        if entry.state is not None and not entry.state.is_unproved:
            self._sizing.answered(link, entry, token, now)

    def _returned(self, arrived: Arrived, sent_at: float, now: float) -> None:
        """A probe of that time came back over the link that it went by."""
        peer, link, entry, header, payload = arrived
        state = entry.state
        assert state is not None
        is_first = state.rtt_s is None
        state.measured(now - sent_at)
        self._linking.proved(peer, state, now)
        peer.tunnel.rtt_s = state.rtt_s or peer.tunnel.rtt_s
        self._flights.answered(peer, link, sent_at, header, payload, now)
        if is_first and not entry.hops:
            self._linking.arrange(now)  # a nearer server than one that is kept?
        else:
            self._members.advertise(now)

    def _strayed(self, peer: Peer, link: LinkId, now: float) -> None:
        """A probe of `link` was answered over another one: only who got it could know its token.

        So somebody who races every message of the peer to us cannot make its real link look dead.
        """
        entry = self._table.links.get(link)
        if entry is not None and entry.peer is peer and entry.state is not None:
            self._linking.proved(peer, entry.state, now)
            peer.contact.heard(entry.state, now)

    # --- the mesh --------------------------------------------------------------------------------

    def _gossip(self, arrived: Arrived, now: float) -> None:
        self._vigil.news(now)
        if self._members.hear(arrived.peer, arrived.link, arrived.payload, now):
            self._linking.seek_ways(now)
        contested_boot = self._members.gossip.contested_boot()
        if contested_boot:
            self._numbers.claims.contradicted(contested_boot, now)
            self._boots.follow_claims(now)

    def _reached(self, arrived: Arrived, now: float) -> None:
        """How this node, or the peer, can be reached."""
        peer, link, entry, _, payload = arrived
        try:
            if self._reach.hear(peer, link, entry, payload, now):
                self._members.reach_changed(now)
        except PeerFault as fault:
            self._table.blame(peer, link, f"told addresses that make no sense: {fault}")

    def _unreachable(self, arrived: Arrived, now: float) -> None:
        relay, payload = arrived.peer, arrived.payload
        if payload[2:3] == bytes((Reason.OLD_BOOT,)):
            for other in self._relaying.reached_over(relay, payload[0]):
                self._boots.outdated(other, payload[7:15], now)
        self._linking.drop_ways(self._relaying.hear_unreachable(relay, payload, now), now)

    def _mail(self, arrived: Arrived, now: float) -> None:
        """An out-of-band message, or the confirmation of one."""
        peer, link, _, header, payload = arrived
        try:
            if header.kind == Kind.MESSAGE:
                self._mailing.receive(peer, link, payload)
            else:
                peer.mail.confirmed(payload)
        except PeerFault as fault:
            self._table.blame(peer, link, f"sent a message that makes no sense: {fault}")

    # --- boots and numbers -----------------------------------------------------------------------

    def _challenge(self, arrived: Arrived, now: float) -> None:
        peer, link = arrived.peer, arrived.link
        if peer.session.first_boot == peer.session.peer_boot:
            peer.outbox.append((link, Kind.ECHO, self._numbers.echo(arrived.payload, now), 0))
            peer.probes.clear()  # held over there: their answers would tell too long a flight
            self._table.probe(peer, link, now)

    def _claim(self, arrived: Arrived, now: float) -> None:
        peer, link, _, header, payload = arrived
        self._numbers.hear(peer, link, header.kind, payload, now)
        self._boots.follow_claims(now)

    def _outdated(self, arrived: Arrived, now: float) -> None:
        self._boots.outdated(arrived.peer, arrived.payload, now)

    def _goodbye(self, arrived: Arrived, now: float) -> None:
        self._table.end_streams(arrived.peer, f"node {arrived.peer.id} stops")
        self._table.events.append(CloseWanted(arrived.link))


_DEEDS: Final[Mapping[int, Callable[[Deeds, Arrived, float], None]]] = {
    Kind.KEEPALIVE: Deeds._keepalive,
    Kind.PROBE: Deeds._probe,
    Kind.ANSWER: Deeds._answer,
    Kind.GOSSIP: Deeds._gossip,
    Kind.REACH: Deeds._reached,
    Kind.UNREACHABLE: Deeds._unreachable,
    Kind.MESSAGE: Deeds._mail,
    Kind.CONFIRM: Deeds._mail,
    Kind.CHALLENGE: Deeds._challenge,
    Kind.DUPLICATE: Deeds._claim,
    Kind.CLAIM: Deeds._claim,
    Kind.OUTDATED: Deeds._outdated,
    Kind.GOODBYE: Deeds._goodbye,
}
