"""The status document (docs/status.md): what the parts of a node tell, put together for its owner."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

from uservpn import __version__
from uservpn.chooser import report
from uservpn.chooser.chooser import Chooser
from uservpn.mesh.records import Role
from uservpn.node.node import Node
from uservpn.node.table import OVERHEAD, Peer
from uservpn.runtime.driver import Driver
from uservpn.runtime.entry import Entry
from uservpn.runtime.exit import Exit
from uservpn.runtime.exit_tests import ExitTests
from uservpn.tunnel.path import Path
from uservpn.types import NodeId

VERSION: Final = 1
CONNECTIONS_MAX: Final = 1000
"""Shown of each peer."""


class Status:
    """Reads a node's parts, and changes nothing."""

    def __init__(
        self,
        driver: Driver,
        chooser: Chooser,
        exit: Exit,
        exit_tests: ExitTests,
        started_at: float,
    ) -> None:
        self._driver = driver
        self._node = driver.node
        self._chooser = chooser
        self._exit = exit
        self._exit_tests = exit_tests
        self._started_at = started_at

    def document(self, name: str, entry: Entry | None, now: float) -> dict[str, Any]:
        """All of it: `name` is this node's, `entry` where programs come in."""
        node = self._node
        return {
            "version": VERSION,
            "node": {
                "id": node.options.node,
                "name": name,
                "boot": node.options.boot,
                "uptime_s": round(now - self._started_at, 1),
                "software": __version__,
                "state": "standing back" if node.claims.is_back else "active",
                "reach": node.reach.snapshot(),
            },
            "duplicates": list(_duplicates(node, now)),
            "entry": str(entry.address) if entry is not None else None,
            "nodes": list(_nodes(node, now)),
            "links": [*self._links(), *_relayed_links(node)],
            "sockets": self._driver.protocols.describe(),
            "tunnels": [_tunnel(peer) for peer in node.peers.values()],
            "relay": asdict(node.relay.counters),
            "connections": list(self._connections(entry)),
            "sites": report.sites(self._chooser, now, node.options.node),
            "chooser": report.counts(self._chooser),
            "exit": self._exit.snapshot() | {"tests": self._exit_tests.snapshot()},
        }

    def _links(self) -> Iterator[dict[str, Any]]:
        for link in self._driver.links.values():
            entry = self._node.links.get(link.id)
            state, path = (entry.state, entry.path) if entry else (None, None)
            yield {
                "peer": entry.peer.id if entry and entry.peer else None,
                "protocol": link.caps.protocol,
                "local": link.local,
                "remote": link.remote,
                "rtt_ms": _ms(state.rtt_s) if state else None,
                "in_ms": _ms(state.in_s) if state else None,
                "loss": 0.0 if link.caps.is_reliable else None,
                "bytes_in": link.bytes_in,
                "bytes_out": link.bytes_out,
                **_path(path),
                "message_size": entry.size_max + OVERHEAD if entry else None,
            }

    def _connections(self, entry: Entry | None) -> Iterator[dict[str, Any]]:
        own = self._node.options.node
        for peer in self._node.peers.values():
            for stream in list(peer.tunnel.streams.values())[:CONNECTIONS_MAX]:
                yield {
                    "id": f"{peer.id}/{stream.id}",
                    "target": str(getattr(stream.owner, "target", "")),
                    "exit": peer.id if stream.is_mine else own,
                    "client": own if stream.is_mine else peer.id,
                    "bytes_out": stream.sent_size,
                    "bytes_in": stream.recv_offset,
                }
        if entry is not None:
            yield from entry.direct_rows(own)


def _relayed_links(node: Node) -> Iterator[dict[str, Any]]:
    """Ways over other nodes."""
    for entry in node.links.values():
        if entry.hops and entry.peer is not None:
            yield {
                "peer": entry.peer.id,
                "protocol": "relay",
                "local": "",
                "remote": ",".join(map(str, entry.hops)),
                "rtt_ms": _ms(entry.state.rtt_s) if entry.state else None,
                "bytes_out": entry.path.sent if entry.path else 0,
                **_path(entry.path),
            }


def _tunnel(peer: Peer) -> dict[str, Any]:
    tunnel = peer.tunnel
    return {
        "peer": peer.id,
        "streams": len(tunnel.streams),
        "cache_bytes": tunnel.cache_size,
        "resent": tunnel.resent_count,
        "spurious": tunnel.outbox.spurious_count,
        "recut": tunnel.outbox.recut_count,
        "relayed_bytes": peer.relayed_bytes,
        "direct_bytes": peer.share.direct_bytes,
    }


def _duplicates(node: Node, now: float) -> Iterator[dict[str, Any]]:
    """Other nodes that had our number within the last hour."""
    for duplicate in node.claims.duplicates(now):
        yield {
            "address": duplicate.address or None,
            "heard_s": round(now - duplicate.heard_at, 1),
            "outcome": "this node stands back" if duplicate.stays else "this node stays",
            "retry_s": node.claims.retry_in(now) if duplicate.stays else None,
        }


def _nodes(node: Node, now: float) -> Iterator[dict[str, Any]]:
    """Every node but this one: what is on the list, and how it is reached."""
    numbers = {int(record.node) for record in node.directory} | node.peers.keys()
    for number in sorted(numbers - {node.options.node}):
        record, peer = node.directory.get(number), node.peers.get(number)
        contact = peer.contact if peer else None
        links = contact.links if contact else []
        endpoints = contact.endpoints if contact else ()
        known = record.endpoints if record else ()
        known = known or (contact.dials.known if contact else ())
        is_up = contact is not None and contact.heard_at is not None and bool(links)
        if is_up:
            state = "up"
        elif node.directory.is_stale(number, now):
            state = "stale"
        elif contact is not None and contact.is_kept and endpoints:
            state = "connecting"
        else:
            state = "known" if endpoints else "down"
        heard_at = node.directory.heard_at(number)
        yield {
            "id": number,
            "name": record.name or None if record else None,
            "country": record.country or None if record else None,
            "roles": [r.name.lower() for r in Role if record.roles & r and r.name]
            if record
            else ["server"] * bool(endpoints),
            "state": state,
            "rtt_ms": _ms(links[0].rtt_s) if links else None,
            "clock_ms": _ms(node.flights.offset(number)),
            "route": [*node.links[links[0].link].hops, number] if links else [],
            "way": _way(node.links[links[0].link].hops) if links else None,
            "endpoints": [place.endpoint for place in known],
            "kinds": [place.kind.name.lower() for place in known],
            "software": record.software or None if record else None,
            "heard_s": None if heard_at is None else round(now - heard_at, 1),
            "problem": "" if is_up or contact is None else contact.last_failure,
        }


def _way(hops: tuple[NodeId, ...]) -> str:
    """How a linked node is reached, in words."""
    return f"relay via {', '.join(map(str, hops))}" if hops else "direct"


def _path(path: Path | None) -> dict[str, Any]:
    """What a tunnel measured of one link: honest costs beside what came."""
    if path is None:
        return {}
    known: dict[str, Any] = {
        "sent_bytes": path.sent,
        "delivered_bytes": path.delivered,
        "resent": path.resent_count,
        "spurious": path.spurious_count,
        "copied": path.copied_count,
        "resend_waits": path.resending.waits,
        "lost": path.lost_count,
        "rate_mbit": round(path.rate * 8e-6, 2),
        "first_second_bytes": path.first_second,
    }
    if path.is_lossy:
        known["loss"] = round(path.loss, 4)
    return known


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
