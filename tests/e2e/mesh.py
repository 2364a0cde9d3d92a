"""Real processes for the end-to-end tests: nodes started through the command line, a site, a cutter."""

from __future__ import annotations

import hashlib
import http.server
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from pathlib import Path

from cutter import Cutter
from forks import Fork
from uservpn.control.client import ask
from uservpn.control.places import control_socket

USERVPN = [sys.executable, "-m", "uservpn"]
KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


_given_ports: set[int] = set()
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 4
"""Which of the processes that run tests side by side this is: each has ports of its own."""


def free_port() -> int:
    """A port nobody uses now, outside the range from which the kernel takes ports for clients."""
    for _ in range(1000):
        port = 20_000 + 3_000 * WORKER + random.randrange(3_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _given_ports:
            _given_ports.add(port)
            return port
    raise AssertionError("no free port")


def wait_until(condition, seconds: float = 15.0):
    """Asks until it holds; a time limit, never a fixed sleep, decides."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {seconds} s: {condition}"
        time.sleep(0.02)


class NodeProcess:
    """One node: `uservpn run` where something is below it or in its environment, else forked (forks.py)."""

    def __init__(
        self, folder: Path, text: str, wrap: tuple[str, ...] = (), env: dict[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "c.toml"
        self.config.write_text(text)
        self.config.chmod(0o600)
        self.log = folder / "log"
        self._out = self.log.open("wb")
        self.env = os.environ | (env or {})
        self._is_wrapped = bool(wrap)
        self.process = (
            Fork(self.config, self._out.fileno())
            if env is None and not wrap
            else subprocess.Popen(
                [*wrap, *USERVPN, "run", "-c", str(self.config)],
                stdout=subprocess.PIPE,
                stderr=self._out,
                text=True,
                env=self.env,
            )
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready"), (line, self.log.read_text())

    def status(self) -> dict:
        """The status document, from the control socket itself: a command for each look is dear."""
        state_dir = tomllib.loads(self.config.read_text())["node"]["state_dir"]
        return ask(control_socket(Path(state_dir)), {"command": "status"}, 20)

    def is_linked(self) -> bool:
        """Has a peer answered on a link that is up? (Then its boot is known, too.)"""
        return any(link["rtt_ms"] is not None for link in self.status()["links"])

    def _node(self) -> int:
        """The process of the node: below a wrapper (strace ignores SIGTERM) its child."""
        pid = self.process.pid
        if not self._is_wrapped:
            return pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        if self.process.poll() is None:
            os.kill(self._node(), signal.SIGTERM)
        try:
            code = self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait(5)
        self.process.stdout.close()
        self._out.close()
        return code


def run_refused(config: Path, text: str, command: str = "run") -> subprocess.CompletedProcess:
    """A command with a configuration that it should not take: how it ended."""
    config.write_text(text)
    config.chmod(0o600)
    return subprocess.run(
        [*USERVPN, command, "-c", str(config)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


class Site(http.server.ThreadingHTTPServer):
    """A web site: /N gives N bytes of a known pattern, POST answers the SHA-256 of what came."""

    daemon_threads = True
    request_queue_size = 600

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__((address, port), _Handler)
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address) -> None:
        """Connections that tests break on purpose."""


BLOCK = bytes(os.urandom(1 << 20))


PAGE = b"""<!doctype html><title>t</title><p id=p>empty</p><script>
const parts = Array.from({length: 20}, (_, i) => fetch("/" + (1000 + i)).then(r => r.arrayBuffer()));
Promise.all(parts).then(all => {
  document.getElementById("p").textContent = "fetched " + all.reduce((n, b) => n + b.byteLength, 0);
});
</script>"""
"""A page whose script fetches 20 pieces at once; its paragraph then tells how many bytes came."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/page":
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(PAGE)))
            self.end_headers()
            self.wfile.write(PAGE)
            return
        size = int(re.sub(r"\D", "", self.path) or 0)
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        while size:
            part = BLOCK[: min(size, len(BLOCK))]
            self.wfile.write(part)
            size -= len(part)

    def do_POST(self) -> None:
        left = int(self.headers["Content-Length"])
        digest = hashlib.sha256()
        while left:
            part = self.rfile.read(min(left, 1 << 20))
            digest.update(part)
            left -= len(part)
        body = digest.hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args) -> None:
        """Silence."""


