"""The composition root: a configuration in, a running node out.

`Service` is one node with all its parts, wired here and nowhere else; `run` is the daemon around one of
them, `demo` puts three into one process. Everything is built for live change: SIGHUP rereads
the configuration and touches only the parts whose sections changed.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

from uservpn import __version__
from uservpn.chooser import report
from uservpn.chooser.chooser import Chooser
from uservpn.chooser.geo import distance_km
from uservpn.chooser.memory import drop_changes
from uservpn.chooser.site import site_of
from uservpn.chooser.targets import Target, parse_target
from uservpn.control.client import ControlError
from uservpn.control.config import Config, ServerConfig, diff, load, state_dir_of
from uservpn.control.places import control_socket
from uservpn.control.server import ControlServer
from uservpn.control.site_commands import SITE_COMMANDS, answer_about_sites
from uservpn.errors import ConfigError, Fault, UservpnError
from uservpn.exits.policy import Policy
from uservpn.kit.endpoint import Address, Endpoint
from uservpn.links.base import LinkPlugin, PluginFactory
from uservpn.links.tcp import PLUGIN as TCP
from uservpn.mesh.records import EndpointKind, Known, Record, Role
from uservpn.node.node import Node
from uservpn.node.options import NodeOptions
from uservpn.node.table import OVERHEAD
from uservpn.runtime.allocator import give_back, keep_message_blocks
from uservpn.runtime.boot import instance_of, next_boot
from uservpn.runtime.choosing import Choosing
from uservpn.runtime.clock import monotonic, random_bytes, wall_offset
from uservpn.runtime.cpu import lacks_aes
from uservpn.runtime.driver import Driver
from uservpn.runtime.entry import Entry
from uservpn.runtime.exit import Exit
from uservpn.runtime.exit_tests import ExitTests
from uservpn.runtime.exits_view import ExitsView
from uservpn.runtime.geo import Countries
from uservpn.runtime.kept import KeptConnections
from uservpn.runtime.netwatch import NetWatch
from uservpn.runtime.nodes_file import load_nodes, save_nodes
from uservpn.runtime.pinger import Pinger
from uservpn.runtime.resolver import Resolver
from uservpn.runtime.state_keeper import StateKeeper
from uservpn.runtime.timejump import TimeJump
from uservpn.tunnel.path import Path as TunnelPath
from uservpn.types import NodeId
from uservpn.wire.header import HeaderCodec
from uservpn.wire.keys import KeyRing

log: Final = logging.getLogger("uservpn")
DRAIN_S: Final = 3.0
"""How long SIGTERM lets running connections finish."""
STATUS_CONNECTIONS_MAX: Final = 1000
SAVE_EVERY_S: Final = 30.0
RESOLVER_THREADS: Final = "16"
"""Names an exit resolves at once: with libuv's own 4, a few dead ones would hold up all others."""


def load_plugins(protocols: set[str]) -> dict[str, LinkPlugin | PluginFactory]:
    """The link plug-ins for these protocols. Raises ConfigError for one that is not installed."""
    plugins: dict[str, LinkPlugin | PluginFactory] = {}
    if "tcp" in protocols:
        plugins["tcp"] = TCP
    if "udp" in protocols:
        from uservpn.links.udp import PLUGIN as UDP  # not needed by every node

        plugins["udp"] = UDP
    if protocols <= plugins.keys():
        return plugins
    from importlib.metadata import entry_points  # megabytes that few need

    for name in protocols - set(plugins):
        found = list(entry_points(group="uservpn.links", name=name))
        if not found:
            raise ConfigError([f"no link plug-in for the protocol {name!r} is installed"])
        try:
            plugins[name] = found[0].load()
        except ImportError as error:
            raise ConfigError([f"the protocol {name!r} needs a package: {error}"]) from None
    return plugins


def _find_plugin(protocol: str) -> LinkPlugin | PluginFactory | None:
    """The plug-in for a protocol that another node has, if it is installed here."""
    try:
        return load_plugins({protocol})[protocol]
    except ConfigError:
        return None


def _servers(servers: tuple[ServerConfig, ...]) -> dict[NodeId, tuple[str, ...]]:
    return {server.id: tuple(map(str, server.endpoints)) for server in servers}


