"""The laws of the configuration: what is right means what it says, what is wrong is named."""

from __future__ import annotations

import base64
import ipaddress
import os
import stat
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uservpn.control import places, schema
from uservpn.control.config import (
    Config,
    ServerConfig,
    ServerLine,
    diff,
    fingerprint,
    load,
    new_key,
    parse,
    render_initial,
    state_dir_of,
)
from uservpn.errors import ConfigError
from uservpn.kit.endpoint import Address, Endpoint
from uservpn.kit.units import format_duration, parse_duration

KEY = base64.b64encode(bytes(range(32))).decode()
BASE = f'[network]\nkey = "{KEY}"\n\n[node]\nid = 7\n'
"""Lines 1 to 5; what a test adds starts at line 6."""

FULL = f"""
[network]
key = "{KEY}"

[node]
id = 7
name = "laptop"
country = "de"
listen = ["tcp://0.0.0.0:7000", "tcp://[::]:7000"]
public = ["tcp://203.0.113.5:7000"]
state_dir = "state"

[[servers]]
id = 1
endpoints = ["tcp://203.0.113.6:7000", "tcp://[2001:db8::1]:7000"]

[entry]
listen = "0.0.0.0:1080"
users = {{ ann = "secret-word" }}

[exit]
enabled = true
allow = ["127.0.0.0/8", "::1"]
deny = ["198.51.100.0/24"]
resolvers = ["192.0.2.53"]

[tunnel]
relay_share = 0.25
optimistic = false
grace = "90s"
[chooser]
default = "fra"
session_idle = "1h"
rules = []
[control]
[update]
enabled = false
"""


def read(text: str, servers: tuple[str, ...] = ()) -> Config:
    return parse(text, Path("/etc/uservpn/config.toml"), servers)


def problems_of(text: str, servers: tuple[str, ...] = ()) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        read(text, servers)
    return caught.value.problems


