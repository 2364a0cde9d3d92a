"""The other protocols between nodes: KCP, WebSocket (alone and behind nginx), SOCKS5, shaped TCP.

Each carries the same traffic as TCP does elsewhere: a large file each way, many requests at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import socket
import socketserver
import string
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cutter import Cutter
from mesh import (
    BLOCK,
    NodeProcess,
    client_text,
    curl,
    digest_of,
    free_port,
    run_refused,
    server_text,
    wait_until,
)

MIB = 1 << 20


class Pair:
    """A server that listens on one endpoint, and a client that dials another one of it."""

    def __init__(self, folder: Path, listen: str, dial: str) -> None:
        self.entry = free_port()
        text = server_text(folder / "1", 9).replace("tcp://127.0.0.1:9", listen)
        self.server = NodeProcess(folder / "1", text)
        text = client_text(folder / "7", self.entry, {1: 9}).replace("tcp://127.0.0.1:9", dial)
        self.client = NodeProcess(folder / "7", text)
        wait_until(self.client.is_linked)

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *error: object) -> None:
        codes = [self.client.stop(), self.server.stop()]
        logs = self.client.log.read_text() + self.server.log.read_text()
        assert "Traceback" not in logs, logs[-3000:]
        assert codes == [0, 0]

    def curl(self, *words: str) -> bytes:
        done = curl(self.entry, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def works(self, site, size: int = 8 * MIB) -> None:
        """A large file each way, then many small requests at once."""
        url = f"http://127.0.0.1:{site.port}"
        assert hashlib.sha256(self.curl(f"{url}/{size}")).hexdigest() == digest_of(size)
        upload = self.server.log.with_name("upload")
        upload.write_bytes(BLOCK * (size // len(BLOCK)))
        got = self.curl("--data-binary", f"@{upload}", "-H", "Expect:", f"{url}/")
        assert got.decode() == digest_of(size)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: self.curl(f"{url}/{n}"), range(1000, 1024)))
        assert [len(answer) for answer in answers] == list(range(1000, 1024))

    def protocol(self) -> str:
        return self.client.status()["links"][0]["protocol"]


@pytest.mark.parametrize(
    ("listen", "dial"),
    [
        ("kcp://127.0.0.1:{port}", "kcp://127.0.0.1:{port}"),
        ("ws://127.0.0.1:{port}/way", "ws://127.0.0.1:{port}/way"),
        ("wss://127.0.0.1:{port}/way", "wss://127.0.0.1:{port}/way?host=www.example.com"),
        ("tcp://127.0.0.1:{port}?shape=text", "tcp://127.0.0.1:{port}?shape=text"),
    ],
)
def test_each_protocol_carries_large_files_and_many_requests(site, tmp_path, listen, dial):
    port = free_port()
    with Pair(tmp_path, listen.format(port=port), dial.format(port=port)) as pair:
        pair.works(site)
        assert pair.protocol() == listen.partition(":")[0]


NOISE = (
    b"",
    b"\0" * 100,
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01" + bytes(300),
    BLOCK[:5000],
)


@pytest.mark.parametrize("kind", ["kcp", "ws", "wss", "tcp?shape=text"])
def test_foreign_bytes_draw_no_answer_of_ours_and_do_no_harm(site, tmp_path, kind):
    """(A web server's own words aside, and TLS's.) `Pair` looks for tracebacks at its end."""
    scheme, _, options = kind.partition("?")
    port = free_port()
    endpoint = f"{scheme}://127.0.0.1:{port}" + (f"?{options}" if options else "")
    with Pair(tmp_path, endpoint, endpoint) as pair:
        kind = socket.SOCK_DGRAM if scheme == "kcp" else socket.SOCK_STREAM
        for noise in NOISE:
            with socket.socket(socket.AF_INET, kind) as stranger:
                stranger.settimeout(0.3)
                stranger.connect(("127.0.0.1", port))
                stranger.send(noise)
                with contextlib.suppress(OSError):  # silence, or an end
                    answer = stranger.recv(4096)
                    assert scheme in ("ws", "wss") and answer[:5] in (
                        b"HTTP/",
                        b"\x15\x03\x03\0\x02",
                        b"",
                    )
        pair.works(site, MIB)


def test_behind_nginx_a_node_is_a_path_of_a_web_site(site, tmp_path):
    """The web server does the TLS; every other path is the site's own."""
    inner, outer = free_port(), free_port()
    nginx = _nginx(tmp_path, inner, outer)
    try:
        dial = f"wss://127.0.0.1:{outer}/way?host=www.example.com"
        with Pair(tmp_path, f"ws://127.0.0.1:{inner}/way", dial) as pair:
            pair.works(site, 4 * MIB)
            asked = ["curl", "-sk", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}"]
            for path, code in (("/", "200"), ("/way", "404")):
                words = [*asked, f"https://127.0.0.1:{outer}{path}"]
                done = subprocess.run(words, capture_output=True, timeout=20, check=True)
                assert done.stdout.decode() == code, path
    finally:
        nginx.terminate()
        nginx.wait(10)


