"""The server side of SOCKS5 (RFC 1928, RFC 1929) and SOCKS4/4a as a machine: bytes in, replies out.

`receive` takes whatever has arrived, in any split, and returns what to answer; how the bytes were
split never changes the outcome. Once `state` is DONE, `request` says where the program wants to go,
`rest` holds what came behind the request (early data), and `answer` gives the final reply. FAILED:
send what was returned, then close. Names are checked but not resolved. Only CONNECT becomes a
request; BIND and UDP ASSOCIATE are answered "command not supported".

Limit: an incomplete message is at most 520 bytes long, so this is all that is ever kept.

Every new connection passes through here: the two messages that nearly all programs send take the
first branch of `receive` and a straight line through `_request`.
"""

from __future__ import annotations

import enum
import hmac
import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from uservpn.errors import Fault

VERSIONS: Final = (4, 5)
"""First bytes of a program that speaks SOCKS."""
FIELD_MAX: Final = 255
"""Bytes of a host or user name. SOCKS5 cannot say more, SOCKS4 must not."""

_OPTIONS: Final = re.compile(r"[,+]")
_CONNECT: Final = 1
_NO_LOGIN: Final = 0
_LOGIN: Final = 2
_REPLY_CODES: Final = {
    Fault.NONE: 0,
    Fault.NOT_ALLOWED: 2,
    Fault.NETWORK_UNREACHABLE: 3,
    Fault.HOST_UNREACHABLE: 4,
    Fault.REFUSED: 5,
    Fault.TIMEOUT: 6,
}
"""RFC 1928 section 6; every other fault is 01, general failure."""
_BAD_COMMAND_5: Final = b"\x05\x07\x00\x01\0\0\0\0\0\0"
_BAD_KIND_5: Final = b"\x05\x08\x00\x01\0\0\0\0\0\0"
_GRANTED_5: Final = b"\x05\x00\x00\x01\0\0\0\0\0\0"
_GRANTED_4: Final = b"\x00\x5a\0\0\0\0\0\0"
_REFUSED_4: Final = b"\x00\x5b\0\0\0\0\0\0"
_HOST_BYTES: Final = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:%" + bytes(
    range(0x80, 0x100)
)
"""What a host may consist of: names, addresses with a zone, and UTF-8."""


class Kind(enum.IntEnum):
    """How a program wrote its host; the values of ATYP."""

    IPV4 = 1
    NAME = 3
    """Not to be resolved here. May look like an address all the same."""
    IPV6 = 4


class Request(NamedTuple):
    """A CONNECT: where a program wants to go."""

    kind: Kind
    host: str
    port: int
    user: str
    """As given, also where nobody asked for it; "" if not given."""
    version: int
    """4 or 5; 0 for HTTP."""


class State(enum.Enum):
    """How far a handshake is."""

    SHAKING = 1
    DONE = 2
    FAILED = 3


_SHAKING: Final = State.SHAKING
_IPV4: Final = Kind.IPV4


class Handshake:
    """One program's handshake.

    `users` maps names to passwords; when it is empty everybody is let in, whatever they say, and
    a program that offers to tell a user name is asked for it.
    """

    __slots__ = ("_data", "_step", "_user", "_users", "request", "rest", "state")

    def __init__(self, users: Mapping[str, str]) -> None:
        self._users = users
        self._data = b""
        self._user = ""
        self._step: Callable[[Handshake, bytes], tuple[int, bytes]] = _first
        self.state = _SHAKING
        self.request: Request | None = None
        self.rest = b""

    def receive(self, data: bytes) -> bytes:
        """Takes bytes of the program while `state` is SHAKING; returns what to answer."""
        if data == b"\x05\x01\x00" and self._step is _first and not (self._data or self._users):
            self._step = _request
            return b"\x05\x00"
        if self._data:
            data = self._data + data
        replies = b""
        while data and self.state is _SHAKING:
            step = self._step
            used, reply = step(self, data)
            if reply:
                replies += reply
            if used:
                data = data[used:]
            elif step is self._step:
                break  # not complete
        if self.state is _SHAKING:
            self._data = data
        else:
            self._data = b""
            if self.state is State.DONE:
                self.rest = data
        return replies

    def answer(self, fault: Fault, detail: str = "") -> bytes:
        """The final reply: granted, or the reason why not (there is no room for `detail`)."""
        request = self.request
        if request is not None and request.version == 4:
            return _REFUSED_4 if fault else _GRANTED_4
        if not fault:
            return _GRANTED_5
        return bytes((5, _REPLY_CODES.get(fault, 1))) + _GRANTED_5[2:]


# Steps: (bytes used, what to answer). Nothing used: the message is not complete, or the state says
# FAILED. A step decides by a prefix of its message only, so that splits make no difference.


def _first(shake: Handshake, data: bytes) -> tuple[int, bytes]:
    version = data[0]
    if version not in VERSIONS:
        return _fail(shake, b"")
    shake._step = _greeting if version == 5 else _request_4
    return 0, b""