def write(path: Path, content: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


# --- what is right ------------------------------------------------------------------------


def test_every_key_of_the_contract_is_read() -> None:
    config = read(FULL)
    assert config.network.keys == (bytes(range(32)),)
    assert (config.node.id, config.node.name, config.node.country) == (7, "laptop", "DE")
    assert config.node.listen == (Endpoint("tcp", "0.0.0.0", 7000), Endpoint("tcp", "::", 7000))
    assert config.node.public == (Endpoint("tcp", "203.0.113.5", 7000),)
    assert state_dir_of(config) == Path("/etc/uservpn/state")
    endpoints = (Endpoint("tcp", "203.0.113.6", 7000), Endpoint("tcp", "2001:db8::1", 7000))
    assert [(server.id, server.endpoints) for server in config.servers] == [(1, endpoints)]
    assert config.entry is not None
    assert config.entry.listen == Address("0.0.0.0", 1080)
    assert config.entry.users == {"ann": "secret-word"}
    assert config.exit.enabled
    assert config.exit.allow == (
        ipaddress.ip_network("127.0.0.0/8"),
        ipaddress.ip_network("::1/128"),
    )
    assert config.exit.deny == (ipaddress.ip_network("198.51.100.0/24"),)
    assert config.exit.resolvers == (ipaddress.ip_address("192.0.2.53"),)
    assert (config.tunnel.relay_share, config.tunnel.optimistic) == (0.25, False)
    assert (config.tunnel.grace, config.chooser.session_idle) == (90.0, 3600.0)
    assert config.chooser.default == "fra"
    assert not config.update.enabled
    assert config.control.listen is None
    assert config.warnings == ()


def test_defaults_are_those_of_the_contract() -> None:
    config = read(BASE + "[exit]\n")
    assert (config.node.name, config.node.country) == ("node7", None)
    assert config.entry is None
    assert config.servers == ()
    assert config.exit.enabled
    assert (config.tunnel.relay_share, config.tunnel.optimistic) == (0.10, "auto")
    assert (config.tunnel.grace, config.chooser.session_idle) == (60.0, 43_200.0)
    assert config.chooser.default == "auto"


def test_a_node_without_an_exit_section_is_no_exit() -> None:
    assert not read(BASE).exit.enabled
    assert not read(BASE + "[exit]\nenabled = false\n").exit.enabled


@pytest.mark.parametrize(("written", "meant"), [("3", 3), ('"3"', 3), ('"auto"', "auto")])
def test_the_default_exit_is_a_number_a_name_or_auto(written: str, meant: object) -> None:
    assert read(BASE + f"[chooser]\ndefault = {written}\n").chooser.default == meant


def test_several_keys_keep_their_order() -> None:
    other = base64.b64encode(bytes(32)).decode()
    config = read(f'[network]\nkeys = ["{other}", "{KEY}"]\n[node]\nid = 1\n')
    assert config.network.keys == (bytes(32), bytes(range(32)))


def test_no_repr_shows_a_key_or_a_password() -> None:
    config = read(FULL)
    assert "secret-word" not in repr(config)
    assert repr(bytes(range(32)))[2:-1] not in repr(config)
    assert "keys" not in repr(config)


def test_a_key_file_is_found_beside_the_configuration(tmp_path: Path) -> None:
    write(tmp_path / "mesh.key", f"{KEY}\n")
    text = '[network]\nkey_file = "mesh.key"\n[node]\nid = 7\nlisten = ["tcp://0.0.0.0:1"]\n'
    config = load(write(tmp_path / "config.toml", text))
    assert config.network.keys == (bytes(range(32)),)
    assert config.warnings == ()


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    assert load(write(tmp_path / "c.toml", b"\xef\xbb\xbf" + BASE.encode())).node.id == 7


def test_servers_of_the_command_line_go_first_and_merge() -> None:
    text = BASE + '[[servers]]\nid = 1\nendpoints = ["tcp://192.0.2.1:1", "tcp://192.0.2.2:2"]\n'
    config = read(text, ("2=tcp://192.0.2.9:9", "1=tcp://192.0.2.2:2"))
    assert [server.id for server in config.servers] == [2, 1]
    assert [str(endpoint) for endpoint in config.servers[1].endpoints] == [
        "tcp://192.0.2.2:2",
        "tcp://192.0.2.1:1",
    ]


def test_a_protocol_with_a_link_plug_in_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry_points(group: str, name: str = "sctp") -> list[EntryPoint]:
        assert group == "uservpn.links"
        return [EntryPoint("sctp", "example:PLUGIN", group)] * (name == "sctp")

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    with pytest.raises(ConfigError, match="packages are installed"):
        read(BASE + 'listen = ["sctp://0.0.0.0:7000"]\n')
    monkeypatch.setitem(sys.modules, "example", SimpleNamespace(PLUGIN=object()))
    config = read(BASE + 'listen = ["sctp://0.0.0.0:7000"]\n')
    assert config.node.listen == (Endpoint("sctp", "0.0.0.0", 7000),)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o602])
def test_files_that_others_can_use_are_warned_about(tmp_path: Path, mode: int) -> None:
    write(tmp_path / "mesh.key", KEY, mode)
    text = '[network]\nkey_file = "mesh.key"\n[node]\nid = 7\nlisten = ["tcp://0.0.0.0:1"]\n'
    config = load(write(tmp_path / "config.toml", text, mode))
    assert [Path(warning.partition(": ")[0]).name for warning in config.warnings] == [
        "config.toml",
        "mesh.key",
    ]
    assert all(f"{mode:04o}" in warning for warning in config.warnings)


def test_a_node_that_can_meet_nobody_is_warned_about() -> None:
    assert any("no servers" in warning for warning in read(BASE).warnings)


def test_diff_names_the_sections_that_changed() -> None:
    old = read(FULL)
    assert diff(old, read(FULL)) == frozenset()
    assert diff(old, read(FULL.replace('"90s"', '"91s"').replace("laptop", "desk"))) == {
        "tunnel",
        "node",
    }
    assert diff(old, read(FULL, ("9=tcp://192.0.2.9:9",))) == {"servers"}
    assert diff(old, read(FULL.replace("secret-word", "other"))) == {"entry"}


