"""Programs that others wrote, through the proxy: wget, git over HTTPS, python-socks; and a chosen exit."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import ssl
import subprocess
import threading

import pytest
from python_socks import ProxyType
from python_socks.sync import Proxy

from mesh import (
    BLOCK,
    NodeProcess,
    client_text,
    free_port,
    server_text,
    wait_until,
)


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    """An HTTPS server over a folder: (port, folder, certificate)."""
    folder = tmp_path_factory.mktemp("https")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    root = folder / "root"
    root.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args) -> None:
            """Silence."""

    handler = functools.partial(Quiet, directory=str(root))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1], root, cert
    server.shutdown()
    server.server_close()


def _run(*words: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run(words, capture_output=True, timeout=60, check=False, **more)


def test_wget_fetches_plain_http_through_the_proxy(mesh, site):
    """wget sends the absolute form to an HTTP proxy: no CONNECT for http://."""
    proxy = f"http://127.0.0.1:{mesh.entry}"
    done = _run(
        "wget", "-q", "-O", "-", "-e", "use_proxy=yes", "-e", f"http_proxy={proxy}",
        f"http://localhost:{site.port}/200000",
    )  # fmt: skip
    assert done.stdout == BLOCK[:200_000], done.stderr


def test_wget_fetches_https_through_connect(mesh, secure):
    port, root, cert = secure
    (root / "file").write_bytes(BLOCK)
    done = _run(
        "wget", "-q", "-O", "-", f"--ca-certificate={cert}", "-e", "use_proxy=yes",
        "-e", f"https_proxy=http://127.0.0.1:{mesh.entry}", f"https://localhost:{port}/file",
    )  # fmt: skip
    assert done.stdout == BLOCK, done.stderr


def test_git_clones_over_https(mesh, secure, tmp_path):
    """A repository with a few megabytes, cloned through socks5h, comes with the same commit."""
    port, root, cert = secure
    work = tmp_path / "work"
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@example.com", "-C", str(work))
    _run("git", "init", "-q", "-b", "main", str(work))
    for number in range(5):
        (work / f"file{number}").write_bytes(BLOCK[number * 1000 :])
        _run(*git, "add", ".")
        assert _run(*git, "commit", "-q", "-m", f"file {number}").returncode == 0
    shutil.copytree(work / ".git", root / "repo.git")
    _run("git", "-C", str(root / "repo.git"), "update-server-info")
    done = _run(
        "git", "-c", f"http.proxy=socks5h://127.0.0.1:{mesh.entry}",
        "clone", "-q", f"https://localhost:{port}/repo.git", str(tmp_path / "clone"),
        env=os.environ | {"GIT_SSL_CAINFO": str(cert)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    head = _run(*git, "rev-parse", "HEAD").stdout
    assert head and _run("git", "-C", str(tmp_path / "clone"), "rev-parse", "HEAD").stdout == head
    assert (tmp_path / "clone" / "file4").read_bytes() == BLOCK[4000:]


@pytest.mark.parametrize("kind", [ProxyType.SOCKS5, ProxyType.SOCKS4, ProxyType.HTTP])
def test_python_socks(mesh, site, kind):
    proxy = Proxy(kind, "127.0.0.1", mesh.entry, rdns=True)
    with proxy.connect("localhost", site.port, timeout=20) as sock:
        sock.sendall(b"GET /3000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data = b"".join(iter(lambda: sock.recv(65536), b""))
    assert data.endswith(BLOCK[:3000])


def test_the_user_name_chooses_the_exit(site, tmp_path):
    """Two servers; `exit=N` as the SOCKS user or the HTTP proxy user decides, per connection."""
    ports = {1: free_port(), 2: free_port()}
    entry = free_port()
    nodes = [
        NodeProcess(tmp_path / str(node), server_text(tmp_path / str(node), port))
        for node, port in ports.items()
    ]
    try:
        client = NodeProcess(tmp_path / "7", client_text(tmp_path / "7", entry, ports))
        nodes.append(client)
        wait_until(lambda: all(n["state"] == "up" for n in client.status()["nodes"]))
        url = f"http://127.0.0.1:{site.port}/3000000"

        def carried() -> dict[int, int]:
            links = client.status()["links"]
            return {node: sum(x["bytes_in"] for x in links if x["peer"] == node) for node in ports}

        for scheme in ("socks5h", "http"):
            for node in (2, 1):
                before = carried()
                proxy = f"{scheme}://exit%3D{node}:x@127.0.0.1:{entry}"
                done = _run("curl", "-sS", "-p", "-x", proxy, "-o", "/dev/null", url)
                assert done.returncode == 0, done.stderr
                after = carried()
                grown = {n: after[n] - before[n] for n in ports}
                assert grown[node] > 3_000_000 and grown[3 - node] < 100_000, (scheme, node, grown)
        done = _run("curl", "-sS", "-x", f"socks5h://exit%3D9:x@127.0.0.1:{entry}", url)
        assert done.returncode != 0
    finally:
        for node in reversed(nodes):
            node.stop()
