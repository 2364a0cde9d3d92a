"""What a proxy has to know about HTTP heads (RFC 9110, RFC 9112), as functions over values.

Targets are taken apart, headers that belong to one connection are removed, Basic logins are
checked, and faults become answers. Parsing and framing themselves are done by h11, which is not
needed here. Sites see what the program sent and nothing of us: no Via, no Forwarded.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from uservpn.errors import Fault
from uservpn.socks.handshake import host_name, is_user

Headers = list[tuple[bytes, bytes]]

_HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"upgrade",
    )
)
_NEVER_NAMED: Final = frozenset((b"content-length", b"host", b"transfer-encoding"))
"""Not removed though a Connection header names them: messages would lose their meaning."""
_ANSWERS: Final = {
    Fault.NOT_ALLOWED: (403, "the exit's policy does not allow this target"),
    Fault.TIMEOUT: (504, "the target did not answer in time"),
    Fault.REFUSED: (502, "the target refused the connection"),
    Fault.HOST_UNREACHABLE: (502, "the host was not found or cannot be reached"),
    Fault.NETWORK_UNREACHABLE: (502, "the target's network cannot be reached"),
    Fault.LIMIT: (502, "a limit of the exit is reached"),
    Fault.CANCELLED: (502, "the target closed the connection"),
    Fault.CONNECTION_LOST: (502, "the target's connection broke"),
    Fault.EXIT_DEAD: (502, "the exit cannot be reached"),
}
_REASONS: Final = {
    400: "Bad Request",
    403: "Forbidden",
    407: "Proxy Authentication Required",
    431: "Request Header Fields Too Large",
    502: "Bad Gateway",
    504: "Gateway Timeout",
}
PAC_PATH: Final = b"/proxy.pac"
ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"


_RAW: Final = re.compile(rb"[\x80-\xff]")
_COMPLAINTS: Final = {
    "illegal request line": "its first line has to be METHOD URL HTTP/1.1",
    "illegal header line": "a header has to be a line such as Name: value",
    "no request line received": "its first line is empty",
}
"""What h11 says of heads, followed by Python's view of the bytes; for people."""


class Target(NamedTuple):
    """The target of a request that came to a proxy."""

    host: str
    port: int
    authority: bytes
    """For the Host header."""
    path: bytes
    """The target in origin form."""


def quoted_line(line: bytes) -> bytes:
    """A request's first line, with the bytes of its target percent-encoded that no URL has as they are."""
    method, one, rest = line.partition(b" ")
    target, two, version = rest.rpartition(b" ")
    return method + one + _RAW.sub(lambda found: b"%%%02X" % found[0][0], target) + two + version


def complaint(text: str) -> str:
    """What h11 has against a request, in words of ours, and without the bytes."""
    return next((ours for start, ours in _COMPLAINTS.items() if text.startswith(start)), text)


def connect_target(target: bytes, default_port: int = 0) -> tuple[str, int] | None:
    """Host and port of a CONNECT; None: it is not host:port."""
    return _host_port(target, default_port)