def test_state_goes_to_the_platforms_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/tmp/states")
    assert state_dir_of(read(BASE)) == Path("/var/tmp/states/uservpn")
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    assert state_dir_of(read(BASE)) == places.default_state_dir()
    assert places.default_state_dir().is_absolute()


def test_a_rendered_configuration_reads_back() -> None:
    key = new_key()
    text = render_initial(
        id=3,
        key=key,
        name="fra",
        country="DE",
        listen=["tcp://0.0.0.0:7000"],
        public=["tcp://203.0.113.5:7000"],
        entry="0.0.0.0:1080",
        users={'o"d\\d': "p\x7f\u00e4ss"},
        is_exit=True,
        servers=[ServerLine(1, ["tcp://192.0.2.1:1"])],
        allow=["10.0.0.0/8"],
        state_dir="/tmp/\u00fc",
    )
    config = read(text)
    assert config.network.keys == (base64.b64decode(key),)
    assert config.entry is not None
    assert config.entry.users == {'o"d\\d': "p\x7f\u00e4ss"}
    assert config.servers == (ServerConfig(config.servers[0].id, config.servers[0].endpoints),)
    assert config.exit.enabled
    assert config.node.state_dir == Path("/tmp/\u00fc")


def test_new_keys_differ_and_fingerprints_tell_them_apart() -> None:
    first, second = (base64.b64decode(new_key()) for _ in range(2))
    assert len(first) == 32
    assert first != second
    assert fingerprint(first) != fingerprint(second)
    assert first.hex()[:4] not in fingerprint(first)[:4]


# --- what is wrong ------------------------------------------------------------------------

