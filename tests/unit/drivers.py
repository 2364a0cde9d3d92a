"""A driver around a real node, for tests on a real event loop."""

from __future__ import annotations

import asyncio
import os
import time

from uservpn.node.node import Node
from uservpn.node.options import NodeOptions
from uservpn.runtime.driver import Driver
from uservpn.wire.header import HeaderCodec
from uservpn.wire.keys import KeyRing


def make_driver(plugins, node, servers, offer=None, find=None) -> Driver:
    """Node `node` on the running loop; `plugins` are links by protocol."""
    ring = KeyRing((bytes(32),))
    now = time.monotonic()
    core = Node(
        NodeOptions(node, 1000 + node, servers),
        ring,
        HeaderCodec(ring),
        os.urandom,
        now=now,
        wall_s=time.time() - now,
    )
    return Driver(core, plugins, asyncio.get_running_loop(), offer, find)
