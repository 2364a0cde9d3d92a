"""Where one peer can be dialled, in which order, and what was learnt by trying.

`preferred` orders what a peer's record says: local endpoints first where both are plausibly on one
network, then fixed ones, then what others have observed. `Dials` runs through such a list: every protocol
has a race of its own, whose candidates start one after the other, a little apart, or as soon as the one
before has failed ("Happy Eyeballs", RFC 8305). Endpoints that are not fixed and did not lead to their
node are left alone for longer each time; a changed network forgives everything.

A node is known by its number, never by its address: two nodes behind one public address are two peers,
and a dial that reaches somebody else is one that was not answered.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from uservpn.kit.endpoint import Address, Endpoint
from uservpn.mesh.records import EndpointKind, Known

STAGGER_S: Final = 0.15
"""Between two candidates of one race: longer than most handshakes on a continent, and hardly felt."""
CANDIDATES_MAX: Final = 6
"""Of one protocol in one round; what comes later in the order waits for another round."""
DIAL_LIMIT_S: Final = 8.0
"""How long a dial may take; one without any result counts as failed a little later."""
_DIAL_LATE_S: Final = 2.0
HUNG_S: Final = 1.0
"""A dial without a result for so long may have lost its first packets: another one may start beside it."""
AGAIN_S: Final = 60.0
"""An endpoint that is not fixed and failed is left alone so long, then twice as long each time..."""
AGAIN_MAX_S: Final = 3600.0
"""...up to this."""
_THIS_NETWORK: Final = ipaddress.ip_network("0.0.0.0/8")


class Networks:
    """The networks this machine is in, as `address/prefix length` of its interfaces."""

    def __init__(self, interfaces: Iterable[str] = ()) -> None:
        self._interfaces = [ipaddress.ip_interface(text) for text in interfaces]
        self.addresses = frozenset(str(interface.ip) for interface in self._interfaces)

    def holds(self, host: str) -> bool:
        """Is this address in one of them, without a router in between?"""
        address = ipaddress.ip_address(host)
        return any(
            address.version == interface.version and address in interface.network
            for interface in self._interfaces
        )


def preferred(
    known: Sequence[Known], networks: Networks, own: Collection[str], observed: Collection[str]
) -> list[Known]:
    """What is worth dialling, the best first.

    `own`: this node's endpoints, which are never dialled. `observed`: the hosts that others see this
    node come from; a peer seen at the same one is likely to be behind the same router.
    """
    seen = {host_of(k.endpoint) for k in known if k.kind == EndpointKind.OBSERVED}
    is_neighbour = not seen.isdisjoint(observed)
    places: list[tuple[int, Known]] = []
    for place in known:
        if place.endpoint in own and place.kind != EndpointKind.FIXED:
            continue
        if place.kind == EndpointKind.LOCAL:
            host = host_of(place.endpoint)
            if networks.holds(host):
                places.append((0, place))
            elif is_neighbour or not _is_private(host):
                places.append((2, place))
        else:
            places.append((1 if place.kind == EndpointKind.FIXED else 3, place))
    return [place for _, place in sorted(places, key=lambda ranked: ranked[0])]


class Scope(enum.Enum):
    """How far an address reaches."""

    NOWHERE = 0
    """No other node is there: unspecified, multicast, broadcast, reserved; link-local, without its zone."""
    MACHINE = 1
    """Loopback: whoever dials it finds himself."""
    BEYOND = 2


def scope_of(endpoint: str) -> Scope:
    """The scope of its address; what is no endpoint (a plug-in's own form) is the plug-in's business."""
    try:
        address = ipaddress.ip_address(Endpoint.parse(endpoint).host)
    except ValueError:
        return Scope.BEYOND
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback:
        return Scope.MACHINE
    is_void = address in _THIS_NETWORK if address.version == 4 else address.is_unspecified
    if is_void or address.is_multicast or address.is_reserved or address.is_link_local:
        return Scope.NOWHERE
    return Scope.BEYOND


def is_here(endpoint: str) -> bool:
    """Is the node that is reached there on this machine? Behind a proxy's address its own one follows."""
    try:
        behind = Address.parse(Endpoint.parse(endpoint).options[1:])
    except ValueError:
        return scope_of(endpoint) is Scope.MACHINE
    return behind.is_loopback


def host_of(endpoint: str) -> str:
    """The address in it; what is no endpoint (a plug-in's own form) stands for itself."""
    try:
        return Endpoint.parse(endpoint).host
    except ValueError:
        return endpoint


def _is_private(host: str) -> bool:
    return not ipaddress.ip_address(host).is_global


def _when(queued: tuple[float, str]) -> float:
    """Candidates of one moment stay in their order."""
    return queued[0]


@dataclass(slots=True)
class _Place:
    known: Known
    protocol: str
    host: str
    failures: int = 0
    retry_at: float = 0.0
    is_refused: bool = False


class Dials:
    """The endpoints of one peer, and the dials to them: at most CANDIDATES_MAX of a protocol at once."""

    def __init__(self, jitter: Callable[[float], float]) -> None:
        self._jitter = jitter
        self._places: dict[str, _Place] = {}
        self.has_fixed = False
        """Is there one that anybody can dial?"""
        self._queue: list[tuple[float, str]] = []
        self._under_way: dict[str, float] = {}

    # --- commands --------------------------------------------------------------------------------

    def offer(self, known: Iterable[Known]) -> None:
        """Replaces the list; what was learnt of those that stay is kept."""
        places: dict[str, _Place] = {}
        for place in known:
            old = self._places.get(place.endpoint)
            if old is not None:
                old.known = place
                places[place.endpoint] = old
            elif place.endpoint not in places:
                protocol = place.endpoint.partition("://")[0]
                places[place.endpoint] = _Place(place, protocol, host_of(place.endpoint))
        self._places = places
        self.has_fixed = any(p.known.kind == EndpointKind.FIXED for p in places.values())
        self._queue = [(at, endpoint) for at, endpoint in self._queue if endpoint in places]

    def start(self, now: float, without: Collection[str]) -> None:
        """A round: queues what is worth a try. `without`: protocols and endpoints that need none."""
        self._queue.clear()
        starts: dict[str, list[str]] = {}
        for endpoint, place in self._places.items():
            place.is_refused = False
            is_due = place.known.kind == EndpointKind.FIXED or place.retry_at <= now
            wanted = place.protocol not in without and endpoint not in without
            if is_due and wanted and not self._is_fresh(endpoint, now):
                starts.setdefault(place.protocol, []).append(endpoint)
        for endpoints in starts.values():
            endpoints.sort(key=lambda endpoint: self._places[endpoint].failures)
            for index, endpoint in enumerate(endpoints[:CANDIDATES_MAX]):
                self._queue.append((now + index * STAGGER_S, endpoint))
        self._queue.sort(key=_when)

    def renew(self, now: float, without: Collection[str]) -> None:
        """A fresh dial to each fixed endpoint, also where one is under way, whose packets may be lost."""
        for endpoint, place in self._places.items():
            wanted = place.protocol not in without and endpoint not in without
            if place.known.kind == EndpointKind.FIXED and wanted:
                self._queue.append((now, endpoint))

    def won(self, protocol: str) -> None:
        """A link of this protocol carries: its race is over."""
        self._queue = [
            (at, endpoint)
            for at, endpoint in self._queue
            if self._places[endpoint].protocol != protocol
        ]

    def forget(self) -> None:
        """The network is another one: everything is worth a try, and what is under way leads nowhere."""
        self._queue.clear()
        self._under_way.clear()
        for place in self._places.values():
            place.failures = 0
            place.retry_at = 0.0

    # --- outside events --------------------------------------------------------------------------

    def came_up(self, endpoint: str) -> None:
        """A dial led to a link."""
        self._under_way.pop(endpoint, None)

    def answered(self, endpoint: str) -> None:
        """Its peer is there."""
        place = self._places.get(endpoint)
        if place is not None:
            place.failures = 0
            place.retry_at = 0.0
        for place in self._places.values():
            place.is_refused = False

    def failed(self, endpoint: str, refused: bool, now: float) -> None:
        """A dial, or the link that came of it, led to nobody; the next of its race starts now."""
        self._under_way.pop(endpoint, None)
        place = self._places.get(endpoint)
        if place is None:
            return
        place.failures += 1
        place.is_refused = refused
        if place.known.kind != EndpointKind.FIXED:
            wait = min(AGAIN_MAX_S, AGAIN_S * 2.0 ** min(place.failures - 1, 8))
            place.retry_at = now + wait * (0.75 + self._jitter(0.5))
        for index, (_, other) in enumerate(self._queue):
            if self._places[other].protocol == place.protocol:
                self._queue[index] = (now, other)
                self._queue.sort(key=_when)
                break

    # --- time ------------------------------------------------------------------------------------

    def take_due(self, now: float) -> list[str]:
        """Whom to dial now."""
        due = [endpoint for at, endpoint in self._queue if at <= now]
        if due:
            self._queue = [(at, endpoint) for at, endpoint in self._queue if at > now]
            for endpoint in due:
                self._under_way[endpoint] = now + DIAL_LIMIT_S + _DIAL_LATE_S
        return due

    def overdue(self, now: float) -> list[str]:
        """Dials that should have had a result by now."""
        return [endpoint for endpoint, until in self._under_way.items() if now >= until]

    def deadlines(self) -> list[float]:
        """When `take_due` or `overdue` will have something."""
        times = list(self._under_way.values())
        if self._queue:
            times.append(self._queue[0][0])
        return times

    # --- questions -------------------------------------------------------------------------------

    @property
    def endpoints(self) -> tuple[str, ...]:
        """All of them, in the order of preference."""
        return tuple(self._places)

    @property
    def known(self) -> tuple[Known, ...]:
        """All of them, with how they are known."""
        return tuple(place.known for place in self._places.values())

    @property
    def is_busy(self) -> bool:
        """Is a dial under way, or about to start?"""
        return bool(self._queue or self._under_way)

    def _is_fresh(self, endpoint: str, now: float) -> bool:
        """Is a dial under way that may still come to something soon?"""
        until = self._under_way.get(endpoint)
        return until is not None and now < until - DIAL_LIMIT_S - _DIAL_LATE_S + HUNG_S

    @property
    def is_under_way(self) -> bool:
        """Has a dial started that has no result yet?"""
        return bool(self._under_way)

    def is_fixed(self, endpoint: str) -> bool:
        """Is it this node's for good? (An unknown one is whatever the caller makes of it: yes.)."""
        place = self._places.get(endpoint)
        return place is None or place.known.kind == EndpointKind.FIXED

    def protocols(self) -> set[str]:
        """Those of the endpoints."""
        return {place.protocol for place in self._places.values()}

    def retry_at(self) -> float:
        """When one of those that are not fixed may be tried again; infinite: there is none."""
        return min(
            (p.retry_at for p in self._places.values() if p.known.kind != EndpointKind.FIXED),
            default=float("inf"),
        )

    def all_refused(self) -> bool:
        """Does every fixed endpoint refuse? One host refuses for all its protocols."""
        fixed = [p for p in self._places.values() if p.known.kind == EndpointKind.FIXED]
        hosts = {place.host for place in fixed if place.is_refused}
        return bool(fixed) and all(place.is_refused or place.host in hosts for place in fixed)
