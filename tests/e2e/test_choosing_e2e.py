"""Choosing exits with real processes on loopback: direct targets, wishes, pins, what is shown."""

from __future__ import annotations

import json
import re
import select
import shutil
import socket
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest

from mesh import (
    BLOCK,
    USERVPN,
    Mesh,
    NodeProcess,
    Site,
    client_text,
    curl,
    free_port,
    server_text,
    wait_until,
)


@pytest.fixture(scope="module")
def site():
    with Site() as found:
        yield found
        found.shutdown()


def uservpn(node: NodeProcess, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*USERVPN, *words, "-c", str(node.config)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env=node.env,
    )


def restart(mesh: Mesh, text: str, wrap: tuple[str, ...] = ()) -> None:
    """The client anew, with this configuration and the memory that it had."""
    mesh.client.stop()
    mesh.client = NodeProcess(mesh.folder / "7", text, wrap)
    wait_until(mesh.client.is_linked)


def test_a_direct_target_is_dialled_here_and_resolved_at_the_exit(site):
    """R42: the client makes no resolver call, opens no resolver file, and sends nothing to port 53."""
    strace = shutil.which("strace")
    assert strace, "strace is needed for this test: install it"
    with Mesh() as mesh:
        text = mesh.client.config.read_text()
        text += '[chooser]\nrules = [{ exact = "localhost", exit = "direct" }]\n'
        trace = mesh.folder / "trace"
        restart(
            mesh,
            text,
            (strace, "-f", "--seccomp-bpf", "-e", "trace=network,openat", "-o", str(trace)),
        )
        before = mesh.server.status()["exit"]["connected"]
        url = f"http://localhost:{site.port}/1000"
        for words in ((url,), ("--socks5-hostname", f"127.0.0.1:{mesh.entry}", url)):
            assert mesh.curl(*words).stdout == BLOCK[:1000]
        through = subprocess.run(
            ["curl", "-sS", "-m", "20", "-x", f"http://127.0.0.1:{mesh.entry}", url],
            capture_output=True, timeout=25, check=True,
        )  # fmt: skip
        assert through.stdout == BLOCK[:1000]
        assert mesh.curl(f"http://127.0.0.1:{site.port}/10").stdout == BLOCK[:10]
        status = mesh.server.status()["exit"]
        assert status["connected"] == before + 1  # only the last one left there
        assert status["tests"]["answered"] >= 1  # it was asked for the address
        assert "this node connects itself" in uservpn(mesh.client, "explain", "localhost").stdout
        assert mesh.client.stop() == 0
        seen = trace.read_text()
    assert f"sin_port=htons({site.port})" in seen  # it dialled
    assert not re.search(r"htons\(53\)|resolv\.conf|/etc/hosts|nsswitch", seen)


def test_a_direct_target_that_refuses_is_told_as_what_it_is(site):
    with Mesh() as mesh:
        text = mesh.client.config.read_text()
        restart(mesh, text + '[chooser]\nrules = [{ cidr = "127.0.0.2/32", exit = "direct" }]\n')
        done = mesh.curl("-v", f"http://127.0.0.2:{free_port()}/")
        assert done.returncode == 97 and b"(5)" in done.stderr, done.stderr


@pytest.fixture(scope="module")
def three(site):
    """Exits 1, 2, 3 in three countries, and a client."""
    folder = Path(tempfile.mkdtemp(prefix="uv"))
    ports = {node: free_port() for node in (1, 2, 3)}
    nodes = []
    for node, (name, country) in {1: ("fra", "DE"), 2: ("nyc", "US"), 3: ("tyo", "JP")}.items():
        text = server_text(folder / str(node), ports[node])
        named = f'name = "{name}"\ncountry = "{country}"'
        nodes.append(NodeProcess(folder / str(node), text.replace('name = "fra"', named)))
    entry = free_port()
    client = NodeProcess(folder / "7", client_text(folder / "7", entry, ports))
    client.entry = entry
    try:
        wait_until(lambda: {n["country"] for n in client.status()["nodes"]} == {"DE", "US", "JP"})
        wait_until(lambda: {n["state"] for n in client.status()["nodes"]} == {"up"})
        yield client
    finally:
        client.stop()
        logs = [node.log.read_text() for node in (client, *nodes)]
        for node in nodes:
            node.stop()
        shutil.rmtree(folder, ignore_errors=True)
    assert not any("Traceback" in log for log in logs)


@pytest.mark.parametrize(
    ("user", "exit"),
    [("exit%3D3:x", 3), ("exit%3Dnyc:x", 2), ("country%3Dde:x", 1), ("ann,country%3Djp:x", 3)],
)
def test_a_program_chooses_by_number_name_and_country(three, site, user, exit):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        words = ["curl", "-sS", "-m", "20", f"http://127.0.0.1:{port}/"]
        proxy = ["-x", f"socks5h://{user}@127.0.0.1:{three.entry}"]
        with subprocess.Popen([*words, *proxy], stdout=subprocess.PIPE) as program:
            peer, _ = listener.accept()
            rows = [r for r in three.status()["connections"] if r["target"].endswith(f":{port}")]
            assert [row["exit"] for row in rows] == [exit]
            assert f"127.0.0.1:{port}" in uservpn(three, "connections").stdout
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            assert program.communicate(timeout=20)[0] == b"ok"
            peer.close()


