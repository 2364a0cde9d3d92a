"""Asking exits about a target: would you connect, how long does it take, where is it?

Requests and answers are out-of-band messages (topics `exit.test` and `exit.tested`):

    exit.test      version u8 | token u32 | flags u8 | port u16 | host (UTF-8, up to 255 bytes)
    exit.tested    version u8 | token u32 | fault u8 | resolve_ms u16 | connect_us u32 | country 2s
                   | addresses (text, separated by spaces; only where RESOLVE asked for them)

KEEP: the exit keeps the connection for a moment, for an OPEN of the same client to the same target.
RESOLVE: it only resolves the name, for a client that dials itself (a client never resolves, R42).

A `Trial` is one such question to several exits at once. The exit with the smallest sum of flight and
connect time wins. Answers come in nearly that order, so the first good one ends the trial at once when
no exit that is still silent could do better (its flight time alone is longer), and most of a
flight time later otherwise: a slow resolver should not cost an exit its place. The bound ends it in any case.
What comes later is a sample like any other.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

from uservpn.chooser.affinity import Key
from uservpn.chooser.measure import NEVER_MS
from uservpn.errors import Fault
from uservpn.types import NodeId

TOPIC_TEST: Final = "exit.test"
TOPIC_TESTED: Final = "exit.tested"
WAIT_S: Final = 0.3
"""The longest that anything waits for a trial."""
RESOLVE_WAIT_S: Final = 6.0
"""The longest that a connection waits for an address, without which there is none."""
SETTLE: Final = 0.75
"""How much longer than for the first good answer is waited for a better one, in round trips to the exit
that gave it."""
CANDIDATES_MAX: Final = 8
TRIALS_PER_MINUTE: Final = 60
"""As many at once: a page of today has parts from dozens of sites."""
TRIALS_MAX: Final = 256
"""Trials whose last answers are still waited for; the oldest goes."""
TRIAL_LIFE_S: Final = 15.0
VERSION: Final = 1
KEEP: Final = 1
RESOLVE: Final = 2
_TEST: Final = struct.Struct(">BIBH")
_TESTED: Final = struct.Struct(">BIBHI2s")
HOST_MAX: Final = 255
ADDRESSES_MAX: Final = 8


class Inquiry(NamedTuple):
    """A request, as an exit gets it."""

    token: int
    flags: int
    host: str
    port: int

    def encode(self) -> bytes:
        """For `exit.test`."""
        return _TEST.pack(VERSION, self.token, self.flags, self.port) + self.host.encode()


class Finding(NamedTuple):
    """An exit's answer."""

    token: int
    fault: Fault
    resolve_ms: int = 0
    connect_ms: float = 0.0
    country: str = ""
    addresses: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """For `exit.tested`."""
        country = self.country.encode("ascii", "replace")[:2].ljust(2, b"\0")
        connect_us = min(int(self.connect_ms * 1000), 0xFFFF_FFFF)
        resolve_ms = min(self.resolve_ms, 0xFFFF)
        head = _TESTED.pack(VERSION, self.token, self.fault, resolve_ms, connect_us, country)
        return head + " ".join(self.addresses[:ADDRESSES_MAX]).encode("ascii", "replace")


def decode_test(payload: bytes) -> Inquiry | None:
    """None: it is none that this version understands."""
    if len(payload) <= _TEST.size or len(payload) > _TEST.size + HOST_MAX:
        return None
    version, token, flags, port = _TEST.unpack_from(payload)
    try:
        host = payload[_TEST.size :].decode()
    except UnicodeDecodeError:
        return None
    return Inquiry(token, flags, host, port) if version == VERSION and host.isprintable() else None


def decode_tested(payload: bytes) -> Finding | None:
    """None: it is none that this version understands. Its addresses are numeric."""
    if len(payload) < _TESTED.size:
        return None
    version, token, fault, resolve_ms, connect_us, country = _TESTED.unpack_from(payload)
    try:
        code = Fault(fault)
        text = country.rstrip(b"\0").decode("ascii")
        words = payload[_TESTED.size :].decode("ascii").split()[:ADDRESSES_MAX]
    except ValueError:  # UnicodeDecodeError is one
        return None
    if version != VERSION or (text and not (len(text) == 2 and text.isalpha())):
        return None
    addresses = tuple(word for word in words if _is_numeric(word))
    return Finding(token, code, resolve_ms, connect_us / 1000, text.upper(), addresses)


