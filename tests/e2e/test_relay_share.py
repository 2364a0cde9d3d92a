"""A set share of the client-server traffic goes over other nodes, counted where it passes (R36)."""

from __future__ import annotations

import hashlib

import pytest

from mesh import NodeProcess, client_text, curl, free_port, wait_until
from test_mesh_e2e import _server, _states

MIB = 1 << 20
SHARE = 0.25
SIZE = 24 * MIB


@pytest.fixture
def nodes(tmp_path):
    ports = {number: free_port() for number in (1, 2)}
    made = {number: _server(tmp_path, number, ports) for number in ports}
    entry = free_port()
    text = client_text(tmp_path / "7", entry, ports)
    made[7] = NodeProcess(tmp_path / "7", text + f"[tunnel]\nrelay_share = {SHARE}\n")
    made[7].entry = entry
    yield made
    for node in made.values():
        node.stop()


def test_an_upload_goes_over_a_relay_for_its_share(site, nodes, tmp_path):
    """The client says how much of what it sends; the server's own share of downloads is the server's."""
    client, relay = nodes[7], nodes[2]
    wait_until(lambda: list(_states(client).values()) == ["up", "up"])
    url = f"http://127.0.0.1:{site.port}/"

    def upload(size: int) -> None:
        file = tmp_path / "upload"
        file.write_bytes(bytes(size))
        # a rate that both ways carry: how soon the relayed one gets up to speed is not the question
        words = ("-H", "Expect:", "--limit-rate", "8M", "--data-binary", f"@{file}", url)
        got = curl(client.entry, *words, user="exit%3D1:x", timeout=60).stdout
        assert got.decode() == hashlib.sha256(bytes(size)).hexdigest()

    upload(MIB)  # opens the way
    wait_until(lambda: any(row["protocol"] == "relay" for row in client.status()["links"]))

    def counts() -> tuple[int, int, int]:
        (row,) = [row for row in client.status()["tunnels"] if row["peer"] == 1]
        passed = relay.status()["relay"]["passed_bytes"]
        return row["relayed_bytes"], row["direct_bytes"], passed

    before = counts()
    upload(SIZE)
    relayed, direct, passed = (new - old for new, old in zip(counts(), before, strict=True))
    assert relayed + direct >= SIZE
    assert abs(relayed / (relayed + direct) - SHARE) < 0.02
    assert abs(passed / SIZE - SHARE) < 0.02
