"""`uservpn demo`: a whole small mesh in one process, to see it work without a server or the internet.

Node 1 and node 2 are exits, node 7 is a client with the SOCKS5 entry, all on loopback. Behind the exits
stands a page of the demo's own. The demo fetches it through each exit as any program would, and then
serves until Ctrl-C.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from ipaddress import ip_network
from typing import Final

from uservpn.app import new_loop
from uservpn.control.config import (
    Config,
    EntryConfig,
    ExitConfig,
    NetworkConfig,
    NodeConfig,
    ServerConfig,
)
from uservpn.kit.endpoint import Address, Endpoint
from uservpn.runtime.boot import random_boot
from uservpn.service import Service
from uservpn.types import NodeId

STARTS_MAX: Final = 5
EXITS: Final = (NodeId(1), NodeId(2))
CLIENT: Final = NodeId(7)
FETCH_LIMIT_S: Final = 10.0
PAGE: Final = (
    b"<!doctype html><title>uservpn demo</title>"
    b"<h1>It works</h1><p>This page was fetched through the mesh.</p>\n"
)


def demo(once: bool, port: int) -> int:
    """Runs the demo on a loop of its own; the exit status."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(run_demo(once, port, random_boot))


async def run_demo(once: bool, port: int, new_boot: Callable[[], int]) -> int:
    """Runs the demo; 0 when the page came through every exit, else 1."""
    loop = asyncio.get_running_loop()
    page = await asyncio.start_server(_serve_page, "127.0.0.1", 0)
    try:
        entry, services = await _start(port, new_boot, loop)
    except OSError as error:
        page.close()
        print(f"cannot start the demo: {error.strerror or error}")
        return 1
    page_port = page.sockets[0].getsockname()[1]
    print(f"mesh of {len(services)} nodes: exits {EXITS[0]} and {EXITS[1]}, client {CLIENT}")
    good = True
    for exit_id, service in zip(EXITS, services, strict=False):
        before = (
            service.node.peers[CLIENT].tunnel.opened_count if CLIENT in service.node.peers else 0
        )
        result = await _fetch(entry, exit_id, page_port)
        after = (
            service.node.peers[CLIENT].tunnel.opened_count if CLIENT in service.node.peers else 0
        )
        through = result == "" and after == before + 1
        good &= through
        print(
            f"  page through exit {exit_id}: {'ok' if through else result or 'another exit was used'}"
        )
    if not once and good:
        print(f"SOCKS5 and HTTP proxy on {entry}; try:", flush=True)
        for exit_id in EXITS:
            print(
                f"  curl --socks5-hostname {entry} --proxy-user exit={exit_id}: "
                f"http://127.0.0.1:{page_port}/"
            )
        print("Ctrl-C ends it.", flush=True)
        stop = asyncio.Event()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, stop.set)
        await stop.wait()
    page.close()
    for service in reversed(services):
        await service.close()
    return 0 if good else 1


async def _start(
    port: int, new_boot: Callable[[], int], loop: asyncio.AbstractEventLoop
) -> tuple[Address, list[Service]]:
    """Every node, running, and where the entry is. Raises OSError.

    A port that was free a moment ago may be taken by now: then all is tried again with others.
    """
    for attempt in range(1, STARTS_MAX + 1):
        entry = Address("127.0.0.1", port or _free_port())
        services: list[Service] = []
        try:
            for config in _configs(entry):
                services.append(Service(config, new_boot(), loop))
                await services[-1].start()
        except OSError:
            for service in reversed(services):
                await service.close()
            if attempt == STARTS_MAX:
                raise
        else:
            break
    return entry, services


def _configs(entry: Address) -> list[Config]:
    network = NetworkConfig((os.urandom(32),))
    exit_policy = ExitConfig(enabled=True, allow=(ip_network("127.0.0.0/8"),))
    servers = tuple(
        ServerConfig(number, (Endpoint("tcp", "127.0.0.1", _free_port()),)) for number in EXITS
    )
    exits = [
        Config(
            network,
            NodeConfig(server.id, f"exit{server.id}", listen=server.endpoints),
            exit=exit_policy,
        )
        for server in servers
    ]
    client = Config(
        network, NodeConfig(CLIENT, "client"), servers=servers, entry=EntryConfig(entry)
    )
    return [*exits, client]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _serve_page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async with asyncio.timeout(FETCH_LIMIT_S):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(PAGE), PAGE)
            )
            await writer.drain()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        writer.transport.abort()
    writer.close()


async def _fetch(entry: Address, exit_id: NodeId, port: int) -> str:
    """Fetches the page as a SOCKS5 program that asks for this exit; "" or what went wrong."""
    try:
        async with asyncio.timeout(FETCH_LIMIT_S):
            reader, writer = await asyncio.open_connection(entry.host, entry.port)
            user = f"exit={exit_id}".encode()
            writer.write(b"\x05\x01\x02")
            if await reader.readexactly(2) != b"\x05\x02":
                return "the entry refused the method"
            writer.write(bytes((1, len(user))) + user + b"\x00")
            if await reader.readexactly(2) != b"\x01\x00":
                return "the entry refused the user name"
            writer.write(b"\x05\x01\x00\x01\x7f\x00\x00\x01" + port.to_bytes(2, "big"))
            reply = await reader.readexactly(10)
            if reply[1]:
                return f"SOCKS reply {reply[1]:02x}"
            writer.write(b"GET / HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n")
            answer = await reader.read(-1)
            writer.close()
            return "" if answer.endswith(PAGE) else "another page came back"
    except TimeoutError:
        return "no answer in time"
    except (OSError, asyncio.IncompleteReadError) as error:
        return f"the connection broke: {error}"
