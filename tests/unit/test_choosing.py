"""The chooser: first round trips and their means, sessions, wishes, tests, and the order of decision."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uservpn.chooser import askings, lookups, reached
from uservpn.chooser.affinity import Key, Sessions
from uservpn.chooser.cases import Choice, ExitState
from uservpn.chooser.chooser import LOOK_S, REFRESH_S, Chooser
from uservpn.chooser.measure import (
    FORGET_S,
    HALF_LIFE_S,
    NEVER_MS,
    SAMPLES_MAX,
    Knowledge,
    Series,
    Trip,
)
from uservpn.chooser.rules import Verdict
from uservpn.chooser.site import site_of
from uservpn.chooser.targets import Action, Candidate, Selector, Target
from uservpn.chooser.testing import (
    KEEP,
    RESOLVE,
    Budget,
    Finding,
    Inquiry,
    Trial,
    decode_test,
    decode_tested,
)
from uservpn.chooser.wishes import Wish, parse_wish
from uservpn.errors import Fault

WALL = 1_700_000_000.0
HOUR = 3600.0


# ---- the first round trip of a connection --------------------------------------------------------


def test_a_trip_is_from_the_last_data_sent_to_the_first_reply() -> None:
    trip = Trip()
    trip.opened(9.0)
    trip.sent(10.0)
    trip.sent(10.5)
    assert trip.replied(10.6, 0.05) == pytest.approx(100)
    assert trip.is_over


def test_data_that_went_ahead_counts_from_when_the_exits_result_left() -> None:
    trip = Trip()
    trip.sent(10.0)  # with the OPEN; the exit needs 80 ms to connect, it is 50 ms away and back
    trip.opened(10.13)
    assert trip.replied(10.21, 0.05) == pytest.approx(130)  # 50 to the exit, 80 to the site


def test_a_site_that_speaks_first_is_no_sample() -> None:
    trip = Trip()
    trip.opened(9.0)
    assert trip.replied(10.0, 0.1) is None


def test_a_reply_that_never_came_is_a_very_slow_one_if_the_program_had_patience() -> None:
    hasty, patient, mute = Trip(), Trip(), Trip()
    hasty.sent(10.0)
    patient.sent(10.0)
    assert hasty.ended(11.0, 0.1, None) is None
    assert mute.ended(100.0, 0.1, None) is None
    assert patient.ended(13.0, 0.1, None) == NEVER_MS
    slow = Trip()
    slow.sent(10.0)
    assert slow.ended(13.0, 0.1, 2000.0) is None  # it usually takes two seconds
    late = Trip()
    late.sent(10.0)
    assert late.ended(40.0, 0.1, 2000.0) == 30_000


def test_a_connection_that_broke_without_a_reply_is_a_very_slow_one() -> None:
    trip = Trip()
    trip.sent(10.0)
    assert trip.broken(10.1, 0.1) == NEVER_MS
    assert Trip().broken(10.1, 0.1) is None


# ---- means ---------------------------------------------------------------------------------------


def series(*values: float, at: float = WALL) -> Series:
    made = Series()
    for value in values:
        made.add(value, at)
    return made


def test_a_quarter_of_the_samples_moves_the_mean_only_a_little() -> None:
    calm = series(*[100.0] * 12).mean(WALL)
    rough = series(*[100.0] * 12, *[NEVER_MS] * 4).mean(WALL)
    assert calm == pytest.approx(100)
    assert rough == pytest.approx(100)
    lost = series(*[100.0] * 4, *[NEVER_MS] * 12).mean(WALL)
    assert lost == pytest.approx(NEVER_MS)


def test_old_samples_weigh_less_and_less_and_then_nothing() -> None:
    made = series(*[100.0] * 5)
    for _ in range(5):
        made.add(200.0, WALL + 3 * HALF_LIFE_S)
    assert made.mean(WALL + 3 * HALF_LIFE_S) == pytest.approx(200)
    assert series(100.0).mean(WALL + FORGET_S) is None
    assert made.count(WALL + FORGET_S) == 5


@given(st.lists(st.floats(0, NEVER_MS), min_size=1, max_size=40))
def test_a_mean_lies_among_its_samples_and_survives_the_disk(values: list[float]) -> None:
    made = series(*values)
    kept = values[-SAMPLES_MAX:]
    mean = made.mean(WALL)
    assert mean is not None
    assert min(kept) - 1e-6 <= mean <= max(kept) + 1e-6
    assert Series(made.dump()).mean(WALL) == mean


@pytest.mark.parametrize("flat", [b"1234567", bytes(8), bytes(16 * (SAMPLES_MAX + 1))])
def test_what_is_no_series_is_refused(flat: bytes) -> None:
    with pytest.raises(ValueError, match="series"):
        Series(flat)


def test_real_ones_and_tests_are_compared_like_with_like() -> None:
    """Exit 1 was used: the site itself takes 50 ms. Exit 2 was only tested: 50 ms are added."""
    known = Knowledge()
    for _ in range(4):
        known.tested("s", 1, 100.0, WALL)
        known.tested("s", 2, 120.0, WALL)
        known.replied("s", 1, 150.0, WALL)
    assert known.expected("s", WALL) == pytest.approx({1: 150, 2: 170})


def test_two_real_samples_do_not_decide() -> None:
    known = Knowledge()
    known.tested("s", 1, 100.0, WALL)
    known.replied("s", 1, 900.0, WALL)
    known.replied("s", 1, 900.0, WALL)
    assert known.expected("s", WALL) == pytest.approx({1: 100})


def test_knowledge_is_bounded_and_forgets_the_site_unused_for_longest() -> None:
    known = Knowledge(sites_max=3)
    for site in ("a", "b", "c"):
        known.moved(site, 1, 1, 1)
    known.moved("a", 1, 1, 1)
    known.moved("d", 1, 1, 1)
    assert known.sites == ["c", "a", "d"]
    for exit in range(1, 100):
        known.replied("d", exit, 10.0, WALL + exit)
    assert len(known.pairs("d")) == 32
    assert 99 in known.pairs("d") and 2 not in known.pairs("d")


# ---- sessions ------------------------------------------------------------------------------------


def test_a_session_lasts_as_long_as_it_is_used() -> None:
    sessions = Sessions(12 * HOUR)
    key = Key("s")
    sessions.begin(key, 1, "test", WALL)
    for hours in (11, 22, 33):
        assert sessions.live(key, WALL + hours * HOUR) is not None
    assert sessions.live(key, WALL + 45 * HOUR) is None
    assert sessions.peek(key) is not None


def test_a_pin_never_ends_and_goes_last() -> None:
    sessions = Sessions(HOUR, sessions_max=3)
    sessions.pin(Key("p"), 9, WALL)
    for name in ("a", "b", "c"):
        sessions.begin(Key(name), 1, "test", WALL)
    assert sessions.live(Key("p"), WALL + 1000 * HOUR) is not None
    assert [key.site for key, _ in sessions.items()] == ["b", "c", "p"]
    assert sessions.forget("p") == 1


# ---- wishes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "wish"),
    [
        ("", Wish()),
        ("alice", Wish()),
        ("exit=3", Wish(exit="3")),
        ("alice,exit=fra", Wish(exit="fra")),
        ("Country=us", Wish(country="US")),
        ("ann+country=de+session=work", Wish(country="DE", session="work")),
        ("country=us, session=x", Wish(country="US", session="x")),
        ("c29tZXRoaW5n=", Wish()),
        ("YQ==", Wish()),
    ],
)
def test_what_a_user_name_asks_for(user: str, wish: Wish) -> None:
    assert parse_wish(user) == wish


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ("exot=3", "'exot'"),
        ("exit=", "exit="),
        ("exit=3,exit=4", "twice"),
        ("country=usa", "country=usa"),
        ("session=a b", "session"),
        ("exit=3;4", "exit=3;4"),
    ],
)
def test_an_error_in_a_user_name_is_named(user: str, words: str) -> None:
    assert words in parse_wish(user).problem


@given(st.text(max_size=300))
def test_no_user_name_breaks_anything(user: str) -> None:
    parse_wish(user)


# ---- messages ------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(0, 3), st.integers(0, 65535))
def test_a_test_is_read_as_it_was_written(token: int, flags: int, port: int) -> None:
    test = Inquiry(token, flags, "bücher.example", port)
    assert decode_test(test.encode()) == test


def test_an_answer_is_read_as_it_was_written() -> None:
    for tested in (
        Finding(7, Fault.NONE, 12, 34.5, "DE"),
        Finding(7, Fault.TIMEOUT),
        Finding(1, Fault.NONE, 1, 0.0, "", ("192.0.2.1", "2001:db8::1")),
    ):
        assert decode_tested(tested.encode()) == tested


@given(st.binary(max_size=400))
def test_no_message_breaks_anything(data: bytes) -> None:
    decode_test(data)
    decode_tested(data)
    decode_test(b"\x01" + data)
    decode_tested(b"\x01" + data)


# ---- trials --------------------------------------------------------------------------------------


def trial(**flights: float | None) -> Trial:
    asked = {int(name[1:]): ms for name, ms in flights.items()}
    return Trial(1, Key("s"), None, asked, 100.0, 0.3)  # type: ignore[arg-type]


def test_the_smallest_sum_wins_not_the_first_answer() -> None:
    made = trial(e1=20.0, e2=30.0)
    made.answered(1, Finding(1, Fault.NONE, 0, 90.0), 100.11)
    assert not made.is_due(100.11)  # 2 may still be better: it is only slow to resolve
    assert made.cut_at == pytest.approx(100.11 + 0.75 * 0.02)
    made.answered(2, Finding(1, Fault.NONE, 50, 40.0), 100.12)
    assert made.is_due(100.12)
    assert made.winner() == 2


def test_who_is_too_far_away_is_not_waited_for() -> None:
    made = trial(e1=20.0, e2=200.0)
    made.answered(1, Finding(1, Fault.NONE, 0, 90.0), 100.11)
    assert made.is_due(100.11)
    assert made.winner() == 1


def test_the_bound_ends_it_whatever_came() -> None:
    made = trial(e1=None, e2=None)
    assert not made.is_due(100.2)
    made.answered(1, Finding(1, Fault.TIMEOUT), 100.2)
    assert not made.is_due(100.29)
    assert made.is_due(100.3)
    assert made.winner() is None


def test_only_who_was_asked_is_heard_and_only_once() -> None:
    made = trial(e1=10.0)
    assert made.answered(5, Finding(1, Fault.NONE, 0, 1.0), 100.1) is None
    assert made.answered(1, Finding(1, Fault.NONE, 0, 5.0), 100.1) == pytest.approx(15)
    assert made.answered(1, Finding(1, Fault.NONE, 0, 1.0), 100.1) is None


def test_trials_are_so_many_a_minute() -> None:
    budget = Budget(3)
    assert [budget.take(0.0) for _ in range(5)] == [True] * 3 + [False] * 2
    assert budget.take(21.0) and not budget.take(21.0)


def test_the_expected_round_trip_of_one_exit_is_that_of_all() -> None:
    known = Knowledge()
    for exit, count in ((1, 5), (2, 1)):
        for _ in range(count):
            known.replied("a.test", exit, 80.0 * exit, WALL)
            known.tested("a.test", exit, 30.0 * exit, WALL)
    expected = known.expected("a.test", WALL)
    assert {exit: known.expected_at("a.test", exit, WALL) for exit in (1, 2)} == expected
    assert known.expected_at("a.test", 3, WALL) is known.expected_at("b.test", 1, WALL) is None


# ---- the order of decision -----------------------------------------------------------------------


class FakeMesh:
    """Exits by number; `linked` and `lost` say how they are."""

    def __init__(self, *states: ExitState) -> None:
        self.states = {state.node: state for state in states}
        self.unlinked: set[int] = set()
        self.lost: set[int] = set()

    def exits(self) -> list[ExitState]:
        return [s._replace(is_linked=self.is_linked(s.node)) for s in self.states.values()]

    def is_linked(self, exit: int) -> bool:
        return exit in self.states and exit not in self.unlinked

    def is_lost(self, exit: int) -> bool:
        return exit in self.lost

    def heard_at(self, exit: int) -> float:
        return 1e9

    def flight_ms(self, exit: int) -> float | None:
        return self.states[exit].flight_ms if exit in self.states else None


class FakeRules:
    """A target by host; with a country, only for sites there."""

    def __init__(self, *rules: tuple[str, Target], country: str = "") -> None:
        self.rules = dict(rules)
        self.country = country

    def match(self, host: str, port: int, country: str | None = None) -> Verdict:
        found = self.rules.get(host)
        if found is None or (self.country and country not in (self.country, None)):
            return Verdict(None, False)
        if self.country and country is None:
            return Verdict(None, True)
        return Verdict(FakeMatch(found, f"rule {host}"), False)  # type: ignore[arg-type]


class FakeMatch(NamedTuple):
    target: Target
    text: str


def state(node: int, name: str, country: str, flight_ms: float | None) -> ExitState:
    return ExitState(Candidate(node, name, country), True, flight_ms)


def three() -> FakeMesh:
    return FakeMesh(
        state(1, "fra", "DE", 10.0), state(2, "nyc", "US", 90.0), state(3, "tyo", "JP", 240.0)
    )


class World:
    """A chooser, and exits that answer its tests after a while."""

    def __init__(self, mesh: FakeMesh | None = None, **options: object) -> None:
        self.mesh = mesh or three()
        self.now = 1000.0
        self.connect_ms: dict[int, float] = {1: 100.0, 2: 5.0, 3: 200.0}
        self.asked: list[tuple[int, Inquiry]] = []
        self.country = ""
        self.addresses: tuple[str, ...] = ()
        self.fault = Fault.NONE
        self.chooser = Chooser(
            self.mesh,
            site_of=site_of,
            wall_s=lambda: WALL,
            **options,  # type: ignore[arg-type]
        )

    def visit(self, host: str = "a.example.com", user: str = "", port: int = 443) -> Choice:
        """One connection; trials are played through."""
        found = self.chooser.choose(host, port, user, self.now)
        if isinstance(found, Choice):
            self.answer()
            return found
        assert isinstance(found, Trial)
        found.waiters.append(object())
        for _ in range(2):  # one for a country, one for the exit
            begun = self.chooser.take_begun()
            self.answer()
            for trial in begun:
                if not trial.is_decided:
                    self.now = max(self.now, trial.cut_at)
                    self.chooser.cut(trial, self.now)
        ((_, choice),) = self.chooser.take_decided()
        return choice

    def answer(self) -> None:
        answers = []
        for exit, test in self.chooser.take_requests():
            self.asked.append((exit, test))
            connect = self.connect_ms.get(exit)
            if connect is not None:
                if test.flags & RESOLVE:
                    finding = Finding(test.token, Fault.NONE, 5, 0.0, self.country, self.addresses)
                    answers.append((self.now + 0.02, exit, finding))
                    continue
                after = ((self.mesh.flight_ms(exit) or 0.0) + connect) / 1000
                finding = Finding(test.token, self.fault, 0, 0.0 if self.fault else connect)
                answers.append((self.now + after, exit, finding))
        for at, exit, tested in sorted(answers):
            self.now = max(self.now, at)
            self.chooser.tested(exit, tested, self.now)


def test_a_first_visit_asks_the_exits_and_the_next_ones_stay() -> None:
    world = World()
    first = world.visit()
    assert (first.exit, first.reason, first.site) == (2, "test", "example.com")
    assert {exit for exit, _ in world.asked} == {1, 2, 3}
    assert all(test.flags == KEEP and test.host == "a.example.com" for _, test in world.asked)
    assert world.chooser.outcomes.knows(2, "a.example.com", 443)  # it is connected already
    world.connect_ms[1] = 1.0
    world.asked.clear()
    assert world.visit("b.example.com").exit == 2
    assert not world.asked


def test_connections_of_one_site_wait_for_one_trial() -> None:
    world = World()
    first = world.chooser.choose("a.example.com", 443, "", world.now)
    second = world.chooser.choose("b.example.com", 80, "", world.now)
    assert first is second
    assert len(world.chooser.take_requests()) == 3


def test_nobody_answers_and_the_owners_order_counts() -> None:
    world = World()
    world.connect_ms.clear()
    before = world.now
    choice = world.visit()
    assert (choice.exit, choice.reason) == (1, "owner's order")
    assert world.now - before <= 0.3 + 1e-9


def test_nearest_by_country_where_it_is_known_and_nothing_is_measured() -> None:
    far = {("JP", "JP"): 0.0, ("JP", "US"): 9000.0, ("JP", "DE"): 9100.0}
    world = World(near=lambda one, other: far.get((one, other)))
    world.connect_ms.clear()
    world.chooser.lookups.countries["example.com"] = "JP"
    assert world.visit()[:2] == (3, "nearest")


def test_one_exit_needs_no_test() -> None:
    world = World(FakeMesh(state(1, "fra", "DE", 10.0)))
    assert world.visit()[:2] == (1, "only exit")
    assert not world.asked


def test_a_new_session_keeps_its_exit_unless_another_is_clearly_better() -> None:
    world = World()
    assert world.visit().exit == 2
    at = world.now + WALL
    for _ in range(6):
        world.chooser.knowledge.replied("example.com", 2, 95.0, at)
        world.chooser.knowledge.tested("example.com", 1, 90.0, at)
    world.now += 13 * HOUR
    assert world.visit()[:2] == (2, "measured")
    for _ in range(16):
        world.chooser.knowledge.tested("example.com", 1, 60.0, at)
    assert world.visit().exit == 2  # the session has begun
    world.now += 13 * HOUR
    assert world.visit()[:2] == (1, "measured")


def test_a_single_value_takes_no_session_over() -> None:
    world = World()
    world.visit()
    world.chooser.knowledge.replied("example.com", 1, 1.0, WALL + world.now)
    world.chooser.knowledge.replied("example.com", 3, NEVER_MS, WALL + world.now)
    for _ in range(3):
        world.chooser.knowledge.replied("example.com", 2, 95.0, WALL + world.now)
    world.now += 13 * HOUR
    assert world.visit().exit == 2


def test_an_exit_that_carries_nothing_loses_the_next_session() -> None:
    world = World()
    choice = world.visit()
    for _ in range(8):
        world.chooser.outcomes.replied(choice, NEVER_MS, world.now)
        world.chooser.knowledge.tested("example.com", 1, 110.0, WALL + world.now)
    world.now += 13 * HOUR
    assert world.visit().exit == 1


def test_a_session_moves_once_when_its_exit_dies_and_that_is_said() -> None:
    world = World()
    choice = world.visit()
    world.mesh.unlinked.add(choice.exit)
    assert world.visit().exit == choice.exit  # a link that is down for a moment moves nothing
    world.chooser.outcomes.exit_died(choice.exit)
    moved = world.visit()
    assert moved.exit != choice.exit
    assert world.chooser.take_moved() == [
        f"example.com leaves at exit {moved.exit} now: exit {choice.exit} died"
    ]
    world.mesh.unlinked.clear()
    assert world.visit().exit == moved.exit
    assert not world.chooser.take_moved()


def test_an_exit_that_lets_nothing_through_is_dead_until_something_comes() -> None:
    """It is linked and answers; but six connections to three sites heard nothing."""
    world = World()
    choices = {site: world.visit(site) for site in ("a.test", "b.test", "c.test")}
    for choice in choices.values():
        world.chooser.outcomes.replied(choice, 95.0, world.now)
    for _ in range(2):
        for choice in choices.values():
            assert choice.exit == 2
            assert world.visit(choice.site).exit == 2
            world.chooser.outcomes.replied(choice, NEVER_MS, world.now)
    world.connect_ms[2] = None  # type: ignore[assignment]
    moved = {site: world.visit(site).exit for site in choices}
    assert set(moved.values()) == {1}
    assert len(world.chooser.take_moved()) == 3
    world.chooser.outcomes.replied(choices["a.test"], 50.0, world.now)
    world.connect_ms[2] = 5.0
    assert world.visit("new.test").exit == 2
    assert {site: world.visit(site).exit for site in choices} == moved


def test_targets_that_never_answered_say_nothing_of_the_exit() -> None:
    """As the many dead peers of a file-sharing program, or names that do not exist."""
    world = World()
    good = world.visit("good.test")
    world.chooser.outcomes.replied(good, 95.0, world.now)
    for number in range(20):
        choice = Choice(good.exit, "test", Key(f"192.0.2.{number}"), f"192.0.2.{number}")
        world.chooser.outcomes.failed(choice, choice.site, 6881, Fault.TIMEOUT, world.now)
        world.chooser.outcomes.failed(
            good, "nowhere.good.test", 443, Fault.HOST_UNREACHABLE, world.now
        )
    assert world.visit("good.test").exit == good.exit
    assert not world.chooser.take_moved()


def test_one_silent_site_is_not_the_exits_fault() -> None:
    world = World()
    choice = world.visit()
    for _ in range(20):
        world.chooser.outcomes.replied(choice, NEVER_MS, world.now)
    assert world.visit().exit == choice.exit
    assert not world.chooser.take_moved()


def test_nothing_moves_while_it_is_this_node_that_is_offline() -> None:
    world = World()
    choice = world.visit()
    world.mesh.unlinked.update((1, 2, 3))
    world.mesh.lost.update((1, 2, 3))
    world.chooser.outcomes.exit_died(choice.exit)
    assert world.visit().exit == choice.exit
    world.mesh.unlinked.clear()
    world.mesh.lost.clear()
    assert world.visit().exit == choice.exit


def test_a_session_that_never_worked_is_given_up() -> None:
    world = World()
    choice = world.visit()
    world.chooser.outcomes.failed(choice, "a.example.com", 443, Fault.TIMEOUT, world.now)
    assert world.chooser.sessions.peek(Key("example.com")) is None
    again = world.visit()
    world.chooser.outcomes.connected(again, "a.example.com", 443)
    world.chooser.outcomes.failed(again, "a.example.com", 443, Fault.TIMEOUT, world.now)
    assert world.visit().exit == again.exit


def test_a_name_that_does_not_exist_is_not_tested_again_and_again() -> None:
    world = World()
    world.fault = Fault.HOST_UNREACHABLE
    choice = world.visit("nowhere.example")
    for _ in range(5):
        world.chooser.outcomes.failed(
            choice, "nowhere.example", 443, Fault.HOST_UNREACHABLE, world.now
        )
        world.visit("nowhere.example")
    assert world.chooser.trials.trial_count == 1


def test_the_programs_choice_comes_first() -> None:
    rules = FakeRules(("a.example.com", Target(Action.REJECT, text="reject")))
    world = World(rules=rules)
    assert world.visit(user="exit=3")[:2] == (3, "program")
    assert world.visit(user="exit=fra")[:2] == (1, "program")
    assert world.visit(user="bob,country=jp")[:2] == (3, "program")
    assert world.visit(user="").fault is Fault.NOT_ALLOWED
    refused = world.visit(user="exit=nowhere")
    assert (refused.exit, refused.fault) == (0, Fault.EXIT_DEAD)
    wrong = world.visit(user="exot=3")
    assert wrong.fault is Fault.NOT_ALLOWED and "exot" in wrong.detail


def test_two_sessions_of_one_site_may_leave_at_two_places() -> None:
    world = World()
    one = world.visit(user="session=one")
    world.connect_ms = {1: 1.0, 2: 300.0, 3: 300.0}
    two = world.visit(user="session=two")
    assert (one.exit, two.exit) == (2, 1)
    assert world.visit(user="session=one").exit == 2
    assert world.visit(user="session=two").exit == 1


def test_a_rule_narrows_rejects_or_goes_direct() -> None:
    us = Target(Action.EXIT, (Selector(country="US"),), text="us")
    rules = FakeRules(
        ("us.example", us),
        ("no.example", Target(Action.REJECT, text="reject")),
        ("here.example", Target(Action.DIRECT, text="direct")),
        ("away.example", Target(avoid=frozenset({"DE", "US"}), text="auto")),
    )
    world = World(rules=rules)
    assert world.visit("us.example")[:2] == (2, "rule us.example")
    assert world.visit("no.example").fault is Fault.NOT_ALLOWED
    assert world.visit("away.example").exit == 3


def test_a_direct_target_gets_its_address_from_an_exit() -> None:
    """Never from a resolver of this machine (R42); it is asked for once a minute."""
    world = World(rules=FakeRules(("here.example", Target(Action.DIRECT, text="direct"))))
    world.addresses = ("192.0.2.7", "2001:db8::7")
    choice = world.visit("here.example")
    assert (choice.is_direct, choice.addresses) == (True, world.addresses)
    assert [(exit, test.flags) for exit, test in world.asked] == [(1, RESOLVE), (2, RESOLVE)]
    assert world.visit("here.example").addresses == world.addresses
    assert len(world.asked) == 2
    world.now += 61
    world.connect_ms.clear()
    refused = world.visit("here.example")
    assert (refused.exit, refused.is_direct, refused.fault) == (0, False, Fault.TIMEOUT)


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        (("name.example",), ()),
        (("192.0.2.7", "localhost", "fe80::1%lo", "127.1"), ("192.0.2.7",)),
        (("2001:db8::7",), ("2001:db8::7",)),
    ],
)
def test_an_exit_that_tells_a_name_for_an_address_is_not_followed(
    told: tuple[str, ...], kept: tuple[str, ...]
) -> None:
    """It would be resolved here when it is dialled (R42)."""
    payload = Finding(7, Fault.NONE, 1, 0.0, "", told).encode()
    assert decode_tested(payload) == Finding(7, Fault.NONE, 1, 0.0, "", kept)


def test_a_direct_number_needs_nobody() -> None:
    world = World(rules=FakeRules(("192.0.2.9", Target(Action.DIRECT, text="direct"))))
    assert world.visit("192.0.2.9").addresses == ("192.0.2.9",)
    assert not world.asked


def test_nothing_is_linked_and_a_direct_name_is_refused() -> None:
    world = World(rules=FakeRules(("here.example", Target(Action.DIRECT, text="direct"))))
    world.mesh.unlinked.update((1, 2, 3))
    assert world.visit("here.example").fault is Fault.TIMEOUT


def test_a_rule_for_a_country_asks_where_the_site_is() -> None:
    rule = Target(Action.EXIT, (Selector(number=3),), text="3")
    world = World(rules=FakeRules(("a.example.com", rule), country="JP"))
    world.country = "JP"
    assert world.visit()[:2] == (3, "rule a.example.com")
    assert [test.flags for _, test in world.asked][:2] == [RESOLVE, RESOLVE]
    other = World(rules=FakeRules(("a.example.com", rule), country="JP"))
    assert other.visit().exit == 2  # nobody knows: the rule does not hold
    other.asked.clear()
    other.visit()
    assert not other.asked


def country_rule(number: int) -> FakeRules:
    rule = Target(Action.EXIT, (Selector(number=number),), text=str(number))
    return FakeRules(("a.example.com", rule), country="JP")


def test_who_waits_for_a_country_goes_on_to_a_choice_of_its_own() -> None:
    """Two sessions that begin at once are two, though they ask the same question."""
    world = World(rules=country_rule(3))
    chooser = world.chooser
    found = [chooser.choose("a.example.com", 443, f"session={x}", world.now) for x in ("a", "b")]
    for trial, name in zip(found, "ab", strict=True):
        assert isinstance(trial, Trial)
        trial.waiters.append(name)
    world.country = "JP"
    world.answer()
    told = {name: choice.key for name, choice in chooser.take_decided()}
    assert told == {"a": Key("example.com", "a"), "b": Key("example.com", "b")}


def test_the_second_exit_is_waited_for_where_the_first_knows_no_country() -> None:
    world = World(rules=country_rule(3))
    trial = world.chooser.choose("a.example.com", 443, "", world.now)
    assert isinstance(trial, Trial)
    trial.waiters.append(None)
    (token,) = {test.token for _, test in world.chooser.take_requests()}
    world.chooser.tested(1, Finding(token, Fault.NONE), world.now + 0.02)
    assert not trial.is_decided and trial.cut_at == pytest.approx(world.now + 0.3)
    world.chooser.tested(2, Finding(token, Fault.NONE, country="JP"), world.now + 0.1)
    ((_, choice),) = world.chooser.take_decided()
    assert choice.exit == 3


def test_a_country_that_nobody_could_be_asked_for_is_asked_for_soon_again() -> None:
    """A laptop that wakes up has no link for a moment: that says nothing for an hour."""
    world = World(rules=country_rule(3))
    world.country = "JP"
    world.mesh.unlinked.update((1, 2, 3))
    world.visit()
    world.mesh.unlinked.clear()
    world.now += lookups.SOON_AGAIN_S + 1
    assert world.visit()[:2] == (3, "rule a.example.com")


def test_a_site_that_is_in_many_countries_keeps_the_first_until_it_is_forgotten() -> None:
    """Else its rule, and with it the exit of its session, would change with each answer."""
    world = World(rules=country_rule(3))
    world.country = "JP"
    assert world.visit().exit == 3
    world.chooser.lookups.learn("example.com", "US")
    assert world.visit().exit == 3
    assert world.chooser.forget("example.com")
    world.country = "US"
    world.now += 1
    assert world.visit().exit != 3


def test_a_pin_that_comes_while_exits_are_asked_holds() -> None:
    world = World()
    trial = world.chooser.choose("a.example.com", 443, "", world.now)
    assert isinstance(trial, Trial)
    trial.waiters.append(None)
    world.chooser.pin("example.com", 3, world.now)
    world.answer()
    ((_, choice),) = world.chooser.take_decided()
    assert choice.exit == 3
    assert world.visit()[:2] == (3, "pinned")


def test_a_rule_that_came_later_moves_a_session_that_no_longer_fits() -> None:
    world = World()
    assert world.visit().exit == 2
    rule = Target(Action.EXIT, (Selector(number=3),), text="3")
    world.chooser.reconfigure(Target(), FakeRules(("a.example.com", rule)), 12 * HOUR)
    assert world.visit().exit == 3


def test_strict_refuses_where_others_move() -> None:
    rule = Target(Action.EXIT, (Selector(number=2),), is_strict=True, text="2")
    world = World(rules=FakeRules(("a.example.com", rule)))
    assert world.visit().exit == 2
    world.mesh.unlinked.add(2)
    world.chooser.outcomes.exit_died(2)
    assert world.visit().exit == 2  # whose stream is refused: it is dead


def test_strict_does_not_move_within_its_group_either() -> None:
    members = (Selector(number=2), Selector(number=3))
    rule = Target(Action.EXIT, members, is_strict=True, text="both")
    world = World(rules=FakeRules(("a.example.com", rule)))
    assert world.visit().exit == 2
    world.mesh.unlinked.add(2)
    world.chooser.outcomes.exit_died(2)
    assert world.visit().exit == 2
    assert not world.chooser.take_moved()


def test_a_pin_beats_rules_and_measurements_until_it_is_forgotten() -> None:
    world = World(rules=FakeRules(("a.example.com", Target(Action.REJECT, text="reject"))))
    assert world.visit().fault is Fault.NOT_ALLOWED
    assert world.chooser.pin("example.com", 3, world.now)
    assert world.visit()[:2] == (3, "pinned")
    world.mesh.unlinked.add(3)
    world.chooser.outcomes.exit_died(3)
    world.now += 1000 * HOUR
    assert world.visit().exit == 3
    assert world.chooser.forget("example.com")
    assert world.visit().fault is Fault.NOT_ALLOWED


def test_sessions_look_at_others_now_and_then_without_waiting() -> None:
    world = World()
    world.visit()
    world.asked.clear()
    world.now += LOOK_S + 1
    assert world.visit().exit == 2
    assert world.asked and all(test.flags == 0 for _, test in world.asked)
    count = len(world.asked)
    world.visit()
    assert len(world.asked) == count
    for _ in range(5):
        world.now += LOOK_S + 1
        world.visit()
    settled = len(world.asked)  # three samples each: known well enough
    world.now += LOOK_S + 1
    world.visit()
    assert len(world.asked) == settled
    world.now += REFRESH_S
    world.visit()
    assert len(world.asked) > settled


def test_where_there_is_one_exit_nothing_is_asked() -> None:
    """A test would only be a second connection to the site."""
    world = World(FakeMesh(state(1, "fra", "DE", 10.0)))
    for _ in range(5):
        assert world.visit().exit == 1
        world.now += REFRESH_S + 1
    assert not world.asked


def test_tests_are_bounded_and_then_the_best_known_counts() -> None:
    world = World()
    for number in range(80):
        world.now = 1000.0
        world.visit(f"site{number}.test")
    assert world.chooser.trials.trial_count == 60
    assert world.chooser.trials.asked_count == len(world.asked) == 180
    assert world.visit("another.test").reason == "owner's order"


def test_a_busy_exit_is_no_slow_one() -> None:
    """Its LIMIT says nothing of the site."""
    world = World()
    world.fault = Fault.LIMIT
    world.visit()
    assert not world.chooser.knowledge.expected("example.com", WALL + world.now)


def test_every_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(askings, "CASES_MAX", 20)
    monkeypatch.setattr(reached, "REACHED_MAX", 20)
    monkeypatch.setattr(lookups, "COUNTRIES_MAX", 20)
    world = World()
    world.chooser.sessions._sessions_max = 20
    rng = random.Random(1)
    for _ in range(300):
        host = f"h{rng.randrange(200)}.test"
        choice = world.visit(host)
        world.chooser.outcomes.connected(choice, host, 443)
        world.now += 1
    chooser = world.chooser
    assert len(chooser.cases) <= 20
    assert len(chooser.reached) <= 20
    assert len(chooser.sessions) <= 20
    assert not chooser.trials._waiting


def test_a_live_session_costs_little() -> None:
    """Counted, not timed: what a connection to a known site costs in Python calls."""
    import sys

    world = World()
    world.visit()
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        for _ in range(10):
            world.chooser.choose("a.example.com", 443, "", world.now)
    finally:
        sys.setprofile(None)
    assert count / 10 <= 6
