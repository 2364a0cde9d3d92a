"""What the chooser would do and what it knows, for people: `explain`, `sites`, the status document.

Nothing here changes anything: no session is prolonged, nobody is asked.
"""

from __future__ import annotations

from typing import Any, Final

from uservpn.chooser.affinity import Key, Session
from uservpn.chooser.cases import Case, ExitState, Want
from uservpn.chooser.chooser import Chooser
from uservpn.chooser.measure import Pair, Series
from uservpn.chooser.targets import Pick
from uservpn.types import NodeId

ROWS_MAX: Final = 1000
"""Sites in one report; those used last are told."""


def explain(chooser: Chooser, host: str, port: int, user: str, now: float) -> dict[str, Any]:
    """Where a connection would go now and why, and what is known of every exit for it.

    `is_asked`: the exits would be asked first, and `exit` is the best known until then.
    `is_direct`: it leaves from this node itself.
    """
    case = chooser.cases.make(host, port, user, now)
    at = now + chooser.wall_s()
    session = chooser.sessions.peek(case.key)
    return {
        "host": host,
        "port": port,
        "site": case.key.site,
        "country": chooser.lookups.countries.get(case.key.site) or None,
        "session": _session(chooser, case.key, session, at),
        "rule": case.reason if case.reason.startswith("rule") else None,
        "target": str(case.target),
        "is_asked": False,
        "is_direct": False,
        **_outcome(chooser, case, session, now),
        "candidates": _candidates(chooser, case, now),
    }


def sites(chooser: Chooser, now: float, own: NodeId) -> list[dict[str, Any]]:
    """The sessions, the one used last first, then the sites that leave from this node, which is `own`.

    For the status document.
    """
    at = now + chooser.wall_s()
    rows = []
    for key, session in reversed(chooser.sessions.items()[-ROWS_MAX:]):
        expected = chooser.knowledge.expected_at(key.site, session.exit, at)
        rows.append(
            {
                "site": key.site,
                "session": key.session or None,
                "exit": session.exit,
                "reason": session.reason,
                "first_rtt_ms": _round(expected),
                "samples": chooser.knowledge.samples(key.site, session.exit, at),
                "expires": _expires(chooser, session),
                "is_live": chooser.sessions.is_live(session, at),
                "moves": session.moves,
            }
        )
    for site, known in chooser.directs:
        rows.append(
            {
                "site": site,
                "session": None,
                "exit": own,
                "reason": known.reason,
                "first_rtt_ms": _round(known.real.mean(at)),
                "samples": known.real.count(at),
                "expires": None,
                "is_live": known.is_live,
                "moves": 0,
            }
        )
    return rows


def traffic(chooser: Chooser, now: float, own: NodeId) -> list[dict[str, Any]]:
    """Sites with their exits, present and past, and what they moved; the site used last first.

    Those that leave from this node, which is `own`, stand at the end.
    """
    at = now + chooser.wall_s()
    sessions: dict[str, dict[NodeId, list[str]]] = {}
    order = dict.fromkeys(reversed(chooser.knowledge.sites))
    for key, session in reversed(chooser.sessions.items()):
        if chooser.sessions.is_live(session, at):
            text = f"{session.reason} ({key.session})" if key.session else session.reason
            sessions.setdefault(key.site, {}).setdefault(session.exit, []).append(text)
            order.setdefault(key.site)
    rows: list[dict[str, Any]] = []
    for site in order:
        if len(rows) >= ROWS_MAX:
            break
        pairs = chooser.knowledge.pairs(site)
        present = sessions.get(site, {})
        used = (exit for exit, pair in pairs.items() if pair.connections or pair.real.count(at))
        rows += [
            _traffic_row(
                site,
                exit,
                present.get(exit),
                pairs.get(exit),
                chooser.knowledge.flight(exit, at),
                at,
            )
            for exit in sorted({*present, *used})
        ]
    rows += [
        _traffic_row(site, own, [known.reason] if known.is_live else None, known, 0.0, at)
        for site, known in chooser.directs
    ]
    return rows[:ROWS_MAX]


def _traffic_row(
    site: str,
    exit: NodeId,
    reasons: list[str] | None,
    pair: Pair | None,
    flight: float,
    at: float,
) -> dict[str, Any]:
    pair = pair or Pair()
    return {
        "site": site,
        "exit": exit,
        "now": ", ".join(reasons) if reasons else None,
        "first_rtt_ms": _round(_plus(pair.real.mean(at), flight)),
        "samples": pair.real.count(at),
        "connections": pair.connections,
        "bytes_in": pair.bytes_in,
        "bytes_out": pair.bytes_out,
    }


def counts(chooser: Chooser) -> dict[str, int]:
    """For the status document."""
    return {
        "sessions": len(chooser.sessions),
        "sites": len(chooser.knowledge.sites),
        "tests": chooser.trials.trial_count,
        "tests_asked": chooser.trials.asked_count,
    }


