"""Everything that can go wrong, in one tree.

    UservpnError
    ├── ConfigError     the user can fix it: every problem with file, key path, found, allowed
    ├── PeerFault       an authenticated peer broke the protocol
    ├── StreamFault     one stream is over, the tunnel is fine
    └── UsageError      our own caller is wrong; never caught

Weather (unauthenticated or stale bytes, lost links) is not an exception: a counter and a `None`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence


class Fault(enum.IntEnum):
    """Why a stream could not be opened, or why it ended; one byte on the wire (docs/wire.md)."""

    NONE = 0
    """No fault: connected, or an orderly end."""
    FAILED = 1
    """General failure that no other code names."""
    NOT_ALLOWED = 2
    """The exit's policy refuses the target."""
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    """No route to the host, or its name does not resolve."""
    REFUSED = 5
    """The target refused the connection."""
    TIMEOUT = 6
    """The target did not answer within the exit's time limit."""
    LIMIT = 7
    """A limit of the exit (streams per client, memory) is reached."""
    CANCELLED = 16
    """The program at the other end went away."""
    CONNECTION_LOST = 17
    """The target's connection broke."""
    EXIT_DEAD = 18
    """The exit restarted, refuses every link, or was not heard for the grace time."""
    PROTOCOL = 19
    """The peer broke the tunnel's protocol."""


class UservpnError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(UservpnError):
    """The configuration (or the command line) is wrong; `problems` holds one sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class PeerFault(UservpnError):
    """An authenticated peer broke the protocol; the tunnel to it is closed."""


class StreamFault(UservpnError):
    """This stream is over for the given reason; the tunnel is fine."""

    def __init__(self, fault: Fault, detail: str = "") -> None:
        super().__init__(detail or fault.name.lower().replace("_", " "))
        self.fault = fault
        self.detail = detail


class UsageError(UservpnError):
    """The caller of a public method broke its contract."""
