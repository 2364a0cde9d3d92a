"""WebSocket links: `wss://` looks like a web site's TLS connection, `ws://` is for behind a web server.

    wss://203.0.113.5:443/way?host=www.example.com     what others dial
    wss://0.0.0.0:443/way?cert=/etc/tls/site.pem       what a node listens on (without cert: self-signed)
    ws://127.0.0.1:7001/way                            behind nginx or Caddy, which do the TLS

The framing and the handshake are those of the `websockets` package (RFC 6455), which is an extra
(`uservpn[wss]`); inside the binary frames messages stand back to back, as on TCP. TLS is a wrapping that gets
through where only the web does: what is inside is sealed as everywhere, so certificates are not
verified. Whoever asks for another path, or for no WebSocket, gets the 404 of a web server.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import ssl
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, cast
from urllib.parse import parse_qsl

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import WebSocketURI

from uservpn.kit.endpoint import Address, Endpoint
from uservpn.links.base import LinkOwner
from uservpn.links.stream import UNPROVEN_S, StreamLink, stream_caps
from uservpn.links.tcp import TELLS, SocketLink
from uservpn.types import Buffer
from uservpn.wire.constants import MIB
from uservpn.wire.header import HeaderCodec

FRAME_MAX: Final = 4 * MIB
"""A frame that claims more ends the connection."""
NOT_FOUND: Final = "404 Not Found\n"


class Way(NamedTuple):
    """The options of an endpoint."""

    path: str
    host: str
    """Told to the web server (SNI and Host); never looked up."""
    cert: str
    key: str


def way_of(endpoint: Endpoint) -> Way:
    """The options of a `ws://` or `wss://` endpoint. Raises ValueError with what is allowed."""
    path, _, query = endpoint.options.partition("?")
    found = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    known = {"host", "cert", "key"} if endpoint.protocol == "wss" else {"host"}
    if not found.keys() <= known:
        raise ValueError(f"a path, and behind it {' or '.join(f'{k}=' for k in sorted(known))}")
    cert = found.get("cert", "")
    return Way(path or "/", found.get("host", "") or endpoint.host, cert, found.get("key", cert))


class FramedTransport:
    """Where a link writes: each batch becomes one binary frame, or more if it is larger than one may be."""

    def __init__(
        self, transport: asyncio.Transport, protocol: ClientProtocol | ServerProtocol
    ) -> None:
        self._protocol = protocol
        self._transport = transport
        self.get_write_buffer_size = transport.get_write_buffer_size
        self.set_write_buffer_limits = transport.set_write_buffer_limits
        self.is_closing = transport.is_closing
        self.abort = transport.abort

    def writelines(self, batch: Sequence[Buffer]) -> None:
        """Nothing once the other side has said goodbye."""
        if self._protocol.state is State.OPEN:
            data = b"".join(batch)
            for start in range(0, len(data), FRAME_MAX):  # mostly one, which is no copy
                self._protocol.send_binary(data[start : start + FRAME_MAX])
            self._transport.writelines(self._protocol.data_to_send())


class WebSocketStream(asyncio.Protocol):
    """One connection: the handshake, then frames for its link."""

    def __init__(
        self,
        protocol: ClientProtocol | ServerProtocol,
        way: Way,
        link: SocketLink,
        scheme: str,
        opened: asyncio.Future[StreamLink] | None,
    ) -> None:
        """`opened` is given by whoever dialled: the link, once the handshake is done."""
        self._protocol = protocol
        self._way = way
        self._link = link
        self._scheme = scheme
        self._opened = opened
        self._transport: asyncio.Transport | None = None
        self._is_open = False
        self._timer: asyncio.TimerHandle | None = None

    # --- asyncio ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The request goes out, or is waited for."""
        self._transport = cast("asyncio.Transport", transport)
        self._link.stands_on(transport.get_extra_info("socket"))
        self._link.local = self._name(transport.get_extra_info("sockname"))
        self._link.remote = self._name(transport.get_extra_info("peername"))
        if Endpoint.parse(self._link.remote).address.is_loopback:
            # a web server is between: the kernel knows the way to it, not that behind it
            self._link.caps = dataclasses.replace(self._link.caps, is_self_bounding=False)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(UNPROVEN_S, self._transport.abort)
        if isinstance(self._protocol, ClientProtocol):
            self._protocol.send_request(self._protocol.connect())
            self._flush()

    def data_received(self, data: bytes) -> None:
        """Frames go to the link, answers back."""
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                if event.opcode in (Opcode.BINARY, Opcode.CONT):
                    self._link.feed(event.data)
            elif isinstance(event, Request):
                self._answer(event)
            elif isinstance(event, Response):
                self._open()
        self._flush()

    def eof_received(self) -> bool:
        """The other side closed: so do we."""
        return False

    def pause_writing(self) -> None:
        """The link waits."""
        self._link.pause_writing()

    def resume_writing(self) -> None:
        """The link goes on."""
        self._link.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the link, or whoever dialled."""
        if self._timer is not None:
            self._timer.cancel()
        if self._is_open:
            self._link.connection_lost(exc)
        elif self._opened is not None and not self._opened.done():
            reason = self._protocol.handshake_exc or exc or "closed during the handshake"
            self._opened.set_exception(OSError(str(reason)))

    # --- inside ----------------------------------------------------------------------------------

    def _name(self, address: Any) -> str:
        return f"{self._scheme}://{Address(str(address[0]), int(address[1]))}" if address else ""

    def _answer(self, request: Request) -> None:
        """A request came: a WebSocket on our path, or what a web server says to anything else."""
        protocol = cast("ServerProtocol", self._protocol)
        response = protocol.accept(request)
        if response.status_code != 101 or request.path.partition("?")[0] != self._way.path:
            response = protocol.reject(404, NOT_FOUND)
        protocol.send_response(response)
        self._flush()
        if response.status_code == 101:
            self._open()

    def _open(self) -> None:
        """The handshake is over."""
        if self._protocol.state is not State.OPEN:
            self._flush()
            if self._transport is not None:
                self._transport.close()
            return
        assert self._transport is not None
        if self._timer is not None:
            self._timer.cancel()
        self._is_open = True
        framed = FramedTransport(self._transport, self._protocol)
        self._link.connection_made(cast("asyncio.BaseTransport", framed))
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(self._link)

    def _flush(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            else:
                self._transport.close()


class WebSocketPlugin:
    """Links of the form `ws://` or `wss://`."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme
        self._caps = stream_caps(scheme, TELLS)

    def check(self, endpoint: Endpoint) -> None:
        """Raises ValueError for options that this protocol does not have."""
        way_of(endpoint)

    def check_listening(self, endpoint: Endpoint) -> None:
        """Raises ValueError for a certificate that cannot be had."""
        way = way_of(endpoint)
        if way.cert:
            try:
                server_context(way)
            except OSError as error:
                raise ValueError(f"a certificate that can be used ({error})") from None

    def check_dialling(self, endpoint: Endpoint) -> None:
        """Raises ValueError for what only who listens has."""
        if way_of(endpoint).cert:
            raise ValueError("cert= and key= in node.listen only: who dials needs none")

    async def connect(self, endpoint: Endpoint, codec: HeaderCodec, owner: LinkOwner) -> StreamLink:
        """Opens a connection. Raises OSError."""
        loop = asyncio.get_running_loop()
        way = way_of(endpoint)
        is_tls = self.scheme == "wss"
        uri = WebSocketURI(is_tls, way.host, endpoint.port, way.path, "")
        opened: asyncio.Future[StreamLink] = loop.create_future()

        def stream() -> WebSocketStream:
            link = SocketLink(self._caps, codec, owner, accepted=False)
            protocol = ClientProtocol(uri, max_size=FRAME_MAX)
            return WebSocketStream(protocol, way, link, self.scheme, opened)

        transport, _ = await loop.create_connection(
            stream,
            endpoint.host,
            endpoint.port,
            ssl=client_context() if is_tls else None,
            server_hostname=way.host if is_tls else None,
        )
        try:
            return await opened
        except BaseException:
            transport.abort()
            raise

    async def serve(
        self, endpoint: Endpoint, codec: HeaderCodec, owner: LinkOwner
    ) -> asyncio.AbstractServer:
        """Listens. Raises OSError, also for a certificate that cannot be read."""
        loop = asyncio.get_running_loop()
        way = way_of(endpoint)

        def stream() -> WebSocketStream:
            link = SocketLink(self._caps, codec, owner, accepted=True)
            protocol = ServerProtocol(max_size=FRAME_MAX)
            return WebSocketStream(protocol, way, link, self.scheme, None)

        return await loop.create_server(
            stream,
            endpoint.host,
            endpoint.port,
            backlog=256,
            reuse_address=True,
            ssl=server_context(way) if self.scheme == "wss" else None,
        )


