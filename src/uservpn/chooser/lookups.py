"""What only exits can tell a client, which resolves no names: addresses, and where sites are.

Bounded: addresses are kept for a minute, countries for as long as there is room.
"""

from __future__ import annotations

from collections import OrderedDict
from math import inf
from typing import Final

COUNTRIES_MAX: Final = 4096
COUNTRY_AGAIN_S: Final = 3600.0
"""A country that no exit knew is asked for again after so long."""
SOON_AGAIN_S: Final = 10.0
"""And after so long where nobody could be asked, or not all answered."""
ADDRESS_KEPT_S: Final = 60.0
ADDRESSES_MAX: Final = 1024


class Lookups:
    """Answers of exits. `now` is monotonic seconds."""

    def __init__(self) -> None:
        self.countries: OrderedDict[str, str] = OrderedDict()
        """By site."""
        self.changed: set[str] = set()
        """Sites whose country changed since the owner last emptied this."""
        self._unknown: dict[str, float] = {}  # sites whose country nobody knew, until when
        self._addresses: dict[str, tuple[float, tuple[str, ...]]] = {}

    def country(self, site: str, now: float) -> str | None:
        """Of a site; "": nobody knew when it was asked for; None: nobody was asked."""
        country = self.countries.get(site)
        if country is None and now < self._unknown.get(site, 0.0):
            return ""
        return country

    def unknown_until(self, site: str, now: float) -> float:
        """When its country, which nobody knew, is asked for again; `inf`: that is no question now."""
        until = self._unknown.get(site, 0.0)
        return until if now < until and site not in self.countries else inf

    def learn(self, site: str, country: str) -> bool:
        """An exit told; False: one was known.

        The first word counts until the site is forgotten: one that is served from many countries
        would change its rule, and its exit, with each answer.
        """
        if site in self.countries:
            return False
        self.countries[site] = country
        self.changed.add(site)
        if len(self.countries) > COUNTRIES_MAX:
            self.changed.add(self.countries.popitem(last=False)[0])
        return True

    def forget(self, site: str) -> bool:
        """Its country is to be found out again; False: it was not known."""
        self._unknown.pop(site, None)
        if self.countries.pop(site, None) is None:
            return False
        self.changed.add(site)
        return True

    def nobody_knew(self, site: str, is_sure: bool, now: float) -> None:
        """Its country was asked for, in vain; `is_sure`: by all who were asked."""
        if len(self._unknown) >= COUNTRIES_MAX:
            self._unknown.clear()
        self._unknown[site] = now + (COUNTRY_AGAIN_S if is_sure else SOON_AGAIN_S)

    def addresses(self, host: str, now: float) -> tuple[str, ...]:
        """Of a host; empty: they have to be asked for."""
        until, addresses = self._addresses.get(host, (0.0, ()))
        return addresses if now < until else ()

    def keep(self, host: str, addresses: tuple[str, ...], now: float) -> None:
        """An exit told."""
        if len(self._addresses) >= ADDRESSES_MAX:
            del self._addresses[next(iter(self._addresses))]
        self._addresses[host] = (now + ADDRESS_KEPT_S, addresses)