def _protocols(config: Config) -> set[str]:
    endpoints = [*config.node.listen, *(e for s in config.servers for e in s.endpoints)]
    return {endpoint.protocol for endpoint in endpoints}


def _default_target(config: Config) -> Target:
    return parse_target(config.chooser.default, config.chooser.groups)


def _policy(config: Config) -> Policy:
    return Policy([str(n) for n in config.exit.allow], [str(n) for n in config.exit.deny])


def _entry_address(config: Config) -> Address | None:
    return config.entry.listen if config.entry else None


def _described(config: Config) -> dict[str, Any]:
    """The fields of this node's record that the configuration tells."""
    roles = Role.RELAY
    for role, is_played in (
        (Role.SERVER, bool(config.node.public)),
        (Role.EXIT, config.exit.enabled),
        (Role.ENTRY, config.entry is not None),
    ):
        roles |= role if is_played else Role.NONE
    return {
        "roles": roles,
        "name": config.node.name,
        "country": config.node.country or "",
        "software": __version__,
        "endpoints": tuple(
            Known(EndpointKind.FIXED, str(endpoint)) for endpoint in config.node.public
        ),
    }


class Service:
    """One node and its entry, exit and control socket, on the running event loop."""

    def __init__(
        self,
        config: Config,
        boot: int,
        loop: asyncio.AbstractEventLoop,
        state_dir: Path | None = None,
    ) -> None:
        """Builds every part; opens nothing. Raises ConfigError for a missing plug-in.

        `state_dir` is where the chooser's memory is kept; None: nowhere.
        """
        self.config = config
        ring = KeyRing(config.network.keys)
        servers = _servers(config.servers)
        options = NodeOptions(
            config.node.id,
            boot,
            servers,
            record=Record(config.node.id, boot, **_described(config)),
            grace_s=config.tunnel.grace,
            chacha=lacks_aes(),
            instance=instance_of(state_dir) if state_dir else b"",
            relay_share=config.tunnel.relay_share,
        )
        self.started_at = monotonic()
        self.node = Node(
            options,
            ring,
            HeaderCodec(ring),
            random_bytes,
            now=self.started_at,
            wall_s=wall_offset(),
        )
        self.driver = Driver(self.node, load_plugins(_protocols(config)), loop, self._offer)
        self.driver.find_plugin = _find_plugin
        self._net_watch = NetWatch(loop, self.driver.network_changed)
        self._time_jump = TimeJump(loop, self.driver.clock_jumped)
        self._resolver = self._new_resolver(config)
        self.kept = KeptConnections(loop)
        self.countries = Countries(config.geo.enabled, config.geo.database)
        self.exit = Exit(self.driver, _policy(config), self._resolver, kept=self.kept)
        self.exit_tests = ExitTests(
            self.driver,
            self.exit,
            self.kept,
            lambda: self.config.exit.enabled,
            lambda address: self.countries.country_of(address),
        )
        self.exits = ExitsView(self.node, tuple(servers))
        self.chooser = Chooser(
            self.exits,
            _default_target(config),
            config.chooser.rules,
            site_of=site_of,
            wall_s=lambda: self.node.wall_s,
            idle_s=config.chooser.session_idle,
            near=distance_km,
        )
        self.memory = StateKeeper(self.chooser, state_dir, loop) if state_dir else None
        changed = self.memory.changed if self.memory else partial(drop_changes, self.chooser)
        self.choosing = Choosing(self.chooser, self.driver, changed)
        self.pinger = Pinger(self.driver)
        self.entry: Entry | None = None
        self._leaving: list[Entry] = []  # no longer listening, with programs still connected

    async def start(self) -> None:
        """Listens and dials. Raises OSError with the address in it."""
        config = self.config
        for endpoint in config.node.listen:
            await self.driver.listen(endpoint)
        if self.memory is not None:
            self.memory.load()
        self.entry = await self._new_entry(config)
        if config.node.plugins:
            from uservpn.runtime import plugins  # few have any

            plugins.start(plugins.load(config.node.plugins), self.driver)
        self._net_watch.start()
        self._time_jump.start()
        self.driver.start(self._net_watch.network, self._net_watch.is_watching)

    async def close(self) -> None:
        """Ends everything; entry first, so that programs hear it."""
        entries = [entry for entry in (self.entry, *self._leaving) if entry is not None]
        await asyncio.gather(*(entry.close(DRAIN_S) for entry in entries))
        self.choosing.close()
        if self.memory is not None:
            await self.memory.close()
        self.exit_tests.close()
        self.countries.close()
        self.kept.close()
        self.exit.close()
        await self._resolver.close()
        self._net_watch.close()
        self._time_jump.close()
        await self.driver.close()

    async def reconfigure(self, config: Config) -> frozenset[str]:
        """Takes a new configuration over; only what changed is touched.

        Raises:
            ConfigError: the change needs a restart (number, key, grace); nothing was changed.
            OSError: a new address cannot be listened on; nothing was changed.
        """
        old = self.config
        changed = diff(old, config)
        fixed = [
            name
            for name, differs in (
                ("node.id", old.node.id != config.node.id),
                ("network", "network" in changed),
                ("node.plugins", old.node.plugins != config.node.plugins),
                ("node.state_dir", old.node.state_dir != config.node.state_dir),
                ("tunnel.grace", old.tunnel.grace != config.tunnel.grace),
            )
            if differs
        ]
        if fixed:
            raise ConfigError([f"{name} changes only with a restart" for name in fixed])
        self.driver.add_plugins(load_plugins(_protocols(config)))
        resolver = None
        if old.exit.resolvers != config.exit.resolvers:
            resolver = self._new_resolver(config)
        try:
            await self._reconfigure_listeners(old, config)
        except OSError:
            if resolver is not None:
                await resolver.close()
            raise
        self.config = config
        self.node.describe(monotonic(), **_described(config))
        self.node.table.relay_share = config.tunnel.relay_share
        if "servers" in changed:
            self.node.set_servers(_servers(config.servers), monotonic())
        self.node.retry_number(monotonic())
        self.driver.kick()
        self.exits.servers = tuple(_servers(config.servers))
        self.chooser.reconfigure(
            _default_target(config), config.chooser.rules, config.chooser.session_idle
        )
        self.countries.close()  # the database may be another one under the same name
        if "geo" in changed:
            self.countries = Countries(config.geo.enabled, config.geo.database)
        if "exit" in changed:
            self.exit.reconfigure(_policy(config), resolver)
        if resolver is not None:
            await self._resolver.close()
            self._resolver = resolver
        return changed

    async def _reconfigure_listeners(self, old: Config, config: Config) -> None:
        """New addresses first: when one cannot be had, all is as before. Raises OSError."""
        moved = _entry_address(old) != _entry_address(config)
        opened: list[Endpoint] = []
        try:
            for endpoint in config.node.listen:
                if endpoint not in old.node.listen:
                    await self.driver.listen(endpoint)
                    opened.append(endpoint)
            entry = await self._new_entry(config) if moved else None
        except OSError:
            for endpoint in opened:
                self.driver.unlisten(endpoint)
            raise
        for endpoint in set(old.node.listen) - set(config.node.listen):
            self.driver.unlisten(endpoint)
        self._leaving = [left for left in self._leaving if left.connections]
        if moved:
            if self.entry is not None:
                self.entry.leave()  # programs that are connected stay so
                self._leaving.append(self.entry)
            self.entry = entry
        elif self.entry is not None and config.entry is not None:
            self.entry.reconfigure(config.entry.users, config.tunnel.optimistic)

    def status(self) -> dict[str, Any]:
        """The status document (docs/status.md); `version` 1."""
        config, node = self.config, self.node
        now = monotonic()
        links, tunnels, connections = [], [], []
        for peer in node.peers.values():
            tunnel = peer.tunnel
            tunnels.append(
                {
                    "peer": peer.id,
                    "streams": len(tunnel.streams),
                    "cache_bytes": tunnel.cache_size,
                    "resent": tunnel.resent_count,
                    "spurious": tunnel.outbox.spurious_count,
                    "recut": tunnel.outbox.recut_count,
                    "relayed_bytes": peer.relayed_bytes,
                    "direct_bytes": peer.schedule.direct_bytes,
                }
            )
            connections += [
                {
                    "id": f"{peer.id}/{stream.id}",
                    "target": str(getattr(stream.owner, "target", "")),
                    "exit": peer.id if stream.is_mine else node.options.node,
                    "client": node.options.node if stream.is_mine else peer.id,
                    "bytes_out": stream.sent_size,
                    "bytes_in": stream.recv_offset,
                }
                for stream in list(tunnel.streams.values())[:STATUS_CONNECTIONS_MAX]
            ]
        if self.entry is not None:
            connections += self.entry.direct_rows(node.options.node)
        for link in self.driver.links.values():
            entry = node.links.get(link.id)
            peer_id = entry.peer.id if entry and entry.peer else None
            links.append(
                {
                    "peer": peer_id,
                    "protocol": link.caps.protocol,
                    "local": link.local,
                    "remote": link.remote,
                    "rtt_ms": _ms(entry.state.rtt_s) if entry and entry.state else None,
                    "in_ms": _ms(entry.state.in_s) if entry and entry.state else None,
                    "loss": 0.0 if link.caps.is_reliable else None,
                    "bytes_in": link.bytes_in,
                    "bytes_out": link.bytes_out,
                    **_path(entry.path if entry else None),
                    "message_size": entry.size_max + OVERHEAD if entry else None,
                }
            )
        links += [
            {
                "peer": entry.peer.id,
                "protocol": "relay",
                "local": "",
                "remote": ",".join(map(str, entry.hops)),
                "rtt_ms": _ms(entry.state.rtt_s) if entry.state else None,
                "bytes_out": entry.path.sent if entry.path else 0,
                **_path(entry.path),
            }
            for entry in node.links.values()
            if entry.hops and entry.peer is not None
        ]
        return {
            "version": 1,
            "node": {
                "id": config.node.id,
                "name": config.node.name,
                "boot": node.options.boot,
                "uptime_s": round(now - self.started_at, 1),
                "software": __version__,
                "state": "standing back" if node.claims.is_back else "active",
                "reach": node.reach.snapshot(),
            },
            "duplicates": self._duplicates(now),
            "entry": str(config.entry.listen) if config.entry else None,
            "nodes": self._nodes(now),
            "links": links,
            "sockets": self.driver.sockets(),
            "tunnels": tunnels,
            "relay": asdict(node.relay.counters),
            "connections": connections,
            "sites": report.sites(self.chooser, now),
            "chooser": report.counts(self.chooser),
            "exit": self.exit.snapshot() | {"tests": self.exit_tests.snapshot()},
        }

    def _duplicates(self, now: float) -> list[dict[str, Any]]:
        """Other nodes that had our number within the last hour."""
        claims = self.node.claims
        return [
            {
                "address": duplicate.address or None,
                "heard_s": round(now - duplicate.heard_at, 1),
                "outcome": "this node stands back" if duplicate.stays else "this node stays",
                "retry_s": claims.retry_in(now) if duplicate.stays else None,
            }
            for duplicate in claims.duplicates(now)
        ]

    def _nodes(self, now: float) -> list[dict[str, Any]]:
        """Every node but this one: what is on the list, and how it is reached."""
        node = self.node
        numbers = {int(record.node) for record in node.directory} | node.peers.keys()
        rows = []
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
            rows.append(
                {
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
            )
        return rows

    async def _new_entry(self, config: Config) -> Entry | None:
        """The configured entry, listening; None: there is none. Raises OSError."""
        if config.entry is None:
            return None
        entry = Entry(
            config.entry.listen,
            config.entry.users,
            self.driver,
            self.choosing,
            config.tunnel.optimistic,
        )
        await entry.start()
        return entry

    def _new_resolver(self, config: Config) -> Resolver:
        return Resolver(self.driver.loop, [str(address) for address in config.exit.resolvers])

    def _offer(self, stream: Any, host: str, port: int) -> None:
        if self.config.exit.enabled:
            self.exit.offer(stream, host, port)
        else:
            self.driver.refuse(stream, Fault.NOT_ALLOWED)


def _way(hops: tuple[NodeId, ...]) -> str:
    """How a linked node is reached, in words."""
    return f"relay via {', '.join(map(str, hops))}" if hops else "direct"


def _path(path: TunnelPath | None) -> dict[str, Any]:
    """What a tunnel measured of one link: honest costs beside what came."""
    if path is None:
        return {}
    known: dict[str, Any] = {
        "sent_bytes": path.sent,
        "delivered_bytes": path.delivered,
        "resent": path.resent_count,
        "spurious": path.spurious_count,
        "lost": path.lost_count,
        "rate_mbit": round(path.rate * 8e-6, 2),
        "first_second_bytes": path.first_second,
    }
    if path.is_lossy:
        known["loss"] = round(path.loss, 4)
    return known


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed, else Python's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _log_to_stderr() -> None:
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )


