"""Where others see this node's datagrams come from: what a NAT in between makes of our address.

Each peer that was reached tells what it sees, once for each address that is new to it. The newest word
counts, as mappings are made anew now and then. Two peers that see two ports at the same time mean a NAT
with a port for every destination (symmetric, RFC 3489): what one peer sees is then of no use to another.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from uservpn.kit.endpoint import Endpoint
from uservpn.types import NodeId

SAME_TIME_S: Final = 10.0
"""Reports this close to each other speak of one mapping, or there is more than one."""
SYMMETRIC_S: Final = 3600.0
"""A NAT that was found to be symmetric is believed to be it for so long, whoever tells alone."""
REPORTS_MAX: Final = 16
"""Peers whose word is kept; of more the oldest is forgotten."""


class Report(NamedTuple):
    """What one peer saw, and when it said so."""

    endpoint: Endpoint
    at: float


class Observed:
    """The reports of all peers, for one network; `forget` when it is another one."""

    def __init__(self) -> None:
        self._reports: dict[NodeId, Report] = {}
        self._symmetric: dict[str, float] = {}
        """Addresses of symmetric NATs, and until when they are taken for such."""

    def learn(self, peer: NodeId, endpoint: Endpoint, now: float) -> None:
        """This peer sees us there."""
        self._reports.pop(peer, None)
        self._reports[peer] = Report(endpoint, now)
        if now >= self._symmetric.get(endpoint.host, now):
            self._symmetric.pop(endpoint.host, None)
        if any(
            report.endpoint.host == endpoint.host
            and report.endpoint.port != endpoint.port
            and report.at >= now - SAME_TIME_S
            for report in self._reports.values()
        ):
            self._symmetric[endpoint.host] = now + SYMMETRIC_S
        if len(self._reports) > REPORTS_MAX:
            del self._reports[next(iter(self._reports))]

    def is_news(self, peer: NodeId, endpoint: Endpoint) -> bool:
        """Is this another port than this peer saw before, and than anybody has seen?"""
        known = self._reports.get(peer)
        if known is None or known.endpoint.host != endpoint.host:
            return False
        return endpoint not in {report.endpoint for report in self._reports.values()}

    def forget(self) -> None:
        """The network is another one."""
        self._reports.clear()
        self._symmetric.clear()

    def knows(self, peer: NodeId) -> bool:
        """Has this peer told?"""
        return peer in self._reports

    def hosts(self) -> set[str]:
        """The addresses we are seen at."""
        return {report.endpoint.host for report in self._reports.values()}

    def newest_at(self) -> float:
        """When somebody last told; minus infinity: nobody has."""
        return max((report.at for report in self._reports.values()), default=float("-inf"))

    def newest(self) -> list[Endpoint]:
        """For IPv4 and IPv6 what was reported last."""
        found: dict[bool, Report] = {}
        for report in self._reports.values():
            found[":" in report.endpoint.host] = report
        return [report.endpoint for report in found.values()]

    def is_symmetric(self, endpoint: Endpoint) -> bool:
        """Did somebody see another port of this address at about the same time?"""
        return endpoint.host in self._symmetric

    def usable(self) -> list[Endpoint]:
        """Where somebody else than the reporter may reach us."""
        return [endpoint for endpoint in self.newest() if not self.is_symmetric(endpoint)]