WRONG = [
    # (what is added at line 6, the line of the problem, key path, parts of the sentence)
    ("unknown key", "nmae = 'x'", 6, "node.nmae", ["did you mean 'name'", "state_dir"]),
    ("unknown section", "[entri]\nlisten = '127.0.0.1:1'", 6, "entri", ["'entry'", "unknown sec"]),
    ("section is no table", "[[exit]]", 6, "exit", ["array", "a table: [exit]"]),
    ("servers is no array", "[servers]\nid = 1", 6, "servers", ["[[servers]]"]),
    ("wrong type", "name = 3", 6, "node.name", ["the integer 3", "a letter"]),
    ("bad name", "name = 'a b'", 6, "node.name", ["'a b'", "a letter"]),
    ("bad country", "country = 'Germany'", 6, "node.country", ["'Germany'", "two letters"]),
    ("listen is a text", "listen = 'tcp://0.0.0.0:1'", 6, "node.listen", ["string", "an array"]),
    (
        "name for an address",
        "listen = ['tcp://example.com:7000']",
        6,
        "node.listen[0]",
        ["the name 'example.com'", "never resolved", "protocol://address:port"],
    ),
    ("bad port", "listen = ['tcp://0.0.0.0:0']", 6, "node.listen[0]", ["'0'", "1 to 65535"]),
    ("no protocol", "listen = ['0.0.0.0:7000']", 6, "node.listen[0]", ["not an endpoint"]),
    (
        "element on a line of its own",
        "listen = [\n  'tcp://0.0.0.0:1',\n  'tcp://0.0.0.0:99999',\n]",
        8,
        "node.listen[1]",
        ["99999"],
    ),
    (
        "protocol without a plug-in",
        "listen = ['sctp://0.0.0.0:7000']",
        6,
        "node.listen[0]",
        ["'sctp'", "no link plug-in", "tcp", "udp"],
    ),
    (
        "endpoint twice",
        "listen = ['tcp://[::1]:1', 'tcp://[0::1]:1']",
        6,
        "node.listen[1]",
        ["second time"],
    ),
    ("public without listen", "public = ['tcp://192.0.2.1:1']", 6, "node.public", ["node.listen"]),
    (
        "wildcard as public address",
        "listen = ['tcp://0.0.0.0:1']\npublic = ['tcp://0.0.0.0:1']",
        7,
        "node.public[0]",
        ["wildcard"],
    ),
    ("plugins is a text", "plugins = 'x'", 6, "node.plugins", ["string 'x'", "an array"]),
    ("plugins are numbers", "plugins = [3]", 6, "node.plugins", ["array [3]", "names of plug-ins"]),
    ("state_dir with a NUL", 'state_dir = "a\\u0000b"', 6, "node.state_dir", ["path"]),
    ("server without id", "[[servers]]\nendpoints = ['tcp://192.0.2.1:1']", 6, "servers[0].id", []),
    ("server without endpoints", "[[servers]]\nid = 1", 6, "servers[0].endpoints", ["nothing"]),
    (
        "server with no endpoint",
        "[[servers]]\nid = 1\nendpoints = []",
        8,
        "servers[0].endpoints",
        ["at least one"],
    ),
    (
        "server id out of range",
        "[[servers]]\nid = 255\nendpoints = ['tcp://192.0.2.1:1']",
        7,
        "servers[0].id",
        ["255", "1 to 254"],
    ),
    (
        "server by name",
        "[[servers]]\nid = 1\nendpoints = ['tcp://host.example:1']",
        8,
        "servers[0].endpoints[0]",
        ["'host.example'", "never resolved"],
    ),
    (
        "own id among the servers",
        "[[servers]]\nid = 7\nendpoints = ['tcp://192.0.2.1:1']",
        7,
        "servers[0].id",
        ["this node itself"],
    ),
    (
        "server twice",
        "[[servers]]\nid = 1\nendpoints = ['tcp://192.0.2.1:1']\n"
        "[[servers]]\nid = 1\nendpoints = ['tcp://192.0.2.2:1']",
        10,
        "servers[1].id",
        ["servers[0] already has"],
    ),
    ("entry by name", "[entry]\nlisten = 'localhost:1080'", 7, "entry.listen", ["'localhost'"]),
    ("entry without port", "[entry]\nlisten = '127.0.0.1'", 7, "entry.listen", ["address:port"]),
    (
        "users needed off loopback",
        "[entry]\nlisten = '192.0.2.1:1080'",
        6,
        "entry.users",
        ["no users", "can be reached by others"],
    ),
    (
        "empty users off loopback",
        "[entry]\nlisten = '[::]:1080'\nusers = {}",
        8,
        "entry.users",
        ["an empty table"],
    ),
    (
        "colon in a user name",
        "[entry]\nlisten = '127.0.0.1:1'\nusers = { 'a:b' = 'x' }",
        8,
        "entry.users",
        ["'a:b'", "without any of :"],
    ),
    ("exit.enabled is a text", "[exit]\nenabled = 'yes'", 7, "exit.enabled", ["true or false"]),
    ("allow is no network", "[exit]\nallow = ['lan']", 7, "exit.allow[0]", ["'lan'", "10.0.0.0/8"]),
    ("host bits", "[exit]\nallow = ['10.0.0.1/8']", 7, "exit.allow[0]", ["host bits"]),
    ("resolver by name", "[exit]\nresolvers = ['dns.google']", 7, "exit.resolvers[0]", ["numeric"]),
    ("share above 1", "[tunnel]\nrelay_share = 1.5", 7, "tunnel.relay_share", ["1.5", "0 to 1"]),
    ("share is nan", "[tunnel]\nrelay_share = nan", 7, "tunnel.relay_share", ["nan", "0 to 1"]),
    ("optimistic", "[tunnel]\noptimistic = 'maybe'", 7, "tunnel.optimistic", ['"auto"', "maybe"]),
    ("duration without unit", "[tunnel]\ngrace = '60'", 7, "tunnel.grace", ["'60'", "seconds"]),
    ("duration is a number", "[tunnel]\ngrace = 60", 7, "tunnel.grace", ["integer 60", '"60s"']),
    ("duration too long", "[tunnel]\ngrace = '9d'", 7, "tunnel.grace", ["'9d'", "86400"]),
    ("duration too short", "[tunnel]\ngrace = '1ms'", 7, "tunnel.grace", ["'1ms'"]),
    ("default exit 0", "[chooser]\ndefault = 0", 7, "chooser.default", ["0", "1 to 254"]),
    ("default exit is no name", "[chooser]\ndefault = 'a b'", 7, "chooser.default", ["'a b'"]),
    (
        "control.listen",
        "[control]\nlisten = '127.0.0.1:9080'",
        7,
        "control.listen",
        ["Unix socket"],
    ),
    ("update", "[update]\nenabled = true", 7, "update.enabled", ["not update itself yet"]),
]


