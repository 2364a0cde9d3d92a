"""All trials of a node: who is asked what, who waits, what is answered, what nobody answers any more.

What a trial's end means is the chooser's business; here it is only noted. Bounded: trials by number (the
oldest goes), tests by number per minute.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from uservpn.chooser.affinity import Key
from uservpn.chooser.cases import Case, ExitState
from uservpn.chooser.testing import (
    RESOLVE,
    TRIAL_LIFE_S,
    TRIALS_MAX,
    Budget,
    Finding,
    Inquiry,
    Trial,
)
from uservpn.types import NodeId


class Trials:
    """Times are monotonic seconds."""

    def __init__(self) -> None:
        self.trial_count = 0
        self.asked_count = 0
        """Inquiries to exits."""
        self.budget = Budget()
        self._trials: OrderedDict[int, Trial] = OrderedDict()
        self._waiting: dict[Key, Trial] = {}
        self._token = 0
        self._requests: list[tuple[NodeId, Inquiry]] = []
        self._begun: list[Trial] = []

    def begin(
        self,
        case: Case,
        key: Key,
        asked: Sequence[ExitState],
        now: float,
        wait_s: float,
        flags: int,
    ) -> Trial:
        """Asks these exits; `wait_s` 0: nobody waits. Others that want the same wait under `key`."""
        self._token = self._token % 0xFFFF_FFFF + 1
        flights = {state.node: state.flight_ms for state in asked}
        trial = Trial(self._token, key, case, flights, now, wait_s, bool(flags & RESOLVE))
        self._trials[trial.token] = trial
        inquiry = Inquiry(trial.token, flags, case.host, case.port)
        self._requests += [(exit, inquiry) for exit in flights]
        if wait_s > 0:
            trial.is_waited_for = True
            self._waiting[key] = trial
            self._begun.append(trial)
        self.trial_count += 1
        self.asked_count += len(flights)
        return trial

    def waiting(self, key: Key) -> Trial | None:
        """The trial that others wait for under this key."""
        return self._waiting.get(key)

    def answered(self, exit: NodeId, finding: Finding, now: float) -> tuple[Trial, float] | None:
        """Takes an answer; its trial and the sum in ms, None: nobody asked (any more)."""
        trial = self._trials.get(finding.token)
        if trial is None:
            return None
        sum_ms = trial.answered(exit, finding, now)
        if sum_ms is None:
            return None
        if trial.is_complete:
            del self._trials[finding.token]
        return trial, sum_ms

    def end(self, trial: Trial) -> bool:
        """It is decided from now on; False: it was, or nobody waited for it."""
        if trial.is_decided:
            return False
        trial.is_decided = True
        if self._waiting.get(trial.key) is trial:
            del self._waiting[trial.key]
        return trial.is_waited_for

    def drop_old(self, now: float) -> list[Trial]:
        """Trials that nobody answers any more."""
        dropped = []
        while self._trials:
            trial = next(iter(self._trials.values()))
            if now < trial.began_at + TRIAL_LIFE_S and len(self._trials) < TRIALS_MAX:
                break
            self._trials.popitem(last=False)
            dropped.append(trial)
        return dropped

    @property
    def has_news(self) -> bool:
        """Would a take return something?"""
        return bool(self._requests or self._begun)

    def take_requests(self) -> list[tuple[NodeId, Inquiry]]:
        """What to ask of which exit."""
        requests, self._requests = self._requests, []
        return requests

    def take_begun(self) -> list[Trial]:
        """Trials that are waited for, and so have to be cut in time."""
        begun, self._begun = self._begun, []
        return begun
