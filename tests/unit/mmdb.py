"""Writes MaxMind DB files (specification 2.0) that are just large enough for a test."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

MARK = b"\xab\xcd\xefMaxMind.com"


class Uint(NamedTuple):
    number: int
    size: int


def write_mmdb(path: Path, records: Mapping[str, Any]) -> Path:
    """A file with a record for each network; IPv4 networks are put where IPv6 has them, at ::/96."""
    data, offsets = b"", {}
    for network, record in records.items():
        offsets[network] = len(data)
        data += encoded(record)
    nodes: list[list[int | None]] = [[None, None]]
    leaves: dict[tuple[int, int], int] = {}
    for network, offset in offsets.items():
        bits = bits_of(network)
        at = 0
        for bit in bits[:-1]:
            following = nodes[at][bit]
            if following is None:
                nodes.append([None, None])
                following = nodes[at][bit] = len(nodes) - 1
            at = following
        leaves[at, bits[-1]] = offset
    tree = b""
    for number, node in enumerate(nodes):
        for bit in (0, 1):
            leaf = leaves.get((number, bit))
            value = len(nodes) + 16 + leaf if leaf is not None else node[bit]
            tree += struct.pack(">I", len(nodes) if value is None else value)[1:]
    metadata = {
        "node_count": Uint(len(nodes), 4),
        "record_size": Uint(24, 2),
        "ip_version": Uint(6, 2),
        "database_type": "test",
        "languages": [],
        "binary_format_major_version": Uint(2, 2),
        "binary_format_minor_version": Uint(0, 2),
        "build_epoch": Uint(1, 8),
        "description": {},
    }
    path.write_bytes(tree + bytes(16) + data + MARK + encoded(metadata))
    return path


def bits_of(network: str) -> list[int]:
    parsed = ipaddress.ip_network(network)
    length = parsed.prefixlen + (96 if parsed.version == 4 else 0)
    value = int(parsed.network_address)
    return [value >> (127 - at) & 1 for at in range(length)]


def encoded(value: Any) -> bytes:
    if isinstance(value, str):
        return bytes([2 << 5 | len(value)]) + value.encode()
    if isinstance(value, dict):
        parts = b"".join(encoded(key) + encoded(item) for key, item in value.items())
        return bytes([7 << 5 | len(value)]) + parts
    if isinstance(value, Uint):
        head = {2: bytes([5 << 5 | 2]), 4: bytes([6 << 5 | 4]), 8: bytes([8, 9 - 7])}[value.size]
        return head + value.number.to_bytes(value.size, "big")
    return bytes([len(value), 11 - 7])  # an array; only empty ones are needed
