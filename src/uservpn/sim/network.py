"""The made-up internet: hosts, routers, datagrams and connections, all drawn from one seed.

    Host --(private address)-- Nat --(public address)-- the network -- Host

A `Host` has one address, maybe a `Nat` before it, datagram sockets (by port) and listeners for
connections (by port). The network delays by geography, loses, doubles and reorders datagrams, and
is cut along islands, between pairs, or for one protocol. A connection is TCP as its users see it: a
handshake, bytes in order, silence while the way is cut and retransmission with back-off once it
is whole, a reset where the other end does not know the connection (any more). Addresses change,
routers forget, hosts lose their power; what was open then is what it would be in the world: half-open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Protocol

from uservpn.kit.endpoint import Address
from uservpn.sim.agenda import Agenda
from uservpn.sim.geography import Site, flight_s
from uservpn.sim.nat import Nat

Batch = list[tuple[bytes, bytes]]
"""Messages: headers and sealed payloads."""
RETRY_S: Final = 0.2
RETRY_MAX_S: Final = 60.0
"""Of TCP's retransmission, while the way is cut."""
RETRY_NEW_S: Final = 2.0
"""The longest pause of a kernel that can be asked for it (links/tcp.py: Linux 6.15)."""
WATCH_S: Final = 1.0
"""A link looks after so long whether what it has sent is acknowledged, then after twice as long each time."""
TCP_END_S: Final = 924.0
"""When Linux gives a connection up that confirms nothing (tcp_retries2 = 15)."""
SYN_S: Final = (0.0, 1.0, 3.0, 7.0)
_PORTS: Final = range(32768, 60999)


@dataclass(slots=True)
class Weather:
    """What the network does to everybody."""

    loss: float = 0.0
    """Share of datagrams that are lost."""
    doubled: float = 0.0
    late: float = 0.0
    """Share of datagrams that are overtaken, by up to `late_s`."""
    late_s: float = 0.1
    jitter_s: float = 0.0
    flight_s: float | None = None
    """One way between any two hosts; None: by geography."""
    size_max: int = 1472
    """Bytes of the largest datagram that gets through."""
    rate: float = 12.5e6
    """Bytes a second that one connection or datagram path carries."""
    retry_max_s: float = RETRY_MAX_S
    """The longest pause of TCP's retransmission."""


class DatagramOwner(Protocol):
    """Whose a datagram socket is."""

    def datagram(self, port: int, remote: Address, head: bytes, body: bytes) -> None:
        """One came to this host's `port`."""


class Listener(Protocol):
    """Who takes connections in."""

    def accepted(self, end: End) -> EndOwner:
        """Somebody connected; returns who hears of this end from now on."""


class EndOwner(Protocol):
    """Who hears of one end of a connection."""

    def messages(self, end: End, batch: Batch) -> None:
        """Whole messages came, in order."""

    def stalled(self, end: End, silent_s: float) -> None:
        """For so long nothing of what was sent has been acknowledged."""

    def closed(self, end: End, reason: str) -> None:
        """The connection is gone."""


class Host:
    """A machine."""

    def __init__(self, name: str, ip: str, site: Site, nat: Nat | None = None) -> None:
        self.name = name
        self.ip = ip
        self.site = site
        self.nat = nat
        self.is_up = True
        """Powered and connected; else it is silent."""
        self.start_count = 0
        """Connections of an earlier start draw a reset."""
        self.sockets: dict[int, DatagramOwner] = {}
        self.listeners: dict[int, Listener] = {}
        self.ends: dict[End, None] = {}
        self.island = 0
        self.last_port = 0

    def free_port(self) -> int:
        """A port for a connection that goes out."""
        self.last_port += 1
        return _PORTS[self.last_port % len(_PORTS)]

    def stop_process(self) -> None:
        """kill -9: the kernel resets every connection, and answers in its stead."""
        self.sockets.clear()
        self.listeners.clear()
        for end in list(self.ends):
            end.abort()

    def lose_power(self) -> None:
        """Silence; nothing is known any more when it is back."""
        self.is_up = False
        self.start_count += 1
        self.sockets.clear()
        self.listeners.clear()
        for end in self.ends:
            end.is_open = False
        self.ends.clear()


