"""A set share of the client-server traffic goes over other nodes, counted where it passes (R36)."""

from __future__ import annotations

import hashlib

import pytest

from mesh import NodeProcess, client_text, curl, free_port, wait_until
from test_mesh_e2e import _server, _states

MIB = 1 << 20
SHARE = 0.25
SIZE = 24 * MIB
RUN = 8
"""So many uploads in a row are looked at together."""
MOST = 40


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


def _shares(before: tuple[int, ...], after: tuple[int, ...], size: int) -> tuple[float, float]:
    """Of `size` bytes uploaded: what left the client over relays, and what the relay saw pass."""
    relayed, direct, passed = (new - old for new, old in zip(after, before, strict=True))
    assert relayed + direct >= size
    return relayed / (relayed + direct), passed / size


def _has_share(before: tuple[int, ...], after: tuple[int, ...], size: int) -> bool:
    return all(abs(share - SHARE) < 0.02 for share in _shares(before, after, size))


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
    after = _counts(nodes)
    assert _has_share(before, after, SIZE), _shares(before, after, SIZE)


def test_short_uploads_at_full_speed_keep_the_share(site, nodes, tmp_path):
    """Some RUN of them together has it, at the client and at the relay; each is printed.

    At full speed the way's owner gets as much as the relay's process can carry: where others have its
    processor for a moment, what is owed is forgiven by then, so as not to slow the stream down.
    """
    counts = [_counts(nodes)]
    for _ in range(MOST):
        _upload(site, nodes[7], tmp_path, 16 * MIB)
        counts.append(_counts(nodes))
        relayed, passed = _shares(counts[-2], counts[-1], 16 * MIB)
        print(f"{100 * relayed:.1f} % over the relay, {100 * passed:.1f} % counted there")
        if len(counts) > RUN and _has_share(counts[-1 - RUN], counts[-1], RUN * 16 * MIB):
            return
    pytest.fail(f"of {MOST} uploads no {RUN} in a row had the share")