def _is_numeric(address: str) -> bool:
    """A name would be resolved here when it is dialled; a zone is one of the exit's own."""
    try:
        ip_address(address)
    except ValueError:
        return False
    return "%" not in address


class Trial:
    """One question to several exits. Times are monotonic seconds."""

    __slots__ = (
        "_is_settling",
        "addresses",
        "asked",
        "began_at",
        "case",
        "country",
        "cut_at",
        "fault",
        "is_decided",
        "is_lookup",
        "is_waited_for",
        "key",
        "last",
        "moved_from",
        "needs_country",
        "sums",
        "token",
        "waiters",
    )

    def __init__(
        self,
        token: int,
        key: Key,
        case: Any,
        asked: dict[NodeId, float | None],
        now: float,
        wait_s: float,
        is_lookup: bool = False,
    ) -> None:
        """`asked` are the exits and their flight times in ms, None where that is unknown."""
        self.token = token
        self.key = key
        self.case = case
        """The chooser's own."""
        self.asked = asked
        self.sums: dict[NodeId, float] = {}
        """Flight and connect time of those that answered, in ms; NEVER_MS: it cannot connect."""
        self.began_at = now
        self.cut_at = now + wait_s
        """When it ends whatever came."""
        self.is_lookup = is_lookup
        """Nobody connects: the first good answer is all that is wanted."""
        self.needs_country = False
        """Of a look-up: an answer that does not know the country is not what is wanted."""
        self.country = ""
        self.addresses: tuple[str, ...] = ()
        self.fault = Fault.TIMEOUT
        """Why there is no good answer; the last one counts."""
        self.waiters: list[Any] = []
        """Who waits; the caller's own objects."""
        self.is_waited_for = False
        self.moved_from: NodeId | None = None
        """The session's exit, which died."""
        self.is_decided = False
        self.last: NodeId | None = None
        """The exit of the session before; the others are then waited for until the bound."""
        self._is_settling = False

    @property
    def is_complete(self) -> bool:
        """Every exit has answered."""
        return len(self.sums) == len(self.asked)

    def answered(self, exit: NodeId, tested: Finding, now: float) -> float | None:
        """Takes an answer; the sum in ms, None: nobody asked (again)."""
        if exit not in self.asked or exit in self.sums:
            return None
        elapsed_s = max(0.0, now - self.began_at)
        if tested.fault:
            self.fault = tested.fault
            sum_ms = NEVER_MS
        else:
            flight = self.asked[exit]
            if flight is None:
                flight = max(0.0, elapsed_s * 1000 - tested.resolve_ms - tested.connect_ms)
            sum_ms = flight + tested.connect_ms
            is_wanted = bool(tested.country) or not self.needs_country
            if is_wanted and not self._is_settling and self.last is None:
                self._is_settling = True
                self.cut_at = min(self.cut_at, now + SETTLE * flight / 1000)
        self.country = self.country or tested.country
        self.addresses = self.addresses or tested.addresses
        self.sums[exit] = sum_ms
        return sum_ms

    def is_due(self, now: float) -> bool:
        """Is there nothing left to wait for?"""
        if self.is_complete or now >= self.cut_at:
            return True
        best = min(self.sums.values(), default=NEVER_MS)
        if best >= NEVER_MS:
            return False
        if self.is_lookup:
            return bool(self.country) or not self.needs_country
        silent = (self.asked[exit] for exit in self.asked if exit not in self.sums)
        return all(flight is not None and flight >= best for flight in silent)

    def winner(self) -> NodeId | None:
        """The exit with the smallest sum; None: none can connect, or none has answered."""
        good = [(ms, exit) for exit, ms in self.sums.items() if ms < NEVER_MS]
        return min(good)[1] if good else None


class Budget:
    """So many trials a minute, and as many at once."""

    def __init__(self, per_minute: int = TRIALS_PER_MINUTE) -> None:
        self._most = float(per_minute)
        self._left = self._most
        self._at: float | None = None

    def take(self, now: float) -> bool:
        """May one more begin?"""
        if self._at is not None:
            gained = max(0.0, now - self._at) * self._most / 60
            self._left = min(self._most, self._left + gained)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