def client_context() -> ssl.SSLContext:
    """TLS as a wrapping: any certificate will do, since what is inside is sealed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


def server_context(way: Way) -> ssl.SSLContext:
    """With the certificate of the endpoint, or one made on the spot. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    if way.cert:
        load_certificate(context, way)
        return context
    descriptor, path = tempfile.mkstemp(
        prefix="uservpn"
    )  # `ssl` reads certificates from files only
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(self_signed(way.host))
        context.load_cert_chain(path)
    finally:
        os.unlink(path)
    return context


def load_certificate(context: ssl.SSLContext, way: Way) -> None:
    """The certificate and key of the endpoint. Raises OSError with a sentence that names the file."""
    texts = {}
    for path in (way.cert, way.key):
        try:
            texts[path] = Path(path).read_bytes()
        except OSError as error:
            raise OSError(f"{path}: {error.strerror}") from None
    if b"-----BEGIN CERTIFICATE" not in texts[way.cert]:
        raise OSError(f"{way.cert}: no certificate in PEM form")
    if b"PRIVATE KEY-----" not in texts[way.key]:
        raise OSError(f"{way.key}: no private key in PEM form (key= names its file)")
    if b"ENCRYPTED" in texts[way.key]:
        raise OSError(f"{way.key}: a private key with a passphrase, which nobody is there to type")
    try:
        context.load_cert_chain(way.cert, way.key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise OSError(f"{way.key}: not the private key of {way.cert}") from None
        raise OSError(f"{way.cert} with the key in {way.key}: {error}") from None


def self_signed(name: str) -> bytes:
    """A private key and a certificate for `name`, PEM, good for ten years."""
    import datetime

    from cryptography import x509  # 2 MiB that only a node with wss:// and no certificate needs
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    start = datetime.datetime(2020, 1, 1)  # before any clock that is a little wrong
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=3650 * 3))
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + certificate.public_bytes(serialization.Encoding.PEM)


WS: Final = WebSocketPlugin("ws")
WSS: Final = WebSocketPlugin("wss")
