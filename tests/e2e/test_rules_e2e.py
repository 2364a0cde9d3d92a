"""Rules in running nodes: each kind leads where it says, and a reload takes new ones over (R15, R43)."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess

import pytest
import socks

from mesh import USERVPN, NodeProcess, client_text, free_port, server_text, wait_until
from mmdb import write_mmdb
from programs import LIMIT_S, echo

RULES = """[chooser]
default = 1
rules = [
  { exact = "127.0.0.9", exit = "reject" },
  { cidr = "127.0.1.0/24", exit = "jp" },
  { exact = "localhost", port = "1-65535", exit = "s2" },
  { file = "list.txt", exit = "order" },
  { country = "own", exit = "direct" },
  { country = "fr", exit = 3 },
  { exact = "127.0.0.8", exit = "no-such-exit", strict = true },
]
[chooser.groups]
order = { pick = "fallback", exits = ["no-such-exit", 2] }
"""


class Nodes:
    """Exits 1, 2 and 3 in three countries, and a client in Germany."""

    def __init__(self, folder) -> None:
        self.ports = {number: free_port() for number in (1, 2, 3)}
        self.entry = free_port()
        self.list = folder / "7" / "list.txt"
        self.database = write_mmdb(
            folder / "c.mmdb",
            {"127.0.0.5/32": {"country": "DE"}, "127.0.0.6/32": {"country": "FR"}},
        )
        self.exits = [self._exit(folder, n, c) for n, c in ((1, "US"), (2, "NL"), (3, "JP"))]
        text = client_text(folder / "7", self.entry, self.ports)
        text = text.replace("[node]\n", '[node]\ncountry = "DE"\n') + RULES
        (folder / "7").mkdir()
        self.list.write_text("127.0.0.3\n")
        self.client = NodeProcess(folder / "7", text)
        wait_until(lambda: [row["country"] for row in self.rows()] == ["US", "NL", "JP"])

    def _exit(self, folder, number: int, country: str) -> NodeProcess:
        own = folder / str(number)
        text = server_text(own, self.ports[number]).replace('"fra"', f'"s{number}"')
        text = text.replace("[node]\n", f'[node]\ncountry = "{country}"\n')
        return NodeProcess(own, text + f'[geo]\ndatabase = "{self.database}"\n')

    def rows(self) -> list[dict]:
        return [row for row in self.client.status()["nodes"] if row["state"] == "up"]

    def exit_of(self, sock: socks.socksocket, target: str) -> int | None:
        """Where an open connection leaves: an exit, or the client itself; None: it is not shown."""
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        found = [row for row in self.client.status()["connections"] if row["target"] == target]
        return found[-1]["exit"] if found else None

    def open(self, host: str, port: int) -> socks.socksocket:
        sock = socks.socksocket()
        sock.set_proxy(socks.SOCKS5, "127.0.0.1", self.entry, rdns=True)
        sock.settimeout(LIMIT_S)
        sock.connect((host, port))
        return sock

    def explain(self, host: str) -> dict:
        done = subprocess.run(
            [*USERVPN, "explain", "--json", "-c", str(self.client.config), host],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)

    def reload(self, said: str) -> None:
        before = self.client.log.read_text().count(said)
        self.client.process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.client.log.read_text().count(said) > before)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    made = Nodes(tmp_path_factory.mktemp("rules"))
    try:
        yield made
    finally:
        for node in (made.client, *made.exits):
            node.stop()
    logs = "".join(node.log.read_text() for node in (made.client, *made.exits))
    assert "Traceback" not in logs


@pytest.fixture(scope="module")
def port():
    with echo("0.0.0.0") as given:
        yield given


@pytest.mark.parametrize(
    ("host", "exit", "said"),
    [
        ("127.0.0.1", 1, "default"),
        ("127.0.1.7", 3, "cidr 127.0.1.0/24 -> jp (chooser.rules[1])"),
        ("localhost", 2, "exact localhost -> s2 (chooser.rules[2])"),
        ("127.0.0.3", 2, "cidr 127.0.0.3/32 in list.txt:1 -> order (chooser.rules[3])"),
        ("127.0.0.6", 3, "country FR -> 3 (chooser.rules[5])"),
        ("127.0.0.5", 7, "country own -> direct (chooser.rules[4])"),
    ],
)
def test_a_connection_leaves_where_its_rule_says(nodes, port, host, exit, said) -> None:
    with nodes.open(host, port) as sock:
        assert nodes.exit_of(sock, f"{host}:{port}") == exit
    sites = nodes.client.status()["sites"]
    assert [row["exit"] for row in sites if row["site"] == host] == [exit]
    assert said in json.dumps(nodes.explain(f"{host}:{port}"))


def test_a_rejected_target_is_told_as_not_allowed(nodes, port) -> None:
    with pytest.raises(socks.ProxyError, match="not allowed"):
        nodes.open("127.0.0.9", port)


def test_a_strict_rule_refuses_rather_than_leave_anywhere_else(nodes, port) -> None:
    with pytest.raises(socks.ProxyError):
        nodes.open("127.0.0.8", port)


def test_a_reload_takes_lists_over_and_drops_no_connection(nodes, port) -> None:
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(nodes.open("127.0.0.3", port))
        nodes.list.write_text("# another one\n127.0.0.4\n")
        nodes.reload("configuration reread: chooser")
        assert (
            nodes.exit_of(stack.enter_context(nodes.open("127.0.0.4", port)), f"127.0.0.4:{port}")
            == 2
        )
        assert nodes.exit_of(old, f"127.0.0.3:{port}") == 2
        assert nodes.explain(f"127.0.0.3:{port}")["rule"] is None
        nodes.reload("configuration reread: nothing changed")
        nodes.list.write_text("two words\n")
        nodes.reload(
            "configuration not taken over, the old one stays: list.txt:1: chooser.rules[3].file"
        )
        assert (
            nodes.exit_of(stack.enter_context(nodes.open("127.0.0.4", port)), f"127.0.0.4:{port}")
            == 2
        )
        assert nodes.exit_of(old, f"127.0.0.3:{port}") == 2
