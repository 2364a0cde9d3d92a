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

from collections.abc import Callable
from typing import Final

from uservpn.errors import PeerFault
from uservpn.mesh.directory import Directory, Merge, packed, unpacked
from uservpn.mesh.records import Record
from uservpn.types import NodeId

DIGEST: Final = 1
SUMMARY: Final = 2
RECORDS: Final = 3
DIGEST_SIZE: Final = 8
MESSAGE_MAX: Final = 1100
BATCH_S: Final = 0.03
"""Rumours wait this long, and up to twice, for others to share their message."""
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
        self._rumours: dict[NodeId, tuple[float, NodeId | None]] = {}
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
        self.contested_boot = 0
        """Of a record of our own number that is none of ours; 0: there was none."""

    # --- outside events --------------------------------------------------------------------------

    def link_up(self, peer: NodeId) -> None:
        """The first link to this neighbour stands."""
        self._neighbours[peer] = None
        self._send_digest(peer)

    def link_down(self, peer: NodeId) -> None:
        """The last link to it is gone."""
        self._neighbours.pop(peer, None)
        self._check.discard(peer)
        for times in (self._summary_at, self._summarised_at):
            times.pop(peer, None)

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
            self._send_records(peer, newer, now)
            if lacks:
                self._want_summary(peer, now)
        elif kind == bytes((RECORDS,)):
            self._receive_records(peer, unpacked(body), now)

    def on_deadline(self, now: float) -> None:
        """Due work; harmless when early."""
        if self._refresh_at <= now:
            self.directory.refresh_own()
            self.own_changed(now)
        due = [node for node, (at, _) in self._rumours.items() if at <= now]
        if due:
            self._spread(due, now)
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
        if self._rumours:
            soonest = min(soonest, *(at for at, _ in self._rumours.values()))
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

    # --- inside ----------------------------------------------------------------------------------

    def _refresh_s(self) -> float:
        return REFRESH_S - self._jitter(REFRESH_S / 6)

    def _receive_records(self, peer: NodeId, records: list[tuple[Record, int]], now: float) -> None:
        older = []
        for record, age_s in records:
            result = self.directory.merge(record, now, age_s)
            if result is Merge.NEWS:
                self._news.append(record.node)
                self._rumour(record.node, peer, now)
            elif result is Merge.CONFLICT:
                self.contested_boot = max(self.contested_boot, record.boot)
            elif result is Merge.OLDER:
                newest = self.directory.get(record.node)
                if newest is not None:
                    older.append(newest)
        self._send_records(peer, older, now)

    def _rumour(self, node: NodeId, source: NodeId | None, now: float) -> None:
        """Passes a record on soon; a newer version takes the place of one that waits."""
        at = max(
            now + BATCH_S + self._jitter(BATCH_S),
            self._spread_at.get(node, now - SPACING_S) + SPACING_S,
        )
        waiting = self._rumours.get(node)
        if waiting is not None:
            at = min(at, waiting[0])
        self._rumours[node] = (at, source)

    def _spread(self, due: list[NodeId], now: float) -> None:
        told: dict[NodeId, list[Record]] = {}
        for node in due:
            _, source = self._rumours.pop(node)
            record = self.directory.get(node)
            if record is None:
                continue
            self._spread_at[node] = now
            for peer in self._neighbours:
                if peer not in (source, node):
                    told.setdefault(peer, []).append(record)
        for peer, records in told.items():
            self._send_records(peer, records, now)
        if told:
            self._check.update(told)
            self._check_s = CHECK_S
            self._check_at = now + CHECK_S + self._jitter(CHECK_S / 2)

    def _send_records(self, peer: NodeId, records: list[Record], now: float) -> None:
        aged = [(record, self.directory.age(record.node, now)) for record in records]
        for piece in packed(aged, MESSAGE_MAX - 1):
            self._messages.append((peer, bytes((RECORDS,)) + piece))

    def _send_digest(self, peer: NodeId) -> None:
        self._messages.append((peer, bytes((DIGEST,)) + self.directory.digest()))

    def _want_summary(self, peer: NodeId, now: float) -> None:
        if peer in self._neighbours and peer not in self._summary_at:
            last = self._summarised_at.get(peer, now - SPACING_S)
            self._summary_at[peer] = max(now, last + SPACING_S)
