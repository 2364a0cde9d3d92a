"""Routers that translate addresses, in the four kinds of RFC 3489 (section 5).

              one public port for ...                 lets in, through that port ...
FULL_CONE         a private address and port              anybody
RESTRICTED        the same                                addresses that were sent to
PORT_RESTRICTED   the same                                addresses and ports that were sent to
SYMMETRIC         each destination apart                  that destination
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from random import Random
from typing import Final

from uservpn.kit.endpoint import Address

TIMEOUTS_S: Final = (30.0, 60.0, 120.0, 300.0)
"""After how much silence routers in the field forget a UDP mapping."""


class NatKind(enum.Enum):
    """How a router maps and filters."""

    FULL_CONE = "full cone"
    RESTRICTED = "restricted"
    PORT_RESTRICTED = "port-restricted"
    SYMMETRIC = "symmetric"


@dataclass(slots=True)
class _Mapping:
    private: Address
    public: Address
    used_at: float
    sent_to: dict[Address, None] = field(default_factory=dict)


class Nat:
    """One router for datagrams: a public address, and the mappings behind it."""

    def __init__(self, host: str, kind: NatKind, rng: Random, timeout_s: float = 60.0) -> None:
        self.host = host
        """The public address, which the internet sees."""
        self.kind = kind
        self.timeout_s = timeout_s
        self._rng = rng
        self._by_private: dict[tuple[Address, Address | None], _Mapping] = {}
        self._by_port: dict[int, _Mapping] = {}

    def outbound(self, private: Address, remote: Address, now: float) -> Address:
        """The public address that `remote` sees; makes a mapping if need be."""
        key = private, (remote if self.kind is NatKind.SYMMETRIC else None)
        mapping = self._by_private.get(key)
        if mapping is None or now >= mapping.used_at + self.timeout_s:
            if mapping is not None:
                del self._by_port[mapping.public.port]
            public = Address(self.host, self._free_port())
            mapping = self._by_private[key] = _Mapping(private, public, now)
            self._by_port[public.port] = mapping
        mapping.used_at = now
        mapping.sent_to[remote] = None
        return mapping.public

    def inbound(self, port: int, remote: Address, now: float) -> Address | None:
        """Whom a datagram from `remote` to this public port reaches; None: nobody."""
        mapping = self._by_port.get(port)
        if mapping is None or now >= mapping.used_at + self.timeout_s:
            return None
        if self.kind is NatKind.FULL_CONE:
            return mapping.private
        if self.kind is NatKind.RESTRICTED:
            known = any(remote.host == other.host for other in mapping.sent_to)
            return mapping.private if known else None
        return mapping.private if remote in mapping.sent_to else None

    def forget(self) -> None:
        """The router was restarted: every mapping is gone."""
        self._by_private.clear()
        self._by_port.clear()

    def _free_port(self) -> int:
        while (port := self._rng.randrange(1024, 65536)) in self._by_port:
            pass
        return port
