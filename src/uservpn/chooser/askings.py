"""From what a program asks for to a `Case`: its own wish, a pin, the rules, the default, in this order.

Cases are kept for the next connection to the same place, until something that they rest on has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from uservpn.chooser.affinity import Key, Sessions
from uservpn.chooser.cases import NOWHERE, Case, Choice, Want, refusal, wished_target
from uservpn.chooser.hosts import normal_host, number_of
from uservpn.chooser.lookups import Lookups
from uservpn.chooser.targets import Action, Target
from uservpn.chooser.wishes import parse_wish
from uservpn.errors import Fault

if TYPE_CHECKING:  # rules cost memory where there are some, and only there
    from uservpn.chooser.rules import Verdict

CASES_MAX: Final = 4096


class Ruling(Protocol):
    """The owner's rules; `rules.RuleSet` is them."""

    def match(self, host: str, port: int, country: str | None = None) -> Verdict:
        """What they say; `country` is the site's, "" where it is not known, None: nobody asked."""


class Cases:
    """All that were asked for lately; bounded: the oldest goes."""

    def __init__(
        self,
        default: Target,
        rules: Ruling | None,
        site_of: Callable[[str], str],
        sessions: Sessions,
        lookups: Lookups,
    ) -> None:
        self._default = default
        self.rules = rules
        self._site_of = site_of
        self._sessions = sessions
        self._lookups = lookups
        self.kept: dict[tuple[str, int, str], Case] = {}
        """By host, port and user; good until their `until`."""

    def __len__(self) -> int:
        return len(self.kept)

    def reconfigure(self, default: Target, rules: Ruling | None) -> None:
        """The owner has changed his mind."""
        self._default = default
        self.rules = rules
        self.clear()

    def clear(self) -> None:
        """What they rest on is another one now."""
        self.kept.clear()

    def keep(self, host: str, port: int, user: str, now: float) -> Case:
        """Makes a case, for `kept`."""
        if len(self.kept) >= CASES_MAX:
            del self.kept[next(iter(self.kept))]
        case = self.kept[host, port, user] = self.make(host, port, user, now)
        return case

    def make(self, host: str, port: int, user: str, now: float) -> Case:
        """What is asked for; nothing is remembered."""
        site = self._site_of(host)
        wish = parse_wish(user)
        target, reason, scope, want = Target(), "", "", Want.NOTHING
        problem = wish.problem
        try:
            wished = None if problem else wished_target(wish)
        except ValueError as error:
            wished, problem = None, str(error)
        if wished is not None:
            target, scope = wished
            reason = "program"
        elif not problem:
            target, reason, want = self._ruled(host, port, site, now)
        key = Key(site, ",".join(part for part in (scope, wish.session) if part))
        case = Case(host, port, user, key, target, reason)
        if self.rules is not None:
            case.until = self._lookups.unknown_until(site, now)
        if problem:
            case.answer = refusal(site, Fault.NOT_ALLOWED, problem)
        elif self._is_pinned(key):
            case.target, case.reason = Target(), "pinned"
        elif want is Want.COUNTRY:
            case.want = want
        elif target.action is Action.REJECT:
            case.answer = refusal(site, Fault.NOT_ALLOWED, f"{reason} rejects this target")
        elif target.action is Action.DIRECT:
            if number_of(normal_host(host)) is None:
                case.want = Want.ADDRESS
            else:
                addresses = (normal_host(host),)
                case.answer = Choice(
                    NOWHERE, reason, None, site, is_direct=True, addresses=addresses
                )
        return case

    def _ruled(self, host: str, port: int, site: str, now: float) -> tuple[Target, str, Want]:
        """The target of the rules, else the default; and whether they must know the country."""
        if self.rules is not None:
            country = self._lookups.country(site, now)
            verdict = self.rules.match(host, port, country)
            if verdict.needs_country and country is None:
                return Target(), "", Want.COUNTRY
            if verdict.match is not None:
                return verdict.match.target, verdict.match.text, Want.NOTHING
        reason = "" if self._default.action is Action.AUTO else "default"
        return self._default, reason, Want.NOTHING

    def _is_pinned(self, key: Key) -> bool:
        session = self._sessions.peek(key)
        return session is not None and session.is_pinned