@pytest.mark.parametrize(
    ("added", "line", "key_path", "parts"),
    [pytest.param(*case[1:], id=case[0]) for case in WRONG],
)
def test_a_problem_names_file_line_key_found_and_allowed(
    added: str, line: int, key_path: str, parts: list[str]
) -> None:
    problems = problems_of(BASE + added + "\n")
    assert len(problems) == 1, problems
    (problem,) = problems
    assert problem.startswith(f"/etc/uservpn/config.toml:{line}: {key_path}: found "), problem
    assert "; allowed: " in problem
    assert all(part in problem for part in parts), problem


def test_every_key_of_the_schema_says_what_is_allowed() -> None:
    """Else a wrong value of it would be told as a mistake of the program."""
    kinds = schema._Section.__subclasses__()
    assert len(kinds) >= len(schema.SECTIONS)
    for kind in kinds:
        for name, of in schema._fields(kind).items():
            assert schema._description(of)[0], f"{kind.__name__}.{name}"


@pytest.mark.parametrize("number", ["0", "255", "-1", "1.0", "true", "'7'", str(1 << 70)])
def test_a_node_number_out_of_range_is_an_error(number: str) -> None:
    (problem,) = problems_of(f'[network]\nkey = "{KEY}"\n[node]\nid = {number}\n')
    assert ":4: node.id: found " in problem
    assert "1 to 254" in problem


def test_a_missing_node_number_is_an_error() -> None:
    (problem,) = problems_of(f'[network]\nkey = "{KEY}"\n[node]\nname = "x"\n')
    assert "node.id: found nothing" in problem


SHORT = base64.b64encode(b"only-sixteen-byt").decode()


@pytest.mark.parametrize(
    ("network", "parts"),
    [
        pytest.param("", ["network: found no key", "exactly one"], id="none"),
        pytest.param(f"key = '{KEY}'\nkey_file = 'x'", ["key and key_file", "exactly"], id="two"),
        pytest.param(f"key = '{SHORT}'", [":2: network.key: found base64 of 16 bytes"], id="short"),
        pytest.param("key = 'not base64!'", ["network.key: found 11 characters"], id="no base64"),
        pytest.param("key = 5", ["network.key: found a value of the kind integer"], id="type"),
        pytest.param(f"keys = ['{KEY}', '{SHORT}']", ["network.keys[1]: found base64"], id="list"),
        pytest.param(f"keys = ['{KEY}', '{KEY}']", ["network.keys: found one key twice"], id="dup"),
        pytest.param("keys = []", ["network.keys", "1 to 8 keys"], id="empty list"),
        pytest.param("key_file = 'gone'", ["network.key_file: found no such file"], id="missing"),
        pytest.param("key_file = '/'", ["network.key_file: found cannot be read"], id="directory"),
        pytest.param("key_file = '~nobody-at-all/x'", ["network.key_file", "a path"], id="home"),
    ],
)
def test_a_wrong_key_is_an_error_that_does_not_show_it(network: str, parts: list[str]) -> None:
    (problem,) = problems_of(f"[network]\n{network}\n[node]\nid = 7\n")
    assert all(part in problem for part in parts), problem
    assert KEY not in problem
    assert SHORT not in problem