def _session(
    chooser: Chooser, key: Key, session: Session | None, at: float
) -> dict[str, Any] | None:
    if session is None:
        return None
    return {
        "name": key.session or None,
        "exit": session.exit,
        "reason": session.reason,
        "since_s": round(max(0.0, at - session.since), 1),
        "used_s": round(max(0.0, at - session.used_at), 1),
        "expires": _expires(chooser, session),
        "is_live": chooser.sessions.is_live(session, at),
        "moves": session.moves,
    }


def _outcome(chooser: Chooser, case: Case, session: Session | None, now: float) -> dict[str, Any]:
    """`exit` and `reason`, and a sentence where there is no exit."""
    at = now + chooser.wall_s()
    if case.answer is not None and case.answer.fault:
        return {"exit": None, "reason": "refused", "detail": case.answer.detail}
    if case.answer is not None or case.want is Want.ADDRESS:
        text = "this node connects itself"
        return {"exit": None, "reason": case.reason, "detail": text, "is_direct": True}
    if case.want is Want.COUNTRY:
        text = "a rule asks where the site is, and an exit has to tell"
        return {"exit": None, "reason": "country", "detail": text, "is_asked": True}
    is_live = session is not None and chooser.sessions.is_live(session, at)
    pool = chooser.pool(case, now)
    if is_live and session is not None:
        is_strict = case.target.is_strict and chooser.fits(case, session.exit)
        if session.is_pinned or is_strict or any(state.node == session.exit for state in pool):
            word = chooser.liveness.word(session.exit, now)
            if chooser.liveness.is_gone(session.exit, now):
                text = f"the session's exit {session.exit} is {word}, and it may leave nowhere else"
                return {"exit": None, "reason": "refused", "detail": text}
            return {"exit": session.exit, "reason": session.reason, "detail": "the session's exit"}
        text = f"exit {session.exit} of the session is dead or no longer allowed"
    else:
        text = "a new session"
    if not pool:
        return {"exit": None, "reason": "refused", "detail": f"no exit for {case.target}"}
    return _new_session(chooser, case, session, pool, at) | {"detail": text}


def _new_session(
    chooser: Chooser, case: Case, session: Session | None, pool: list[ExitState], at: float
) -> dict[str, Any]:
    if len(pool) == 1 or case.target.pick is Pick.SPREAD:
        return {"exit": pool[0].node, "reason": case.reason or "only exit"}
    best, is_sure = chooser.ranking.best(case.key.site, pool, session.exit if session else None, at)
    if best is not None and is_sure:
        return {"exit": best, "reason": "measured"}
    return {"exit": best, "reason": "test", "is_asked": True}


def _candidates(chooser: Chooser, case: Case, now: float) -> list[dict[str, Any]]:
    """Every exit, those that come into question first, the best known of them in front."""
    at = now + chooser.wall_s()
    site = case.key.site
    expected = chooser.knowledge.expected(site, at)
    allowed = {state.node for state in chooser.pool(case, now)}
    rows = []
    for state in chooser.mesh.exits():
        pair = chooser.knowledge.pairs(site).get(state.node)
        real = pair.real if pair else Series()
        tests = pair.tests if pair else Series()
        newest = chooser.knowledge.newest(site, state.node)
        flight = chooser.knowledge.flight(state.node, at)
        rows.append(
            {
                "exit": state.node,
                "name": state.candidate.name or None,
                "country": state.candidate.country or None,
                "state": chooser.liveness.word(state.node, now),
                "is_allowed": state.node in allowed,
                "flight_ms": _round(state.flight_ms),
                "expected_ms": _round(expected.get(state.node)),
                "first_rtt_ms": _round(_plus(real.mean(at), flight)),
                "samples": real.count(at),
                "connect_ms": _round(tests.low(at)),
                "tests": tests.count(at),
                "age_s": None if newest is None else round(max(0.0, at - newest), 1),
                "all_sites_ms": _round(chooser.knowledge.exit_mean(state.node, at)),
            }
        )
    unknown = float("inf")

    def place(row: dict[str, Any]) -> tuple[bool, float]:
        known = row["expected_ms"]
        return not row["is_allowed"], unknown if known is None else known

    return sorted(rows, key=place)


def _expires(chooser: Chooser, session: Session) -> float | None:
    """Unix time; None: it does not."""
    return None if session.is_pinned else round(session.used_at + chooser.sessions.idle_s)


def _round(ms: float | None) -> float | None:
    return None if ms is None else round(ms, 1)


def _plus(beyond_ms: float | None, flight_ms: float) -> float | None:
    """What is beyond the exit, and the way there."""
    return None if beyond_ms is None else beyond_ms + flight_ms
