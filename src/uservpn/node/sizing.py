"""How large the messages of datagram links may be: the path MTU searches, and the probes they send."""

from __future__ import annotations

from collections import deque
from typing import Final

from uservpn.mesh.pathmtu import SMALL, PathMtu
from uservpn.node.table import OVERHEAD, LinkEntry, Peer, Table
from uservpn.tunnel.path import Path
from uservpn.types import LinkId
from uservpn.wire.constants import TAG_SIZE, Kind

TOKEN_SIZE: Final = 8
TOKENS_MAX: Final = 256
"""Probes whose answers are waited for, of all links; more forget the oldest."""


class Sizing:
    """Runs the searches of all links and keeps `LinkEntry.size_max` at what they found."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._tokens: dict[bytes, tuple[LinkId, int]] = {}
        self._order: deque[bytes] = deque()
        self._searching: dict[LinkId, PathMtu] = {}
        """Those with a deadline."""

    # --- outside events --------------------------------------------------------------------------

    def link_up(self, entry: LinkEntry, size_base: int, size_max: int) -> None:
        """A link on which only messages up to `size_base` surely get through (sealed payloads)."""
        entry.mtu = PathMtu(size_base, size_max)
        entry.size_max = entry.mtu.size - OVERHEAD

    def link_resized(self, link: LinkId, entry: LinkEntry, size_max: int, now: float) -> None:
        """The local end takes another size."""
        if entry.mtu is None:
            entry.size_max = size_max - OVERHEAD
        else:
            entry.mtu.resize(size_max, now)
            self._follow(link, entry, now)

    def link_down(self, link: LinkId) -> None:
        """The link is gone."""
        self._searching.pop(link, None)

    def answered(self, link: LinkId, entry: LinkEntry, token: bytes, now: float) -> None:
        """The peer answered on this link: one of the searches' probes, or another."""
        mtu = entry.mtu
        if mtu is None:
            return
        state = entry.state
        mtu.rtt_s = (state.rtt_s if state is not None else None) or 0.0
        probe = self._tokens.pop(token, None)
        if probe is None:
            mtu.start(now)
        elif probe[0] == link:
            mtu.answered(probe[1], now)
        self._follow(link, entry, now)

    def used(self, link: LinkId, entry: LinkEntry, resent_count: int, now: float) -> None:
        """Messages of a tunnel went over the link; so many of it have been resent so far."""
        mtu = entry.mtu
        if mtu is not None:
            mtu.used(resent_count, now)
            if mtu.next_deadline() is not None and link not in self._searching:
                self._follow(link, entry, now)

    def swallowed(self, link: LinkId, entry: LinkEntry, path: Path, now: float) -> None:
        """Of what left on this path only small messages came."""
        path.swallowed = 0
        if entry.mtu is not None:
            entry.mtu.swallowed(now)
            self._follow(link, entry, now)

    def relayed(self, peer: Peer, now: float) -> None:
        """Messages of others went to this neighbour."""
        state = peer.contact.direct()
        entry = self._table.links.get(state.link) if state is not None else None
        if state is not None and entry is not None and entry.mtu is not None:
            entry.mtu.relayed(now)
            if entry.mtu.next_deadline() is not None and state.link not in self._searching:
                self._follow(state.link, entry, now)

    # --- time ------------------------------------------------------------------------------------

    def on_deadline(self, now: float) -> None:
        """Due work; harmless when early."""
        for link, mtu in list(self._searching.items()):
            entry = self._table.links.get(link)
            due = mtu.next_deadline()
            if entry is not None and due is not None and now >= due:
                mtu.on_deadline(entry.state.heard_at if entry.state is not None else 0.0, now)
                self._follow(link, entry, now)

    def next_deadline(self) -> float | None:
        """When `on_deadline` wants to be called; None while no search is under way."""
        if not self._searching:
            return None
        dues = (mtu.next_deadline() for mtu in self._searching.values())
        return min((due for due in dues if due is not None), default=None)

    # --- inside ----------------------------------------------------------------------------------

    def _follow(self, link: LinkId, entry: LinkEntry, now: float) -> None:
        """Carries out what the search planned."""
        mtu, peer = entry.mtu, entry.peer
        assert mtu is not None
        entry.size_max = mtu.size - OVERHEAD
        if mtu.next_deadline() is None:
            self._searching.pop(link, None)
        else:
            self._searching[link] = mtu
        for size in mtu.take_probes():
            if peer is not None and size == SMALL:
                self._table.probe(peer, link, now)
            elif peer is not None:
                token = self._table.random(TOKEN_SIZE)
                self._remember(token, link, size)
                padding = bytes(size - TAG_SIZE - TOKEN_SIZE)
                self._table.touch(peer)
                peer.outbox.append((link, Kind.PROBE, token + padding, 0))

    def _remember(self, token: bytes, link: LinkId, size: int) -> None:
        self._tokens[token] = link, size
        self._order.append(token)
        if len(self._order) > TOKENS_MAX:
            self._tokens.pop(self._order.popleft(), None)