def run(config_path: Path, servers: tuple[str, ...]) -> int:
    """The daemon: until SIGTERM or SIGINT. Returns the exit status. Raises ConfigError."""
    config = load(config_path, servers)
    keep_message_blocks()
    if config.exit.enabled:
        os.environ.setdefault("UV_THREADPOOL_SIZE", RESOLVER_THREADS)
    _log_to_stderr()
    for warning in config.warnings:
        log.warning("%s", warning)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(_serve(config, config_path, servers))


def ask_taken_numbers(config: Config) -> set[int]:
    """The numbers that the configured servers know to be taken. Raises UservpnError."""
    from uservpn.runtime.joining import taken_numbers  # for this one command

    servers = {server.id: server.endpoints for server in config.servers}
    ring = KeyRing(config.network.keys)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(taken_numbers(ring, servers, load_plugins(_protocols(config))))


async def _serve(config: Config, config_path: Path, servers: tuple[str, ...]) -> int:
    loop = asyncio.get_running_loop()
    state_dir = state_dir_of(config)
    signals: asyncio.Queue[int] = asyncio.Queue()
    try:
        service = Service(config, next_boot(state_dir), loop, state_dir)
        control = ControlServer(
            control_socket(state_dir), lambda request: _answer(service, request)
        )
        await control.start()
    except (OSError, ControlError) as error:
        log.error("cannot start: %s", error)
        return 1
    load_nodes(state_dir, service.node.directory, monotonic())
    keeper = loop.create_task(_keep_nodes(service, state_dir))
    try:
        try:
            await service.start()
        except OSError as error:
            log.error("cannot listen: %s", error.strerror or error)
            return 1
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, signals.put_nowait, number)
        gc.collect()
        gc.freeze()  # what is loaded stays: no collector pass over it, pages stay shared
        give_back()
        print(f"ready node {config.node.id} {config.node.name}", flush=True)
        await _until_stopped(service, config_path, servers, signals)
        return 0
    finally:
        keeper.cancel()
        await service.close()
        save_nodes(state_dir, service.node.directory, monotonic())
        await control.close()


