"""The composition root: a configuration in, a running node out.

`Service` is one node with all its parts, wired here and nowhere else. Everything is built for live change:
a new configuration touches only the parts whose sections changed.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any, Final

from uservpn import __version__
from uservpn.chooser.chooser import Chooser
from uservpn.chooser.geo import distance_km
from uservpn.chooser.memory import drop_changes
from uservpn.chooser.site import site_of
from uservpn.chooser.targets import Target, parse_target
from uservpn.control.config import Config, ServerConfig, diff
from uservpn.errors import ConfigError, Fault
from uservpn.exits.policy import Policy
from uservpn.kit.endpoint import Address, Endpoint
from uservpn.links.base import LinkPlugin, PluginFactory
from uservpn.links.tcp import PLUGIN as TCP
from uservpn.mesh.records import EndpointKind, Known, Record, Role
from uservpn.node.node import Node
from uservpn.node.options import NodeOptions
from uservpn.runtime.boot import instance_of
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
from uservpn.runtime.moving import Spot, move
from uservpn.runtime.netwatch import NetWatch
from uservpn.runtime.pinger import Pinger
from uservpn.runtime.resolver import Resolver
from uservpn.runtime.state_keeper import StateKeeper
from uservpn.runtime.status import Status
from uservpn.runtime.timejump import TimeJump
from uservpn.types import NodeId
from uservpn.wire.header import HeaderCodec
from uservpn.wire.keys import KeyRing

DRAIN_S: Final = 3.0
"""How long SIGTERM lets running connections finish."""


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


def protocols_of(config: Config) -> set[str]:
    """Those of its endpoints."""
    endpoints = [*config.node.listen, *(e for s in config.servers for e in s.endpoints)]
    return {endpoint.protocol for endpoint in endpoints}


def _default_target(config: Config) -> Target:
    return parse_target(config.chooser.default, config.chooser.groups)


def _policy(config: Config) -> Policy:
    return Policy([str(n) for n in config.exit.allow], [str(n) for n in config.exit.deny])


def _entry_address(config: Config) -> Address | None:
    return config.entry.listen if config.entry else None


def _spot_of(entry: Entry, config: Config) -> Spot:
    assert config.entry is not None
    return Spot(config.entry.listen, entry.start, entry.leave)


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
        plugins = load_plugins(protocols_of(config))
        self.driver = Driver(self.node, plugins, loop, self._offer, _find_plugin)
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
        self._status = Status(
            self.driver, self.chooser, self.exit, self.exit_tests, self.started_at
        )
        self.entry: Entry | None = None
        self._leaving: list[Entry] = []  # no longer listening, with programs still connected

    async def start(self) -> None:
        """Listens and dials. Raises OSError with the address in it."""
        config = self.config
        for endpoint in config.node.listen:
            await self.driver.listen(endpoint)
        if self.memory is not None:
            self.memory.load()
        entry = self._new_entry(config)
        if entry is not None:
            await entry.start()
        self.entry = entry
        if config.node.plugins:
            from uservpn.runtime import plugins  # few have any

            plugins.start(plugins.load(config.node.plugins), self.driver.post)
        self._net_watch.start()
        self._time_jump.start()
        watch = self._net_watch
        self.driver.start(watch.network, watch.is_watching, watch.suspect)

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
        self.driver.protocols.add(load_plugins(protocols_of(config)))
        resolver = None
        if old.exit.resolvers != config.exit.resolvers:
            resolver = self._new_resolver(config)
        try:
            changed |= await self._reconfigure_listeners(old, config)
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

    async def _reconfigure_listeners(self, old: Config, config: Config) -> set[str]:
        """All of them, or none: then it raises OSError. The sections of which something was opened or closed.

        What an earlier reload had to close, and could not open again, is tried again.
        """
        before, after, is_open = (
            old.node.listen,
            config.node.listen,
            self.driver.protocols.listening,
        )
        leaving = [
            self._spot(endpoint)
            for endpoint in before
            if endpoint not in after and str(endpoint) in is_open
        ]
        arriving = [self._spot(endpoint) for endpoint in after if str(endpoint) not in is_open]
        touched = {"node"} if leaving or arriving else set()
        moved = _entry_address(old) != _entry_address(config)
        entry = self._new_entry(config) if moved else self.entry
        if moved and self.entry is not None and self.entry.is_listening:
            leaving.append(_spot_of(self.entry, old))
        if entry is not None and not entry.is_listening:
            arriving.append(_spot_of(entry, config))
            touched.add("entry")
        await move(leaving, arriving)
        self._leaving = [left for left in self._leaving if left.connections]
        if moved:
            if self.entry is not None:
                self._leaving.append(self.entry)  # programs that are connected stay so
            self.entry = entry
        elif self.entry is not None and config.entry is not None:
            self.entry.reconfigure(config.entry.users, config.tunnel.optimistic)
        return touched

    def _spot(self, endpoint: Endpoint) -> Spot:
        driver = self.driver
        return Spot(
            endpoint.address, partial(driver.listen, endpoint), partial(driver.unlisten, endpoint)
        )

    def status(self) -> dict[str, Any]:
        """The status document."""
        return self._status.document(self.config.node.name, self.entry, monotonic())

    def _new_entry(self, config: Config) -> Entry | None:
        """The configured entry, which does not listen yet; None: there is none."""
        if config.entry is None:
            return None
        return Entry(
            config.entry.listen,
            config.entry.users,
            self.driver,
            self.choosing,
            config.tunnel.optimistic,
        )

    def _new_resolver(self, config: Config) -> Resolver:
        return Resolver(self.driver.loop, [str(address) for address in config.exit.resolvers])

    def _offer(self, stream: Any, host: str, port: int) -> None:
        if self.config.exit.enabled:
            self.exit.offer(stream, host, port)
        else:
            self.driver.refuse(stream, Fault.NOT_ALLOWED)
