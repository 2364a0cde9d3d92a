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
    wait_until(lambda: list(_states(made[7]).values()) == ["up", "up"])
    yield made
    for node in made.values():
        node.stop()


def _upload(site, client, folder, size: int, *words: str) -> None:
    file = folder / "upload"
    file.write_bytes(bytes(size))
    words = ("-H", "Expect:", *words, "--data-binary", f"@{file}")
    url = f"http://127.0.0.1:{site.port}/"
    got = curl(client.entry, *words, url, user="exit%3D1:x", timeout=60).stdout
    assert got.decode() == hashlib.sha256(bytes(size)).hexdigest()


def _counts(nodes) -> tuple[int, int, int]:
    """Bytes that left the client over relays, and directly, and payloads that passed the relay."""
    (row,) = [row for row in nodes[7].status()["tunnels"] if row["peer"] == 1]
    return row["relayed_bytes"], row["direct_bytes"], nodes[2].status()["relay"]["passed_bytes"]


def _assert_share(before: tuple[int, int, int], after: tuple[int, int, int], size: int) -> None:
    relayed, direct, passed = (new - old for new, old in zip(after, before, strict=True))
    assert relayed + direct >= size
    assert abs(relayed / (relayed + direct) - SHARE) < 0.02
    assert abs(passed / size - SHARE) < 0.02


def _has_way(client) -> bool:
    return any(row["protocol"] == "relay" for row in client.status()["links"])


def test_an_upload_goes_over_a_relay_for_its_share(site, nodes, tmp_path):
    """The client says how much of what it sends; the server's own share of downloads is the server's.

    A rate that both ways carry: how soon the relayed one gets up to speed is not the question.
    """
    _upload(site, nodes[7], tmp_path, MIB, "--limit-rate", "8M")
    wait_until(lambda: _has_way(nodes[7]))
    before = _counts(nodes)
    _upload(site, nodes[7], tmp_path, SIZE, "--limit-rate", "8M")
    _assert_share(before, _counts(nodes), SIZE)


def test_short_uploads_at_full_speed_keep_the_share(site, nodes, tmp_path):
    """The first one is well under way before there is a way; what one leaves owed the next one pays.

    Each alone has it, too, unless the relay's process gets no processor in this quarter of a second: printed.
    """
    for _ in range(10):
        before = _counts(nodes)
        _upload(site, nodes[7], tmp_path, 16 * MIB)
        relayed, direct = (
            new - old for new, old in zip(_counts(nodes)[:2], before[:2], strict=True)
        )
        print(f"{100 * relayed / (relayed + direct):.1f} % over the relay")
    _assert_share((0, 0, 0), _counts(nodes), 160 * MIB)