async def _keep_nodes(service: Service, state_dir: Path) -> None:
    """Saves the node list a while after it changed; asleep while it does not."""
    while True:
        await service.driver.nodes_changed.wait()
        service.driver.nodes_changed.clear()
        service.chooser.mesh_changed()
        save_nodes(state_dir, service.node.directory, monotonic())
        await asyncio.sleep(SAVE_EVERY_S)


async def _until_stopped(
    service: Service,
    config_path: Path,
    servers: tuple[str, ...],
    signals: asyncio.Queue[int],
) -> None:
    while True:
        if await signals.get() != signal.SIGHUP:
            log.info("stopping")
            return
        try:
            # long lists take their time to read, and nobody waits for that
            config = await asyncio.get_running_loop().run_in_executor(
                None, load, config_path, servers
            )
            for warning in config.warnings:
                log.warning("%s", warning)
            changed = await service.reconfigure(config)
            log.info("configuration reread: %s", ", ".join(sorted(changed)) or "nothing changed")
        except (ConfigError, OSError) as error:
            log.error("configuration not taken over, the old one stays: %s", error)


def _answer(
    service: Service, request: Mapping[str, Any]
) -> dict[str, Any] | Awaitable[dict[str, Any]]:
    """Answers a request on the control socket."""
    command = request.get("command")
    if command == "status":
        return service.status()
    if command in SITE_COMMANDS:
        return answer_about_sites(service.chooser, request, monotonic(), service.choosing.changed)
    if command == "ping":
        return service.pinger.ping(request.get("node"))
    if command == "trace":
        return service.pinger.trace(request.get("node"))
    raise UservpnError(f"unknown command {command!r}")
