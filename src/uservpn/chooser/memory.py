"""What outlives a restart, as rows: sessions, what is known of (site, exit) pairs, countries of sites.

`take_changes` gives what is new since it was last asked, `everything` all there is, `restore` takes
all back, and is deaf to rows that make no sense. Times are Unix time; a stamp from the future (the
clock was set back) counts as now.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from uservpn.chooser.affinity import Key, Session
from uservpn.chooser.chooser import Chooser
from uservpn.chooser.lookups import COUNTRIES_MAX
from uservpn.chooser.measure import Pair, Series
from uservpn.types import NODE_ID_MAX, NODE_ID_MIN, NodeId

TEXT_MAX: Final = 512
"""No site, session name or reason is longer."""


class SessionRow(NamedTuple):
    """One session."""

    site: str
    session: str
    exit: int
    reason: str
    since: float
    used_at: float
    is_pinned: int
    moves: int


class PairRow(NamedTuple):
    """What is known of one site at one exit."""

    site: str
    exit: int
    real: bytes
    tests: bytes
    connections: int
    bytes_in: int
    bytes_out: int


class Changes(NamedTuple):
    """Rows to put, and keys of rows to delete."""

    sessions: list[SessionRow]
    gone_sessions: list[tuple[str, str]]
    pairs: list[PairRow]
    gone_pairs: list[tuple[str, int]]
    countries: list[tuple[str, str]]
    gone_countries: list[tuple[str]]

    def __bool__(self) -> bool:
        return any(self[:])


def has_changes(chooser: Chooser) -> bool:
    """Would `take_changes` return something?"""
    return bool(chooser.sessions.changed or chooser.knowledge.changed or chooser.lookups.changed)


def take_changes(chooser: Chooser) -> Changes:
    """What changed since this was last called."""
    sessions, knowledge = chooser.sessions, chooser.knowledge
    changes = Changes([], [], [], [], [], [])
    for key in sessions.changed:
        session = sessions.peek(key)
        if session is None:
            changes.gone_sessions.append((key.site, key.session))
        else:
            changes.sessions.append(_session_row(key, session))
    for site, exit in knowledge.changed:
        pair = knowledge.pairs(site).get(exit)
        if pair is None:
            changes.gone_pairs.append((site, exit))
        else:
            changes.pairs.append(_pair_row(site, exit, pair))
    for site in chooser.lookups.changed:
        if site in chooser.lookups.countries:
            changes.countries.append((site, chooser.lookups.countries[site]))
        else:
            changes.gone_countries.append((site,))
    drop_changes(chooser)
    return changes


def drop_changes(chooser: Chooser) -> None:
    """Nothing counts as changed: for who keeps no memory, so that no list of it grows."""
    chooser.sessions.changed.clear()
    chooser.knowledge.changed.clear()
    chooser.lookups.changed.clear()


def everything(chooser: Chooser) -> Changes:
    """All rows; after this nothing counts as changed."""
    take_changes(chooser)
    sessions = [_session_row(key, session) for key, session in chooser.sessions.items()]
    knowledge = chooser.knowledge
    pairs = [
        _pair_row(site, exit, pair)
        for site in knowledge.sites
        for exit, pair in knowledge.pairs(site).items()
    ]
    return Changes(sessions, [], pairs, [], list(chooser.lookups.countries.items()), [])


def restore(
    chooser: Chooser,
    sessions: Iterable[tuple[Any, ...]],
    pairs: Iterable[tuple[Any, ...]],
    countries: Iterable[tuple[Any, ...]],
    now: float,
) -> int:
    """Takes rows over, those used last at the end; how many made no sense. `now` is Unix time."""
    bad = 0
    for row in sessions:
        if not _is_session(row):
            bad += 1
            continue
        site, name, exit, reason, since, used_at, is_pinned, moves = row
        session = Session(
            NodeId(exit), reason, since, min(used_at, now), bool(is_pinned), moves, is_proved=True
        )
        chooser.sessions.restore(Key(site, name), session)
    for row in pairs:
        if not _is_pair(row):
            bad += 1
            continue
        pair = Pair()
        try:
            pair.real, pair.tests = Series(row[2]), Series(row[3])
        except ValueError:
            bad += 1
            continue
        pair.connections, pair.bytes_in, pair.bytes_out = row[4:7]
        chooser.knowledge.restore(row[0], NodeId(row[1]), pair)
    for row in countries:
        site, country = row[:2] if len(row) >= 2 else (None, None)
        if _is_text(site) and _is_text(country) and len(chooser.lookups.countries) < COUNTRIES_MAX:
            chooser.lookups.countries[site] = country
        else:
            bad += 1
    return bad


def _session_row(key: Key, session: Session) -> SessionRow:
    return SessionRow(
        key.site[:TEXT_MAX],
        key.session[:TEXT_MAX],
        session.exit,
        session.reason[:TEXT_MAX],
        session.since,
        session.used_at,
        int(session.is_pinned),
        session.moves,
    )


def _pair_row(site: str, exit: NodeId, pair: Pair) -> PairRow:
    return PairRow(
        site[:TEXT_MAX],
        exit,
        pair.real.dump(),
        pair.tests.dump(),
        pair.connections,
        pair.bytes_in,
        pair.bytes_out,
    )


def _is_session(row: tuple[Any, ...]) -> bool:
    return (
        len(row) == 8
        and all(_is_text(text) for text in (row[0], row[1], row[3]))
        and _is_exit(row[2])
        and all(isinstance(number, int | float) for number in row[4:8])
    )


def _is_pair(row: tuple[Any, ...]) -> bool:
    return (
        len(row) == 7
        and _is_text(row[0])
        and _is_exit(row[1])
        and isinstance(row[2], bytes)
        and isinstance(row[3], bytes)
        and all(isinstance(number, int) and number >= 0 for number in row[4:7])
    )


def _is_text(text: Any) -> bool:
    return isinstance(text, str) and len(text) <= TEXT_MAX


def _is_exit(number: Any) -> bool:
    return isinstance(number, int) and NODE_ID_MIN <= number <= NODE_ID_MAX
