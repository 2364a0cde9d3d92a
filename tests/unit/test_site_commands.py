"""What `explain` and `sites` tell: the answers of the control socket, and how they are shown."""

from __future__ import annotations

import time

import pytest

from test_choosing import FakeRules, World
from uservpn.chooser import directs, memory, report
from uservpn.chooser.affinity import Key
from uservpn.chooser.cases import NOWHERE, Choice
from uservpn.chooser.chooser import ANYWHERE
from uservpn.chooser.targets import Action, Selector, Target
from uservpn.cli.sites import explain_lines
from uservpn.control.site_commands import answer_about_sites
from uservpn.control.status import render, render_candidates, render_sites
from uservpn.errors import UservpnError

OWN = 7


def ask(world: World, command: str, **more: object) -> dict:
    request = {"command": command, **more}
    return answer_about_sites(world.chooser, request, world.now, OWN, lambda: None)


def explain(world: World, host: str = "a.example.com", user: str = "") -> dict:
    answer = ask(world, "explain", host=host, user=user)
    assert explain_lines(answer) and render_candidates(answer["candidates"])
    return answer


def test_before_the_first_visit_the_exits_would_be_asked() -> None:
    world = World()
    answer = explain(world)
    assert (answer["site"], answer["exit"], answer["is_asked"]) == ("example.com", None, True)
    assert answer["session"] is None
    assert not world.chooser.take_requests()  # explaining asks nobody


def test_afterwards_the_session_and_its_reason_and_the_numbers_are_told() -> None:
    world = World()
    choice = world.visit()
    world.chooser.outcomes.replied(choice, 100.0, world.now)
    world.now += 60
    answer = explain(world)
    assert (answer["exit"], answer["reason"], answer["detail"]) == (2, "test", "the session's exit")
    assert answer["session"]["used_s"] == pytest.approx(60, abs=1)
    first = answer["candidates"][0]
    assert first["exit"] == 2 and first["samples"] == 1 and first["tests"] == 1
    assert first["connect_ms"] == pytest.approx(5)
    assert first["age_s"] == pytest.approx(60, abs=1)
    assert {row["exit"] for row in answer["candidates"]} == {1, 2, 3}


def test_explaining_prolongs_and_remembers_nothing() -> None:
    world = World()
    world.visit()
    session = world.chooser.sessions.peek(Key("example.com"))
    used_at = session.used_at
    world.now += 3600
    explain(world)
    assert session.used_at == used_at
    world.now += 12 * 3600
    answer = explain(world)
    assert not answer["session"]["is_live"]


def test_refusals_rules_and_direct_targets_are_told_as_what_they_are() -> None:
    rules = FakeRules(
        ("no.example", Target(Action.REJECT, text="reject")),
        ("here.example", Target(Action.DIRECT, text="direct")),
    )
    world = World(rules=rules)
    answer = explain(world, "no.example")
    assert (answer["reason"], answer["rule"]) == ("refused", "rule no.example")
    assert explain(world, "here.example")["detail"] == "this node connects itself"
    assert "exot" in explain(world, user="exot=1")["detail"]
    assert explain(world, user="exit=3")["exit"] == 3


def test_pins_by_number_and_name_and_forgetting() -> None:
    world = World()
    assert ask(world, "pin", site="www.example.com", exit="tyo") == {
        "site": "example.com",
        "exit": 3,
    }
    assert world.visit().exit == 3
    assert ask(world, "pin", site="example.com", exit=1)["exit"] == 1
    assert explain(world)["session"]["expires"] is None
    assert ask(world, "pin", site="unvisited.test", exit=2)["exit"] == 2
    rows = {row["site"]: row for row in ask(world, "sites")["sites"]}
    assert rows["unvisited.test"]["now"] == "pinned" and rows["unvisited.test"]["exit"] == 2
    for wrong in ("nowhere", 9, "", "a b"):
        with pytest.raises(UservpnError):
            ask(world, "pin", site="example.com", exit=wrong)
    assert ask(world, "forget", site="example.com")["is_known"]
    assert not ask(world, "forget", site="example.com")["is_known"]


@pytest.mark.parametrize(
    "site",
    ["''", "-c x", "https://example.org/", "example.org:443", "a..b", ".", "fe80::x", "a\\b"],
)
def test_what_no_program_can_ask_for_is_not_pinned_but_forgotten(site: str) -> None:
    world = World()
    with pytest.raises(UservpnError, match="no host name and no address"):
        ask(world, "pin", site=site, exit=1)
    assert not ask(world, "sites")["sites"] and not ask(world, "forget", site=site)["is_known"]


@pytest.mark.parametrize(
    "site",
    ["Example.ORG.", "bücher.example", "localhost", "a_b.example", "[2001:db8::1]", "192.0.2.1"],
)
def test_names_and_addresses_in_every_spelling_are_pinned(site: str) -> None:
    world = World()
    ask(world, "pin", site=site, exit=2)
    assert explain(world, site)["exit"] == 2


