"""Somebody on the path damages, drops, doubles, swaps and replays: all bytes arrive, nobody else notices.

Transfers are checked by SHA-256. Beside each of them two connections go on beating: one over the same
link, one of another client, whose link nobody touches.
"""

from __future__ import annotations

import base64
import random
import threading
from collections.abc import Callable

import pytest

from cutter import Flow
from mesh import (
    BLOCK,
    KEY,
    Mesh,
    NodeProcess,
    Site,
    client_text,
    digest_of,
    free_port,
    wait_until,
)
from programs import Beat, connect, echo
from uservpn.wire.constants import HEADER_SIZE
from uservpn.wire.header import HeaderCodec
from uservpn.wire.keys import KeyRing

MIB = 1 << 20
SIZE = 12 * MIB


@pytest.fixture(scope="module")
def shared():
    """A mesh whose client is behind a forwarder, and a second client that is not."""
    made = Mesh(with_cutter=True)
    entry = free_port()
    text = client_text(made.folder / "9", entry, {1: made.server_port})
    other = NodeProcess(made.folder / "9", text)
    wait_until(other.is_linked)
    yield made, other, entry
    other.stop()
    made.close()


@pytest.fixture
def quiet_mesh(shared, site):
    """The mesh; afterwards all is well, and nobody has raised."""
    made, other, _ = shared
    yield made
    made.cutter.mangle = made.cutter.record = None
    assert made.curl(f"http://127.0.0.1:{site.port}/9").stdout == BLOCK[:9]
    for node in (made.client, made.server, other):
        log = node.log.read_text()
        for word in ("Traceback", "broke the protocol"):
            assert word not in log, log[max(0, log.index(word) - 300) :][:3000]


@pytest.fixture
def mesh(shared, quiet_mesh):
    """The mesh, with two beating connections, which must not have ended."""
    _, _, entry = shared
    with echo() as target:
        beats = [Beat(quiet_mesh.entry, target), Beat(entry, target)]
        yield quiet_mesh
        quiet_mesh.cutter.mangle = None
        gaps = [beat.end() for beat in beats]
    print(
        "longest wait of a beat on the damaged link, and on the other: {:.2f} s, {:.2f} s".format(
            *gaps
        )
    )


def _upload(mesh: Mesh, site: Site, size: int) -> None:
    with connect(mesh.entry, site.port) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // MIB):
            sock.sendall(BLOCK)
        answer = b""
        while len(answer.partition(b"\r\n\r\n")[2]) < 64:
            part = sock.recv(4096)
            assert part, "no answer"
            answer += part
    assert answer[-64:].decode() == digest_of(size)


# --- bytes --------------------------------------------------------------------------------------------


def _flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _reorder(rng: random.Random, data: bytes) -> bytes:
    middle = rng.randrange(1, len(data))
    return data[middle:] + data[:middle]


def _double(rng: random.Random, data: bytes) -> bytes:
    return data + data


class Damage:
    """Changes one segment of a direction after every `size` bytes in it, so many times."""

    def __init__(self, change: Callable, is_upstream: bool, size: int, times: int) -> None:
        self._change = change
        self._is_upstream = is_upstream
        self._size = self._left = size
        self._rng = random.Random(size)
        self._times = times
        self.count = 0

    def __call__(self, flow: Flow, data: bytes) -> bytes:
        if flow.is_upstream is not self._is_upstream:
            return data
        self._left -= len(data)
        if self._left > 0 or len(data) < 64 or self.count >= self._times:
            return data
        self._left = self._size
        self.count += 1
        return self._change(self._rng, data)


@pytest.mark.parametrize("change", [_flip, _truncate, _reorder, _double])
def test_a_download_over_a_link_that_is_damaged_again_and_again(mesh, site, change):
    """What does not open is asked for again, over a new link where the old one lost its step."""
    mesh.cutter.mangle = damage = Damage(change, False, 5 * MIB // 2, 4)
    mesh.download(site, SIZE)
    assert damage.count >= 3


@pytest.mark.parametrize(("change", "times"), [(_flip, 4), (_truncate, 1)])
def test_an_upload_over_a_link_that_is_damaged(mesh, site, change, times):
    """The accepting side that lost its step falls silent until the client dials again."""
    mesh.cutter.mangle = damage = Damage(change, True, 2 * MIB, times)
    _upload(mesh, site, SIZE)
    assert damage.count == times


# --- whole messages -----------------------------------------------------------------------------------


class Messages:
    """Cuts flows into messages, which takes the key, and lets `change` have each of them."""

    def __init__(self, change: Callable) -> None:
        self._codec = HeaderCodec(KeyRing((base64.b64decode(KEY),)))
        self._change = change
        self._lock = threading.Lock()
        self.rng = random.Random(1)
        self.count = 0
        self.kept: dict[Flow, bytes] = {}
        self.past: dict[bool, list[bytes]] = {True: [], False: []}

    def __call__(self, flow: Flow, data: bytes) -> bytes:
        tail = flow.tail
        tail += data
        out = b""
        with self._lock:
            while len(tail) >= HEADER_SIZE:
                header = self._codec.open(bytes(tail[:HEADER_SIZE]))
                if header is None:  # a connection from before the cut
                    out += bytes(tail)
                    tail.clear()
                    break
                size = HEADER_SIZE + header.length
                if len(tail) < size:
                    break
                out += self._change(self, flow, bytes(tail[:size]))
                del tail[:size]
        return out

    def is_time(self) -> bool:
        """One message in twelve."""
        if self.rng.random() < 0.08:
            self.count += 1
            return True
        return False


def _dropped(messages: Messages, flow: Flow, message: bytes) -> bytes:
    return b"" if messages.is_time() else message


def _doubled(messages: Messages, flow: Flow, message: bytes) -> bytes:
    return message * (2 if messages.is_time() else 1)


def _swapped(messages: Messages, flow: Flow, message: bytes) -> bytes:
    """Behind the next one; the last of a flow may wait for long, as if it were lost."""
    kept = messages.kept.pop(flow, None)
    if kept is not None:
        return message + kept
    if messages.is_time():
        messages.kept[flow] = message
        return b""
    return message


def _replayed(messages: Messages, flow: Flow, message: bytes) -> bytes:
    """With an old one of this or an earlier connection behind it."""
    past = messages.past[flow.is_upstream]
    past.append(message)
    return message + messages.rng.choice(past) if messages.is_time() else message


@pytest.mark.parametrize("change", [_dropped, _doubled, _swapped, _replayed])
def test_whole_messages_that_are_tampered_with_do_not_even_cost_the_link(mesh, site, change):
    """Both ways at once: the tunnel asks for what is missing, and the window drops what was seen."""
    mesh.cutter.mangle = messages = Messages(change)
    mesh.cutter.record = []
    mesh.cutter.cut()
    wait_until(lambda: mesh.cutter.record)
    done: list[bool] = []
    upload = threading.Thread(
        target=lambda: done.append(_upload(mesh, site, SIZE) is None), daemon=True
    )
    upload.start()
    mesh.download(site, SIZE)
    upload.join(100)
    assert done and messages.count > 5
    assert len(mesh.cutter.record) == 1, "the link was given up"
