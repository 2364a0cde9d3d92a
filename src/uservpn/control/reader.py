"""From tables to meaning: one pass over the sections of one configuration file.

`schema` has checked the shape, `values` reads addresses, keys and durations; here what must be there
is missed, what contradicts itself is noted, and what this version does not do is refused rather
than ignored. Nothing stops at the first problem.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from uservpn.control.files import database_fault
from uservpn.control.model import (
    ChooserConfig,
    Config,
    ControlConfig,
    EntryConfig,
    ExitConfig,
    GeoConfig,
    NetworkConfig,
    NodeConfig,
    ServerConfig,
    TunnelConfig,
    UpdateConfig,
)
from uservpn.control.problems import KeyPath, Problems, key_text, shown
from uservpn.control.schema import (
    SECTIONS,
    RawChooser,
    RawControl,
    RawEntry,
    RawExit,
    RawGeo,
    RawNetwork,
    RawNode,
    RawServer,
    RawTunnel,
    RawUpdate,
    note_unknown,
    read_section,
    read_servers,
)
from uservpn.control.values import NODE_NUMBER, Values
from uservpn.kit.endpoint import ADDRESS_FORM, ENDPOINT_FORM, Address, Endpoint
from uservpn.types import NODE_ID_MAX, NODE_ID_MIN, NodeId

GRACE_RANGE_S: Final = (1.0, 86_400.0)
SESSION_IDLE_RANGE_S: Final = (60.0, 365 * 86_400.0)
NODE_PLUGINS: Final = "uservpn.plugins"
CREDENTIAL_SIZE_MAX: Final = 255
"""RFC 1929 gives one byte to the length of a user name and of a password."""
NOT_IN_NAMES: Final = frozenset(":,+=")


def parse_server(text: str) -> tuple[NodeId, Endpoint]:
    """A server as the command line writes it, `1=tcp://203.0.113.5:7000`, or ValueError."""
    number, separator, url = text.partition("=")
    if not separator:
        raise ValueError(f"{text!r} is not ID=URL, such as 1=tcp://203.0.113.5:7000")
    is_number = NODE_NUMBER.fullmatch(number) is not None
    if not is_number or not NODE_ID_MIN <= int(number) <= NODE_ID_MAX:
        raise ValueError(f"{text!r} has the node number {number!r}: a number is 1 to 254")
    endpoint = Endpoint.parse(url)
    if endpoint.address.is_wildcard:
        raise ValueError(f"{text!r} has an address that cannot be dialled")
    return NodeId(int(number)), endpoint


class Reader:
    """One pass over the tables of one file; every problem goes to `problems`."""

    def __init__(
        self, document: Mapping[str, object], path: Path, problems: Problems, warnings: list[str]
    ) -> None:
        self._document = document
        self._base = path.absolute().parent
        self._path = path
        self._problems = problems
        self._warnings = warnings
        self._values = Values(self._base, problems, warnings)

    def read(self, extra_servers: Sequence[str], *, with_rules: bool) -> Config | None:
        """The configuration, or None when there are problems."""
        self._values.has_to_run = with_rules
        note_unknown(self._document, (), SECTIONS, self._problems)
        network = self._network()
        node = self._node()
        servers = self._servers(extra_servers, node)
        entry, is_exit = self._entry(), self._exit()
        tunnel, chooser, geo = self._tunnel(), self._chooser(node, with_rules), self._geo()
        control, update = self._control(), self._update()
        if self._problems.sentences or network is None or node is None:
            assert self._problems.sentences
            return None
        if not servers and not node.listen:
            self._warn("no servers and nothing to listen on: this node can meet no other")
        return Config(
            network,
            node,
            servers,
            entry,
            is_exit,
            tunnel,
            chooser,
            geo,
            control,
            update,
            tuple(self._warnings),
        )

    # --- sections -------------------------------------------------------------------------

    def _network(self) -> NetworkConfig | None:
        raw = read_section(self._document, "network", RawNetwork, self._problems)
        table = self._document.get("network", {})
        given = [name for name in ("key", "keys", "key_file") if name in _as_table(table)]
        if len(given) != 1:
            found = " and ".join(given) or "no key"
            allowed = "exactly one of key, keys and key_file"
            self._problems.add(("network",), found, allowed)
            return None
        place: KeyPath = ("network", given[0])
        if raw.key_file is not None:
            key = self._values.key_file(place, raw.key_file)
            return None if key is None else NetworkConfig((key,))
        texts = [raw.key] if raw.key is not None else raw.keys or []
        places_of = [place if raw.key is not None else (*place, at) for at in range(len(texts))]
        keys = [self._values.key(at, text) for at, text in zip(places_of, texts, strict=True)]
        if len(set(keys) - {None}) < sum(key is not None for key in keys):
            self._problems.add(place, "one key twice", "different keys")
        return NetworkConfig(tuple(key for key in keys if key is not None)) if keys else None

    def _node(self) -> NodeConfig | None:
        raw = read_section(self._document, "node", RawNode, self._problems)
        table = _as_table(self._document.get("node", {}))
        if "id" not in table:
            self._problems.add(("node", "id"), "nothing", "a number from 1 to 254")
        listen = self._values.endpoints(("node", "listen"), raw.listen or [])
        public = self._values.endpoints(("node", "public"), raw.public or [], is_dialled=True)
        if raw.public and "listen" not in table:
            allowed = "public addresses only together with node.listen"
            self._problems.add(("node", "public"), "addresses, but no node.listen", allowed)
        state_dir = self._values.path_of(("node", "state_dir"), raw.state_dir)
        if raw.id is None:
            return None
        country = raw.country.upper() if raw.country else None
        name = raw.name or f"node{raw.id}"
        plugins = tuple(raw.plugins or ())
        self._check_plugins(plugins)
        return NodeConfig(NodeId(raw.id), name, country, listen, public, state_dir, plugins)

    def _check_plugins(self, names: Sequence[str]) -> None:
        if not names:
            return
        from importlib.metadata import entry_points  # slow, and needed by few

        installed = {entry.name for entry in entry_points(group=NODE_PLUGINS)}
        for at, name in enumerate(names):
            if name not in installed:
                allowed = ", ".join(sorted(installed)) or "none: no plug-in is installed"
                self._problems.add(("node", "plugins", at), repr(name), allowed)

    def _servers(
        self, extra_servers: Sequence[str], node: NodeConfig | None
    ) -> tuple[ServerConfig, ...]:
        """Servers of the command line go first, and add endpoints to those of the file."""
        known: dict[NodeId, tuple[Endpoint, ...]] = {}
        for text in extra_servers:
            self._extra_server(text, node, known)
        place_of: dict[NodeId, KeyPath] = {}
        for place, raw in read_servers(self._document, self._problems):
            endpoints = self._server_endpoints(place, raw)
            if raw.id is None:
                self._missing(place, "id", "a number from 1 to 254")
                continue
            number = NodeId(raw.id)
            if number in place_of:
                found = f"{number}, which {key_text(place_of[number])} already has"
                self._problems.add((*place, "id"), found, "each server once")
            if node is not None and number == node.id:
                self._problems.add((*place, "id"), _own(number), "the numbers of other nodes")
            place_of.setdefault(number, place)
            known[number] = tuple(dict.fromkeys((*known.get(number, ()), *endpoints)))
        return tuple(ServerConfig(number, endpoints) for number, endpoints in known.items())

    def _extra_server(
        self, text: str, node: NodeConfig | None, known: dict[NodeId, tuple[Endpoint, ...]]
    ) -> None:
        place: KeyPath = ("server",)
        source = "command line"
        try:
            number, endpoint = parse_server(text)
        except ValueError as error:
            self._problems.sentences.append(f"{source}: --server: {error}")
            return
        self._values.check_protocol(place, endpoint, str(endpoint), source)
        if node is not None and number == node.id:
            allowed = "the numbers of other nodes"
            self._problems.add(place, _own(number), allowed, source=source)
        known[number] = tuple(dict.fromkeys((*known.get(number, ()), endpoint)))

    def _server_endpoints(self, place: KeyPath, raw: RawServer) -> tuple[Endpoint, ...]:
        if not raw.endpoints:
            self._missing(place, "endpoints", f"at least one {ENDPOINT_FORM}")
        return self._values.endpoints((*place, "endpoints"), raw.endpoints or [], is_dialled=True)

    def _entry(self) -> EntryConfig | None:
        raw = read_section(self._document, "entry", RawEntry, self._problems)
        self._check_users(raw.users or {})
        if raw.listen is None:
            if raw.users:
                self._warn("entry.users without entry.listen: this node has no entry")
            return None
        address = self._values.read(("entry", "listen"), raw.listen, Address.parse, ADDRESS_FORM)
        if address is None:
            return None
        if not address.is_loopback and "users" not in _as_table(self._document.get("entry")):
            self._users_required(address, "no users")
        elif not address.is_loopback and raw.users == {}:
            self._users_required(address, "an empty table")
        return EntryConfig(address, dict(raw.users or {}))

    def _exit(self) -> ExitConfig:
        raw = read_section(self._document, "exit", RawExit, self._problems)
        enabled = "exit" in self._document and raw.enabled is not False
        resolvers = self._values.read_each(
            ("exit", "resolvers"), raw.resolvers or [], ipaddress.ip_address, "a numeric address"
        )
        return ExitConfig(
            enabled,
            self._values.networks(("exit", "allow"), raw.allow or []),
            self._values.networks(("exit", "deny"), raw.deny or []),
            resolvers,
        )

    def _tunnel(self) -> TunnelConfig:
        raw = read_section(self._document, "tunnel", RawTunnel, self._problems)
        default = TunnelConfig()
        return TunnelConfig(
            default.relay_share if raw.relay_share is None else raw.relay_share,
            default.optimistic if raw.optimistic is None else raw.optimistic,
            self._values.duration(("tunnel", "grace"), raw.grace, GRACE_RANGE_S, default.grace),
        )

    def _chooser(self, node: NodeConfig | None, with_rules: bool) -> ChooserConfig:
        raw = read_section(self._document, "chooser", RawChooser, self._problems)
        idle = self._values.duration(
            ("chooser", "session_idle"),
            raw.session_idle,
            SESSION_IDLE_RANGE_S,
            ChooserConfig().session_idle,
        )
        if not with_rules:
            return ChooserConfig(session_idle=idle)
        if not raw.rules and not raw.groups:
            return ChooserConfig(self._values.exit_choice(raw.default, {}), idle)
        from uservpn.control.rules import RulesReader  # memory, for nodes that have rules

        country = node.country if node is not None else None
        reader = RulesReader(raw, country or "", self._base, self._problems, self._warn)
        groups = reader.groups()
        return ChooserConfig(
            self._values.exit_choice(raw.default, groups), idle, reader.rules(groups), groups
        )

    def _geo(self) -> GeoConfig:
        raw = read_section(self._document, "geo", RawGeo, self._problems)
        database = self._values.path_of(("geo", "database"), raw.database)
        if raw.enabled is False:
            return GeoConfig(enabled=False, database=database)
        if database is not None:
            self._check_database(("geo", "database"), database)
            self._check_package(("geo", "database"), "maxminddb", shown(raw.database))
        elif raw.enabled is True:
            self._check_package(("geo", "enabled"), "iptocc", "true")
        return GeoConfig("auto" if raw.enabled is None else raw.enabled, database)

    def _check_database(self, place: KeyPath, path: Path) -> None:
        found = database_fault(path)
        if found is not None:
            self._problems.add(place, f"{found}: {path}", "an MMDB file that can be read")

    def _check_package(self, place: KeyPath, name: str, found: str) -> None:
        from importlib.util import find_spec

        if find_spec(name) is None:
            allowed = f"this only with the package {name}: pip install 'uservpn[geo]'"
            self._problems.add(place, found, allowed)

    def _control(self) -> ControlConfig:
        raw = read_section(self._document, "control", RawControl, self._problems)
        if raw.listen is not None:
            allowed = "nothing: this version answers on its Unix socket only"
            self._problems.add(("control", "listen"), shown(raw.listen), allowed)
        return ControlConfig()

    def _update(self) -> UpdateConfig:
        raw = read_section(self._document, "update", RawUpdate, self._problems)
        if raw.enabled:
            allowed = "false: this version does not update itself yet"
            self._problems.add(("update", "enabled"), "true", allowed)
        return UpdateConfig()

    def _check_users(self, users: Mapping[str, str]) -> None:
        for name, password in users.items():
            at: KeyPath = ("entry", "users", name)
            if not _fits(name) or not NOT_IN_NAMES.isdisjoint(name):
                allowed = "names of 1 to 255 bytes without any of : , + ="  # options follow them
                self._problems.add(("entry", "users"), f"the name {name!r}", allowed)
            if not _fits(password):
                found = f"a password of {len(password.encode())} bytes"
                self._problems.add(at, found, "passwords of 1 to 255 bytes")

    def _users_required(self, address: Address, found: str) -> None:
        allowed = (
            f"at least one user, because {address} can be reached by others"
            " (an entry on loopback needs none)"
        )
        self._problems.add(("entry", "users"), found, allowed)

    def _missing(self, place: KeyPath, name: str, allowed: str) -> None:
        """Note an absent key, unless it is there and was already noted as wrong."""
        servers = self._document["servers"]
        assert isinstance(servers, list) and isinstance(place[1], int)
        value = servers[place[1]].get(name)
        if value is None or value == []:
            self._problems.add((*place, name), "nothing", allowed)

    def _warn(self, sentence: str) -> None:
        self._warnings.append(f"{self._path}: {sentence}")


def _as_table(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _fits(text: str) -> bool:
    return 1 <= len(text.encode()) <= CREDENTIAL_SIZE_MAX


def _own(number: int) -> str:
    return f"{number}, the number of this node itself"
