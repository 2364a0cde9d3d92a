"""The datagram links of this node that go through its NAT: kept alive while needed, as seldom as goes.

How seldom that is, a `Binding` finds out (mesh/binding.py), with the help of one peer that is asked to say
nothing for a time and to probe then. During such a trial all these links are silent: to many NATs they
are one mapping, which any of them keeps. So there is none where a peer has no other way to us: its mapping is
kept alive as often as at first, or more often if that is not enough. Here also stand the trials of others
that this node helps with.
"""

from __future__ import annotations

from typing import Final

from uservpn.mesh.binding import MAX_S, Binding
from uservpn.mesh.contact import Contact
from uservpn.mesh.liveness import LinkState
from uservpn.node.table import Peer, Table
from uservpn.types import LinkId
from uservpn.wire.constants import Kind

DATAGRAM: Final = "udp"
"""The protocol whose one socket makes holes in NATs."""
QUIETS_MAX: Final = 254
"""Trials of others at a time; more are not helped with."""
QUIET_CODE: Final = 4
AGAIN_S: Final = 10.0
"""After a trial that was disturbed."""
_NEVER_S: Final = float("inf")

Bound = tuple[Peer, LinkState]


class Bindings:
    """What one node does for its NAT, and for the NATs of others."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.binding = Binding(table.jitter)
        self._network = ""
        self._look_at: float | None = None
        self._quiets: dict[LinkId, tuple[float, float]] = {}
        """Links of others' trials: when to probe, and since when it has to be silent."""

    @property
    def is_kept(self) -> bool:
        """Is the mapping kept alive all the time?"""
        if not self._network or self.binding.trial is not None:
            return False
        return any(state.keep_s for _, state in self.links())

    @property
    def is_tried(self) -> bool:
        """Is it being found out how long it lasts in silence?"""
        return self.binding.trial is not None

    def links(self) -> list[Bound]:
        """Those that we dialled, with their peers; kept ones first."""
        found = [
            (peer, state)
            for peer in self._table.peers.values()
            for state in peer.contact.links
            if state.protocol == DATAGRAM and state.dialled and not state.is_tentative
        ]
        return sorted(found, key=lambda bound: (not bound[0].contact.is_kept, bound[0].id))

    # --- outside events --------------------------------------------------------------------------

    def follow(self, network: str, now: float) -> None:
        """We are seen at this address, and want to be reached there ("": not, or it is our own)."""
        self._network = network
        self.binding.enter(network, now)
        if self.binding.trial is not None:
            return
        links = self.links()
        is_due = self._look_at is None or now >= self._look_at
        is_trial = is_due and self.binding.wants_trial() and _is_spare(links)
        for index, (peer, state) in enumerate(links):
            is_needed = bool(network) and (index == 0 or not _is_connected(peer.contact))
            self._keep(peer, state, self.binding.interval_s if is_needed else 0.0)
        if is_trial:
            self._look_at = None
            self._begin_trial(links, now)
        elif not network:
            self._look_at = None
        elif is_due and not links:
            self.relink(now)
            self._look_at = now + MAX_S
        elif is_due:
            self._look_at = self.binding.next_deadline() or now + self.binding.interval_s

    def relink(self, now: float) -> None:
        """There is no datagram link to keep alive: whoever has a connection gets one, too."""
        for peer in self._table.peers.values():
            if peer.contact.is_kept and peer.contact.direct() is not None:
                peer.contact.want_other(now)
                self._table.touch(peer)

    def link_down(self, link: LinkId, now: float) -> None:
        """The link is gone, or will be in this turn: another one may have to be kept alive instead."""
        self._quiets.pop(link, None)
        if link == self.binding.trial:
            self.binding.disturbed(now)
        elif self.binding.trial is not None or not self._network:
            return
        if any(state.link == link for _, state in self.links()):
            self._look_at = now

    def probed(self, link: LinkId, now: float) -> None:
        """A PROBE came over this link."""
        if link != self.binding.trial:
            return
        if not self._is_silent(self.binding.trial_began, link):
            self._disturbed(now)
        elif self.binding.probed(link, now):
            self.follow(self._network, now)

    def help(self, link: LinkId, delay_s: float, now: float) -> None:
        """A peer asks for a probe on this link after so much silence."""
        if len(self._quiets) < QUIETS_MAX:
            self._quiets[link] = now + min(MAX_S, delay_s), now

    # --- time ------------------------------------------------------------------------------------

    def on_deadline(self, now: float) -> None:
        """Due work; harmless when early."""
        for link, (due, since) in list(self._quiets.items()):
            if now >= due:
                del self._quiets[link]
                entry = self._table.links.get(link)
                if entry and entry.peer and entry.state and _silent_since(entry.state, since):
                    self._table.touch(entry.peer)
                    self._table.probe(entry.peer, link, now)
        if self.binding.trial is not None and not self._is_silent(self.binding.trial_began):
            self._disturbed(now)
        if self.binding.on_deadline(now):
            self._look_at = now
        if self._look_at is not None and now >= self._look_at:
            self.follow(self._network, now)

    def next_deadline(self) -> float | None:
        """When `on_deadline` wants to be called."""
        times = [due for due, _ in self._quiets.values()]
        times += [at for at in (self._look_at, self.binding.next_deadline()) if at is not None]
        return min(times, default=None)

    # --- inside ----------------------------------------------------------------------------------

    def _begin_trial(self, links: list[Bound], now: float) -> None:
        """The first one's peer probes after a time; until then nothing may go out through the NAT."""
        helper, asked = links[0]
        delay_s = round(self.binding.asked(asked.link, now))
        payload = bytes((QUIET_CODE,)) + delay_s.to_bytes(2, "big") + self._table.padding()
        self._table.touch(helper)
        helper.outbox.append((asked.link, Kind.REACH, payload, 0))
        for index, (peer, state) in enumerate(links):
            if index and state.keep_s:
                peer.outbox.append((state.link, Kind.KEEPALIVE, self._table.padding(), 0))
            if state.keep_s:
                self._keep(peer, state, _NEVER_S)

    def _disturbed(self, now: float) -> None:
        """The trial tells nothing; another one in a while."""
        self.binding.disturbed(now)
        self._look_at = now + AGAIN_S
        self.follow(self._network, now)

    def _keep(self, peer: Peer, state: LinkState, keep_s: float) -> None:
        if state.keep_s != keep_s:
            state.keep_s = keep_s
            self._table.touch(peer)

    def _is_silent(self, since: float, but: LinkId | None = None) -> bool:
        return all(_silent_since(s, since) for _, s in self.links() if s.link != but)


def _is_spare(links: list[Bound]) -> bool:
    """Can they be silent for a while? Nobody uses them, and their peers can reach us otherwise."""
    return bool(links) and not any(
        peer.is_needed() or not _is_connected(peer.contact) for peer, _ in links
    )


def _is_connected(contact: Contact) -> bool:
    """Can its peer reach us without a datagram?"""
    return any(not state.is_lossy and not state.relayed for state in contact.links)


def _silent_since(state: LinkState, since: float) -> bool:
    """Has nothing been sent or heard on it, but what came with the request itself?"""
    allowed = since + 1.0 + 2 * (state.rtt_s or 0.0)
    return state.sent_at <= allowed and state.heard_at <= allowed