def _greeting(shake: Handshake, data: bytes) -> tuple[int, bytes]:
    if len(data) < 2:
        return 0, b""
    end = 2 + data[1]
    if len(data) < end:
        return 0, b""
    methods = data[2:end]
    if _LOGIN in methods:
        shake._step = _login
        return end, b"\x05\x02"
    if _NO_LOGIN in methods and not shake._users:
        shake._step = _request
        return end, b"\x05\x00"
    return _fail(shake, b"\x05\xff")


def _login(shake: Handshake, data: bytes) -> tuple[int, bytes]:
    if data[0] != 1:
        return _fail(shake, b"\x01\x01")
    if len(data) < 2 or len(data) < 3 + data[1]:
        return 0, b""
    middle = 2 + data[1]
    end = middle + 1 + data[middle]
    if len(data) < end:
        return 0, b""
    shake._user = data[2:middle].decode("utf-8", "replace")
    if not is_user(shake._users, shake._user, data[middle + 1 : end]):
        return _fail(shake, b"\x01\x01")
    shake._step = _request
    return end, b"\x01\x00"


def _request(shake: Handshake, data: bytes) -> tuple[int, bytes]:
    if data[0] != 5:
        return _fail(shake, b"")
    size = len(data)
    if size < 5:
        return 0, b""
    kind = data[3]
    if kind == 1:
        end = 10
    elif kind == 3:
        end = 7 + data[4]
    elif kind == 4:
        end = 22
    else:
        return _fail(shake, _BAD_KIND_5)
    if size < end:
        return 0, b""
    if data[1] != _CONNECT:
        return _fail(shake, _BAD_COMMAND_5)
    port = data[end - 2] << 8 | data[end - 1]
    if kind == 3:
        return _found(shake, Kind.NAME, host_name(data[5 : end - 2]), port, 5, end)
    if kind == 1:
        return _found(shake, _IPV4, _dotted(data), port, 5, end)
    return _found(shake, Kind.IPV6, str(ipaddress.IPv6Address(data[4:20])), port, 5, end)


def _request_4(shake: Handshake, data: bytes) -> tuple[int, bytes]:
    """SOCKS4 and 4a: one message with the user's name, and for 4a the host's."""
    end = data.find(b"\0", 8, 9 + FIELD_MAX)
    if end < 0:
        return _fail(shake, _REFUSED_4) if len(data) >= 9 + FIELD_MAX else (0, b"")
    shake._user = data[8:end].decode("utf-8", "replace")
    kind = _IPV4
    host: str | None = _dotted(data)
    if data[4:7] == b"\0\0\0" and data[7]:
        start = end + 1
        end = data.find(b"\0", start, start + 1 + FIELD_MAX)
        if end < 0:
            too_long = len(data) >= start + 1 + FIELD_MAX
            return _fail(shake, _REFUSED_4) if too_long else (0, b"")
        kind, host = Kind.NAME, host_name(data[start:end])
    if data[1] != _CONNECT or shake._users:  # SOCKS4 has no password
        return _fail(shake, _REFUSED_4)
    return _found(shake, kind, host, data[2] << 8 | data[3], 4, end + 1)


def _dotted(message: bytes) -> str:
    """The IPv4 address, which SOCKS4 and SOCKS5 have at the same place."""
    return f"{message[4]}.{message[5]}.{message[6]}.{message[7]}"


def _found(
    shake: Handshake, kind: Kind, host: str | None, port: int, version: int, used: int
) -> tuple[int, bytes]:
    shake.request = Request(kind, host or "", port, shake._user, version)
    if host is None:
        return _fail(shake, shake.answer(Fault.HOST_UNREACHABLE))
    if not port:
        return _fail(shake, shake.answer(Fault.REFUSED))  # nobody can listen there
    shake.state = State.DONE
    return used, b""


def _fail(shake: Handshake, reply: bytes) -> tuple[int, bytes]:
    shake.state = State.FAILED
    shake._step = _request
    return 0, reply


def host_name(raw: bytes) -> str | None:
    """A host as a program wrote it; None where it cannot be one.

    A host has 1 to 255 bytes of ASCII letters, digits and `.-_:%`, or UTF-8 that is printable.
    Case and international names stay as they are: the exit resolves them.
    """
    if not 0 < len(raw) <= FIELD_MAX or raw.translate(None, _HOST_BYTES):
        return None
    if raw.isascii():
        return raw.decode("ascii")
    try:
        host = raw.decode()
    except UnicodeDecodeError:
        return None
    return host if host.isprintable() else None


def is_user(users: Mapping[str, str], name: str, password: bytes) -> bool:
    """May this user in? Compared in constant time; everybody may where there are no users.

    Options may follow the name, behind a comma or a plus sign (`ann,exit=3`).
    """
    if not users:
        return True
    if name not in users:
        name = _OPTIONS.split(name, 1)[0]
    expected = users.get(name)
    same = hmac.compare_digest(("" if expected is None else expected).encode(), password)
    return same and expected is not None
