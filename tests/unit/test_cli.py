"""The command line: what it prints, what it leaves on disk, and its exit status."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner, Result

from uservpn import __version__
from uservpn.cli import daemon
from uservpn.cli.main import cli
from uservpn.control.client import ControlError
from uservpn.control.config import fingerprint, load
from uservpn.errors import ConfigError

pytestmark = pytest.mark.timeout(30)

KEY = base64.b64encode(bytes(range(32))).decode()
CONFIG = (
    f'[network]\nkey = "{KEY}"\n[node]\nid = 7\nstate_dir = "state"\n[[servers]]\nid = 1\n'
    'endpoints = ["tcp://203.0.113.5:7000"]\n[entry]\nlisten = "127.0.0.1:1080"\n'
)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short directory of its own, which is also the platform's place for configurations."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="uv") as directory:
        monkeypatch.setenv("XDG_CONFIG_HOME", directory)
        monkeypatch.setenv("XDG_STATE_HOME", directory)
        monkeypatch.delenv("USERVPN_TRACEBACK", raising=False)
        yield Path(directory)


@pytest.fixture
def config(home: Path) -> Path:
    path = home / "config.toml"
    path.write_text(CONFIG)
    path.chmod(0o600)
    return path


def uservpn(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    return result


class FakeApp(types.ModuleType):
    """Stands in for the program behind `run` and `demo`."""

    def __init__(self) -> None:
        super().__init__("uservpn.app")
        self.calls: list[tuple[Any, ...]] = []
        self.result: int | Exception = 0

    def run(self, config_path: Path, servers: tuple[str, ...]) -> int:
        return self._finish("run", config_path, servers)

    def demo(self, once: bool, port: int) -> int:
        return self._finish("demo", once, port)

    def _finish(self, *call: Any) -> int:
        self.calls.append(call)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> FakeApp:
    import uservpn

    fake = FakeApp()
    monkeypatch.setitem(sys.modules, "uservpn.app", fake)
    monkeypatch.setattr(uservpn, "app", fake, raising=False)
    monkeypatch.setitem(sys.modules, "uservpn.demo", fake)
    monkeypatch.setattr(uservpn, "demo", fake, raising=False)
    monkeypatch.setattr(os, "execv", _become)
    monkeypatch.setattr(daemon.EARLY, "listen", lambda: None)  # this process keeps its own signals
    return fake


def _become(program: str, words: list[str]) -> NoReturn:
    """What the new program does, in this process."""
    assert [program, *words[:4]] == [sys.executable, sys.executable, "-P", "-m", daemon.__name__]
    sys.exit(daemon.run(Path(words[4]), tuple(words[5:])))


# --- init ---------------------------------------------------------------------------------


def test_init_writes_a_client_that_passes_check(home: Path) -> None:
    path = home / "new" / "config.toml"
    result = uservpn("-c", path, "init", "--id", "7", "--server", "1=tcp://203.0.113.5:7000")
    assert result.exit_code == 0, result.output
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    config = load(path)
    assert (config.node.id, config.exit.enabled, config.warnings) == (7, False, ())
    assert config.entry is not None
    assert str(config.entry.listen) == "127.0.0.1:1080"
    assert fingerprint(config.network.keys[0]) in result.output
    assert base64.b64encode(config.network.keys[0]).decode() not in result.output
    assert uservpn("check", "-c", path).exit_code == 0


def test_init_writes_a_server_and_prints_the_lines_for_another_node(home: Path) -> None:
    path = home / "c.toml"
    options = ["--id", "1", "--name", "fra", "--country", "DE", "--listen", "tcp://0.0.0.0:7000"]
    result = uservpn("init", "-c", path, *options, "--public", "tcp://203.0.113.5:7000")
    assert result.exit_code == 0, result.output
    config = load(path)
    assert (config.entry, config.exit.enabled) == (None, True)
    lines = '[[servers]]\nid = 1\nendpoints = ["tcp://203.0.113.5:7000"]\n'
    assert lines in result.output
    assert f"Copy the key from {path}" in result.output


def test_what_init_prints_for_another_node_is_what_that_node_needs(home: Path) -> None:
    """The command writes a configuration with the same key and this node as its server."""
    key, here, there = home / "mesh.key", home / "a.toml", home / "b.toml"
    options = ["--id", "1", "--key-file", key, "--listen", "tcp://0.0.0.0:7000"]
    options += ["--public", "tcp://203.0.113.5:7000", "--public", "udp://203.0.113.5:7000"]
    options += ["--listen", "udp://0.0.0.0:7000"]
    result = uservpn("-c", here, "init", *options)
    assert f"Copy {key} there" in result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("  uservpn join")]
    words = line.replace("mesh.key", str(key)).split()[2:]
    assert uservpn("-c", there, "init", "--id", "7", *words).exit_code == 0
    one, other = load(here), load(there)
    assert other.network == one.network
    assert [server.endpoints for server in other.servers] == [one.node.public]


def test_init_says_where_the_address_belongs_when_it_cannot_know(home: Path) -> None:
    result = uservpn("-c", home / "c", "init", "--id", "1", "--listen", "tcp://0.0.0.0:7000")
    assert 'endpoints = ["tcp://ADDRESS-OF-THIS-NODE:7000"]' in result.output


def test_init_takes_every_option(home: Path) -> None:
    path = home / "c.toml"
    options = ["--id", "3", "--listen", "tcp://[::]:7000", "--no-exit", "--entry", "[::1]:1081"]
    servers = ["--server", "1=tcp://192.0.2.1:1", "--server", "1=tcp://192.0.2.1:2"]
    assert uservpn("-c", path, "init", *options, *servers).exit_code == 0
    config = load(path)
    assert not config.exit.enabled
    assert config.entry is not None
    assert str(config.entry.listen) == "[::1]:1081"
    assert [len(server.endpoints) for server in config.servers] == [2]


def test_init_entry_without_a_value_is_the_usual_address(home: Path) -> None:
    path = home / "c.toml"
    options = ["--entry", "--listen", "tcp://0.0.0.0:7000", "--id", "3"]
    assert uservpn("-c", path, "init", *options).exit_code == 0
    entry = load(path).entry
    assert entry is not None
    assert str(entry.listen) == "127.0.0.1:1080"


def test_init_refuses_to_overwrite_unless_forced(config: Path) -> None:
    result = uservpn("-c", config, "init", "--id", "9")
    assert result.exit_code == 2
    assert "the file exists" in result.output
    assert config.read_text() == CONFIG
    config.chmod(0o644)
    assert uservpn("-c", config, "init", "--id", "9", "--force").exit_code == 0
    assert load(config).node.id == 9
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert [path.name for path in config.parent.iterdir()] == ["config.toml"]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--id", "0"], "allowed: 1 to 254, or auto"),
        (["--id", "auto"], "--key-file"),
        ([], "Missing option '--id'"),
        (["--id", "1", "--listen", "tcp://example.com:1"], "the name 'example.com'"),
        (["--id", "1", "--server", "2=nonsense"], "not an endpoint"),
        (["--id", "1", "--server", "1=tcp://192.0.2.1:1"], "this node itself"),
        (["--id", "1", "--entry", "0.0.0.0:1080"], "users"),
        (["--id", "1", "--name", "a b"], "node.name"),
        (["--id", "1", "--country", "Germany"], "two letters"),
    ],
)
def test_init_with_a_wrong_option_writes_nothing(home: Path, options: list[str], part: str) -> None:
    result = uservpn("-c", home / "c.toml", "init", *options, "--key-file", str(home / "key"))
    assert result.exit_code == 2
    assert part in result.output
    assert list(home.iterdir()) == []


def test_init_makes_a_key_file_once_and_then_uses_it(home: Path) -> None:
    key_file = home / "mesh.key"
    for number in ("1", "2"):
        path = home / f"{number}.toml"
        result = uservpn("-c", path, "init", "--id", number, "--key-file", key_file)
        assert result.exit_code == 0, result.output
        assert 'key_file = "mesh.key"' in path.read_text()
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert load(home / "1.toml").network.keys == load(home / "2.toml").network.keys


def test_init_with_a_key_file_that_holds_no_key(home: Path) -> None:
    (home / "mesh.key").write_text("nonsense")
    result = uservpn("-c", home / "c.toml", "init", "--id", "1", "--key-file", home / "mesh.key")
    assert result.exit_code == 2
    assert "mesh.key" in result.output
    assert not (home / "c.toml").exists()


# --- check and the configuration option ---------------------------------------------------


def test_check_says_what_the_configuration_means(config: Path) -> None:
    result = uservpn("check", "-c", config)
    assert result.exit_code == 0
    assert "node     7 (node7), entry" in result.output
    assert "server   1 at tcp://203.0.113.5:7000" in result.output
    assert KEY not in result.output


def test_check_shows_all_problems_with_status_2(config: Path) -> None:
    config.write_text(CONFIG.replace("id = 7", "id = 777").replace("entry", "entri"))
    result = uservpn("check", "-c", config)
    assert result.exit_code == 2
    assert f"{config}:4: node.id: found the integer 777" in result.stderr
    assert "did you mean 'entry'" in result.stderr
    assert result.stdout == ""


def test_check_warns_and_still_succeeds(config: Path) -> None:
    config.chmod(0o644)
    result = uservpn("check", "-c", config)
    assert result.exit_code == 0
    assert "warning: " in result.stderr
    assert "others can use this file" in result.stderr


def test_check_reads_server_options_too(config: Path) -> None:
    assert "server   9 at" in uservpn("-c", config, "check", "--server", "9=tcp://[::1]:1").output
    assert uservpn("-c", config, "check", "--server", "9").exit_code == 2


def test_the_file_is_taken_before_and_after_the_command_and_the_last_counts(config: Path) -> None:
    other = config.parent / "other.toml"
    assert uservpn("-c", config, "check").exit_code == 0
    assert uservpn("--config", other, "check").exit_code == 2
    assert uservpn("--config", other, "check", "--config", config).exit_code == 0


def test_without_the_option_the_platforms_place_counts(config: Path) -> None:
    assert uservpn("check").exit_code == 2
    place = config.parent / "uservpn"
    place.mkdir()
    config.rename(place / "config.toml")
    assert uservpn("check").exit_code == 0


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["run", "--nonsense"], ["demo", "--port", "x"]]
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    assert uservpn(*arguments).exit_code == 2


def test_the_version_is_told() -> None:
    result = uservpn("--version")
    assert (result.exit_code, result.output) == (0, f"uservpn {__version__}\n")


# --- key ----------------------------------------------------------------------------------


def test_key_new_prints_a_key() -> None:
    first, second = uservpn("key", "new"), uservpn("key", "new")
    assert len(base64.b64decode(first.output, validate=False)) == 32
    assert first.output != second.output


def test_key_shows_fingerprints_only(config: Path) -> None:
    for result in (uservpn("key", "-c", config), uservpn("-c", config, "key")):
        assert result.exit_code == 0
        assert fingerprint(bytes(range(32))) in result.output
        assert KEY not in result.output


def test_key_with_a_wrong_configuration_is_status_2(home: Path) -> None:
    assert uservpn("key", "-c", home / "gone.toml").exit_code == 2


# --- status -------------------------------------------------------------------------------


def answer_once(path: Path, document: dict[str, Any]) -> threading.Thread:
    import socket

    path.parent.mkdir(exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    listener.settimeout(10)

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            assert json.loads(connection.recv(4096)) == {"command": "status"}
            connection.sendall(json.dumps(document).encode() + b"\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("as_json", [True, False])
def test_status_shows_what_the_node_answers(config: Path, as_json: bool) -> None:
    document = {"version": 1, "node": {"id": 7, "name": "laptop"}, "links": []}
    thread = answer_once(config.parent / "state" / "control.sock", document)
    result = uservpn("status", "-c", config, *(["--json"] if as_json else []))
    thread.join(5)
    assert result.exit_code == 0
    if as_json:
        assert json.loads(result.stdout) == document
    else:
        assert "node 7 (laptop)" in result.stdout


def test_status_without_a_node_is_status_1(config: Path) -> None:
    result = uservpn("status", "-c", config)
    assert result.exit_code == 1
    assert "no node is running" in result.stderr
    assert len(result.stderr.splitlines()) == 1


# --- run and demo -------------------------------------------------------------------------


def test_run_hands_over_the_file_and_the_servers(app: FakeApp, config: Path) -> None:
    servers = ["1=tcp://192.0.2.1:1", "2=tcp://192.0.2.2:2"]
    result = uservpn("run", "-c", config, "--server", servers[0], "--server", servers[1])
    assert result.exit_code == 0
    assert app.calls == [("run", config, tuple(servers))]


def test_demo_hands_over_its_options(app: FakeApp) -> None:
    assert uservpn("demo").exit_code == 0
    assert uservpn("demo", "--once", "--port", "1081").exit_code == 0
    assert app.calls == [("demo", False, 0), ("demo", True, 1081)]


@pytest.mark.parametrize(
    ("outcome", "code", "part"),
    [
        (0, 0, ""),
        (1, 1, ""),
        (ConfigError(["first", "second"]), 2, "uservpn: first\nuservpn: second\n"),
        (ControlError("already running"), 1, "uservpn: already running\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "uservpn: /x: Permission denied\n"),
        (ZeroDivisionError("oops"), 1, "uservpn: internal error: ZeroDivisionError: oops\n"),
    ],
)
def test_the_exit_status_says_what_happened(
    app: FakeApp, config: Path, outcome: int | Exception, code: int, part: str
) -> None:
    app.result = outcome
    result = uservpn("run", "-c", config)
    assert result.exit_code == code
    assert result.stderr == part


# --- as a process -------------------------------------------------------------------------


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=20,
        env=environment,
        check=False,
    )


def test_the_package_runs_as_a_module(home: Path) -> None:
    result = python("-m", "uservpn", "key", "new")
    assert (result.returncode, result.stderr) == (0, "")
    missing = python("-m", "uservpn", "check", "-c", str(home / "gone.toml"))
    assert missing.returncode == 2
    assert missing.stderr.startswith(f"uservpn: {home}/gone.toml: no such file")


def test_the_daemon_has_no_command_line_in_memory() -> None:
    code = (
        "import sys, uservpn.cli.daemon, uservpn.app\n"
        "print([name for name in sys.modules if name.startswith(('click', 'uservpn.cli.main'))])\n"
    )
    assert python("-c", code).stdout.strip() == "[]"


def test_the_command_line_itself_loads_nothing_heavy() -> None:
    code = (
        "import sys, uservpn.cli.main\n"
        "heavy = {'asyncio', 'cryptography', 'uvloop', 'msgspec', 'ssl', 'importlib.metadata',"
        " 'uservpn.app', 'uservpn.cli.init', 'uservpn.control.config'}\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
    )
    assert python("-c", code).stdout.strip() == "[]"