@pytest.mark.parametrize("content", [b"short", b"\xff\xfe", b"", b"A" * 5000])
def test_a_key_file_without_a_key_is_an_error(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "mesh.key", content)
    path = write(tmp_path / "c.toml", '[network]\nkey_file = "mesh.key"\n[node]\nid = 7\n')
    with pytest.raises(ConfigError) as caught:
        load(path)
    (problem,) = caught.value.problems
    assert f"{path}:2: network.key_file: found " in problem
    assert str(tmp_path / "mesh.key") in problem


def test_a_password_is_never_in_a_problem() -> None:
    text = BASE + f"[entry]\nlisten = '127.0.0.1:1'\nusers = {{ ann = '{'x' * 256}', bob = 5 }}\n"
    assert "xxx" not in "".join(problems_of(text))
    assert "xxx" not in "".join(problems_of(text.replace(", bob = 5", "")))


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        pytest.param(BASE + "id = 8\n", 6, ["id: found for the second time"], id="key"),
        pytest.param(BASE + "[network]\n", 6, ["[network]: found for the second"], id="section"),
        pytest.param(BASE + "name = \n", 6, ["not TOML"], id="no value"),
        pytest.param(BASE + "name = 'x\n", 6, ["not TOML"], id="open string"),
        pytest.param(BASE + "x = [1,", 6, ["not TOML"], id="end of document"),
    ],
)
def test_text_that_is_no_toml_is_an_error_with_its_line(
    text: str, line: int, parts: list[str]
) -> None:
    (problem,) = problems_of(text)
    assert problem.startswith(f"/etc/uservpn/config.toml:{line}: "), problem
    assert all(part in problem for part in parts), problem


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000])
def test_absurd_toml_is_an_error_too(value: str) -> None:
    assert len(problems_of(BASE + f"x = {value}\n")) == 1


def test_bytes_that_are_not_utf8_are_an_error_with_their_line(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", BASE.encode() + b"name = '\xe4'\n")
    with pytest.raises(ConfigError, match=r"c\.toml:6: found bytes that are not UTF-8"):
        load(path)


def test_a_pipe_for_a_file_is_an_error_not_a_wait(tmp_path: Path) -> None:
    """A reload would never come back from it, and no signal be heard."""
    os.mkfifo(tmp_path / "c.toml")
    with pytest.raises(ConfigError, match="no regular file"):
        load(tmp_path / "c.toml")


def test_a_missing_file_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file \(write a new one with: uservpn init\)"):
        load(tmp_path / "c.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="larger than"):
        load(write(tmp_path / "big.toml", "#" * (1 << 20) + "\n"))


@pytest.mark.parametrize(
    ("server", "part"),
    [
        ("1", "is not ID=URL"),
        ("x=tcp://192.0.2.1:1", "the node number 'x'"),
        ("255=tcp://192.0.2.1:1", "1 to 254"),
        ("=tcp://192.0.2.1:1", "the node number ''"),
        ("1=tcp://example.com:1", "the name 'example.com'"),
        ("1=tcp://0.0.0.0:1", "cannot be dialled"),
        ("1=sctp://192.0.2.1:1", "no link plug-in"),
        ("7=tcp://192.0.2.1:1", "this node itself"),
    ],
)
def test_a_wrong_server_option_is_an_error(server: str, part: str) -> None:
    (problem,) = problems_of(BASE, (server,))
    assert problem.startswith("command line: ")
    assert part in problem


def test_all_problems_are_told_at_once() -> None:
    text = (
        f"[network]\nkey = '{SHORT}'\n[node]\nid = 300\nnmae = 'x'\nlisten = ['tcp://a:1', 'b']\n"
        "[tunnel]\ngrace = 'soon'\nrelay_share = 2\n[update]\nenabled = true\n"
    )
    problems = problems_of(text, ("nonsense",))
    assert len(problems) == 9
    assert len({problem.split(": found")[0] for problem in problems}) == 9


@given(st.text(max_size=200))
def test_no_text_makes_anything_but_a_config_or_a_config_error(text: str) -> None:
    try:
        read(BASE + text)
    except ConfigError as error:
        assert error.problems


SECTION_NAMES = [
    "network",
    "node",
    "servers",
    "entry",
    "exit",
    "tunnel",
    "chooser",
    "geo",
    "update",
]
KEY_NAMES = ["id", "key", "keys", "listen", "users", "endpoints", "grace", "default", "allow", "x"]
VALUES = [
    "1",
    "-1.5",
    "true",
    "'x'",
    "''",
    "[]",
    "['x', 1]",
    "{}",
    "{ a = 1 }",
    "1979-05-27",
    "nan",
]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(SECTION_NAMES), st.sampled_from(KEY_NAMES), st.sampled_from(VALUES)
        ),
        unique_by=lambda line: line[:2],
    )
)
def test_no_mix_of_keys_and_values_breaks_the_reader(lines: list[tuple[str, str, str]]) -> None:
    text = "".join(f"{section}.{key} = {value}\n" for section, key, value in lines)
    assert problems_of(text)