class End:
    """One end of a connection."""

    def __init__(self, network: Network, host: Host, local: Address, remote: Address) -> None:
        self.local = local
        self.remote = remote
        """As this end sees it: a router's public address, where there is one."""
        self.host = host
        self.is_open = True
        self.bytes_out = 0
        self.other: End
        self.owner: EndOwner
        self._network = network
        self._start = host.start_count
        self._busy_until = 0.0
        self._due_at = 0.0
        self._waiting: list[Batch] = []
        self._waiting_since = 0.0
        self._retry_s = RETRY_S

    def queued_size(self) -> int:
        """Bytes that were sent and are not on their way yet."""
        network = self._network
        busy_s = max(0.0, self._busy_until - network.agenda.now)
        waiting = sum(len(head) + len(body) for batch in self._waiting for head, body in batch)
        return int(busy_s * network.weather.rate) + waiting

    def send(self, batch: Batch) -> None:
        """Sends messages in order; nothing happens at an end that is closed."""
        if not self.is_open:
            return
        network = self._network
        now = network.agenda.now
        size = sum(len(head) + len(body) for head, body in batch)
        self.bytes_out += size
        self._busy_until = max(self._busy_until, now) + size / network.weather.rate
        self._fly(batch, self._busy_until)

    def abort(self) -> None:
        """Closes at once; the other end is told, if a packet gets there."""
        if not self.is_open:
            return
        self.is_open = False
        self.host.ends.pop(self, None)
        network = self._network
        if network.reaches(self, self.other, "tcp"):
            network.agenda.after(network.flight(self.host, self.other.host), self.other.reset, self)

    def reset(self, by: End) -> None:
        """The other end's reset arrives."""
        if self.is_open and self._network.reaches(by, self, "tcp"):
            self._close("reset")

    def _close(self, reason: str) -> None:
        self.is_open = False
        self.host.ends.pop(self, None)
        self.owner.closed(self, reason)

    def _fly(self, batch: Batch, leaves_at: float) -> None:
        network = self._network
        arrives = leaves_at + network.flight(self.host, self.other.host)
        self._due_at = max(self._due_at, arrives)
        network.agenda.at(self._due_at, self._arrive, batch)

    def _arrive(self, batch: Batch) -> None:
        """At the far end; there it waits for retransmission if the way is cut now."""
        if self._start != self.host.start_count:
            return
        if self._waiting or not self._network.reaches(self, self.other, "tcp"):
            if not self._waiting:
                self._waiting_since = self._network.agenda.now
                self._retry_s = RETRY_S
                self._network.agenda.after(self._retry_s, self._retry)
                self._network.agenda.after(WATCH_S, self._watch, self._waiting_since, WATCH_S)
            self._waiting.append(batch)
        else:
            self._hand_over(batch)

    def _hand_over(self, batch: Batch) -> None:
        network, other = self._network, self.other
        if other.is_open:
            other.owner.messages(other, batch)
        elif self.is_open:  # nobody there knows this connection
            network.agenda.after(network.flight(other.host, self.host), self.reset, other)

    def _watch(self, since: float, waited_s: float) -> None:
        """The sender's link sees that the kernel still sends the same bytes."""
        if self.is_open and self._waiting and since == self._waiting_since:
            network = self._network
            self.owner.stalled(self, network.agenda.now - since)
            network.agenda.after(2 * waited_s, self._watch, since, 2 * waited_s)

    def _retry(self) -> None:
        network = self._network
        if self._start != self.host.start_count:
            return
        if network.reaches(self, self.other, "tcp"):
            network.agenda.after(network.flight(self.host, self.other.host), self._catch_up)
        elif self.is_open and network.agenda.now >= self._waiting_since + TCP_END_S:
            self._close("timed out")
        else:
            self._retry_s = min(2 * self._retry_s, network.weather.retry_max_s)
            network.agenda.after(self._retry_s, self._retry)

    def _catch_up(self) -> None:
        """What was retransmitted arrives, with all that waited behind it."""
        waiting = self._waiting
        self._waiting = []
        for batch in waiting:
            self._arrive(batch)


