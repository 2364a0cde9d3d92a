"""Sites whose connections leave from this node itself: what became of them, for people.

Nothing is chosen by this, so it lives in memory only. Bounded: the site unused for longest goes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from uservpn.chooser.cases import Choice
from uservpn.chooser.measure import Pair

SITES_MAX: Final = 1024


class DirectSite(Pair):
    """What is known of one; `tests` stay empty."""

    __slots__ = ("is_live", "reason")

    def __init__(self) -> None:
        super().__init__()
        self.reason = ""
        """Who says that it is direct."""
        self.is_live = True
        """It was so when the site was last used, and the owner has not changed the rules since."""


class Directs:
    """All of them. Times are Unix time."""

    def __init__(self) -> None:
        self._sites: OrderedDict[str, DirectSite] = OrderedDict()

    def __iter__(self) -> Iterator[tuple[str, DirectSite]]:
        """The one used last first."""
        return ((site, self._sites[site]) for site in reversed(self._sites))

    # --- what happens ----------------------------------------------------------------------------

    def connected(self, choice: Choice) -> None:
        """A connection to the site stands."""
        self._touch(choice)

    def replied(self, choice: Choice, ms: float, at: float) -> None:
        """A first round trip, or none (NEVER_MS and more)."""
        self._touch(choice).real.add(ms, at)

    def ended(self, choice: Choice, bytes_in: int, bytes_out: int) -> None:
        """A connection is over."""
        known = self._touch(choice)
        known.connections += 1
        known.bytes_in += bytes_in
        known.bytes_out += bytes_out

    def rules_changed(self) -> None:
        """What was direct may be so no longer: that shows with its next connection."""
        for known in self._sites.values():
            known.is_live = False

    def forget(self, site: str) -> bool:
        """Nothing is known of it any more; False: nothing was."""
        return self._sites.pop(site, None) is not None

    def _touch(self, choice: Choice) -> DirectSite:
        known = self._sites.get(choice.site)
        if known is None:
            known = self._sites[choice.site] = DirectSite()
            if len(self._sites) > SITES_MAX:
                self._sites.popitem(last=False)
        else:
            self._sites.move_to_end(choice.site)
        known.reason = choice.reason
        known.is_live = True
        return known
