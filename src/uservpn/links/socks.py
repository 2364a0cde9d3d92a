"""A node reached through a SOCKS5 proxy that exists already: the TCP link, one hop further.

    socks5://127.0.0.1:9050/203.0.113.5:7000       proxy, then the node's tcp:// address

Only for dialling. The handshake is that of the `python-socks` package, which is an extra
(`uservpn[socks]`). The node's address is numeric, so the proxy resolves nothing either.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Final

from python_socks import ProxyError
from python_socks.async_.asyncio import Proxy

from uservpn.kit.endpoint import Address, Endpoint
from uservpn.links.base import LinkOwner
from uservpn.links.stream import stream_caps
from uservpn.links.tcp import TcpLink
from uservpn.wire.header import HeaderCodec

CAPS: Final = stream_caps(
    "socks5", False
)  # the kernel knows the way to the proxy, not that behind it


def target_of(endpoint: Endpoint) -> Address:
    """The node's address behind the proxy. Raises ValueError with what is allowed."""
    if not endpoint.options.startswith("/"):
        raise ValueError("the node's address behind the proxy's, as in /203.0.113.5:7000")
    return Address.parse(endpoint.options[1:])


class SocksPlugin:
    """Links of the form `socks5://`."""

    scheme = "socks5"

    def check(self, endpoint: Endpoint) -> None:
        """Raises ValueError where the node's address is missing or wrong."""
        target_of(endpoint)

    def check_listening(self, endpoint: Endpoint) -> None:
        """Raises ValueError, always."""
        raise ValueError(
            "what can be listened on: socks5:// is for dialling a node through a proxy"
        )

    async def connect(self, endpoint: Endpoint, codec: HeaderCodec, owner: LinkOwner) -> TcpLink:
        """Opens a connection. Raises OSError."""
        loop = asyncio.get_running_loop()
        target = target_of(endpoint)
        proxy = Proxy.from_url(f"socks5://{endpoint.address}")
        try:
            sock = await proxy.connect(target.host, target.port)
        except ProxyError as error:
            raise OSError(f"the proxy {endpoint.address}: {error}") from None
        link = functools.partial(TcpLink, codec, owner, accepted=False, caps=CAPS)
        _, made = await loop.create_connection(link, sock=sock)
        made.remote = str(endpoint)  # the connection's other end is only the proxy
        return made

    async def serve(
        self, endpoint: Endpoint, codec: HeaderCodec, owner: LinkOwner
    ) -> asyncio.AbstractServer:
        """Raises OSError, always: a proxy is dialled through, not listened on."""
        raise OSError("socks5:// is for reaching a node, not for listening: listen on tcp://")


PLUGIN: Final = SocksPlugin()
