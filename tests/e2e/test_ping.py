"""`ping` and `trace` (R33) against real nodes on loopback: directly, over a relay, and nobody there."""

from __future__ import annotations

import re
import subprocess

from mesh import USERVPN, NodeProcess, client_text, free_port, server_text, wait_until


def _run(node: NodeProcess, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*USERVPN, *words, "-c", str(node.config)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_ping_and_trace_tell_the_way_and_how_long_it_takes(tmp_path):
    port = free_port()
    hidden = client_text(tmp_path / "60", free_port(), {1: port}).split("[entry]")[0]
    text = server_text(tmp_path / "1", port)
    text = text.replace("[exit]", f'public = ["tcp://127.0.0.1:{port}"]\n[exit]')
    nodes = [
        NodeProcess(tmp_path / "1", text),
        NodeProcess(tmp_path / "60", hidden),
        NodeProcess(tmp_path / "7", client_text(tmp_path / "7", free_port(), {1: port})),
    ]
    try:
        server, _, client = nodes
        wait_until(lambda: {row["id"] for row in client.status()["nodes"]} == {1, 60})
        done = _run(client, "ping", "1", "-n", "3", "-i", "0.05")
        assert done.returncode == 0, done.stderr
        assert len(re.findall(r"^\d: node 1 \(fra\): [\d.]+ ms over tcp$", done.stdout, re.M)) == 3
        assert "3 sent, 3 answered, 0% lost; min/median/max" in done.stdout
        done = _run(client, "ping", "60", "-n", "1")  # no link yet: the ping makes the way
        assert done.returncode == 0 and "over tcp, relayed by 1" in done.stdout, done.stdout
        done = _run(client, "trace", "60")
        lines = done.stdout.splitlines()
        assert done.returncode == 0 and len(lines) == 3, done.stdout
        assert re.match(
            r"1 +1 \(fra\) +tcp +[\d.]+ ms +[\d.]+ ms +[\d.]+ ms +[+-][\d.]+ ms", lines[1]
        )
        assert re.match(r"2 +60 .*tcp +[\d.]+ ms", lines[2])
        clock = float(re.search(r"([+-][\d.]+) ms$", lines[2])[1])
        assert abs(clock) < 5, "one machine has one clock"
        rows = {row["id"]: row for row in client.status()["nodes"]}
        assert abs(rows[1]["clock_ms"]) < 5 and rows[60]["route"] == [1, 60]
        for words, sentence in (
            (("ping", "7"), "this node itself"),
            (("ping", "99"), "not on the list"),
        ):
            done = _run(client, *words)
            assert done.returncode == 1 and sentence in done.stderr
        assert _run(client, "ping", "300").returncode == 2
        server.process.kill()
        server.process.wait(5)
        done = _run(client, "ping", "1", "-n", "1")
        assert done.returncode == 1 and "1 sent, 0 answered, 100% lost" in done.stdout
    finally:
        for node in reversed(nodes):
            node.stop()
    logs = "".join(node.log.read_text() for node in nodes)
    assert "Traceback" not in logs
