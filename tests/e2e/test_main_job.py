"""The main job with real processes and real clients: what the requirements call e2e."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mesh import (
    BLOCK,
    USERVPN,
    Mesh,
    NodeProcess,
    client_text,
    digest_of,
    free_port,
    run_refused,
    wait_until,
)
from programs import connect

MIB = 1 << 20
LIMIT_S = 20


def _need(program: str) -> str:
    """The tests do not pass by being skipped: a missing client is an error (see .ci/run)."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    assert path, f"{program} is needed for this test: install it"
    return path


def test_a_download_and_an_upload_arrive_whole(mesh, site, tmp_path):
    """64 MiB each way, with the right SHA-256 (R18, R34)."""
    got = mesh.curl(f"http://127.0.0.1:{site.port}/{64 * MIB}")
    assert hashlib.sha256(got.stdout).hexdigest() == digest_of(64 * MIB), got.stderr
    file = tmp_path / "up"
    file.write_bytes(BLOCK * 64)
    got = mesh.curl("-T", str(file), "-X", "POST", f"http://127.0.0.1:{site.port}/")
    assert got.stdout.decode() == digest_of(64 * MIB), got.stderr


def test_five_hundred_parallel_requests_all_succeed(mesh, site, tmp_path):
    got = mesh.curl(
        "--parallel", "--parallel-immediate", "--parallel-max", "250",
        "-w", "%{http_code} %{size_download}\n", "-o", "/dev/null",
        *[f"http://127.0.0.1:{site.port}/{size}" for size in range(1, 501)],
        *["-o/dev/null"] * 499,
    )  # fmt: skip
    lines = sorted(got.stdout.decode().split("\n"))
    assert lines[1:] == sorted(f"200 {size}" for size in range(1, 501)), got.stderr[-500:]


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks4", "socks4a", "http"])
def test_every_way_into_the_entry(mesh, site, scheme):
    """SOCKS5, SOCKS4, 4a and HTTP CONNECT on one port; names go on unresolved."""
    host = "localhost" if scheme in ("socks5h", "socks4a") else "127.0.0.1"
    done = subprocess.run(
        ["curl", "-sS", "-p", "-x", f"{scheme}://127.0.0.1:{mesh.entry}",
         f"http://{host}:{site.port}/1000"],
        capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.stdout == BLOCK[:1000], done.stderr


def test_a_connect_of_one_s_own(mesh, site):
    """HTTP CONNECT as bytes: the answer, then the tunnel."""
    with socket.create_connection(("127.0.0.1", mesh.entry), 10) as sock:
        sock.sendall(f"CONNECT 127.0.0.1:{site.port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
        sock.sendall(b"GET /5 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data = b"".join(iter(lambda: sock.recv(65536), b""))
    assert data.endswith(BLOCK[:5])


def test_reply_codes_tell_the_truth(mesh):
    """Refused 05, not allowed 02, host unreachable 04; BIND and UDP 07; address type 08 (R41)."""

    def reply(command: int, address: bytes) -> int:
        with socket.create_connection(("127.0.0.1", mesh.entry), 10) as sock:
            sock.sendall(b"\5\1\0")
            assert sock.recv(2) == b"\5\0"
            sock.sendall(bytes((5, command, 0)) + address)
            return sock.recv(10)[1]

    port = struct.pack(">H", free_port())
    assert reply(1, b"\1\x7f\0\0\1" + port) == 5
    assert reply(1, b"\1\x0a\0\0\1" + port) == 2
    assert reply(1, b"\1\xa9\xfe\xa9\xfe\0\x50") == 2
    name = b"no-such-host.invalid"
    assert reply(1, b"\3" + bytes((len(name),)) + name + port) == 4
    assert reply(2, b"\1\x7f\0\0\1" + port) == 7
    assert reply(3, b"\1\x7f\0\0\1" + port) == 7
    assert reply(1, b"\5\x7f\0\0\1" + port) == 8


def test_half_close_both_ways(mesh):
    """The program's FIN reaches the site, the answer still comes back."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = connect(mesh.entry, listener.getsockname()[1], LIMIT_S)
        peer, _ = listener.accept()
        sock.sendall(b"question")
        sock.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: peer.recv(100), b"")) == b"question"
        peer.sendall(b"answer")
        peer.close()
        assert b"".join(iter(lambda: sock.recv(100), b"")) == b"answer"
        sock.close()


def test_a_long_answer_after_an_early_half_close_arrives_whole(mesh):
    """The program has said all, the site answers and closes: nothing queued is dropped."""
    answer = BLOCK * 24
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = connect(mesh.entry, listener.getsockname()[1], LIMIT_S)
        peer, _ = listener.accept()
        sock.shutdown(socket.SHUT_WR)
        assert peer.recv(1) == b""

        def serve() -> None:
            peer.sendall(answer)
            peer.close()

        thread = threading.Thread(target=serve)
        thread.start()
        thread.join(1)  # the site is far ahead of a program that does not read yet
        got = b"".join(iter(lambda: sock.recv(1 << 20), b""))
        thread.join(20)
        sock.close()
    assert hashlib.sha256(got).digest() == hashlib.sha256(answer).digest()


def test_cutting_the_link_ten_times_loses_no_byte(site):
    """In the middle of a transfer each way."""
    with Mesh(with_cutter=True) as mesh:
        size = 64 * MIB
        results = {}

        def download() -> None:
            got = mesh.curl(f"http://127.0.0.1:{site.port}/{size}", timeout=100)
            results["down"] = hashlib.sha256(got.stdout).hexdigest(), got.stderr

        def upload() -> None:
            sock = connect(mesh.entry, site.port, LIMIT_S)
            sock.sendall(f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
            for _ in range(size // MIB):
                sock.sendall(BLOCK)
            data = b""
            while len(data.partition(b"\r\n\r\n")[2]) < 64:
                data += sock.recv(4096)
            results["up"] = data[-64:].decode()
            sock.close()

        threads = [threading.Thread(target=target) for target in (download, upload)]
        for thread in threads:
            thread.start()
        for cut in range(1, 11):
            wait_until(lambda after=cut: mesh.cutter.carried > after * 10 * MIB, 60)
            mesh.cutter.cut()
        for thread in threads:
            thread.join(100)
        assert results["down"][0] == digest_of(size), results["down"]
        assert results["up"] == digest_of(size)


def test_kill_9_of_the_server_ends_its_connections_with_an_error(site):
    """Each of fifty programs sees a reset, at once; a restarted server serves again (R39)."""
    with Mesh() as mesh:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            programs = [connect(mesh.entry, port, LIMIT_S) for _ in range(50)]
            with socket.create_connection(("127.0.0.1", mesh.server_port), 20) as witness:
                mesh.server.process.kill()
                with contextlib.suppress(ConnectionResetError):
                    assert witness.recv(1) == b""  # the kernel has closed what the server had
                noticed = time.monotonic()
            for sock in programs:
                with pytest.raises(ConnectionResetError):
                    sock.recv(1)
                sock.close()
            took = time.monotonic() - noticed
            print(
                f"kill -9: the last of 50 connections ended {took * 1000:.1f} ms after the kernel's notice"
            )
            assert took < 5  # aim: 1 s; a busy machine decides nothing
        got = mesh.curl(f"http://127.0.0.1:{site.port}/10", timeout=20)
        assert got.returncode not in (0, 28), "a dead exit has to be told, not waited for"
        mesh.server.stop()
        mesh.server = mesh.start_server()
        wait_until(mesh.client.is_linked)
        assert mesh.curl(f"http://127.0.0.1:{site.port}/10").stdout == BLOCK[:10]


def test_the_client_resolves_nothing(site):
    """strace of the client: no resolver file, no packet to port 53 (R42)."""
    trace = Path(tempfile.mkdtemp(prefix="uv")) / "trace"
    wrap = (
        _need("strace"),
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-o",
        str(trace),
        "-e",
        "trace=network,openat",
    )
    with Mesh(trace.parent / "m", wrap=wrap) as mesh:
        got = mesh.curl(f"http://localhost:{site.port}/1000")
        assert got.stdout == BLOCK[:1000], got.stderr
    text = trace.read_text()
    assert f"sin_port=htons({mesh.server_port})" in text  # the trace saw the client's network
    assert "htons(53)" not in text
    assert not re.search(r"resolv\.conf|/etc/hosts|nsswitch|libnss|\.resolve", text)
    shutil.rmtree(trace.parent, ignore_errors=True)


def test_a_probe_hears_nothing(mesh):
    """Foreign bytes are read and thrown away; the connection is not even closed."""
    with socket.create_connection(("127.0.0.1", mesh.server_port), 5) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(2000))
        sock.settimeout(1.0)
        with pytest.raises(TimeoutError):
            sock.recv(1)
    assert mesh.client.is_linked()


def test_ssh_through_the_proxy(mesh, tmp_path):
    """A real sshd and a real ssh, with nc as its proxy command."""
    keygen = _need("ssh-keygen")
    for name in ("host", "user"):
        subprocess.run(
            [keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)],
            check=True,
            timeout=20,
        )
    (tmp_path / "keys").write_text((tmp_path / "user.pub").read_text())
    port = free_port()
    Path("/run/sshd").mkdir(exist_ok=True)  # Debian's sshd insists on it
    server = subprocess.Popen(
        [
            _need("sshd"), "-D", "-e", "-f", "/dev/null", "-p", str(port),
            "-o", "ListenAddress=127.0.0.1", "-h", str(tmp_path / "host"),
            "-o", f"AuthorizedKeysFile={tmp_path}/keys", "-o", "StrictModes=no",
            "-o", "UsePAM=no", "-o", f"PidFile={tmp_path}/pid",
        ],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: _answers(port))
        proxy = f"ProxyCommand={_need('nc')} -X 5 -x 127.0.0.1:{mesh.entry} %h %p"
        done = subprocess.run(
            [
                _need("ssh"), "-F", "none", "-o", proxy, "-o", "BatchMode=yes",
                "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
                "-i", str(tmp_path / "user"), "-p", str(port), "127.0.0.1",
                "head -c 3000000 /dev/zero",
            ],
            capture_output=True, timeout=40, check=False,
        )  # fmt: skip
        assert done.stdout == bytes(3_000_000), done.stderr
    finally:
        server.terminate()
        server.wait(10)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_chromium_loads_a_page(mesh, site):
    page = f"http://127.0.0.1:{site.port}/page"
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [_need("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
             "--no-first-run", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--virtual-time-budget=10000", "--proxy-bypass-list=<-loopback>",
             f"--user-data-dir={profile}", f"--proxy-server=socks5://127.0.0.1:{mesh.entry}",
             "--dump-dom", page],
            capture_output=True, timeout=90, check=False,
        )  # fmt: skip
    total = sum(range(1000, 1020))
    assert b"fetched %d<" % total in done.stdout, (done.stdout, done.stderr[-500:])


def test_many_programs_at_once_with_a_library_of_others(mesh, site):
    def one(number: int) -> bool:
        sock = connect(mesh.entry, site.port, LIMIT_S)
        sock.sendall(f"GET /{number} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        data = b"".join(iter(lambda: sock.recv(65536), b""))
        sock.close()
        return data.endswith(BLOCK[:number])

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(one, range(1000, 1200)))


def test_status_shows_node_link_and_tunnel(mesh):
    document = mesh.client.status()
    assert document["version"] == 1
    assert document["node"]["id"] == 7
    assert document["links"][0]["peer"] == 1 and document["links"][0]["protocol"] == "tcp"
    assert document["links"][0]["bytes_out"] > 0 and document["links"][0]["rtt_ms"] > 0
    assert {"peer", "streams", "cache_bytes", "resent", "relayed_bytes", "direct_bytes"} <= set(
        document["tunnels"][0]
    )


def test_the_command_prints_the_status_document(mesh):
    words = [*USERVPN, "status", "--json", "-c", str(mesh.client.config)]
    done = subprocess.run(words, capture_output=True, timeout=20, check=True)
    printed, asked = json.loads(done.stdout), mesh.client.status()
    assert printed.keys() == asked.keys() and printed["version"] == 1
    assert printed["node"] | {"uptime_s": 0} == asked["node"] | {"uptime_s": 0}


def test_reload_keeps_connections_and_takes_the_change(site):
    """SIGHUP: a running connection goes on, the new policy holds for the next one."""
    with Mesh() as mesh:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            sock = connect(mesh.entry, listener.getsockname()[1], LIMIT_S)
            peer, _ = listener.accept()
            text = mesh.server.config.read_text()
            mesh.server.config.write_text(text.replace('"127.0.0.0/8"', '"10.0.0.0/8"'))
            mesh.server.process.send_signal(1)
            wait_until(lambda: "reread" in mesh.server.log.read_text())
            assert mesh.curl(f"http://127.0.0.1:{site.port}/10").returncode != 0
            peer.sendall(b"still here")
            assert sock.recv(100) == b"still here"
            mesh.server.config.write_text("[network]\n")
            mesh.server.process.send_signal(1)
            wait_until(lambda: "the old one stays" in mesh.server.log.read_text())
            peer.sendall(b"and still")
            assert sock.recv(100) == b"and still"
            sock.close()
            peer.close()
        assert mesh.client.stop() == 0 and mesh.server.stop() == 0
        assert "Traceback" not in mesh.server.log.read_text() + mesh.client.log.read_text()


def test_a_reload_that_takes_for_ever_does_not_hold_up_the_end(tmp_path):
    """SIGTERM counts at once, whatever is being read."""
    folder = tmp_path / "7"
    folder.mkdir()
    config = folder / "c.toml"
    config.write_text(client_text(folder, free_port(), {1: free_port()}))
    config.chmod(0o600)
    code = (
        "import sys, threading; from pathlib import Path; import uservpn.app as app\n"
        "load = app.load\n"
        "def load_for_ever(*words):\n"
        "    print('reading', flush=True)\n"
        "    threading.Event().wait()\n"
        "def load_once(*words):\n"
        "    app.load = load_for_ever\n"
        "    return load(*words)\n"
        "app.load = load_once\n"
        "sys.exit(app.run(Path(sys.argv[1]), ()))\n"
    )
    process = subprocess.Popen(
        [USERVPN[0], "-c", code, str(config)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline().startswith("ready")
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "reading\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def test_what_nats_need_is_read_at_the_start_and_kept_at_the_end(tmp_path):
    folder = tmp_path / "7"
    (folder / "s").mkdir(parents=True, mode=0o700)
    kept = folder / "s" / "nats"
    kept.write_text("203.0.113.9 100\nno line of ours\n")
    node = NodeProcess(folder, client_text(folder, free_port(), {1: free_port()}))
    assert node.stop() == 0
    assert kept.read_text() == "203.0.113.9 100\n"


def test_reload_moves_the_entry_and_keeps_its_programs(site):
    """The new port serves, the old one is closed, a connection of the old one goes on."""
    with Mesh() as mesh:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            sock = connect(mesh.entry, listener.getsockname()[1], LIMIT_S)
            peer, _ = listener.accept()
            text = mesh.client.config.read_text()
            old, new = mesh.entry, free_port()

            def reload(port: int, words: str) -> None:
                mesh.client.config.write_text(text.replace(f":{old}", f":{port}"))
                mesh.client.process.send_signal(1)
                wait_until(lambda: words in mesh.client.log.read_text())

            reload(site.port, "the old one stays")  # taken: nothing changes
            assert mesh.curl(f"http://127.0.0.1:{site.port}/10").stdout == BLOCK[:10]
            reload(new, "reread")
            mesh.entry = new
            assert mesh.curl(f"http://127.0.0.1:{site.port}/10").stdout == BLOCK[:10]
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", old), 5)
            peer.sendall(b"still here")
            assert sock.recv(100) == b"still here"
            sock.close()
            peer.close()
        assert mesh.client.stop() == 0
        assert "Traceback" not in mesh.client.log.read_text()


def test_reload_takes_other_resolvers_over(site):
    """The exit asks the servers that are configured now: none answers here, so a name fails."""
    with Mesh() as mesh:
        url = f"http://localhost:{site.port}/10"
        assert mesh.curl(url).stdout == BLOCK[:10]
        text = mesh.server.config.read_text()
        for resolvers, is_good in (('["127.0.0.1"]', False), ("[]", True)):
            count = mesh.server.log.read_text().count("reread")
            mesh.server.config.write_text(
                text.replace("enabled = true", f"enabled = true\nresolvers = {resolvers}")
            )
            mesh.server.process.send_signal(1)
            wait_until(lambda n=count: mesh.server.log.read_text().count("reread") > n)
            assert (mesh.curl(url).stdout == BLOCK[:10]) is is_good


def test_an_idle_client_loads_nothing_it_does_not_use(mesh):
    """Optional and heavy parts stay out of the daemon until they are wanted."""
    code = (
        "import sys; import uservpn.app; "
        "print(' '.join(m for m in ('importlib.metadata', 'email', 'zipfile', 'h11', 'aiodns', "
        "'aiohappyeyeballs', 'uservpn.demo', 'uservpn.runtime.http_proxy') if m in sys.modules))"
    )
    done = subprocess.run(
        [USERVPN[0], "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.split() == []


def test_a_port_in_use_is_one_clear_line(mesh):
    """Exit status 1, the address named, no traceback."""
    text = mesh.server.config.read_text().replace("/1/s", "/2/s").replace("id = 1", "id = 2")
    done = run_refused(mesh.folder / "in-use.toml", text)
    assert done.returncode == 1
    assert str(mesh.server_port) in done.stderr and "Traceback" not in done.stderr


def test_the_demo_checks_itself():
    done = subprocess.run(
        [*USERVPN, "demo", "--once"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": ok") == 2