# --- endpoints and durations --------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("tcp://203.0.113.5:7000", Endpoint("tcp", "203.0.113.5", 7000)),
        ("tcp://[::1]:7000", Endpoint("tcp", "::1", 7000)),
        ("udp://[2001:DB8:0::5]:1", Endpoint("udp", "2001:db8::5", 1)),
        ("tcp://[fe80::1%eth0]:65535", Endpoint("tcp", "fe80::1%eth0", 65535)),
    ],
)
def test_endpoints_are_canonical_and_round_trip(text: str, endpoint: Endpoint) -> None:
    assert Endpoint.parse(text) == endpoint
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tcp://",
        "203.0.113.5:7000",
        "TCP://203.0.113.5:7000",
        "tcp:203.0.113.5:7000",
        "tcp://203.0.113.5",
        "tcp://203.0.113.5:",
        "tcp://203.0.113.5:0",
        "tcp://203.0.113.5:65536",
        "tcp://203.0.113.5:-1",
        "tcp://203.0.113.5:+1",
        "tcp://203.0.113.5: 1",
        "tcp://203.0.113.5:\u0661",
        "tcp://203.0.113.5:7000/",
        "tcp://203.0.113.256:7000",
        "tcp://203.0.113:7000",
        "tcp://0x7f.1:7000",
        "tcp://::1:7000",
        "tcp://[203.0.113.5]:7000",
        "tcp://[example.com]:7000",
        "tcp://example.com:7000",
        "tcp://localhost:7000",
        "tcp://:7000",
        "tcp://user@203.0.113.5:7000",
    ],
)
def test_anything_else_is_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError, match=r"write|a port is"):
        Endpoint.parse(text)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_every_address_round_trips(address: IpAddress, port: int) -> None:
    endpoint = Endpoint("tcp", str(address), port)
    assert Endpoint.parse(str(endpoint)) == endpoint
    assert Address.parse(str(endpoint.address)) == endpoint.address


def test_loopback_and_wildcard_are_known() -> None:
    assert Address.parse("127.9.9.9:1").is_loopback
    assert Address.parse("[::1]:1").is_loopback
    assert Address.parse("[::ffff:127.0.0.1]:1").is_loopback
    assert not Address.parse("0.0.0.0:1").is_loopback
    assert Address.parse("[::]:1").is_wildcard
    assert not Address.parse("127.0.0.1:1").is_wildcard


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("60s", 60), ("1.5m", 90), ("12h", 43_200), ("2d", 172_800), ("3 s", 3)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "60", "s", "-1s", "1h30m", "1e3s", "60S", "1w", "inf s"])
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


def test_modes_are_read_from_the_open_file(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", BASE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not [warning for warning in load(path).warnings if "others" in warning]


IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
