"""Two nodes with one number: found where they meet, told to both, and kept from harming the first.

A message with another boot than the known one is a restart, or another node. While links to the known
one stand, the newcomer is a *rival* (docs/wire.md, section 21): what it says is held, it has to echo a
random value and claim the number, and the known one is probed. Silence there means a restart: its links
end, and the rival is heard. An answer means that both live: each is told of the other's claim, the
younger one stands back (mesh/claims.py), and the tunnel to the known one has not noticed.

A boot below the known one cannot be accepted, or old recordings could be played again. Its owner is told, and
takes a boot above that for this one peer: to it, that is a restart.
"""

from __future__ import annotations

from typing import Final

from uservpn.errors import PeerFault
from uservpn.mesh.claims import (
    TOLD_S,
    Announce,
    Claim,
    Claims,
    Heard,
    Resume,
    StandBack,
    Supersede,
    Tell,
)
from uservpn.mesh.liveness import LinkState
from uservpn.node.admission import CHALLENGE_SIZE
from uservpn.node.members import Members
from uservpn.node.table import Peer, Rival, Table
from uservpn.types import Buffer, LinkId
from uservpn.wire.constants import BOOT_CHANCE, BOOT_MAX, FLAG_BOUND, Kind
from uservpn.wire.header import Header

PATIENCE_S: Final = 1.0
"""How long the known node may take to answer, or 4 round trips..."""
PATIENCE_OTHER_S: Final = 5.0
"""...and how long where the rival says that it is another machine's."""
RIVAL_S: Final = 20.0
"""A rival that is neither heard nor gone after so long is forgotten."""
AGAIN_S: Final = 1.0
"""Challenges and notices to both sides are repeated about so often: any of them may be lost."""
HELD_MAX: Final = 64
HELD_SIZE_MAX: Final = 1 << 18
"""What one rival has sent; more is dropped."""
NOTICE_EVERY_S: Final = 0.2
RENEW_EVERY_S: Final = 2.0
"""A peer's word makes us take another boot for it at most so often."""
LINKS_MAX: Final = 4
"""Links of the known node that are probed."""


