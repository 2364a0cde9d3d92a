"""The daemon around one node: signals, the control socket, what is kept on disk, until it is stopped."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from uservpn.control.client import ControlError
from uservpn.control.config import Config, load, state_dir_of
from uservpn.control.places import control_socket
from uservpn.control.server import ControlServer
from uservpn.control.site_commands import SITE_COMMANDS, answer_about_sites
from uservpn.errors import ConfigError, UservpnError
from uservpn.runtime.allocator import give_back, keep_message_blocks
from uservpn.runtime.boot import next_boot
from uservpn.runtime.clock import monotonic
from uservpn.runtime.descriptors import SHORTAGE, raise_limit
from uservpn.runtime.entry import CONNECTIONS_MAX
from uservpn.runtime.nodes_file import load_nats, load_nodes, save_nats, save_nodes
from uservpn.runtime.signals import EARLY
from uservpn.runtime.threads import in_thread
from uservpn.service import Service, load_plugins, protocols_of
from uservpn.wire.keys import KeyRing

log: Final = logging.getLogger("uservpn")
SAVE_EVERY_S: Final = 30.0
RESOLVER_THREADS: Final = "16"
"""Names an exit resolves at once: with libuv's own 4, a few dead ones would hold up all others."""

DESCRIPTORS_WANTED: Final = 4 * CONNECTIONS_MAX
"""For programs, for as many sites as are dialled from here, for the streams of others, and for links."""


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed, else Python's own."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _log_to_stderr() -> None:
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )


def run(config_path: Path, servers: tuple[str, ...]) -> int:
    """The daemon: until SIGTERM or SIGINT. Returns the exit status. Raises ConfigError."""
    config = load(config_path, servers)
    keep_message_blocks()
    raise_limit(DESCRIPTORS_WANTED)
    if config.exit.enabled:
        os.environ.setdefault("UV_THREADPOOL_SIZE", RESOLVER_THREADS)
    _log_to_stderr()
    for warning in config.warnings:
        log.warning("%s", warning)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(_serve(config, config_path, servers))


def ask_taken_numbers(config: Config) -> set[int]:
    """The numbers that the configured servers know to be taken. Raises UservpnError."""
    from uservpn.runtime.joining import taken_numbers  # for this one command

    servers = {server.id: server.endpoints for server in config.servers}
    ring = KeyRing(config.network.keys)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(taken_numbers(ring, servers, load_plugins(protocols_of(config))))


async def _serve(config: Config, config_path: Path, servers: tuple[str, ...]) -> int:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_loop_failed)
    state_dir = state_dir_of(config)
    stop, reload = asyncio.Event(), asyncio.Event()
    for number, event in (
        (signal.SIGTERM, stop),
        (signal.SIGINT, stop),
        (signal.SIGHUP, reload),
    ):
        loop.add_signal_handler(number, event.set)
    if EARLY.is_reload_wanted:
        reload.set()
    try:
        service = Service(config, next_boot(state_dir), loop, state_dir)
        control = ControlServer(
            control_socket(state_dir), lambda request: _answer(service, request)
        )
        await control.start()
    except (OSError, ControlError) as error:
        log.error("cannot start: %s", error)
        return 1
    load_nodes(state_dir, service.node.directory, monotonic())
    load_nats(state_dir, service.node.reach.bindings.binding)
    keeper = loop.create_task(_keep_nodes(service, state_dir))
    reloader: asyncio.Task[None] | None = None
    try:
        try:
            await service.start()
        except OSError as error:
            log.error("%s", error.strerror or error)
            return 1
        gc.collect()
        gc.freeze()  # what is loaded stays: no collector pass over it, pages stay shared
        give_back()
        if not stop.is_set():
            print(f"ready node {config.node.id} {config.node.name}", flush=True)
        reloader = loop.create_task(_reload_when_told(service, config_path, servers, reload))
        await stop.wait()
        log.info("stopping")
        return 0
    finally:
        keeper.cancel()
        if reloader is not None:
            reloader.cancel()
        await service.close()
        _save(service, state_dir)
        await control.close()


def _loop_failed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What the loop itself could not do; Python's own tells each accept for which no descriptor is left."""
    if not SHORTAGE.met(context.get("exception")):
        loop.default_exception_handler(context)


async def _keep_nodes(service: Service, state_dir: Path) -> None:
    """Saves the node list a while after it changed; asleep while it does not."""
    while True:
        await service.driver.nodes_changed.wait()
        service.driver.nodes_changed.clear()
        service.chooser.mesh_changed()
        _save(service, state_dir)
        await asyncio.sleep(SAVE_EVERY_S)


def _save(service: Service, state_dir: Path) -> None:
    save_nodes(state_dir, service.node.directory, monotonic())
    save_nats(state_dir, service.node.reach.bindings.binding)


async def _reload_when_told(
    service: Service, config_path: Path, servers: tuple[str, ...], told: asyncio.Event
) -> None:
    """Rereads the configuration whenever `told` is set; what is told meanwhile is one more time."""
    while True:
        await told.wait()
        told.clear()
        try:
            # long lists take their time to read, and nobody waits for that: not even the end
            config = await in_thread(partial(load, config_path, servers))
            for warning in config.warnings:
                log.warning("%s", warning)
            changed = await service.reconfigure(config)
            log.info("configuration reread: %s", ", ".join(sorted(changed)) or "nothing changed")
        except (ConfigError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            log.error("configuration not taken over, the old one stays: %s", reason)
        except Exception:  # a mistake of ours: the next reload shall find somebody who hears it
            log.exception("the reload failed; the node goes on")


def _answer(
    service: Service, request: Mapping[str, Any]
) -> dict[str, Any] | Awaitable[dict[str, Any]]:
    """Answers a request on the control socket."""
    command = request.get("command")
    if command == "status":
        return service.status()
    if command in SITE_COMMANDS:
        own = service.node.options.node
        return answer_about_sites(
            service.chooser, request, monotonic(), own, service.choosing.changed
        )
    if command == "ping":
        return service.pinger.ping(request.get("node"))
    if command == "trace":
        return service.pinger.trace(request.get("node"))
    raise UservpnError(f"unknown command {command!r}")
