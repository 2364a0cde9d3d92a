"""What a node can pass on as a relay, beside what the same node carries as an exit.

As an exit it is driven by a client and a load of its own. As a relay it is driven by two bare ends that
do next to nothing: a feeder, which seals headers in front of one and the same payload (a relay cannot
tell), and a drain, which counts what comes and drops it in the kernel. So the relay is what is measured,
not the three other programs that share its processors.

The *bare copy* between the same ends shows what of this is the kernel's: it takes what there is from the one
socket, a megabyte at most, and gives it to the other one, opens nothing, and has no queue.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from typing import Any, Final

from benchmarks.processes import cpu_seconds
from uservpn.wire.constants import HEADER_SIZE, STAMP_MASK, TAG_SIZE, Kind
from uservpn.wire.header import HeaderCodec, pack_fields
from uservpn.wire.keys import KeyRing
from uservpn.wire.session import Session

RELAY, DRAIN, FEEDER = 1, 2, 7
PAYLOAD: Final = 255 * 1024
LIMIT_S: Final = 60.0
WINDOW: Final = 2 << 20
"""Bytes under way at most: what a tunnel keeps unconfirmed over relays."""

Cpu = Callable[[], float]


class End:
    """One bare end: a connection to the relay, greeted."""

    def __init__(self, key: bytes, me: int, port: int) -> None:
        ring = KeyRing([key])
        self.codec = HeaderCodec(ring)
        self.me = me
        self.boot = (time.time_ns() // 1_000_000) << 16
        self.socket = socket.create_connection(("127.0.0.1", port), LIMIT_S)
        self.socket.settimeout(LIMIT_S)
        session = Session(ring, self.codec, me, self.boot, RELAY, chacha=False)
        wall_ms = time.time_ns() // 1_000_000
        hello = session.seal(Kind.PROBE, bytes(8), self.stamp(), wall_ms)
        self.socket.sendall(b"".join(hello))
        self.socket.recv(HEADER_SIZE, socket.MSG_WAITALL)  # it answered: the link is ours

    def stamp(self) -> bytes:
        return (time.time_ns() // 1_000_000 & STAMP_MASK).to_bytes(3, "big")

    def feed(self, size: int, drained: Any) -> float:
        """Sends `size` bytes, more or less, to the drain over the relay; when it began."""
        body = os.urandom(PAYLOAD + TAG_SIZE)
        began = time.monotonic()
        ahead = 0
        for number in range(size // PAYLOAD):
            fields = pack_fields(
                Kind.DATA, self.me, DRAIN, len(body), self.boot, number, self.stamp(), RELAY << 8
            )
            sent = self.socket.sendmsg((self.codec.seal(fields), body))
            self.socket.sendall(memoryview(body)[sent - HEADER_SIZE :])
            ahead += HEADER_SIZE + len(body)
            while ahead - drained.value > WINDOW:
                time.sleep(0.0001)
        return began


def _drain(key: bytes, port: int, size: int, ready: Any, drained: Any, result: Any) -> None:
    end = End(key, DRAIN, port)
    buffer = bytearray(1 << 20)
    # Woken for many bytes at once: waking it is work the kernel does on the account of the relay.
    end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, PAYLOAD)
    ready.set()
    is_near = False
    while drained.value < size:
        if (
            not is_near and size - drained.value < 2 * PAYLOAD
        ):  # what is left may be too little to wake it
            is_near = True
            end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        count = end.socket.recv_into(buffer, 1 << 20, socket.MSG_TRUNC)  # counted, not copied
        if not count:
            break
        drained.value += count
    result.send(time.monotonic())


def _feed(key: bytes, port: int, size: int, drained: Any, result: Any) -> None:
    end = End(key, FEEDER, port)
    result.send(end.feed(size, drained))
    time.sleep(LIMIT_S)  # its connection stays until the drain has all: ended by the parent


def measure(key: bytes, port: int, size: int, cpu: Cpu) -> dict[str, float]:
    """Gbit/s and CPU s/GB of the relay that listens on `port`."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    drained = context.Value("Q", 0, lock=False)
    began, feeder_end = context.Pipe(duplex=False)
    ended, drain_end = context.Pipe(duplex=False)
    whole = size // PAYLOAD * (PAYLOAD + TAG_SIZE + HEADER_SIZE)
    drain = context.Process(
        target=_drain, args=(key, port, whole, ready, drained, drain_end), daemon=True
    )
    feeder = context.Process(target=_feed, args=(key, port, size, drained, feeder_end), daemon=True)
    drain.start()
    try:
        if not ready.wait(LIMIT_S):
            raise OSError("the drain has no link to the relay")
        before = cpu()
        feeder.start()
        if not ended.poll(LIMIT_S) or not began.poll(LIMIT_S):
            raise OSError(f"{drained.value} of {whole} bytes came through in {LIMIT_S:g} s")
        seconds = ended.recv() - began.recv()
        spent = cpu() - before
    finally:
        for process in (drain, feeder):
            if process.pid is not None:
                process.kill()
                process.join()
    return {
        "relay (Gbit/s)": whole * 8 / seconds / 1e9,
        "relay: CPU (s/GB)": spent / (whole / 1e9),
    }


def _copy(result: Any) -> None:
    """A listener for the two ends, the drain first; then copies until it is ended."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        result.send(server.getsockname()[1])
        ends: list[socket.socket] = []
        for _ in range(2):
            end = server.accept()[0]
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.recv(1 << 16)  # its greeting
            end.sendall(bytes(HEADER_SIZE))
            ends.append(end)
    drain, feeder = ends
    view = memoryview(bytearray(1 << 20))
    while size := feeder.recv_into(view):
        drain.sendall(view[:size])


def measure_copy(size: int) -> dict[str, float]:
    """As `measure`, of a bare copy."""
    context = multiprocessing.get_context("spawn")
    port, copy_end = context.Pipe(duplex=False)
    copy = context.Process(target=_copy, args=(copy_end,), daemon=True)
    copy.start()
    try:
        if not port.poll(LIMIT_S):
            raise OSError("the bare copy does not listen")
        pid = copy.pid or 0
        found = measure(bytes(32), port.recv(), size, lambda: cpu_seconds(pid))
    finally:
        copy.kill()
        copy.join()
    return {name.replace("relay", "bare copy"): value for name, value in found.items()}


def key_of(text: str) -> bytes:
    """The key in a key file."""
    import base64

    return base64.b64decode(json.loads(text) if text.startswith('"') else text.strip())
