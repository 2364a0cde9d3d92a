"""Several servers and clients as processes: one configured server is enough (R02, R08, R10, R13)."""

from __future__ import annotations

import subprocess

from mesh import BLOCK, USERVPN, NodeProcess, client_text, curl, free_port, server_text, wait_until


def _server(folder, number: int, ports: dict[int, int]) -> NodeProcess:
    text = server_text(folder / str(number), ports[number])
    url = f'"tcp://127.0.0.1:{ports[number]}"'
    text = text.replace("[exit]", f"public = [{url}]\n[exit]").replace('"fra"', f'"s{number}"')
    text = text.replace("[node]\n", '[node]\ncountry = "DE"\n')
    if number != 1:
        text += f'[[servers]]\nid = 1\nendpoints = ["tcp://127.0.0.1:{ports[1]}"]\n'
    return NodeProcess(folder / str(number), text)


def _states(node: NodeProcess) -> dict[int, str]:
    return {row["id"]: row["state"] for row in node.status()["nodes"]}


def test_a_client_of_one_server_finds_the_others_and_outlives_it(site, tmp_path):
    ports = {number: free_port() for number in (1, 2, 3)}
    nodes = {number: _server(tmp_path, number, ports) for number in ports}
    entry = free_port()
    text = client_text(tmp_path / "7", entry, {1: ports[1]})
    nodes[7] = NodeProcess(tmp_path / "7", text)
    try:
        client = nodes[7]
        for node in nodes.values():
            wait_until(lambda n=node: set(_states(n)) == {1, 2, 3, 7} - {n.status()["node"]["id"]})
        wait_until(lambda: list(_states(client).values()) == ["up"] * 3)
        rows = {row["id"]: row for row in client.status()["nodes"]}
        assert rows[3]["name"] == "s3" and rows[3]["country"] == "DE"
        assert rows[3]["roles"] == ["server", "exit", "relay"] and rows[3]["software"]
        assert nodes[3].status()["nodes"][-1]["name"] == "laptop"

        def fetch(user: str = "") -> bytes:
            url = f"http://127.0.0.1:{site.port}/5000"
            return curl(entry, url, user=user, timeout=10).stdout

        assert fetch("exit%3D3:x") == BLOCK[:5000]
        shown = subprocess.run(
            [*USERVPN, "nodes", "-c", str(client.config)],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
        assert "nodes: 3" in shown.stdout and "s2" in shown.stdout
        # The configured server is gone for good, and the client starts anew: the list is on disk.
        nodes[1].process.kill()
        nodes[1].stop()
        assert client.stop() == 0
        client = nodes[7] = NodeProcess(tmp_path / "7", text)
        wait_until(lambda: _states(client).get(2) == _states(client).get(3) == "up")
        wait_until(lambda: fetch() == BLOCK[:5000], 30)
        (tmp_path / "7" / "s" / "nodes").write_bytes(b"garbage")
        client.process.kill()
        client.stop()
        client = nodes[7] = NodeProcess(tmp_path / "7", text)
        assert "set aside as nodes.damaged" in client.log.read_text()
    finally:
        for node in reversed(nodes.values()):
            node.stop()
    assert "Traceback" not in "".join(node.log.read_text() for node in nodes.values())


def test_an_exit_that_only_dials_out_is_reached_over_the_server(site, tmp_path):
    """R13: as behind a NAT: node 60 listens nowhere; the server between passes on what it cannot read."""
    port, entry = free_port(), free_port()
    exit = client_text(tmp_path / "60", free_port(), {1: port}).split("[entry]")[0]
    nodes = [
        _server(tmp_path, 1, {1: port}),
        NodeProcess(tmp_path / "60", exit + '[exit]\nenabled = true\nallow = ["127.0.0.0/8"]\n'),
        NodeProcess(tmp_path / "7", client_text(tmp_path / "7", entry, {1: port})),
    ]
    try:
        client = nodes[2]
        wait_until(lambda: 60 in _states(client))

        def fetch() -> bytes:
            url = f"http://127.0.0.1:{site.port}/3000000"
            return curl(entry, url, user="exit%3D60:x", timeout=20).stdout

        wait_until(lambda: fetch() == (BLOCK * 3)[:3_000_000])
        row = next(row for row in client.status()["nodes"] if row["id"] == 60)
        assert row["route"] == [1, 60] and row["state"] == "up"
        tunnels = {row["peer"]: row for row in nodes[1].status()["tunnels"]}
        assert tunnels[7]["relayed_bytes"] > 3_000_000 and tunnels[7]["direct_bytes"] == 0
    finally:
        for node in reversed(nodes):
            node.stop()
    assert "Traceback" not in "".join(node.log.read_text() for node in nodes)