class Network:
    """Who reaches whom, when, and what is lost on the way."""

    def __init__(self, agenda: Agenda, rng: Random, weather: Weather) -> None:
        self.agenda = agenda
        self.weather = weather
        self.hosts: dict[str, Host] = {}
        self.nats: dict[str, Nat] = {}
        self.blocked: set[frozenset[str]] = set()
        """Pairs of hosts, by name, between which nothing passes."""
        self.blocked_protocols: set[tuple[str, str]] = set()
        """(host's name, protocol): a firewall before this host drops it."""
        self.lost_count = 0
        self._rng = rng
        self._places: dict[str, Host] = {}
        self._flights: dict[tuple[str, str], float] = {}

    # --- hosts -----------------------------------------------------------------------------------

    def add(self, host: Host) -> Host:
        """A new machine."""
        self.hosts[host.name] = host
        self._places[host.ip] = host
        if host.nat is not None:
            self.nats[host.nat.host] = host.nat
        return host

    def move(self, host: Host, ip: str, site: Site, nat: Nat | None) -> None:
        """The host is somewhere else: its old address is nobody's."""
        self._places.pop(host.ip, None)
        host.ip = ip
        host.nat = nat
        host.site = site
        self._places[ip] = host
        if nat is not None:
            self.nats[nat.host] = nat

    def split(self, islands: dict[str, int]) -> None:
        """Hosts (by name) of different islands do not reach each other; others are on island 0."""
        for host in self.hosts.values():
            host.island = islands.get(host.name, 0)

    # --- ways ------------------------------------------------------------------------------------

    def flight(self, a: Host, b: Host) -> float:
        """One way, this time, seconds."""
        weather = self.weather
        if weather.flight_s is not None:
            flight = weather.flight_s
        else:
            key = a.site.name, b.site.name
            known = self._flights.get(key)
            if known is None:
                known = self._flights[key] = flight_s(a.site, b.site)
            flight = known
        return flight + self._rng.random() * weather.jitter_s

    def is_open_between(self, a: Host, b: Host, protocol: str) -> bool:
        """Does a packet of this protocol get from one host to the other now?"""
        return (
            a.is_up
            and b.is_up
            and a.island == b.island
            and not (self.blocked and frozenset((a.name, b.name)) in self.blocked)
            and not (
                self.blocked_protocols
                and not self.blocked_protocols.isdisjoint(((a.name, protocol), (b.name, protocol)))
            )
        )

    def reaches(self, a: End, b: End, protocol: str) -> bool:
        """As `is_open_between`, and do both ends still have the address that they began with?"""
        return (
            a.local.host == a.host.ip
            and b.local.host == b.host.ip
            and self.is_open_between(a.host, b.host, protocol)
        )

    # --- datagrams -------------------------------------------------------------------------------

    def send(
        self, host: Host, port: int, to: Address, head: bytes, body: bytes, wait: float = 0.0
    ) -> None:
        """A datagram from this host's `port`; it may be lost, doubled and late.

        `wait`: how long it queues before it leaves, seconds.
        """
        weather = self.weather
        rng = self._rng
        source = Address(host.ip, port)
        now = self.agenda.now
        if host.nat is not None and not self._is_local(host, to):
            source = host.nat.outbound(source, to, now)
        if rng.random() < weather.loss or len(head) + len(body) > weather.size_max:
            self.lost_count += 1
            return
        target = self._places.get(to.host) or self._behind(to.host)
        if target is None:
            return
        flight = self.flight(host, target)
        copies = 2 if rng.random() < weather.doubled else 1
        for _ in range(copies):
            late = rng.random() * weather.late_s if rng.random() < weather.late else 0.0
            self.agenda.at(now + wait + flight + late, self._deliver, host, source, to, head, body)

    def _deliver(
        self, sender: Host, source: Address, to: Address, head: bytes, body: bytes
    ) -> None:
        host = self._places.get(to.host)
        if host is not None and host.nat is not None and not self._is_local(sender, to):
            return  # a private address, from outside
        nat = self.nats.get(to.host)
        port = to.port
        if nat is not None:
            private = nat.inbound(to.port, source, self.agenda.now)
            if private is None:
                return
            host = self._places.get(private.host)
            port = private.port
        if host is None or not self.is_open_between(sender, host, "udp"):
            return
        owner = host.sockets.get(port)
        if owner is not None:
            owner.datagram(port, source, head, body)

    def _is_local(self, host: Host, to: Address) -> bool:
        """Are both behind the same router?"""
        other = self._places.get(to.host)
        return other is not None and other.nat is not None and other.nat is host.nat

    def _behind(self, ip: str) -> Host | None:
        """Some host behind the router with this address: they are all at its place."""
        return next((h for h in self.hosts.values() if h.nat and h.nat.host == ip), None)

    # --- connections -----------------------------------------------------------------------------

    def connect(
        self,
        host: Host,
        to: Address,
        owner: EndOwner,
        done: Callable[[End | None, bool, str], Any],
    ) -> None:
        """Connects; `done(end, refused, reason)` is called at most once, never if nothing answers."""
        dial = _Dial(self, host, to, owner, done)
        for wait in SYN_S:
            self.agenda.after(wait, dial.knock)


