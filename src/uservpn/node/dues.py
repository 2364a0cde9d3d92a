"""Who of the peers wants to be looked at when: the bookkeeping that keeps a flush from looking at all."""

from __future__ import annotations

from uservpn.node.table import Table


class Dues:
    """Deadlines of peers, brought up to date for those that were touched."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._dues: dict[int, float] = {}
        self._soonest: float | None = None

    def touch_due(self, now: float) -> None:
        """Touches the peers whose deadlines have come."""
        for node, due in self._dues.items():
            if due <= now:
                self._table.touch(self._table.peers[node])

    def next_deadline(self) -> float | None:
        """The soonest of all peers; forgets the touched ones that have nothing to do, too."""
        table = self._table
        if table.touched:
            busy = {}
            for node, peer in table.touched.items():
                due = peer.next_deadline()
                if due is None:
                    self._dues.pop(node, None)
                else:
                    self._dues[node] = due
                if peer.contact.has_streams or peer.contact.has_mail:
                    table.needing[node] = peer
                else:
                    table.needing.pop(node, None)
                if peer.has_work():
                    busy[node] = peer
            table.touched = busy
            self._soonest = min(self._dues.values(), default=None)
        return self._soonest

    def forgotten(self) -> list[int]:
        """Peers with work, or another deadline, that no take would look at: none, or it is a bug."""
        table = self._table
        return [
            node
            for node, peer in table.peers.items()
            if (peer.has_work() and node not in table.touched)
            or peer.next_deadline() != self._dues.get(node)
        ]
