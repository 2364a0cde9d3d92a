"""What the kernel offers for UDP beyond one datagram per call, and how to use it.

UDP_SEGMENT: one `sendmsg` takes many datagrams to one address, all of one size but a shorter last one.
UDP_GRO: one `recvmsg` brings many that the kernel has joined, and says how long each is. On loopback a
datagram then costs a tenth. Also here: no fragments (a datagram arrives whole or not at all, so
that path MTU probes tell the truth), large socket buffers, and to which of our addresses a datagram came.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import Final

SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
SEGMENTS_MAX: Final = 64
"""UDP_MAX_SEGMENTS of the kernels before 6.9."""
BYTES_MAX: Final = 65_000
"""Of one `sendmsg` with segments; the kernel has 65,535 with every header counted."""
SEGMENT_SIZE: Final = struct.Struct("@H")
BUFFER_WANTED: Final = 4 << 20
"""Socket buffers, each way: half a second at 64 Mbit/s, or 30 ms at 1 Gbit/s."""

IS_LINUX: Final = sys.platform == "linux"
IP_MTU_DISCOVER: Final = 10
IPV6_MTU_DISCOVER: Final = 23
PMTUDISC_PROBE: Final = 3  # set DF, and let nothing but the local interface limit the size
IP_MTU: Final = 14
IPV6_MTU: Final = 24
IP_PKTINFO: Final = 8
IPV6_RECVPKTINFO: Final = 49
IPV6_PKTINFO: Final = 50
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
SO_MEMINFO: Final = 55
MEMINFO: Final = struct.Struct("@9I")  # the last one: drops
PKTINFO4: Final = struct.Struct("@i4s4s")  # interface, our address, destination in the header
PKTINFO6: Final = struct.Struct("@16si")

Ancillary = Sequence[tuple[int, int, bytes]]


def segments_max(size: int) -> int:
    """How many datagrams of `size` bytes one `sendmsg` takes."""
    return min(SEGMENTS_MAX, max(1, BYTES_MAX // size))


def runs(sizes: Sequence[int], with_segments: bool) -> Iterator[tuple[int, int]]:
    """Cuts a batch of datagrams of these sizes into what one `sendmsg` each takes, as (start, end)."""
    count = len(sizes)
    if not with_segments:
        yield from zip(range(count), range(1, count + 1), strict=True)
        return
    start = 0
    while start < count:
        size = sizes[start]
        last = min(count, start + segments_max(size))
        end = last
        if sizes[start:last].count(size) < last - start:
            end = start + 1
            while sizes[end] == size:
                end += 1
            if sizes[end] < size:
                end += 1
        yield start, end
        start = end


def set_option(sock: socket.socket, level: int, option: int, value: int) -> bool:
    """False: this kernel does not have it."""
    try:
        sock.setsockopt(level, option, value)
    except OSError:
        return False
    return True


def forbid_fragments(sock: socket.socket) -> bool:
    """No datagram of this socket is ever cut; False: the system cannot promise that."""
    if not IS_LINUX:
        return False
    if sock.family == socket.AF_INET6:
        return set_option(sock, socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)
    return set_option(sock, socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)


def can_send_segments(sock: socket.socket) -> bool:
    """Does the kernel know UDP_SEGMENT (4.18)? Whether the network device does shows when it is used."""
    return IS_LINUX and set_option(sock, SOL_UDP, UDP_SEGMENT, 0)


def receive_joined(sock: socket.socket) -> bool:
    """From now on datagrams may come joined (5.0); False: the kernel cannot."""
    return IS_LINUX and set_option(sock, SOL_UDP, UDP_GRO, 1)


def size_buffers(sock: socket.socket) -> tuple[int, int]:
    """Asks for BUFFER_WANTED; what the kernel gave: bytes to receive, bytes to send."""
    given = []
    for option, forced in (
        (socket.SO_RCVBUF, SO_RCVBUFFORCE),
        (socket.SO_SNDBUF, SO_SNDBUFFORCE),
    ):
        if not (IS_LINUX and set_option(sock, socket.SOL_SOCKET, forced, BUFFER_WANTED)):
            set_option(sock, socket.SOL_SOCKET, option, BUFFER_WANTED)
        size = sock.getsockopt(socket.SOL_SOCKET, option)
        given.append(
            size // 2 if IS_LINUX else size
        )  # Linux counts its own part of each packet too
    return given[0], given[1]


def overrun_count(sock: socket.socket) -> int:
    """Datagrams that came while the receive buffer was full, since the start; 0 where it is not told."""
    if not IS_LINUX:
        return 0
    try:
        memory = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, MEMINFO.size)
    except OSError:
        return 0
    return int(MEMINFO.unpack(memory)[-1]) if len(memory) == MEMINFO.size else 0


def tell_destinations(sock: socket.socket) -> int:
    """Each datagram says to which of our addresses it came; the kind of that note, 0: the system cannot."""
    if not IS_LINUX:
        return 0
    if sock.family == socket.AF_INET6:
        done = set_option(sock, socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
        return IPV6_PKTINFO if done else 0
    return IP_PKTINFO if set_option(sock, socket.IPPROTO_IP, IP_PKTINFO, 1) else 0


def arrived_at(kind: int, note: bytes) -> tuple[str, Ancillary]:
    """Our address in such a note, and what makes an answer leave from there."""
    if kind == IPV6_PKTINFO:
        address6, interface = PKTINFO6.unpack(note[: PKTINFO6.size])
        scope = interface if address6[:2] == b"\xfe\x80" else 0
        answer = PKTINFO6.pack(address6, scope)
        return socket.inet_ntop(socket.AF_INET6, address6), (
            (socket.IPPROTO_IPV6, IPV6_PKTINFO, answer),
        )
    _, address4, _ = PKTINFO4.unpack(note[: PKTINFO4.size])
    answer = PKTINFO4.pack(0, address4, bytes(4))
    return socket.inet_ntoa(address4), ((socket.IPPROTO_IP, IP_PKTINFO, answer),)


def route(family: int, host: str, port: int, bound_to: str | None) -> tuple[int, str]:
    """How the system would send there: the MTU of that way as far as it knows, and our address.

    Sends nothing. Raises OSError: there is no way.
    """
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        if bound_to is not None:
            sock.bind((bound_to, 0))
        forbid_fragments(sock)
        sock.connect((host, port))
        local = str(sock.getsockname()[0])
        if not IS_LINUX:
            return 0, local
        if family == socket.AF_INET6:
            return sock.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU), local
        return sock.getsockopt(socket.IPPROTO_IP, IP_MTU), local