def named_host(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """How the program says that it reached this proxy, with the port; "": it does not say."""
    for name, value in headers:
        found = connect_target(value, 80) if name.lower() == b"host" else None
        if found is not None:
            host, port = found
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return ""


def absolute_target(method: bytes, target: bytes) -> Target | None:
    """The parts of `http://host[:port]/path`; None: it is something else."""
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() != b"http":
        return None
    rest = rest.partition(b"#")[0]
    end = min((at for at in map(rest.find, (b"/", b"?")) if at >= 0), default=len(rest))
    authority, path = rest[:end].rpartition(b"@")[2], rest[end:]
    found = _host_port(authority, 80)
    if found is None:
        return None
    if not found[0].isascii() or (b"%" in authority and authority[:1] != b"["):
        authority = _ascii_authority(*found)
    if not path:
        path = b"*" if method == b"OPTIONS" else b"/"
    elif path[:1] == b"?":
        path = b"/" + path
    return Target(*found, authority, path)


def request_headers(raw: Iterable[tuple[bytes, bytes]], authority: bytes) -> Headers:
    """A program's headers as its site gets them: Host is the target's, an upgrade stays one."""
    pairs = list(raw)
    headers = [(b"Host", authority), *_end_to_end(pairs, (b"host",))]
    return headers + upgrade_headers(pairs)


def response_headers(raw: Iterable[tuple[bytes, bytes]]) -> Headers:
    """A site's headers as the program gets them."""
    return _end_to_end(list(raw), ())


def upgrade_headers(raw: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Upgrade, with the Connection header that makes it one; empty without."""
    pairs = list(raw)
    if b"upgrade" not in _named(pairs):
        return []
    found = [pair for pair in pairs if pair[0].lower() == b"upgrade"]
    return [*found, (b"Connection", b"Upgrade")] if found else []


def login(headers: Iterable[tuple[bytes, bytes]], users: Mapping[str, str]) -> str | None:
    """The user's name by Proxy-Authorization, "" if none was given; None: not let in."""
    name, password = "", b""
    for header, value in headers:
        if header.lower() != b"proxy-authorization":
            continue
        scheme, _, encoded = value.partition(b" ")
        if scheme.lower() == b"basic":
            try:
                raw, _, password = binascii.a2b_base64(encoded.strip()).partition(b":")
            except binascii.Error:
                continue
            name = raw.decode("utf-8", "replace")
    return name if is_user(users, name, password) else None


def fault_answer(fault: Fault, host: str, port: int, method: bytes, detail: str = "") -> bytes:
    """What a program hears when its target could not be reached; `detail` says more."""
    code, text = _ANSWERS.get(fault, (502, "the connection failed"))
    text = detail or text
    shown = f"[{host}]" if ":" in host else host
    return error_answer(code, f"{shown}:{port}: {text}", method)


def pac_answer(proxy: str, method: bytes) -> bytes:
    """A proxy auto-configuration that sends everything but this machine's own names to `proxy`.

    SOCKS first, because it leaves names to the exit; what speaks none takes the same port as an HTTP proxy.
    """
    script = (
        "function FindProxyForURL(url, host) {\n"
        '  if (isPlainHostName(host) || host === "127.0.0.1" || host === "::1") return "DIRECT";\n'
        f'  return "SOCKS5 {proxy}; SOCKS {proxy}; PROXY {proxy}";\n'
        "}\n"
    ).encode()
    head = (
        "HTTP/1.1 200 OK\r\nContent-Type: application/x-ns-proxy-autoconfig\r\n"
        f"Content-Length: {len(script)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == b"HEAD" else script)


def error_answer(code: int, text: str, method: bytes = b"") -> bytes:
    """A whole answer in plain text; the connection closes behind it."""
    body = b"" if method == b"HEAD" else f"uservpn: {text}\n".encode()
    login_wanted = 'Proxy-Authenticate: Basic realm="uservpn"\r\n' if code == 407 else ""
    head = (
        f"HTTP/1.1 {code} {_REASONS.get(code, 'Error')}\r\n{login_wanted}"
        f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body


def _host_port(authority: bytes, default_port: int) -> tuple[str, int] | None:
    if authority[:1] == b"[":
        raw_host, bracket, rest = authority[1:].partition(b"]")
        if not bracket or b":" not in raw_host or (rest and rest[:1] != b":"):
            return None
        raw_port = rest[1:]
    else:
        raw_host, _, raw_port = authority.partition(b":")  # a second colon fails as a port
        if b"%" in raw_host:
            raw_host = unquote_to_bytes(raw_host)
            if b":" in raw_host:
                return None  # neither a name nor, outside brackets, an address
    host, port = host_name(raw_host), default_port
    if raw_port:
        port = int(raw_port) if raw_port.isdigit() and len(raw_port) <= 5 else 0
    return (host, port) if host is not None and 0 < port < 65536 else None


def _ascii_authority(host: str, port: int) -> bytes:
    """For the Host header of a site whose name was international or percent-encoded: where we connect to."""
    try:
        name = host.encode("ascii" if host.isascii() else "idna")
    except UnicodeError:
        name = quote(host).encode()
    return name if port == 80 else b"%b:%d" % (name, port)


def _named(pairs: Headers) -> set[bytes]:
    """What the Connection headers name."""
    return {
        token.strip().lower()
        for name, value in pairs
        if name.lower() == b"connection"
        for token in value.split(b",")
    }


def _end_to_end(pairs: Headers, also: tuple[bytes, ...]) -> Headers:
    drop = _HOP_BY_HOP | (_named(pairs) - _NEVER_NAMED) | set(also)
    if any(name.lower() == b"transfer-encoding" for name, _ in pairs):
        drop |= {b"content-length"}  # two framings are one too many: RFC 9112 section 6.3
    return [pair for pair in pairs if pair[0].lower() not in drop]
