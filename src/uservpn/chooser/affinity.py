"""Which exit a site has now: one per (site, session name), for as long as the session lasts.

A session begins with a site's first connection, is prolonged by every further one, and ends after the
idle time. It is never moved because another exit is faster; only when its exit died, and then once.
What ended stays remembered as the site's last exit, which a new session prefers (see `chooser`).
A pin is a session by the owner's word: it neither ends nor moves.

Bounded: beyond `SESSIONS_MAX` the one unused for longest goes; pins go last, and are refused beyond
`PINS_MAX`.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, NamedTuple

from uservpn.types import NodeId

SESSIONS_MAX: Final = 4096
PINS_MAX: Final = 1024


class Key(NamedTuple):
    """What has an exit of its own: a site, for programs that name no or the same session."""

    site: str
    session: str = ""


@dataclass(slots=True)
class Session:
    """A site's exit, and why. Times are Unix time."""

    exit: NodeId
    reason: str
    since: float
    used_at: float
    is_pinned: bool = False
    moves: int = 0
    """How often its exit died under it."""
    is_proved: bool = False
    """A connection of it reached its target."""
    look_at: float = 0.0
    """When other exits may be looked at again."""


class Sessions:
    """All sessions of one client."""

    def __init__(self, idle_s: float, sessions_max: int = SESSIONS_MAX) -> None:
        self.idle_s = idle_s
        self._sessions_max = sessions_max
        self._sessions: OrderedDict[Key, Session] = OrderedDict()
        self.changed: set[Key] = set()
        """Keys that changed since the owner last emptied this."""

    def __len__(self) -> int:
        return len(self._sessions)

    def items(self) -> list[tuple[Key, Session]]:
        """Every session, ended ones too, the one used last at the end."""
        return list(self._sessions.items())

    def live(self, key: Key, now: float) -> Session | None:
        """The session that goes on now; it is prolonged."""
        session = self._sessions.get(key)
        if session is None or not (session.is_pinned or now < session.used_at + self.idle_s):
            return None
        if now >= session.used_at + 60 or now < session.used_at:
            self.changed.add(key)  # to the disk once a minute at most
            self._sessions.move_to_end(key)
            session.used_at = now
        return session

    def peek(self, key: Key) -> Session | None:
        """The session, ended or not; nothing is prolonged."""
        return self._sessions.get(key)

    def is_live(self, session: Session, now: float) -> bool:
        """Does it go on?"""
        return session.is_pinned or now < session.used_at + self.idle_s

    def begin(self, key: Key, exit: NodeId, reason: str, now: float) -> Session:
        """A new session."""
        return self._put(key, Session(exit, reason, now, now))

    def move(self, key: Key, exit: NodeId, reason: str, now: float) -> Session:
        """The exit died: the session goes on at another one."""
        old = self._sessions.get(key)
        moves = old.moves + 1 if old else 0
        return self._put(key, Session(exit, reason, now, now, moves=moves))

    def pin(self, key: Key, exit: NodeId, now: float) -> bool:
        """From now on, until it is forgotten. False: there are too many pins."""
        if sum(session.is_pinned for session in self._sessions.values()) >= PINS_MAX:
            return False
        self._put(key, Session(exit, "pinned", now, now, is_pinned=True))
        return True

    def restore(self, key: Key, session: Session) -> None:
        """From the disk, the one used last at the end."""
        self._sessions[key] = session
        self._shrink()

    def forget(self, site: str) -> int:
        """Ends every session of a site, pins too; how many there were."""
        keys = [key for key in self._sessions if key.site == site]
        for key in keys:
            self._drop(key)
        return len(keys)

    def give_up(self, key: Key) -> None:
        """This session is over; pins stay."""
        session = self._sessions.get(key)
        if session is not None and not session.is_pinned:
            self._drop(key)

    def _put(self, key: Key, session: Session) -> Session:
        self._sessions[key] = session
        self._sessions.move_to_end(key)
        self.changed.add(key)
        self._shrink()
        return session

    def _shrink(self) -> None:
        while len(self._sessions) > self._sessions_max:
            oldest = (key for key, session in self._sessions.items() if not session.is_pinned)
            self._drop(next(oldest, next(iter(self._sessions))))

    def _drop(self, key: Key) -> None:
        del self._sessions[key]
        self.changed.add(key)
