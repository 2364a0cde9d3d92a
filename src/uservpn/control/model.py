"""The configuration as values: what the rest of the program sees of the file.

A `Config` that came from `config.load` cannot be wrong: addresses are numeric, numbers are in
range, keys are 32 bytes. No `repr` of anything here shows a key or a password.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from uservpn.kit.endpoint import Address, Endpoint
from uservpn.types import NodeId

if TYPE_CHECKING:  # rules cost memory where there are some, and only there
    from uservpn.chooser.rules import RuleSet
    from uservpn.chooser.targets import Group

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """`[network]`: what makes a node a member."""

    keys: tuple[bytes, ...] = field(repr=False)
    """The first sends, all receive; each 32 bytes."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """`[node]`: who this node is and where it can be reached."""

    id: NodeId
    name: str
    country: str | None = None
    """Two capital letters."""
    listen: tuple[Endpoint, ...] = ()
    """Empty: this node only dials out."""
    public: tuple[Endpoint, ...] = ()
    """Fixed addresses; a node that has some is a server."""
    state_dir: Path | None = None
    """None: the platform's own place; ask `state_dir_of`."""
    plugins: tuple[str, ...] = ()
    """Entry points of the group `uservpn.plugins` that are started with the node (docs/messages.md)."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """One server to start from, of `[[servers]]` or `--server`."""

    id: NodeId
    endpoints: tuple[Endpoint, ...]
    """At least one, the preferred one first."""


@dataclass(frozen=True, slots=True)
class EntryConfig:
    """`[entry]`: where programs connect."""

    listen: Address
    users: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Passwords by user name; never empty when `listen` is not on loopback."""


@dataclass(frozen=True, slots=True)
class ExitConfig:
    """`[exit]`: whether and to where this node dials for others."""

    enabled: bool = False
    """Without an `[exit]` section a node is no exit; with one it is, unless it says otherwise."""
    allow: tuple[IpNetwork, ...] = ()
    deny: tuple[IpNetwork, ...] = ()
    resolvers: tuple[IpAddress, ...] = ()
    """DNS servers to ask; empty: the system's resolver."""


@dataclass(frozen=True, slots=True)
class TunnelConfig:
    """`[tunnel]`: how streams to an exit behave."""

    relay_share: float = 0.10
    optimistic: Literal["auto"] | bool = "auto"
    grace: float = 60.0
    """Seconds."""


@dataclass(frozen=True, slots=True)
class ChooserConfig:
    """`[chooser]`: which exit a site leaves through."""

    default: Literal["auto"] | int | str = "auto"
    """An exit's number (int) or name (str); "auto" leaves the choice to the chooser."""
    session_idle: float = 43_200.0
    """Seconds."""
    rules: RuleSet | None = None
    """Compiled; None: there are none. Equal when the rules and the content of their files are."""
    groups: Mapping[str, Group] = field(default_factory=dict)
    """Exits under a name of their own; `default` may name one."""


@dataclass(frozen=True, slots=True)
class GeoConfig:
    """`[geo]`: how an exit knows the country of an address."""

    enabled: Literal["auto"] | bool = "auto"
    """"auto": if a database is named or the package iptocc is installed."""
    database: Path | None = None
    """An MMDB file of the owner's; None: the data of iptocc."""


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """`[control]`: where the node can be looked at, beside its Unix socket."""

    listen: Address | None = None


@dataclass(frozen=True, slots=True)
class UpdateConfig:
    """`[update]`: whether the node replaces itself by newer versions."""

    enabled: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a node is told; two are equal when they mean the same."""

    network: NetworkConfig
    node: NodeConfig
    servers: tuple[ServerConfig, ...] = ()
    entry: EntryConfig | None = None
    """None: this node has no entry."""
    exit: ExitConfig = ExitConfig()
    tunnel: TunnelConfig = TunnelConfig()
    chooser: ChooserConfig = ChooserConfig()
    geo: GeoConfig = GeoConfig()
    control: ControlConfig = ControlConfig()
    update: UpdateConfig = UpdateConfig()
    warnings: tuple[str, ...] = field(default=(), compare=False)
    """Sentences for the log: allowed, but hardly meant."""
