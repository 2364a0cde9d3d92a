"""Gossip: how every node comes to have every record.

A change is a rumour: it goes to every linked neighbour but the one it came from, batched and jittered,
each version once. What a rumour missed is repaired by comparing: neighbours exchange a digest of their
whole lists on contact, a little after rumours, and seldom otherwise; where digests differ, summaries;
then the records that one side lacks (anti-entropy, Demers et al., "Epidemic algorithms for replicated
database maintenance", 1987). Nothing is deleted as a reaction to anything.

Bounds: a record is passed on at most once a second, newest first come; a summary goes to one
neighbour at most once a second; messages are at most MESSAGE_MAX bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from uservpn.errors import PeerFault
from uservpn.mesh.directory import Directory, Merge, packed, unpacked
from uservpn.mesh.records import Role, decode, stamp_of
from uservpn.types import NodeId
from uservpn.wire.constants import BOOT_MAX

DIGEST: Final = 1
SUMMARY: Final = 2
RECORDS: Final = 3
DIGEST_SIZE: Final = 8
MESSAGE_MAX: Final = 1100
BATCH_S: Final = 0.03
WAIT_S: Final = 0.15
LATE_S: Final = 0.5
"""Rumours wait, each up to twice as long, for others to share their message: our own; those of others; and
those of others where we are no server. Whoever tells us the same in the meantime need not be told."""
SPACING_S: Final = 1.0
CHECK_S: Final = 1.5
CHECKS: Final = 4
"""After rumours, at CHECK_S and three times at four times the distance: digests tell whether they
arrived, since links may lose messages, and digests too."""
REFRESH_S: Final = 24 * 3600.0
"""A record whose owner has nothing to tell gets a new version after 5/6 of this, up to all of it."""
SELDOM_S: Final = 3600.0
"""A digest to one neighbour, half to one and a half times so often."""


class Gossip:
    """Spreads the records of one directory among the neighbours."""

    def __init__(self, directory: Directory, jitter: Callable[[float], float], now: float) -> None:
        """`jitter(span)` draws from [0, span)."""
        self.directory = directory
        self._jitter = jitter
        self._neighbours: dict[NodeId, None] = {}
        self.reliable: set[NodeId] = set()
        """Neighbours to whom nothing gets lost while they are linked: no digest asks whether it arrived."""
        self._rumours: dict[NodeId, tuple[float, set[NodeId]]] = {}
        """What is to be passed on: when, and who has it already."""
        self._spread_due = float("inf")
        """The soonest of these times."""
        self._spread_at: dict[NodeId, float] = {}
        self._check_at: float | None = None
        self._check: set[NodeId] = set()
        self._check_s = CHECK_S
        self._summary_at: dict[NodeId, float] = {}
        self._summarised_at: dict[NodeId, float] = {}
        self._seldom_at = now + SELDOM_S / 2 + jitter(SELDOM_S)
        self._refresh_at = now + self._refresh_s()
        self._messages: list[tuple[NodeId, bytes]] = []
        self._news: list[NodeId] = []
        self._contested_boot = 0

    # --- outside events --------------------------------------------------------------------------

    def link_up(self, peer: NodeId) -> None:
        """The first link to this neighbour stands."""
        self._neighbours[peer] = None
        self._send_digest(peer)

    def link_down(self, peer: NodeId) -> None:
        """The last link to it is gone."""
        self._neighbours.pop(peer, None)
        self.reliable.discard(peer)
        self._check.discard(peer)
        for times in (self._summary_at, self._summarised_at):
            times.pop(peer, None)

    def link_lost(self, peer: NodeId) -> None:
        """One of several links to this neighbour is gone, and with it what was on its way."""
        if peer in self._neighbours:
            self._send_digest(peer)

    def own_changed(self, now: float) -> None:
        """Our own record has a new version."""
        self._refresh_at = now + self._refresh_s()
        self._rumour(self.directory.own.node, None, now)

    def receive(self, peer: NodeId, payload: bytes, now: float) -> None:
        """A gossip message of a neighbour.

        Raises:
            PeerFault: it is malformed.
        """
        kind, body = payload[:1], payload[1:]
        if kind == bytes((DIGEST,)):
            if len(body) < DIGEST_SIZE:
                raise PeerFault("a digest is cut off")
            if body[:DIGEST_SIZE] != self.directory.digest():
                self._want_summary(peer, now)
        elif kind == bytes((SUMMARY,)):
            newer, lacks = self.directory.compare(body)
            self._send_records(peer, [record.node for record in newer], now)
            if lacks:
                self._want_summary(peer, now)
        elif kind == bytes((RECORDS,)):
            self._receive_records(peer, unpacked(body), now)

    def on_deadline(self, now: float) -> None:
        """Due work; harmless when early."""
        if self._refresh_at <= now:
            self.directory.refresh_own()
            self.own_changed(now)
        if self._spread_due <= now:
            self._spread(now)
        for peer, at in list(self._summary_at.items()):
            if at <= now:
                del self._summary_at[peer]
                self._summarised_at[peer] = now
                for summary in self.directory.summaries():
                    self._messages.append((peer, bytes((SUMMARY,)) + summary))
        if self._check_at is not None and self._check_at <= now:
            for peer in sorted(self._check):
                self._send_digest(peer)
            self._check_s *= 4
            self._check_at = now + self._check_s + self._jitter(self._check_s / 2)
            if self._check_s > CHECK_S * 4 ** (CHECKS - 1):
                self._check_at = None
                self._check.clear()
        if self._seldom_at <= now:
            self._seldom_at = now + SELDOM_S / 2 + self._jitter(SELDOM_S)
            if self._neighbours:
                some = list(self._neighbours)
                self._send_digest(some[int(self._jitter(len(some)))])

    def next_deadline(self) -> float | None:
        """When `on_deadline` wants to be called; None: nobody to talk to."""
        if not self._neighbours:
            return None
        soonest = min(self._seldom_at, self._refresh_at)
        soonest = min(soonest, self._spread_due)
        if self._summary_at:
            soonest = min(soonest, *self._summary_at.values())
        return soonest if self._check_at is None else min(soonest, self._check_at)

    def take_messages(self) -> list[tuple[NodeId, bytes]]:
        """(neighbour, payload) to send now."""
        messages = self._messages
        if messages:
            self._messages = []
        return messages

    def take_news(self) -> list[NodeId]:
        """Whose records are new."""
        news = self._news
        if news:
            self._news = []
        return news

    def contested_boot(self) -> int:
        """Of a record of our own number that is newer than ours, and none of ours; 0: there is none.

        Nor is there one where no boot is above it.
        """
        boot = self._contested_boot
        return boot if self.directory.own.boot <= boot < BOOT_MAX else 0

    def neighbours(self) -> list[NodeId]:
        """Those that are linked, in the order of their numbers."""
        return sorted(self._neighbours)

    # --- inside ----------------------------------------------------------------------------------

    def _refresh_s(self) -> float:
        return REFRESH_S - self._jitter(REFRESH_S / 6)

    def _receive_records(self, peer: NodeId, records: list[tuple[bytes, int]], now: float) -> None:
        directory = self.directory
        older = []
        for data, age_s in records:
            node, stamp = stamp_of(data)
            known = directory.stamp(node)
            if stamp > known or node == directory.own.node:
                result = directory.merge(decode(data), now, age_s)
            elif stamp == known:
                result = Merge.KNOWN
                directory.heard(node, now - age_s)
            else:
                result = Merge.OLDER
            waiting = self._rumours.get(NodeId(node))
            if result is Merge.NEWS:
                self._news.append(NodeId(node))
                self._rumour(NodeId(node), peer, now)
            elif result is Merge.CONFLICT:
                self._contested_boot = max(self._contested_boot, stamp[0])
            elif result is Merge.KNOWN and waiting is not None:
                waiting[1].add(peer)  # need not be told
            elif result is Merge.OLDER:
                older.append(NodeId(node))
        self._send_records(peer, older, now)

    def _rumour(self, node: NodeId, source: NodeId | None, now: float) -> None:
        """Passes a record on soon; a newer version takes the place of one that waits."""
        own = self.directory.own
        patience = BATCH_S if source is None else WAIT_S
        if source is not None and not own.roles & Role.SERVER:
            patience = LATE_S
        at = max(
            now + patience + self._jitter(patience),
            self._spread_at.get(node, now - SPACING_S) + SPACING_S,
        )
        waiting = self._rumours.get(node)
        if waiting is not None:
            at = min(at, waiting[0])
        self._rumours[node] = (at, set() if source is None else {source})
        self._spread_due = min(self._spread_due, at)

    def _spread(self, now: float) -> None:
        """Sends what is due, and what would soon be."""
        told: dict[NodeId, list[NodeId]] = {}
        for node, (at, sources) in list(self._rumours.items()):
            if at > now + WAIT_S or now < self._spread_at.get(node, now - SPACING_S) + SPACING_S:
                continue
            del self._rumours[node]
            if self.directory.get(node) is None:
                continue
            self._spread_at[node] = now
            for peer in self._neighbours:
                if peer not in sources and peer != node:
                    told.setdefault(peer, []).append(node)
        self._spread_due = min((at for at, _ in self._rumours.values()), default=float("inf"))
        pieces: dict[tuple[NodeId, ...], list[bytes]] = {}
        for peer, nodes in told.items():
            same = tuple(nodes)
            if same not in pieces:
                pieces[same] = self._pieces(nodes, now)
            self._messages += [(peer, piece) for piece in pieces[same]]
        doubtful = [peer for peer in told if peer not in self.reliable]
        if doubtful:
            self._check.update(doubtful)
            self._check_s = CHECK_S
            self._check_at = now + CHECK_S + self._jitter(CHECK_S / 2)

    def _send_records(self, peer: NodeId, nodes: Iterable[NodeId], now: float) -> None:
        self._messages += [(peer, piece) for piece in self._pieces(nodes, now)]

    def _pieces(self, nodes: Iterable[NodeId], now: float) -> list[bytes]:
        """Messages with the records of these nodes."""
        directory = self.directory
        aged = [(directory.encoded(node), directory.age(node, now)) for node in nodes]
        return [bytes((RECORDS,)) + piece for piece in packed(aged, MESSAGE_MAX - 1)]

    def _send_digest(self, peer: NodeId) -> None:
        self._messages.append((peer, bytes((DIGEST,)) + self.directory.digest()))

    def _want_summary(self, peer: NodeId, now: float) -> None:
        if peer in self._neighbours and peer not in self._summary_at:
            last = self._summarised_at.get(peer, now - SPACING_S)
            self._summary_at[peer] = max(now, last + SPACING_S)
