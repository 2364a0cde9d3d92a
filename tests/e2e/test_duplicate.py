"""Two processes with one number (R03): both say "duplicate" and where, the first one's download goes on."""

from __future__ import annotations

import hashlib
import subprocess

from mesh import USERVPN, NodeProcess, client_text, digest_of, free_port, server_text, wait_until


def test_a_second_node_with_a_number_stands_back_and_the_first_goes_on(site, tmp_path):
    port, entries = free_port(), [free_port(), free_port()]
    server = NodeProcess(tmp_path / "1", server_text(tmp_path / "1", port))
    nodes = [server]
    try:
        text = client_text(tmp_path / "a" / "7", entries[0], {1: port})
        first = NodeProcess(tmp_path / "a" / "7", text)
        nodes.append(first)
        wait_until(first.is_linked)
        wait_until(lambda: first.status()["node"]["uptime_s"] > 2)  # closer together chance decides
        size = 8_000_000
        download = subprocess.Popen(
            ["curl", "-sS", "-m", "90", "--limit-rate", "2M", "-x",
             f"socks5h://127.0.0.1:{entries[0]}", f"http://127.0.0.1:{site.port}/{size}"],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        text = client_text(tmp_path / "b" / "7", entries[1], {1: port})
        later = NodeProcess(tmp_path / "b" / "7", text)
        nodes.append(later)
        wait_until(lambda: later.status()["node"]["state"] == "standing back")
        (seen,) = later.status()["duplicates"]
        assert seen["outcome"] == "this node stands back" and seen["address"].startswith(
            "tcp://127."
        )
        (seen,) = first.status()["duplicates"]
        assert seen["outcome"] == "this node stays" and seen["address"].startswith("tcp://127.")
        assert first.status()["node"]["state"] == "active"
        for node in (first, later, server):
            wait_until(lambda n=node: "duplicate" in n.log.read_text())
        shown = subprocess.run(
            [*USERVPN, "status", "-c", str(later.config)],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
        assert "duplicate: this number is also used at tcp://127." in shown.stdout
        refused = subprocess.run(
            ["curl", "-sS", "-m", "20", "-x", f"http://127.0.0.1:{entries[1]}",
             f"http://127.0.0.1:{site.port}/10"],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
        assert "duplicate" in refused.stdout, "the reason reaches the user"
        out, _ = download.communicate(timeout=100)
        assert hashlib.sha256(out).hexdigest() == digest_of(size)
        first.stop()
        later.process.send_signal(1)  # a reload tries again at once: the number is free now
        wait_until(lambda: later.status()["node"]["state"] == "active" and later.is_linked())
    finally:
        for node in reversed(nodes):
            node.stop()
    assert "Traceback" not in "".join(node.log.read_text() for node in nodes)
