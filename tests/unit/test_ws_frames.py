"""Batches as WebSocket frames: none is larger than what the other side takes."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from websockets.client import ClientProtocol
from websockets.frames import Frame
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import WebSocketURI

from uservpn.links.ws import FRAME_MAX, FramedTransport


def _pair() -> tuple[ClientProtocol, ServerProtocol]:
    """Both ends after their handshake."""
    client = ClientProtocol(WebSocketURI(False, "192.0.2.1", 1, "/", ""), max_size=FRAME_MAX)
    server = ServerProtocol(max_size=FRAME_MAX)
    client.send_request(client.connect())
    server.receive_data(b"".join(client.data_to_send()))
    (request,) = server.events_received()
    server.send_response(server.accept(request))
    client.receive_data(b"".join(server.data_to_send()))
    client.events_received()
    return client, server


@pytest.mark.parametrize("size", [1, FRAME_MAX, FRAME_MAX + 1, 2 * FRAME_MAX + 100])
def test_a_batch_of_any_size_arrives(size: int) -> None:
    """On a long fast path a link may be given more at once than one frame may hold."""
    sender, receiver = _pair()
    wire: list[bytes] = []
    transport = SimpleNamespace(
        writelines=wire.extend,
        get_write_buffer_size=None,
        set_write_buffer_limits=None,
        is_closing=None,
        abort=None,
    )
    batch = [os.urandom(size // 2), memoryview(os.urandom(size - size // 2))]
    FramedTransport(transport, sender).writelines(batch)
    receiver.receive_data(b"".join(wire))
    frames = [event for event in receiver.events_received() if isinstance(event, Frame)]
    assert receiver.state is State.OPEN
    assert b"".join(frame.data for frame in frames) == b"".join(batch)
    assert len(frames) == -(-size // FRAME_MAX)