class Numbers:
    """Rivals of peers, and this node's own claim."""

    def __init__(self, table: Table, members: Members, claims: Claims) -> None:
        self._table = table
        self._members = members
        self.claims = claims
        self.heard = Heard()

    # --- messages of another boot ----------------------------------------------------------------

    def judge(self, peer: Peer, link: LinkId, header: Header, body: Buffer, now: float) -> bool:
        """A message whose boot is not the known one; False: it is to be treated like any other."""
        entry = self._table.links.get(link)
        if entry is None or (entry.peer is peer and (not entry.state or _is_heard(entry.state))):
            return False  # over the known node's own link: it was restarted
        rival = peer.rival
        if rival is not None and rival.link not in self._table.links:
            rival = peer.rival = None  # it has gone; whoever comes now is asked anew
        if rival is not None and rival.boot == header.boot:
            self._hear_rival(peer, rival, link, header, body, now)
            return True
        is_linked = bool(_others(peer, link))
        if not is_linked and header.boot > peer.session.peer_boot:
            return False
        payload = peer.session.peek(header, body)
        if payload is None or (
            header.boot < peer.session.peer_boot
            and not self._is_recent(header, payload.sent_ms, now)
        ):
            return False
        if not is_linked:
            self._tell_outdated(peer, link, header.boot, now)
        elif rival is None or (rival.claim is None and now >= rival.since + 2 * AGAIN_S):
            rival = peer.rival = Rival(
                header.boot, link, self._table.random(CHALLENGE_SIZE), now, now
            )
            self._hold(rival, link, header, body)
            self._ask_both(peer, rival, now)
        return True

    def echo(self, value: bytes, now: float) -> bytes:
        """What answers a CHALLENGE: the value, and our claim."""
        return value[:CHALLENGE_SIZE] + self.claims.own(now).encode()

    def answered(self, peer: Peer, token: bytes, now: float) -> None:
        """The known node answered a probe."""
        rival = peer.rival
        if rival is not None and token in rival.tokens:
            rival.is_known_alive = True
            self._tell_both(peer, rival, now)

    def is_gone(self, peer: Peer, now: float) -> bool:
        """A rival waits: is the known node silent for too long, or has it no link any more?

        Only for one that has echoed is a link given up: recordings must not do that.
        """
        rival = peer.rival
        if rival is None or rival.link not in self._table.links:
            peer.rival = None  # it has gone again
            return False
        known = _others(peer, rival.link)
        if rival.is_known_alive or rival.claim is None or not known:
            return not known
        rtt_s = max(state.rtt_s or 0.0 for state in known)
        is_other = rival.claim.instance != peer.instance
        least = PATIENCE_OTHER_S if is_other and peer.instance else PATIENCE_S
        return now >= rival.since + max(least, 4 * rtt_s)

    def on_deadline(self, peer: Peer, now: float) -> None:
        """Repeats what may have been lost, forgets a rival that says no more."""
        rival = peer.rival
        if rival is None or now < rival.again_at:
            return
        if now >= rival.since + RIVAL_S:
            peer.rival = None
        elif rival.claim is None or not rival.is_known_alive:
            self._ask_both(peer, rival, now)
        else:
            self._tell_both(peer, rival, now)

    # --- claims ----------------------------------------------------------------------------------

    def hear(self, peer: Peer, link: LinkId, kind: int, payload: bytes, now: float) -> None:
        """Somebody claims a number: ours, or another one's, which is passed on."""
        table = self._table
        try:
            claim = Claim.decode(payload)
        except PeerFault as fault:
            table.blame(peer, link, f"sent a claim that makes no sense: {fault}")
            return
        if kind == Kind.CLAIM and claim.node == peer.id:
            claim = claim._replace(address=table.links[link].remote)
        if claim.node == table.me:
            self.claims.hear(claim, now)
        elif kind == Kind.CLAIM and self.heard.admit(claim, now):
            self._flood(claim, peer)
            known = table.peers.get(claim.node)
            if known is not None and known.rival is not None:
                self._tell_both(known, known.rival, now)

    def follow(self, now: float) -> list[StandBack | Resume]:
        """Carries out what follows from claims to our number; what the whole node has to do."""
        rest: list[StandBack | Resume] = []
        for plan in self.claims.take_plans():
            match plan:
                case Announce(claim):
                    self._flood(claim, None)
                case Tell(text):
                    self._table.tell(self._table.me, text, "warning")
                case Supersede(boot):
                    self._members.supersede(boot, now)
                case StandBack() | Resume():
                    rest.append(plan)
        return rest

    def renew(self, peer: Peer, known: int, now: float) -> bool:
        """The peer knows this boot of our number: ours takes one above that, for it alone.

        False: it is above already, impossible, or this was asked too often.
        """
        table, session = self._table, peer.session
        if known > BOOT_MAX - (2 << 32):  # nothing is above that
            table.counters.peer_faults += 1
            return False
        if known <= session.my_boot or now < peer.renewed_at + RENEW_EVERY_S or table.is_back:
            return False
        peer.renewed_at = now
        table.touch(peer)
        fresh = int((now + table.wall_s) * 1000) << BOOT_CHANCE
        above = known + 1 + int.from_bytes(table.random(4), "big")  # no boot comes twice
        peer.session = session.renewed(max(fresh, above), table.codec)
        return True

    # --- inside ----------------------------------------------------------------------------------

    def _flood(self, claim: Claim, source: Peer | None) -> None:
        """A claim goes to every neighbour but the one it came from."""
        for peer in self._table.peers.values():
            state = peer.contact.direct()
            if peer.is_neighbour and state is not None and peer is not source:
                self._send(peer, state.link, Kind.CLAIM, claim.encode(), 0)

    def _hear_rival(
        self, peer: Peer, rival: Rival, link: LinkId, header: Header, body: Buffer, now: float
    ) -> None:
        opened = peer.session.peek(header, body)
        if opened is None:
            self._table.counters.stale += 1
            return
        if header.kind != Kind.ECHO:
            self._hold(rival, link, header, body)
            return
        if opened.payload[:CHALLENGE_SIZE] == rival.value and rival.claim is None:
            try:
                claim = Claim.decode(opened.payload[CHALLENGE_SIZE:])
            except PeerFault:
                self._table.counters.peer_faults += 1
                return
            rival.link = link
            rival.claim = claim._replace(address=self._table.links[link].remote)
            self._tell_both(peer, rival, now)

    def _hold(self, rival: Rival, link: LinkId, header: Header, body: Buffer) -> None:
        size = rival.held_size + len(body)
        if len(rival.held) < HELD_MAX and size <= HELD_SIZE_MAX:
            rival.held.append((link, header, bytes(body)))
            rival.held_size = size

    def _ask_both(self, peer: Peer, rival: Rival, now: float) -> None:
        """Do both of them live?"""
        self._repeat(rival, now)
        if rival.claim is None:
            self._send(peer, rival.link, Kind.CHALLENGE, rival.value, rival.boot)
        if not rival.is_known_alive:
            for state in _others(peer, rival.link)[:LINKS_MAX]:
                rival.tokens.add(self._table.probe(peer, state.link, now))

    def _tell_both(self, peer: Peer, rival: Rival, now: float) -> None:
        """Each hears of the other's claim; the known one decides, and ours is to pass it on."""
        links = _others(peer, rival.link)
        if rival.claim is None or not rival.is_known_alive or not links:
            return
        self._repeat(rival, now)
        known = links[0].link
        self._send(peer, known, Kind.DUPLICATE, rival.claim.encode(), 0)
        claim = self.heard.of(peer.id, peer.session.peer_boot, now)
        if claim is not None:
            remote = self._table.links[known].remote
            claim = claim._replace(address=remote)
            self._send(peer, rival.link, Kind.DUPLICATE, claim.encode(), rival.boot)
        if now >= peer.rival_told_at + TOLD_S:
            peer.rival_told_at = now
            remotes = f"{self._table.links[known].remote} and {rival.claim.address}"
            text = f"duplicate: two nodes have the number {peer.id}, at {remotes}"
            self._table.tell(peer.id, text, "warning")

    def _repeat(self, rival: Rival, now: float) -> None:
        """The next time is not the same for all nodes that have seen the two at once."""
        rival.again_at = now + AGAIN_S + self._table.jitter(AGAIN_S / 4)

    def _tell_outdated(self, peer: Peer, link: LinkId, boot: int, now: float) -> None:
        """Its owner is to take a boot above the one that is known here."""
        self._table.counters.stale += 1
        if now >= peer.notice_at:
            peer.notice_at = now + NOTICE_EVERY_S
            known = peer.session.peer_boot.to_bytes(8, "big")
            self._send(peer, link, Kind.OUTDATED, known, boot)

    def _send(self, peer: Peer, link: LinkId, kind: int, payload: bytes, boot: int) -> None:
        self._table.touch(peer)
        peer.outbox.append((link, kind, payload + self._table.padding(), boot))

    def _is_recent(self, header: Header, sent_ms: int, now: float) -> bool:
        if header.flags & FLAG_BOUND:
            return self._table.is_stamp_recent(header, now)
        return self._table.is_recent(sent_ms / 1000, now)


def _is_heard(state: LinkState) -> bool:
    """Has anything come over this link? One of ours, or a way over relays, is nobody's before."""
    return state.heard_at > state.up_at


def _others(peer: Peer, link: LinkId) -> list[LinkState]:
    """The links of the known node: all but the rival's, which may have been dialled in its place."""
    return [state for state in peer.contact.links if state.link != link and _is_heard(state)]
