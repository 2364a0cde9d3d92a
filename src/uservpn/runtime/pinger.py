"""`ping` and `trace` on the event loop: probes with a time limit, and what relays say of their links.

Times come from the stamps of one probe and its answer (mesh/flight.py); over which protocol a relay
reaches the next node, only that relay knows: it is asked out of band (topic `flight.ask`, one byte: the
next node; answer `flight.tell`: that byte, then the protocol's name).
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uservpn.errors import UservpnError
from uservpn.mesh.flight import Leg
from uservpn.node.options import Pong
from uservpn.runtime.driver import Driver
from uservpn.types import NODE_ID_MAX, NODE_ID_MIN, NodeId

LIMIT_S: Final = 5.0
"""How long one ping may wait, at most; a whole trace ends within twice that."""
PROBES: Final = 4
"""Of one trace: the shortest one compares the clocks, the one in the middle is shown."""
SPACING_S: Final = 0.05
ASK: Final = "flight.ask"
TELL: Final = "flight.tell"
TELL_LIMIT_S: Final = 1.0


class Pinger:
    """Measures the way to other nodes."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._told: dict[tuple[NodeId, int], asyncio.Future[str]] = {}
        driver.post.on_message(ASK, self._asked)
        driver.post.on_message(TELL, self._heard)

    async def ping(self, number: Any, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """One probe over the link in use; `rtt_ms` is None when no answer came.

        Raises:
            UservpnError: there is no such node to ask.
        """
        node = self._known(number)
        pong = await self._pong(node, min(limit_s, LIMIT_S))
        return {"node": node, **self._named(node), **self._way(node), "rtt_ms": _ms_of(pong)}

    async def trace(self, number: Any) -> dict[str, Any]:
        """Every hop to the node; `hops` is empty when no answer came.

        Raises:
            UservpnError: there is no such node to ask.
        """
        node = self._known(number)
        pongs: list[Pong] = []
        first = await self._pong(node, LIMIT_S)
        if first is not None:
            pongs.append(first)
            for _ in range(PROBES - 1):
                await asyncio.sleep(SPACING_S)
                pong = await self._pong(node, TELL_LIMIT_S)
                if pong is not None and len(pong.legs) == len(first.legs):
                    pongs.append(pong)
        hops = [await self._hop(pongs, index) for index in range(len(first.legs) if first else 0)]
        return {"node": node, **self._named(node), "hops": hops}

    # --- inside ----------------------------------------------------------------------------------

    async def _pong(self, node: NodeId, limit_s: float) -> Pong | None:
        """The answer to one probe, or None; a way is made first where there is none."""
        driver = self._driver
        try:
            async with asyncio.timeout(limit_s):
                if not driver.node.is_linked(node) and not await self._reach(node):
                    return None
                return await driver.post.ping(node)
        except TimeoutError:
            return None

    async def _reach(self, node: NodeId) -> bool:
        """A confirmed message makes a way, if there is one."""
        made: asyncio.Future[bool] = self._driver.loop.create_future()

        def on_result(delivered: bool) -> None:
            if not made.done():
                made.set_result(delivered)

        self._driver.post.send_message(node, TELL, b"", confirmed=True, on_result=on_result)
        return await made

    async def _hop(self, pongs: list[Pong], index: int) -> dict[str, Any]:
        legs: list[Leg] = [pong.legs[index] for pong in pongs]
        leg = sorted(legs, key=lambda leg: leg.rtt_s)[(len(legs) - 1) // 2]
        node = NodeId(leg.node)
        if index:
            protocol = await self._protocol(NodeId(pongs[0].legs[index - 1].node), node)
        else:
            protocol = self._driver.node.protocol(node)
        return {
            "node": node,
            **self._named(node),
            "protocol": protocol,
            "rtt_ms": _ms(leg.rtt_s),
            "out_ms": _ms(leg.out_s),
            "back_ms": _ms(leg.back_s),
            "clock_ms": _ms(leg.offset_s),
        }

    async def _protocol(self, relay: NodeId, node: NodeId) -> str | None:
        """What the relay says of its link to the next node; None: nothing, in time."""
        told = self._told.get((relay, node))
        if told is None:
            told = self._told[relay, node] = self._driver.loop.create_future()
        self._driver.post.send_message(relay, ASK, bytes((node,)), confirmed=True)
        try:
            async with asyncio.timeout(TELL_LIMIT_S):
                return await asyncio.shield(told) or None
        except TimeoutError:
            return None
        finally:
            self._told.pop((relay, node), None)

    def _asked(self, peer: NodeId, payload: bytes) -> None:
        if payload:
            protocol = self._driver.node.protocol(NodeId(payload[0])) or ""
            self._driver.post.send_message(peer, TELL, payload[:1] + protocol.encode()[:32])

    def _heard(self, peer: NodeId, payload: bytes) -> None:
        told = self._told.get((peer, payload[0])) if payload else None
        if told is not None and not told.done():
            told.set_result(payload[1:].decode("ascii", "replace"))

    def _known(self, number: Any) -> NodeId:
        node = self._driver.node
        if not isinstance(number, int) or not NODE_ID_MIN <= number <= NODE_ID_MAX:
            raise UservpnError(f"{number!r} is no node; allowed: 1 to 254")
        if number == node.options.node:
            raise UservpnError(f"node {number} is this node itself")
        if number not in node.peers and node.directory.get(number) is None:
            raise UservpnError(f"node {number} is not on the list of nodes (see: uservpn nodes)")
        return NodeId(number)

    def _named(self, node: NodeId) -> dict[str, Any]:
        record = self._driver.node.directory.get(node)
        return {"name": (record.name or None) if record else None}

    def _way(self, node: NodeId) -> dict[str, Any]:
        """Which way a message to it takes now."""
        route = self._driver.node.route(node)
        first = self._driver.node.protocol(route[0]) if route else None
        return {"protocol": first, "route": list(route)}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _ms_of(pong: Pong | None) -> float | None:
    return None if pong is None else _ms(pong.rtt_s)