def test_a_strict_session_whose_exit_died_is_said_to_be_refused() -> None:
    rule = Target(Action.EXIT, (Selector(number=2),), is_strict=True, text="2")
    world = World(rules=FakeRules(("a.example.com", rule)))
    assert world.visit().exit == 2
    assert explain(world)["exit"] == 2
    world.mesh.unlinked.add(2)
    world.chooser.outcomes.exit_died(2)
    answer = explain(world)
    assert (answer["exit"], answer["reason"]) == (None, "refused")
    assert "exit 2 is dead" in answer["detail"]


def test_a_site_whose_country_decides_is_said_to_wait_for_it() -> None:
    rules = FakeRules(
        ("a.example.com", Target(Action.EXIT, (Selector(number=3),), text="3")),
        ("here.example", Target(Action.DIRECT, text="direct")),
        country="JP",
    )
    world = World(rules=rules)
    said = "\n".join(explain_lines(explain(world)))
    assert "depends on the country" in said and "no exit" not in said
    world.chooser.lookups.learn("here.example", "JP")
    assert "leaves at: this node itself" in "\n".join(explain_lines(explain(world, "here.example")))


def test_when_a_session_ends_is_told_as_a_time_people_read() -> None:
    world = World()
    world.visit()
    sites = report.sites(world.chooser, world.now, OWN)
    shown = render({"sites": sites, "version": 1})
    assert time.strftime("%Y-%m-%d %H:%M", time.localtime(sites[0]["expires"])) in shown
    assert "?" in render({"sites": [{"expires": 1e300}], "version": 1})


def test_traffic_is_told_by_site_and_exit() -> None:
    world = World()
    choice = world.visit()
    world.chooser.outcomes.ended(choice, 1000, 10)
    world.chooser.outcomes.ended(choice, 500, 5)
    (row,) = ask(world, "sites")["sites"]
    assert (row["exit"], row["connections"], row["bytes_in"], row["bytes_out"]) == (2, 2, 1500, 15)
    assert "example.com" in render_sites([row])
    (status,) = report.sites(world.chooser, world.now, OWN)
    assert {"site", "exit", "reason", "first_rtt_ms", "samples", "expires"} <= set(status)


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"host": ""},
        {"host": 5},
        {"host": "x" * 300},
        {"host": "x", "port": 0},
        {"host": "x", "user": 1},
        {"host": "a\ud800.test"},
        {"host": "a.test\n"},
    ],
)
def test_a_request_that_makes_no_sense_is_an_error(request_: dict) -> None:
    with pytest.raises(UservpnError):
        ask(World(), "explain", **request_)


def test_sites_that_leave_from_this_node_are_told_with_its_own_number() -> None:
    """As in `connections`; nothing of them outlives the rule that made them direct."""
    target = Target(Action.DIRECT, text="direct")
    world = World(rules=FakeRules(("192.0.2.5", target), ("192.0.2.6", target)))
    for host, ms in (("192.0.2.5", 30.0), ("192.0.2.6", 40.0), ("192.0.2.5", 30.0)):
        choice = world.chooser.choose(host, 443, "", world.now)
        assert choice.is_direct
        world.chooser.outcomes.connected(choice, host, 443)
        world.chooser.outcomes.replied(choice, ms, world.now)
        world.chooser.outcomes.ended(choice, 1000, 10)
    rows = report.sites(world.chooser, world.now, OWN)
    assert [(row["site"], row["exit"], row["samples"]) for row in rows] == [
        ("192.0.2.5", OWN, 2),
        ("192.0.2.6", OWN, 1),
    ]
    assert rows[0]["reason"].startswith("rule") and rows[0]["is_live"]
    assert rows[0]["expires"] is None and "192.0.2.5" in render({"sites": rows, "version": 1})
    (first, _) = ask(world, "sites")["sites"]
    assert (first["exit"], first["connections"], first["bytes_in"]) == (OWN, 2, 2000)
    assert first["now"] == rows[0]["reason"]
    assert not memory.everything(world.chooser), "nothing is chosen by it, nothing is kept"
    world.chooser.reconfigure(ANYWHERE, None, 60.0)
    assert not any(row["is_live"] for row in report.sites(world.chooser, world.now, OWN))
    assert ask(world, "forget", site="192.0.2.5")["is_known"]
    assert len(report.sites(world.chooser, world.now, OWN)) == 1


def test_the_list_of_direct_sites_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(directs, "SITES_MAX", 3)
    known = directs.Directs()
    for number in range(5):
        known.connected(Choice(NOWHERE, "default", None, f"site{number}", is_direct=True))
    assert [site for site, _ in known] == ["site4", "site3", "site2"]
