"""Does this node hear anybody? One watch over all its links.

A link that nobody uses is asked once in the keep-alive time (mesh/liveness.py). A node whose own network has
gone, or has given it another address without a word, would find that out only then, and nobody can tell it:
nothing reaches it. So the links take turns: while nobody at all is heard, the one that was not heard for
longest is asked after the keep-alive time divided by their number. That costs nothing, since it then need
not be asked for itself.

Where there were news all the time, silence means something sooner: a turn is no longer than GAPS of the usual
times between news, and twice as long after each question (what is usual decides, as in accrual failure
detectors: Hayashibara et al., "The phi accrual failure detector", 2004). So a node that the rest of the
mesh cannot dial notices within seconds that it was cut off; in a quiet mesh it says nothing more for it.

Where a link falls silent and nobody else was heard since, it is its peer that is gone, or our own network.
The two others that were heard last are asked, and two more for each of those that is silent, too: a dead
network is known as one within seconds, a dead peer costs two probes.
"""

from __future__ import annotations

from typing import Final

from uservpn.mesh.liveness import LinkState
from uservpn.node.table import Peer, Table

ASKED: Final = 2
"""Others that are asked where a link is silent."""
TURN_MIN_S: Final = 5.0
GAPS: Final = 6
BURST_S: Final = 0.5
"""News that come together count as one."""
EARLY: Final = 0.1
"""Turns are shorter by up to this share, at random."""


class Vigil:
    """Asks one link after the other while all are silent."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._due: float | None = None
        self._gap_s = table.options.keepalive_s
        """Between news, smoothed; longer after each question, since it was silent so long."""
        self._news_at = 0.0

    # --- outside events --------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """There is one more neighbour."""
        due = now + self._turn_s(max(1, len(self._links())))
        self._due = due if self._due is None else min(self._due, due)

    def news(self, now: float) -> None:
        """Gossip came."""
        gap_s = now - self._news_at
        if gap_s < BURST_S:
            return
        self._news_at = now
        self._gap_s = min(self._gap_s, self._table.options.keepalive_s)
        self._gap_s += (min(gap_s, self._table.options.keepalive_s) - self._gap_s) / 4
        turn_s = max(TURN_MIN_S, GAPS * self._gap_s)
        if self._due is not None and self._due > now + turn_s:
            self._due = now + turn_s

    def doubt(self, silent: LinkState, now: float) -> None:
        """This link is silent: is it the only one?"""
        since = silent.owed_since
        if since is None or silent.is_tentative or silent.is_unproved or not silent.is_ours_to_ask:
            return
        links = self._links()
        if any(state.heard_at > since for _, state in links):
            return
        others = [
            (peer, state)
            for peer, state in links
            if state.owed_since is None and state.asked_at < since
        ]
        others.sort(key=lambda link: link[1].heard_at)
        for peer, state in others[-ASKED:]:
            self._ask(peer, state, now)

    # --- time ------------------------------------------------------------------------------------

    def on_deadline(self, is_trial: bool, now: float) -> None:
        """Due work; harmless when early. `is_trial`: datagrams must not be sent (node/bindings.py)."""
        if self._due is None or now < self._due:
            return
        links = self._links()
        if not links:
            self._due = None
            return
        turn_s = self._turn_s(len(links))
        due = max(state.heard_at for _, state in links) + turn_s
        if now >= due:
            self._gap_s *= 2
            asked = [link for link in links if not (is_trial and link[1].is_lossy)]
            if asked:
                peer, state = min(asked, key=lambda link: max(link[1].heard_at, link[1].asked_at))
                self._ask(peer, state, now)
            due = now + self._turn_s(len(links))
        self._due = due

    def next_deadline(self) -> float | None:
        """When `on_deadline` wants to be called."""
        return self._due

    # --- inside ----------------------------------------------------------------------------------

    def _links(self) -> list[tuple[Peer, LinkState]]:
        """Direct ones that were answered, and that we may ask."""
        return [
            (peer, state)
            for peer in self._table.peers.values()
            for state in peer.contact.links
            if not state.relayed and not state.is_tentative and state.is_ours_to_ask
        ]

    def _turn_s(self, count: int) -> float:
        turn_s = max(TURN_MIN_S, GAPS * self._gap_s)
        turn_s = min(turn_s, self._table.options.keepalive_s / count)
        return turn_s * (1.0 - self._table.jitter(EARLY))

    def _ask(self, peer: Peer, state: LinkState, now: float) -> None:
        self._table.touch(peer)
        state.asked_at = now
        peer.contact.check(state)