def digest_of(size: int) -> str:
    """SHA-256 of what the site sends for /size."""
    digest = hashlib.sha256()
    while size:
        digest.update(BLOCK[: min(size, len(BLOCK))])
        size -= min(size, len(BLOCK))
    return digest.hexdigest()


def client_text(folder: Path, entry: int, servers: dict[int, int], key: str = KEY) -> str:
    """The configuration of a client; `servers` are the ports by number, the folder is its own."""
    return (
        f'[network]\nkey = "{key}"\n[node]\nid = {int(folder.name)}\nname = "laptop"\n'
        f'state_dir = "{folder}/s"\n'
        + "".join(
            f'[[servers]]\nid = {node}\nendpoints = ["tcp://127.0.0.1:{port}"]\n'
            for node, port in servers.items()
        )
        + f'[entry]\nlisten = "127.0.0.1:{entry}"\n'
    )


def server_text(folder: Path, port: int) -> str:
    """The configuration of a server that may dial loopback targets."""
    return (
        f'[network]\nkey = "{KEY}"\n[node]\nid = {int(folder.name)}\nname = "fra"\n'
        f'state_dir = "{folder}/s"\nlisten = ["tcp://127.0.0.1:{port}"]\n'
        '[exit]\nenabled = true\nallow = ["127.0.0.0/8"]\n'
    )


def curl(
    entry: int, *words: str, user: str = "", timeout: float = 60
) -> subprocess.CompletedProcess:
    """curl through a proxy on this port; `user` is such as `exit%3D3:x`."""
    proxy = f"socks5h://{user}{'@' if user else ''}127.0.0.1:{entry}"
    return subprocess.run(
        ["curl", "-sS", "-m", str(timeout), "-x", proxy, *words],
        capture_output=True,
        timeout=timeout + 5,
        check=False,
    )


class Mesh:
    """A server (1), a client (7) with its entry, optionally a cutter between them."""

    def __init__(
        self, folder: Path | None = None, with_cutter: bool = False, wrap: tuple[str, ...] = ()
    ) -> None:
        self.folder = folder = folder or Path(tempfile.mkdtemp(prefix="uv"))
        self.server_port = free_port()
        self.entry = free_port()
        self.cutter = Cutter(self.server_port) if with_cutter else None
        self.server = self.start_server()
        port = self.cutter.port if self.cutter else self.server_port
        text = client_text(folder / "7", self.entry, {1: port})
        self.client = NodeProcess(folder / "7", text, wrap)
        wait_until(self.client.is_linked)

    def start_server(self) -> NodeProcess:
        """`uservpn run` for node 1."""
        return NodeProcess(self.folder / "1", server_text(self.folder / "1", self.server_port))

    def curl(self, *words: str, timeout: float = 60) -> subprocess.CompletedProcess:
        """curl through the client's proxy."""
        return curl(self.entry, *words, timeout=timeout)

    def download(self, site: Site, size: int) -> None:
        """So many bytes of the site arrive whole."""
        got = self.curl(f"http://127.0.0.1:{site.port}/{size}", timeout=100)
        digest = hashlib.sha256(got.stdout).hexdigest()
        assert digest == digest_of(size), (len(got.stdout), got.stderr)

    def __enter__(self) -> Mesh:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every process."""
        self.client.stop()
        self.server.stop()
        if self.cutter:
            self.cutter.close()
        shutil.rmtree(self.folder, ignore_errors=True)