class _Dial:
    """A connection that is being made."""

    def __init__(
        self,
        network: Network,
        host: Host,
        to: Address,
        owner: EndOwner,
        done: Callable[[End | None, bool, str], Any],
    ) -> None:
        self._network = network
        self._host = host
        self._to = to
        self._owner = owner
        self._done = done
        self._ip = host.ip
        self._port = host.free_port()
        self._start = host.start_count
        self._is_over = False

    def knock(self) -> None:
        """One SYN."""
        network, host = self._network, self._host
        target = network._places.get(self._to.host)
        if self._is_over or host.ip != self._ip or host.start_count != self._start:
            return
        if target is None or (target.nat is not None and not network._is_local(host, self._to)):
            return  # nobody's address, or a router that lets nobody in
        if network.is_open_between(host, target, "tcp"):
            network.agenda.after(network.flight(host, target), self._ask, target)

    def _ask(self, target: Host) -> None:
        network, host = self._network, self._host
        if self._is_over or not network.is_open_between(host, target, "tcp"):
            return
        self._is_over = True
        listener = target.listeners.get(self._to.port)
        back = network.flight(target, host)
        if listener is None:
            network.agenda.after(back, self._answer, target, None)
            return
        source = Address(self._ip, self._port)
        seen = Address(host.nat.host, self._port) if host.nat and target.nat is None else source
        near = End(network, host, source, self._to)
        far = End(network, target, self._to, seen)
        near.other, far.other = far, near
        near.owner = self._owner
        network.agenda.after(back, self._answer, target, near)

    def _answer(self, target: Host, end: End | None) -> None:
        network, host = self._network, self._host
        if (
            host.start_count != self._start
            or host.ip != self._ip
            or not network.is_open_between(target, host, "tcp")
        ):
            return
        if end is None:
            self._done(None, True, "refused")
            return
        listener = target.listeners.get(self._to.port)
        if listener is None:
            self._done(None, False, "reset")
            return
        far = end.other
        host.ends[end] = None
        target.ends[far] = None
        far.owner = listener.accepted(far)
        self._done(end, False, "")
