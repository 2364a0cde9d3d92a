"""A protocol that somebody else wrote: a package outside this one, found by its entry point (R29)."""

from __future__ import annotations

from mesh import (
    BLOCK,
    NodeProcess,
    client_text,
    curl,
    free_port,
    run_refused,
    server_text,
    wait_until,
)

PLUGIN = '''
"""The TCP link under another name, with every byte turned round: a stand-in for a real protocol."""

import asyncio

from uservpn.links.base import LinkCaps
from uservpn.links.tcp import TcpLink

TURN = bytes(255 - value for value in range(256))


class TurnedTransport:
    """Turns what is sent; everything else is the transport's own."""

    def __init__(self, transport):
        self._transport = transport

    def writelines(self, batch):
        self._transport.write(b"".join(bytes(part) for part in batch).translate(TURN))

    def __getattr__(self, name):
        return getattr(self._transport, name)


class TurnedLink(TcpLink):
    def __init__(self, codec, owner, accepted):
        super().__init__(codec, owner, accepted)
        self.caps = LinkCaps("turned", 60_000, is_ordered=True, is_reliable=True)

    def connection_made(self, transport):
        super().connection_made(TurnedTransport(transport))

    def buffer_updated(self, nbytes):
        part = self._view[self._end : self._end + nbytes]
        part[:] = bytes(part).translate(TURN)
        super().buffer_updated(nbytes)


class Plugin:
    scheme = "turned"

    async def connect(self, endpoint, codec, owner):
        loop = asyncio.get_running_loop()
        _, link = await loop.create_connection(
            lambda: TurnedLink(codec, owner, accepted=False), endpoint.host, endpoint.port
        )
        return link

    async def serve(self, endpoint, codec, owner):
        loop = asyncio.get_running_loop()
        return await loop.create_server(
            lambda: TurnedLink(codec, owner, accepted=True), endpoint.host, endpoint.port
        )


PLUGIN = Plugin()
'''


def test_a_protocol_from_outside_carries_the_mesh(site, tmp_path):
    package = tmp_path / "site"
    info = package / "turned_link-1.0.dist-info"
    info.mkdir(parents=True)
    (package / "turned_link.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: turned-link\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[uservpn.links]\nturned = turned_link:PLUGIN\n")
    env = {"PYTHONPATH": str(package)}
    port, entry = free_port(), free_port()
    nodes = []
    try:
        for text in (
            server_text(tmp_path / "1", port),
            client_text(tmp_path / "7", entry, {1: port}),
        ):
            folder = tmp_path / ("1" if not nodes else "7")
            nodes.append(NodeProcess(folder, text.replace("tcp://", "turned://"), env=env))
        client = nodes[1]
        wait_until(client.is_linked)
        assert client.status()["links"][0]["protocol"] == "turned"
        done = curl(entry, f"http://127.0.0.1:{site.port}/1000000", timeout=30)
        assert done.stdout == BLOCK[:1_000_000], done.stderr
    finally:
        for node in reversed(nodes):
            assert node.stop() == 0
    assert "Traceback" not in "".join(node.log.read_text() for node in nodes)


def test_without_the_package_the_protocol_is_a_configuration_error(tmp_path):
    text = server_text(tmp_path / "1", free_port()).replace("tcp://", "turned://")
    done = run_refused(tmp_path / "c.toml", text, "check")
    assert done.returncode == 2
    assert "'turned'" in done.stderr and "tcp" in done.stderr