def test_a_wrong_wish_is_refused_and_http_says_why(three, site):
    url = f"http://127.0.0.1:{site.port}/10"
    assert curl(three.entry, url, user="exot%3D3:x").returncode == 97
    done = subprocess.run(
        ["curl", "-sS", "-i", "-m", "20", "-x", f"http://exot%3D3:x@127.0.0.1:{three.entry}", url],
        capture_output=True, timeout=25, check=True,
    )  # fmt: skip
    assert b" 403 " in done.stdout and b"'exot'" in done.stdout


def test_pins_hold_and_forgetting_ends_them(three, site):
    url = f"http://127.0.0.1:{site.port}/10"
    assert uservpn(three, "sites", "pin", "127.0.0.1", "tyo").returncode == 0
    assert curl(three.entry, url).stdout == BLOCK[:10]
    shown = uservpn(three, "explain", f"127.0.0.1:{site.port}").stdout
    assert "leaves at: exit 3" in shown and "because: pinned" in shown
    assert "pinned" in uservpn(three, "sites").stdout
    assert uservpn(three, "sites", "forget", "127.0.0.1").returncode == 0
    assert uservpn(three, "sites", "forget", "127.0.0.1").returncode == 1
    assert uservpn(three, "sites", "pin", "127.0.0.1", "nowhere").returncode == 1


def samples_of(node: NodeProcess, host: str, user: str = "") -> list[tuple[int, float]]:
    """Of each exit that a site answered or not through: how often, and the mean in ms."""
    words = ("explain", "--json", host, *(("--user", user) if user else ()))
    rows = json.loads(uservpn(node, *words).stdout)["candidates"]
    return [(row["samples"], row["first_rtt_ms"]) for row in rows if row["samples"]]


def test_each_way_in_measures_the_first_round_trip(three, site):
    """SOCKS and plain HTTP: without that no exit is ever known to be better."""
    url = f"http://127.0.0.4:{site.port}/10"
    with Site("127.0.0.4", site.port) as other:
        for count, scheme in enumerate(("socks5h", "http"), 1):
            words = ["curl", "-sS", "-m", "20", "-x", f"{scheme}://127.0.0.1:{three.entry}", url]
            done = subprocess.run(words, capture_output=True, timeout=25, check=True)
            assert done.stdout == BLOCK[:10]
            ((samples, mean),) = samples_of(three, f"127.0.0.4:{site.port}")
            assert samples == count and mean < 5000
        other.shutdown()


def test_a_site_that_breaks_off_without_a_reply_counts_as_a_very_slow_one(three):
    with socket.create_server(("127.0.0.5", 0)) as listener:
        port = listener.getsockname()[1]
        words = ["curl", "-sS", "-m", "20", "-x", f"socks5h://127.0.0.1:{three.entry}"]
        with subprocess.Popen([*words, f"http://127.0.0.5:{port}/"], stderr=subprocess.PIPE):
            while True:
                peer, _ = listener.accept()  # tests of exits connect, too, and say nothing
                if select.select([peer], [], [], 10)[0] and peer.recv(1000):
                    break
                peer.close()
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
    ((samples, mean),) = wait_until(lambda: samples_of(three, f"127.0.0.5:{port}"))
    assert samples == 1 and mean >= 10_000


def test_what_a_program_sends_while_the_exits_are_asked_is_not_lost(three, site):
    """Greeting, request and data in one segment, to a session that nobody has seen before."""
    user = b"session=early"
    hello = b"\x05\x01\x02" + b"\x01" + bytes([len(user)]) + user + b"\x01x"
    request = b"\x05\x01\x00\x01\x7f\0\0\x01" + struct.pack(">H", site.port)
    with socket.create_connection(("127.0.0.1", three.entry), 20) as program:
        program.sendall(hello + request + b"GET /10 HTTP/1.0\r\n\r\n")
        with program.makefile("rb") as answer:
            assert answer.read(14)[:6] == b"\x05\x02\x01\x00\x05\x00"
            assert answer.read().endswith(BLOCK[:10])
    shown = json.loads(
        uservpn(three, "explain", "--json", "127.0.0.1", "--user", user.decode()).stdout
    )
    assert shown["session"]["reason"] == "test"  # it did wait


def test_what_was_learned_survives_a_restart(site):
    with Mesh() as mesh:
        assert mesh.curl(f"http://127.0.0.1:{site.port}/10").stdout == BLOCK[:10]
        before = samples_of(mesh.client, "127.0.0.1")
        restart(mesh, mesh.client.config.read_text())
        shown = json.loads(uservpn(mesh.client, "explain", "--json", "127.0.0.1").stdout)
        assert shown["session"]["is_live"] and shown["session"]["reason"] == "only exit"
        after = samples_of(mesh.client, "127.0.0.1")  # the way to the exit is that of now
        assert [count for count, _ in after] == [count for count, _ in before] == [1]


def test_a_browser_finds_the_proxys_configuration(three):
    done = subprocess.run(
        ["curl", "-sS", "-m", "20", f"http://127.0.0.1:{three.entry}/proxy.pac"],
        capture_output=True, timeout=25, check=True,
    )  # fmt: skip
    assert f"SOCKS5 127.0.0.1:{three.entry};".encode() in done.stdout
