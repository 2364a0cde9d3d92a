"""The node list: the newest record of every node that is known.

The highest (boot, version) wins, whoever brings it; nothing is ever deleted because somebody is not
reachable. A record that nobody confirmed for long is stale, and dropped after a week. A node is heard
of when a newer record or a genuine message of it comes. How long ago that was goes with the record from
node to node: else those who have dropped it would have it back, as new, from those who have not.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from uservpn.errors import PeerFault
from uservpn.mesh.records import RECORD_SIZE_MAX, Record, decode
from uservpn.types import NodeId

STALE_S: Final = 26 * 3600.0
"""A little more than what lies between two versions of a record whose owner has nothing to tell."""
DROP_S: Final = 7 * 24 * 3600.0
SUMMARY_COUNT: Final = 80
"""Entries of one summary: it fits into a datagram."""
_STAMP: Final = struct.Struct(">BQI")
_RANGE: Final = struct.Struct(">BB")
_SIZE: Final = struct.Struct(">H")
_AGE: Final = struct.Struct(">I")
_MAGIC: Final = b"uservpn nodes 1\n"
_SUM_SIZE: Final = 16


class Merge(enum.Enum):
    """What a record that came was."""

    NEWS = 1
    KNOWN = 2
    OLDER = 3
    CONFLICT = 4
    """Ours, and newer than what we wrote: another node has our number, or wrote in our name."""


@dataclass(slots=True)
class Entry:
    """A record and when its owner was last heard of, monotonic seconds."""

    record: Record
    heard_at: float
    mark: int = 0
    """Its part of the digest."""
    data: bytes = b""
    """The record as bytes, once somebody asked for them."""


class Directory:
    """The records of a mesh, our own among them."""

    def __init__(self, own: Record, now: float) -> None:
        self.own = own
        self.generation = 0
        """Grows with every change: a key for what is computed from the list."""
        self.servers: set[NodeId] = set()
        """Nodes with a fixed endpoint."""
        self._entries: dict[int, Entry] = {own.node: Entry(own, now)}
        self._digest = 0
        self._drop_at = float("inf")
        """No record is to be dropped before."""
        self._entered(self._entries[own.node])

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Record]:
        """The records in the order of their numbers."""
        return iter([self._entries[node].record for node in sorted(self._entries)])

    def get(self, node: int) -> Record | None:
        """The newest record of this node."""
        entry = self._entries.get(node)
        return entry.record if entry else None

    def encoded(self, node: int) -> bytes:
        """The newest record of a node that is known, as bytes."""
        entry = self._entries[node]
        if not entry.data:
            entry.data = entry.record.encode()
        return entry.data

    def heard_at(self, node: int) -> float | None:
        """When this node was last heard of."""
        entry = self._entries.get(node)
        return entry.heard_at if entry else None

    def age(self, node: int, now: float) -> int:
        """How long ago this node was heard of, seconds; of our own record, 0."""
        if node == self.own.node:
            return 0
        return max(0, min(int(now - self._entries[node].heard_at), (1 << 32) - 1))

    def is_stale(self, node: int, now: float) -> bool:
        """Known, but not heard of for a day and more."""
        entry = self._entries.get(node)
        return entry is not None and now >= entry.heard_at + STALE_S and node != self.own.node

    # --- changes ---------------------------------------------------------------------------------

    def update_own(self, **changes: Any) -> bool:
        """A new version of our own record, if that changes anything."""
        changed = replace(self.own, **changes)
        if changed == self.own:
            return False
        self.own = replace(changed, version=self.own.version + 1)
        entry = self._entries[self.own.node]
        entry.record = self.own
        self._entered(entry)
        return True

    def refresh_own(self) -> None:
        """A new version that says the same: so others hear that we are still there."""
        self.own = replace(self.own, version=self.own.version + 1)
        entry = self._entries[self.own.node]
        entry.record = self.own
        self._entered(entry)

    def supersede(self, boot: int) -> None:
        """Our own record takes a boot above this one, so that the list returns to it; there must be one."""
        self.own = replace(self.own, boot=max(boot, self.own.boot) + 1, version=0)
        entry = self._entries[self.own.node]
        entry.record = self.own
        self._entered(entry)

    def stamp(self, node: int) -> tuple[int, int]:
        """The newest (boot, version) that is known of a node; below all others where it is unknown."""
        entry = self._entries.get(node)
        return entry.record.stamp if entry is not None else (-1, 0)

    def merge(self, record: Record, now: float, age_s: float = 0.0) -> Merge:
        """Takes a record over if it is newer than what is known.

        `age_s`: so long ago its owner was heard of by who brings it.
        """
        if age_s >= DROP_S:
            return Merge.KNOWN
        heard_at = now - age_s
        entry = self._entries.get(record.node)
        if record.node == self.own.node:
            if record.stamp > self.own.stamp:
                return Merge.CONFLICT
            return Merge.KNOWN if record.stamp == self.own.stamp else Merge.OLDER
        if entry is None:
            entry = self._entries[record.node] = Entry(record, heard_at)
            self._drop_at = min(self._drop_at, heard_at + DROP_S)
        elif record.stamp > entry.record.stamp:
            entry.record = record
            entry.heard_at = max(heard_at, entry.heard_at)
        else:
            if record.stamp == entry.record.stamp:
                entry.heard_at = max(heard_at, entry.heard_at)
            return Merge.KNOWN if record.stamp == entry.record.stamp else Merge.OLDER
        self._entered(entry)
        return Merge.NEWS

    def heard(self, node: int, now: float) -> None:
        """A genuine message of this node came."""
        entry = self._entries.get(node)
        if entry is not None and entry.heard_at < now:
            entry.heard_at = now

    def on_deadline(self, now: float) -> list[NodeId]:
        """Drops what was not heard of for a week; the numbers of those."""
        if now < self._drop_at:
            return []
        self._entries[self.own.node].heard_at = now
        gone = [NodeId(n) for n, entry in self._entries.items() if now >= entry.heard_at + DROP_S]
        for node in gone:
            self._digest ^= self._entries.pop(node).mark
            self.servers.discard(node)
        if gone:
            self.generation += 1
        self._drop_at = self.next_deadline() or float("inf")
        return gone

    def next_deadline(self) -> float | None:
        """When the next record is to be dropped."""
        others = [e.heard_at for node, e in self._entries.items() if node != self.own.node]
        return min(others) + DROP_S if others else None

    # --- comparing two lists ---------------------------------------------------------------------

    def digest(self) -> bytes:
        """8 bytes that are equal where the lists are."""
        return self._digest.to_bytes(8, "big")

    def summaries(self) -> list[bytes]:
        """The list in ranges of numbers, each: first, last, then (node, boot, version)s."""
        nodes = sorted(self._entries)
        parts = []
        for start in range(0, len(nodes), SUMMARY_COUNT):
            some = nodes[start : start + SUMMARY_COUNT]
            first = some[0] if start else 0
            last = some[-1] if start + SUMMARY_COUNT < len(nodes) else 255
            if start:
                first = nodes[start - 1] + 1
            stamps = [_STAMP.pack(node, *self._entries[node].record.stamp) for node in some]
            parts.append(_RANGE.pack(first, last) + b"".join(stamps))
        return parts

    def compare(self, summary: bytes) -> tuple[list[Record], bool]:
        """What the author of the summary lacks, and whether it has something that we lack.

        Raises:
            PeerFault: this is no summary.
        """
        if len(summary) < _RANGE.size or (len(summary) - _RANGE.size) % _STAMP.size:
            raise PeerFault("a summary is malformed")
        first, last = _RANGE.unpack_from(summary)
        stamps = _STAMP.iter_unpack(summary[_RANGE.size :])
        theirs = {node: (boot, version) for node, boot, version in stamps}
        newer = [
            entry.record
            for node, entry in self._entries.items()
            if first <= node <= last and entry.record.stamp > theirs.get(node, (-1, 0))
        ]
        lacks = any(
            node != self.own.node
            and (node not in self._entries or self._entries[node].record.stamp < stamp)
            for node, stamp in theirs.items()
        )
        return newer, lacks

    # --- the disk --------------------------------------------------------------------------------

    def dump(self, now: float) -> bytes:
        """Every record but our own, with its age, for `load`."""
        parts: list[bytes] = []
        for node, entry in self._entries.items():
            if node != self.own.node:
                data = entry.record.encode()
                parts += (_SIZE.pack(len(data)), _AGE.pack(self.age(node, now)), data)
        body = b"".join(parts)
        return _MAGIC + hashlib.blake2b(body, digest_size=_SUM_SIZE).digest() + body

    def load(self, data: bytes, now: float) -> None:
        """Merges what `dump` wrote.

        Raises:
            ValueError: the bytes are damaged, or no such list; nothing was merged.
        """
        body = data[len(_MAGIC) + _SUM_SIZE :]
        checksum = hashlib.blake2b(body, digest_size=_SUM_SIZE).digest()
        if not data.startswith(_MAGIC) or data[len(_MAGIC) : len(_MAGIC) + _SUM_SIZE] != checksum:
            raise ValueError("damaged, or not a list of nodes")
        try:
            found = list(_loaded(body))
        except (PeerFault, struct.error) as error:
            raise ValueError(str(error)) from None
        for record, age_s in found:
            if age_s < DROP_S and record.node != self.own.node:
                self.merge(record, now, age_s)

    def _entered(self, entry: Entry) -> None:
        """A record is new in the list: what is known of all of them follows."""
        record = entry.record
        stamp = _STAMP.pack(record.node, *record.stamp)
        mark = int.from_bytes(hashlib.blake2b(stamp, digest_size=8).digest(), "big")
        self._digest ^= entry.mark ^ mark
        entry.mark = mark
        entry.data = b""
        if record.has_fixed_endpoint():
            self.servers.add(record.node)
        else:
            self.servers.discard(record.node)
        self.generation += 1


def packed(records: Iterable[tuple[bytes, int]], size_max: int) -> list[bytes]:
    """Encoded records and their ages in as few pieces as go, each at most `size_max` bytes."""
    pieces: list[bytearray] = []
    for data, age_s in records:
        if not pieces or len(pieces[-1]) + _SIZE.size + _AGE.size + len(data) > size_max:
            pieces.append(bytearray())
        pieces[-1] += _SIZE.pack(len(data)) + _AGE.pack(age_s) + data
    return [bytes(piece) for piece in pieces]


def unpacked(piece: bytes) -> list[tuple[bytes, int]]:
    """The records of a piece, still encoded, since most of them are known (`stamp_of`), and their ages.

    Raises:
        PeerFault: it is malformed.
    """
    records = []
    at = 0
    while at < len(piece):
        if at + _SIZE.size + _AGE.size > len(piece):
            raise PeerFault("a list of records is cut off")
        size = _SIZE.unpack_from(piece, at)[0]
        age_s = _AGE.unpack_from(piece, at + _SIZE.size)[0]
        at += _SIZE.size + _AGE.size
        if size > RECORD_SIZE_MAX or at + size > len(piece):
            raise PeerFault("a list of records is cut off")
        records.append((piece[at : at + size], age_s))
        at += size
    return records


def _loaded(body: bytes) -> Iterator[tuple[Record, int]]:
    at = 0
    while at < len(body):
        size = _SIZE.unpack_from(body, at)[0]
        age_s = _AGE.unpack_from(body, at + _SIZE.size)[0]
        at += _SIZE.size + _AGE.size
        yield decode(body[at : at + size]), age_s
        at += size