def _nginx(folder: Path, inner: int, outer: int) -> subprocess.Popen:
    """nginx in front of a node, as its documentation tells for WebSockets."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    assert program, "nginx is not installed (.ci/run installs it)"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-subj", "/CN=www.example.com", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        capture_output=True, timeout=20, check=True,
    )  # fmt: skip
    (folder / "index.html").write_text("hello")
    config = folder / "nginx.conf"
    config.write_text(
        f"""
        daemon off; user root; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
        events {{}}
        http {{
            access_log off;
            client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
            uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/c;
            server {{
                listen 127.0.0.1:{outer} ssl;
                ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
                root {folder};
                location /way {{
                    proxy_pass http://127.0.0.1:{inner};
                    proxy_http_version 1.1;
                    proxy_set_header Upgrade $http_upgrade;
                    proxy_set_header Connection upgrade;
                    proxy_read_timeout 1h;
                }}
            }}
        }}
        """
    )
    with (folder / "nginx.out").open("wb") as log:
        nginx = subprocess.Popen([program, "-c", config, "-p", folder], stdout=log, stderr=log)

    def listens() -> bool:
        assert nginx.poll() is None, (folder / "nginx.out").read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", outer), 1):
            return True
        return False

    wait_until(listens)
    return nginx


class Proxy(socketserver.ThreadingTCPServer):
    """A SOCKS5 proxy without passwords, for addresses only; counts what it was asked for."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ProxyHandler)
        self.asked: list[tuple[str, int]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _ProxyHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        source = self.request
        greeting = source.recv(2, socket.MSG_WAITALL)
        source.recv(greeting[1], socket.MSG_WAITALL)
        source.sendall(b"\5\0")
        request = source.recv(10, socket.MSG_WAITALL)
        assert request[:4] == b"\5\1\0\1", "not a CONNECT to an IPv4 address"
        target = socket.inet_ntoa(request[4:8]), int.from_bytes(request[8:], "big")
        self.server.asked.append(target)
        with socket.create_connection(target, 10) as onward:
            source.sendall(b"\5\0\0\1\0\0\0\0\0\0")
            back = threading.Thread(target=_copy, args=(onward, source), daemon=True)
            back.start()
            _copy(source, onward)
            back.join(10)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def test_a_node_is_reached_through_a_proxy_that_exists(site, tmp_path):
    port = free_port()
    with Proxy() as proxy:
        dial = f"socks5://127.0.0.1:{proxy.server_address[1]}/127.0.0.1:{port}"
        with Pair(tmp_path, f"tcp://127.0.0.1:{port}", dial) as pair:
            pair.works(site, 4 * MIB)
            assert pair.protocol() == "socks5"
            assert pair.client.status()["links"][0]["remote"] == dial
        assert set(proxy.asked) == {("127.0.0.1", port)}
        proxy.shutdown()


def test_a_shaped_connection_begins_with_letters_and_is_random_after_them(site, tmp_path):
    """What the firewalls look at is the first payload; without the shape there is no such line."""
    port = free_port()
    cutter = Cutter(port)
    cutter.record = []
    try:
        listen, dial = (f"tcp://127.0.0.1:{at}?shape=text" for at in (port, cutter.port))
        with Pair(tmp_path, listen, dial) as pair:
            pair.works(site, MIB)
        first = cutter.record[0][0].heard[:200]
        line, end, rest = first.partition(b"\r\n")
        assert end and 24 <= len(line) <= 120
        assert set(line.decode()) <= set(string.ascii_letters)
        assert not set(rest.decode("latin-1")) <= set(string.printable)
    finally:
        cutter.close()


@pytest.mark.parametrize(
    ("endpoint", "word"),
    [
        ("tcp://127.0.0.1:7000?shape=loud", "shape=text"),
        ("wss://127.0.0.1:7000/way?colour=red", "host="),
        ("kcp://127.0.0.1:7000/way", "no options"),
        ("tcp://127.0.0.1:7000?sh ape", "options"),
    ],
)
def test_wrong_options_are_a_configuration_error(tmp_path, endpoint, word):
    text = server_text(tmp_path / "1", 7000).replace("tcp://127.0.0.1:7000", endpoint)
    done = run_refused(tmp_path / "c.toml", text, "check")
    assert done.returncode == 2
    assert word in done.stderr and "node.listen" in done.stderr, done.stderr
