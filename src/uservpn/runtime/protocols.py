"""The protocols of one node: its link plug-ins, what they listen on, and what their links share.

Plug-ins come with the configuration, with a reload, or with the first dial to an endpoint of a protocol that
only another node's record names; what is not installed is looked for once.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from typing import Any

from uservpn.kit.endpoint import Endpoint
from uservpn.links.base import Link, LinkOwner, LinkPlugin, Listener, NodePlugin, PluginFactory
from uservpn.runtime.netwatch import Network
from uservpn.wire.header import HeaderCodec

Plugged = LinkPlugin | PluginFactory


def cannot_listen(where: object, error: OSError) -> OSError:
    """The same error with a sentence that says where, and why."""
    number = error.errno or 0
    reason = os.strerror(number) if number > 0 else error.strerror or str(error)
    return OSError(number, f"cannot listen on {where}: {reason}")


class Protocols:
    """Opens links for `owner`, who hears of every link that others open."""

    def __init__(
        self,
        owner: LinkOwner,
        codec: HeaderCodec,
        plugins: Mapping[str, Plugged],
        find: Callable[[str], Plugged | None] | None = None,
    ) -> None:
        """`find` looks for a protocol that is not in `plugins`; asked once for each."""
        self.listening: dict[str, Listener] = {}
        """By endpoint."""
        self._owner = owner
        self._codec = codec
        self._find = find
        self._plugins: dict[str, LinkPlugin] = {}
        self._not_installed: set[str] = set()
        self.add(plugins)

    def add(self, plugins: Mapping[str, Plugged]) -> None:
        """Takes protocols on that are not here yet; each once, since links may share its sockets."""
        for name, plugin in plugins.items():
            if name not in self._plugins:
                made = plugin.for_node() if isinstance(plugin, PluginFactory) else plugin
                self._plugins[name] = made

    async def listen(self, endpoint: Endpoint) -> None:
        """Listens on one more endpoint. Raises OSError, with a sentence that names it."""
        plugin = self._plugins[endpoint.protocol]
        try:
            try:
                listener = await plugin.serve(endpoint, self._codec, self._owner)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not self._make_place(plugin, endpoint):
                    raise
                listener = await plugin.serve(endpoint, self._codec, self._owner)
        except OSError as error:
            raise cannot_listen(endpoint, error) from error
        self.listening[str(endpoint)] = listener

    def unlisten(self, endpoint: Endpoint) -> bool:
        """Stops listening; links that stand are not touched. False: it did not listen there."""
        server = self.listening.pop(str(endpoint), None)
        if server is None:
            return False
        server.close()
        return True

    async def connect(self, endpoint: Endpoint) -> Link:
        """A new link. Raises OSError, and whatever a plug-in of others may raise."""
        plugin = self._plugin(endpoint.protocol)
        if plugin is None:
            raise OSError(f"no link plug-in for the protocol {endpoint.protocol} is installed")
        return await plugin.connect(endpoint, self._codec, self._owner)

    def places(self, network: Network) -> list[str]:
        """Where this node is reached in the machine's own networks."""
        return [
            str(endpoint._replace(host=host))
            for endpoint in map(Endpoint.parse, self.listening)
            for host in network.hosts_at(endpoint.address)
        ]

    @property
    def is_on_loopback(self) -> bool:
        """Does it listen where only programs of this machine reach it?"""
        return any(Endpoint.parse(text).address.is_loopback for text in self.listening)

    def rebind(self) -> None:
        """Fresh sockets for dialled links: the machine slept, or its network changed."""
        for plugin in self._sharing():
            plugin.rebind()

    def describe(self) -> list[dict[str, Any]]:
        """The sockets that links share, for status."""
        return [row for plugin in self._sharing() for row in plugin.describe()]

    def close(self) -> None:
        """Listens no more, and closes what links share."""
        for plugin in self._sharing():
            plugin.close()
        for server in self.listening.values():
            server.close()

    def _sharing(self) -> list[NodePlugin]:
        return [plugin for plugin in self._plugins.values() if isinstance(plugin, NodePlugin)]

    def _make_place(self, plugin: LinkPlugin, endpoint: Endpoint) -> bool:
        """Links of other protocols may have a port whose listener was closed: these end for the new one."""
        if not getattr(plugin, "is_on_datagrams", False):
            return False
        have_gone = False
        for other in self._plugins.values():
            vacate = getattr(other, "vacate", None)
            if vacate is not None and vacate(endpoint.address, self._owner):
                have_gone = True
        return have_gone

    def _plugin(self, protocol: str) -> LinkPlugin | None:
        if protocol not in self._plugins and protocol not in self._not_installed:
            found = self._find(protocol) if self._find is not None else None
            if found is None:
                self._not_installed.add(protocol)
            else:
                self.add({protocol: found})
        return self._plugins.get(protocol)
