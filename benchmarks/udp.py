"""What one datagram costs the CPU on its way through the UDP link, sealing and opening included.

    python -m benchmarks.udp [--rounds N]

Both ends are in this process, over loopback, and no event loop runs: a batch is sealed and sent, then it is
read and opened, and each half is timed by itself. On loopback the kernel's work for the receiver up to
its socket is done by the sender's call. Sealed payloads are 1,424 bytes (an Ethernet path) and 16 KiB.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from typing import Any

from uservpn.kit.endpoint import Endpoint
from uservpn.kit.slots import Slots
from uservpn.links import gso
from uservpn.links.udp import UdpPlugin
from uservpn.links.udp_socket import BUFFER_SIZE
from uservpn.wire.constants import TAG_SIZE, Kind
from uservpn.wire.header import HeaderCodec, Run
from uservpn.wire.keys import KeyRing
from uservpn.wire.session import Session

BATCH = 44
SIZES = (1424, 16_384)
BUDGET_US = 4.0
"""Per datagram and side, link and wire together."""


class Sink:
    """The receiving node: opens what comes."""

    def __init__(self, session: Session) -> None:
        self._open = session.open_run
        self._open_first = session.open_bound
        self._slots = Slots(BUFFER_SIZE)
        self.count = 0

    def new_link_id(self) -> int:
        return 1

    def link_opened(self, link: Any) -> None: ...

    def link_closed(self, link: Any, reason: str) -> None: ...

    def link_is_proved(self, link: Any) -> bool:
        return True

    def link_runs(self, link: Any, runs: Sequence[Run]) -> None:
        for run in runs:
            opened = self._open(run, self._slots)
            if opened == 0:  # the first one ever: its key has to be derived
                assert self._open_first(run.header, run.bodies[0]) is not None
                opened = 1 + self._open(run.after(1), self._slots)
            assert opened == len(run.bodies)
            self.count += opened


def _sessions() -> tuple[Session, Session, HeaderCodec]:
    """Both ends, each of which knows the other's boot."""
    ring = KeyRing((bytes(32),))
    codec = HeaderCodec(ring)
    source, sink = Session(ring, codec, 7, 70, 1, False), Session(ring, codec, 1, 10, 7, False)
    for one, other in ((source, sink), (sink, source)):
        header, body = one.seal(Kind.KEEPALIVE, b"", b"\0\0\0", 0, boot=other._my_boot)
        opened = codec.open(header)
        assert opened is not None
        assert other.open_bound(opened, body) is not None
    return source, sink, codec


async def measure(size: int, with_offload: bool, rounds: int) -> tuple[float, float]:
    """CPU microseconds per datagram, to send and to receive."""
    source, sink_session, codec = _sessions()
    sink = Sink(sink_session)
    server, client = UdpPlugin(), UdpPlugin()
    listener = await server.serve(Endpoint("udp", "127.0.0.1", 0), codec, sink)  # type: ignore[arg-type]
    port = listener.sock.port
    link = await client.connect(Endpoint("udp", "127.0.0.1", port), codec, sink)  # type: ignore[arg-type]
    asyncio.get_running_loop().remove_reader(listener.sock._sock.fileno())
    if not with_offload:
        link.sock.has_segments = False
        gso.set_option(listener.sock._sock, gso.SOL_UDP, gso.UDP_GRO, 0)
    payload = bytes(size - TAG_SIZE)
    clock = time.process_time_ns
    count = max(2, min(BATCH, gso.BYTES_MAX // (size + 48)))
    sending = receiving = 0
    for _ in range(rounds):
        began = clock()
        for train in source.seal_trains([(Kind.DATA, payload)] * count, b"\0\0\0", 0):
            link.send(train)
        between = clock()
        listener.sock._on_readable()
        sending += between - began
        receiving += clock() - between
    assert sink.count == rounds * count, "datagrams were lost: the figures would be wrong"
    client.close()
    server.close()
    return sending / sink.count / 1000, receiving / sink.count / 1000


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3000)
    rounds = parser.parse_args().rounds
    print(f"{'sealed payload':>15} {'offload':>8} {'send us':>8} {'receive us':>11}")
    for size in SIZES:
        for with_offload in (True, False):
            best = [
                min(times)
                for times in zip(
                    *(asyncio.run(measure(size, with_offload, rounds // 3)) for _ in range(3)),
                    strict=True,
                )
            ]
            word = "yes" if with_offload else "no"
            print(f"{size:>15,} {word:>8} {best[0]:>8.2f} {best[1]:>11.2f}")
    print(f"budget at 1,424 bytes with offload: {BUDGET_US:.0f} us each")


if __name__ == "__main__":
    main()
