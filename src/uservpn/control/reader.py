"""From tables to meaning: one pass over the sections of one configuration file.

`schema` has checked the shape; here addresses, keys and durations are read, what must be there
is missed, what contradicts itself is noted, and what this version does not do is refused rather
than ignored. Nothing stops at the first problem.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from uservpn.control.files import database_fault, exposure, read_file
from uservpn.control.keys import KEY_FORM, decode_key
from uservpn.control.model import (
    ChooserConfig,
    Config,
    ControlConfig,
    EntryConfig,
    ExitConfig,
    GeoConfig,
    IpNetwork,
    NetworkConfig,
    NodeConfig,
    ServerConfig,
    TunnelConfig,
    UpdateConfig,
)
from uservpn.control.problems import KeyPath, Problems, key_text, reason, shown
from uservpn.control.schema import (
    EXIT_FORM,
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
from uservpn.kit.endpoint import ADDRESS_FORM, ENDPOINT_FORM, Address, Endpoint
from uservpn.kit.units import parse_duration
from uservpn.types import NODE_ID_MAX, NODE_ID_MIN, NodeId

if TYPE_CHECKING:
    from uservpn.chooser.targets import Group

BUILT_IN_PROTOCOLS: Final = frozenset({"tcp", "udp"})
LINK_PLUGINS: Final = "uservpn.links"
NODE_PLUGINS: Final = "uservpn.plugins"
KEY_FILE_SIZE_MAX: Final = 4096
CREDENTIAL_SIZE_MAX: Final = 255
"""RFC 1929 gives one byte to the length of a user name and of a password."""
NOT_IN_NAMES: Final = frozenset(":,+=")
GRACE_RANGE_S: Final = (1.0, 86_400.0)
SESSION_IDLE_RANGE_S: Final = (60.0, 365 * 86_400.0)

NODE_NUMBER: Final = re.compile(r"[0-9]{1,3}", re.ASCII)

ValueT = TypeVar("ValueT")


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
        self._protocols = _Protocols()

    def read(self, extra_servers: Sequence[str], *, with_rules: bool) -> Config | None:
        """The configuration, or None when there are problems."""
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
            key = self._key_file(place, raw.key_file)
            return None if key is None else NetworkConfig((key,))
        texts = [raw.key] if raw.key is not None else raw.keys or []
        places_of = [place if raw.key is not None else (*place, at) for at in range(len(texts))]
        keys = [self._key(at, text) for at, text in zip(places_of, texts, strict=True)]
        if len(set(keys) - {None}) < sum(key is not None for key in keys):
            self._problems.add(place, "one key twice", "different keys")
        return NetworkConfig(tuple(key for key in keys if key is not None)) if keys else None

    def _node(self) -> NodeConfig | None:
        raw = read_section(self._document, "node", RawNode, self._problems)
        table = _as_table(self._document.get("node", {}))
        if "id" not in table:
            self._problems.add(("node", "id"), "nothing", "a number from 1 to 254")
        listen = self._endpoints(("node", "listen"), raw.listen or [])
        public = self._endpoints(("node", "public"), raw.public or [], is_dialled=True)
        if raw.public and "listen" not in table:
            allowed = "public addresses only together with node.listen"
            self._problems.add(("node", "public"), "addresses, but no node.listen", allowed)
        state_dir = self._path_of(("node", "state_dir"), raw.state_dir)
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
        self._check_protocol(place, endpoint, str(endpoint), source)
        if node is not None and number == node.id:
            allowed = "the numbers of other nodes"
            self._problems.add(place, _own(number), allowed, source=source)
        known[number] = tuple(dict.fromkeys((*known.get(number, ()), endpoint)))

    def _server_endpoints(self, place: KeyPath, raw: RawServer) -> tuple[Endpoint, ...]:
        if not raw.endpoints:
            self._missing(place, "endpoints", f"at least one {ENDPOINT_FORM}")
        return self._endpoints((*place, "endpoints"), raw.endpoints or [], is_dialled=True)

    def _entry(self) -> EntryConfig | None:
        raw = read_section(self._document, "entry", RawEntry, self._problems)
        self._check_users(raw.users or {})
        if raw.listen is None:
            if raw.users:
                self._warn("entry.users without entry.listen: this node has no entry")
            return None
        address = self._value(("entry", "listen"), raw.listen, Address.parse, ADDRESS_FORM)
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
        resolvers = self._values(
            ("exit", "resolvers"), raw.resolvers or [], ipaddress.ip_address, "a numeric address"
        )
        return ExitConfig(
            enabled,
            self._networks("allow", raw.allow or []),
            self._networks("deny", raw.deny or []),
            resolvers,
        )

    def _tunnel(self) -> TunnelConfig:
        raw = read_section(self._document, "tunnel", RawTunnel, self._problems)
        default = TunnelConfig()
        return TunnelConfig(
            default.relay_share if raw.relay_share is None else raw.relay_share,
            default.optimistic if raw.optimistic is None else raw.optimistic,
            self._duration(("tunnel", "grace"), raw.grace, GRACE_RANGE_S, default.grace),
        )

    def _chooser(self, node: NodeConfig | None, with_rules: bool) -> ChooserConfig:
        raw = read_section(self._document, "chooser", RawChooser, self._problems)
        idle = self._duration(
            ("chooser", "session_idle"),
            raw.session_idle,
            SESSION_IDLE_RANGE_S,
            ChooserConfig().session_idle,
        )
        if not with_rules:
            return ChooserConfig(session_idle=idle)
        if not raw.rules and not raw.groups:
            return ChooserConfig(self._exit_choice(raw.default, {}), idle)
        from uservpn.control.rules import RulesReader  # memory, for nodes that have rules

        country = node.country if node is not None else None
        reader = RulesReader(raw, country or "", self._base, self._problems, self._warn)
        groups = reader.groups()
        return ChooserConfig(
            self._exit_choice(raw.default, groups), idle, reader.rules(groups), groups
        )

    def _geo(self) -> GeoConfig:
        raw = read_section(self._document, "geo", RawGeo, self._problems)
        database = self._path_of(("geo", "database"), raw.database)
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

    # --- values ---------------------------------------------------------------------------

    def _key(self, place: KeyPath, text: str) -> bytes | None:
        try:
            return decode_key(text)
        except ValueError as error:
            self._problems.add(place, str(error), KEY_FORM)
            return None

    def _key_file(self, place: KeyPath, name: str) -> bytes | None:
        path = self._path_of(place, name)
        if path is None:
            return None
        content = read_file(path, KEY_FILE_SIZE_MAX)
        if isinstance(content, str):
            self._problems.add(place, f"{content}: {path}", f"a file that holds {KEY_FORM}")
            return None
        self._warnings.extend(exposure(path, content))
        try:
            return decode_key(content.data.decode("ascii"))
        except UnicodeDecodeError:
            found = "bytes that are not base64"
        except ValueError as error:
            found = str(error)
        self._problems.add(place, f"{found} in {path}", f"a file that holds {KEY_FORM}")
        return None

    def _endpoints(
        self, place: KeyPath, texts: Sequence[str], is_dialled: bool = False
    ) -> tuple[Endpoint, ...]:
        endpoints: dict[Endpoint, None] = {}
        for index, text in enumerate(texts):
            at = (*place, index)
            endpoint = self._value(at, text, Endpoint.parse, ENDPOINT_FORM)
            if endpoint is None:
                continue
            self._check_protocol(at, endpoint, text)
            if is_dialled and endpoint.address.is_wildcard:
                allowed = "an address that others can dial"
                self._problems.add(at, f"the wildcard {text!r}", allowed, value=text)
            if endpoint in endpoints:
                self._problems.add(at, f"{text!r} a second time", "each endpoint once", value=text)
            endpoints[endpoint] = None
        return tuple(endpoints)

    def _check_protocol(
        self, place: KeyPath, endpoint: Endpoint, text: str, source: str | None = None
    ) -> None:
        if endpoint.protocol in self._protocols:
            complaint = self._protocols.complaint(endpoint)
            if complaint is not None:
                self._problems.add(place, text, complaint, value=text, source=source)
            return
        found = f"the protocol {endpoint.protocol!r}, which has no link plug-in"
        allowed = f"the installed protocols: {self._protocols}"
        self._problems.add(place, found, allowed, value=text, source=source)

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

    def _networks(self, name: str, texts: Sequence[str]) -> tuple[IpNetwork, ...]:
        allowed = "a network such as 10.0.0.0/8 or fd00::/8, or one address"
        return self._values(("exit", name), texts, ipaddress.ip_network, allowed)

    def _exit_choice(self, choice: int | str | None, groups: Mapping[str, Group]) -> int | str:
        if choice is None or choice == "auto":
            return "auto"
        from uservpn.chooser.targets import parse_target

        try:
            parse_target(choice, groups)
        except ValueError as error:
            self._problems.add(("chooser", "default"), reason(str(choice), error), EXIT_FORM)
            return "auto"
        return int(choice) if NODE_NUMBER.fullmatch(str(choice)) else choice

    def _duration(
        self, place: KeyPath, text: str | None, bounds: tuple[float, float], default: float
    ) -> float:
        if text is None:
            return default
        low, high = bounds
        allowed = f"a duration from {low:g} to {high:g} seconds, such as "
        allowed += '"60s"' if high < SESSION_IDLE_RANGE_S[1] else '"12h"'
        seconds = self._value(place, text, parse_duration, allowed)
        if seconds is not None and not low <= seconds <= high:
            self._problems.add(place, shown(text), allowed)
        return default if seconds is None else seconds

    def _values(
        self,
        place: KeyPath,
        texts: Sequence[str],
        read: Callable[[str], ValueT],
        allowed: str,
    ) -> tuple[ValueT, ...]:
        values = (self._value((*place, at), text, read, allowed) for at, text in enumerate(texts))
        return tuple(value for value in values if value is not None)

    def _value(
        self, place: KeyPath, text: str, read: Callable[[str], ValueT], allowed: str
    ) -> ValueT | None:
        try:
            return read(text)
        except ValueError as error:
            self._problems.add(place, reason(text, error), allowed, value=text)
            return None

    def _path_of(self, place: KeyPath, text: str | None) -> Path | None:
        """A path of the file: `~` is a home directory, and relative means beside the file."""
        if text is None:
            return None
        try:
            if "\0" not in text:
                return self._base / Path(text).expanduser()
        except RuntimeError:
            pass  # no such home directory
        self._problems.add(place, shown(text), "a path that this system can have", value=text)
        return None

    def _missing(self, place: KeyPath, name: str, allowed: str) -> None:
        """Note an absent key, unless it is there and was already noted as wrong."""
        servers = self._document["servers"]
        assert isinstance(servers, list) and isinstance(place[1], int)
        value = servers[place[1]].get(name)
        if value is None or value == []:
            self._problems.add((*place, name), "nothing", allowed)

    def _warn(self, sentence: str) -> None:
        self._warnings.append(f"{self._path}: {sentence}")


class _Protocols:
    """The protocols that have a link plug-in; the packages are searched only when it matters."""

    def __init__(self) -> None:
        self._installed: Set[str] | None = None

    def __contains__(self, protocol: str) -> bool:
        return protocol in BUILT_IN_PROTOCOLS or protocol in self._all()

    def __str__(self) -> str:
        return ", ".join(sorted(self._all()))

    def complaint(self, endpoint: Endpoint) -> str | None:
        """What the protocol's plug-in allows instead, where it has something against an endpoint."""
        if endpoint.protocol in BUILT_IN_PROTOCOLS and not endpoint.options:
            return None
        from importlib.metadata import entry_points

        for entry in entry_points(group=LINK_PLUGINS, name=endpoint.protocol):
            try:
                check = getattr(entry.load(), "check", None)
                if check is not None:
                    check(endpoint)
                elif endpoint.options:
                    return "no options: the protocol has none"
            except ImportError as error:
                return f"a protocol whose packages are installed ({error})"
            except ValueError as error:
                return str(error)
        return None

    def _all(self) -> Set[str]:
        if self._installed is None:
            from importlib.metadata import entry_points  # slow, and needed by few

            plugins = entry_points(group=LINK_PLUGINS)
            self._installed = BUILT_IN_PROTOCOLS | {plugin.name for plugin in plugins}
        return self._installed


def _as_table(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _fits(text: str) -> bool:
    return 1 <= len(text.encode()) <= CREDENTIAL_SIZE_MAX


def _own(number: int) -> str:
    return f"{number}, the number of this node itself"
