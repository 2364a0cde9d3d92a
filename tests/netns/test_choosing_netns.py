"""Which exit a site gets, with real processes over emulated paths (R15, R16, R43).

Three exits, each with a site beside it. Every way out of a host has its own delay, so a site is nearest to
the exit beside it, by two of those delays; from the client all exits are about as far.
"""

from __future__ import annotations

import json
import subprocess

import pytest

from mesh import USERVPN, Site, wait_until
from tests.netns.lab import Lab
from tests.netns.nodes import ENTRY, Fleet

CLIENT = 7
DELAYS_MS = {1: 40, 2: 50, 3: 60}


class World(Fleet):
    """The fleet, a site beside each exit, and questions about them."""

    def __init__(self, lab: Lab, folder) -> None:
        super().__init__(lab, folder)
        self.sites: dict[int, Site] = {}
        for number, delay_ms in DELAYS_MS.items():
            host = self.net.host(f"exit{number}", delay_ms=delay_ms)
            self.server(host, number)
            with host:
                self.sites[number] = Site(host.address, 80)
                if number == 3:
                    self.sites[81] = Site(host.address, 81)
        strict = f'{{ cidr = "{self.address(3)}/32", port = 81, exit = 3, strict = true }}'
        self.me = self.client(
            self.net.host("laptop"),
            CLIENT,
            more=f"[chooser]\nrules = [{strict}]\n",
        )
        wait_until(lambda: set(self.me.states().values()) == {"up"} and self.flights_are_known())

    def address(self, number: int) -> str:
        return self.nodes[number].host.address

    def flights_are_known(self) -> bool:
        links = self.me.status()["links"]
        return len(links) == len(DELAYS_MS) and all(link["rtt_ms"] for link in links)

    def visit(self, number: int, user: str = "", port: int = 80) -> bool:
        """Fetches something from the site beside exit `number`."""
        proxy = f"socks5h://{user}{'@' if user else ''}127.0.0.1:{ENTRY}"
        with self.me.host:
            done = subprocess.run(
                [
                    "curl",
                    "-sS",
                    "-m",
                    "15",
                    "-x",
                    proxy,
                    f"http://{self.address(number)}:{port}/100",
                ],
                capture_output=True,
                timeout=20,
                check=False,
            )
        return len(done.stdout) == 100

    def rows(self) -> dict[tuple[str, str], dict]:
        """The status document's sites."""
        return {(row["site"], row["session"] or ""): row for row in self.me.status()["sites"]}

    def exit_of(self, number: int, session: str = "") -> int:
        return self.rows()[self.address(number), session]["exit"]

    def explain(self, number: int, port: int = 80) -> dict:
        done = subprocess.run(
            [*USERVPN, "explain", "--json", f"{self.address(number)}:{port}",
             "-c", str(self.me.process.config)],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
        return json.loads(done.stdout)

    def __exit__(self, *error: object) -> None:
        for site in self.sites.values():
            site.shutdown()
            site.server_close()
        super().__exit__(*error)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with Lab() as lab, World(lab, tmp_path_factory.mktemp("world")) as made:
        yield made


def test_the_nearest_exit_wins_and_keeps_its_site_through_a_restart_until_it_dies(world):
    for number in DELAYS_MS:
        assert world.visit(number)
    assert {number: world.exit_of(number) for number in DELAYS_MS} == {1: 1, 2: 2, 3: 3}
    answer = world.explain(2)
    assert (answer["exit"], answer["reason"]) == (2, "test")
    assert answer["candidates"][0]["exit"] == 2
    assert answer["candidates"][0]["expected_ms"] < answer["candidates"][1]["expected_ms"]
    exits = {number: world.nodes[number].status()["exit"]["tests"] for number in DELAYS_MS}
    assert all(tests["answered"] == 3 for tests in exits.values())
    assert all(tests["used"] == 1 for tests in exits.values())  # the winner's was open already

    # A restart, and exit 2 becomes the farthest of all: its site stays.
    world.nodes[2].host.path.set("ab", delay_ms=150)
    world.me.restart()
    wait_until(world.flights_are_known)
    assert world.visit(2) and world.exit_of(2) == 2
    assert "expires" in world.rows()[world.address(2), ""]

    # It dies: the site moves, once, and that is said; it does not come back with it.
    world.nodes[2].kill()
    wait_until(lambda: world.visit(2), 30)
    moved_to = world.exit_of(2)
    assert moved_to in (1, 3)
    assert world.rows()[world.address(2), ""]["moves"] == 1
    log = world.me.process.log.read_text()
    assert f"leaves at exit {moved_to} now: exit 2 died" in log
    assert (world.exit_of(1), world.exit_of(3)) == (1, 3)
    world.nodes[2].restart()
    wait_until(world.flights_are_known, 30)
    for _ in range(3):
        assert world.visit(2)
    assert world.exit_of(2) == moved_to
    assert world.rows()[world.address(2), ""]["moves"] == 1


def test_sessions_of_one_site_and_wishes_leave_at_different_places(world):
    assert world.visit(1, "session%3Done:x")
    assert world.exit_of(1, "one") == 1
    assert world.visit(1, "country%3Djp:x") is False  # no exit says where it is
    assert world.visit(1, "exit%3Dexit3,session%3Dtwo:x")
    assert world.exit_of(1, "exit=exit3,two") == 3
    assert not world.visit(1, "exit%3D9:x")
    assert world.exit_of(1, "one") == 1


def test_strict_refuses_rather_than_to_leave_elsewhere(world):
    """The rule is for port 81 alone; the site itself goes on living, only its exit dies."""
    assert world.explain(3, 81)["rule"].startswith("rule 1")
    assert world.visit(3, port=81) and world.exit_of(3) == 3
    world.nodes[3].kill()
    wait_until(lambda: world.me.row(3)["state"] != "up")
    for _ in range(3):
        assert not world.visit(3, port=81)
    assert world.explain(3, 81)["exit"] in (None, 3)
    wait_until(lambda: world.visit(3), 30)  # without the rule it moves
    assert world.exit_of(3) != 3
    assert not world.visit(3, port=81)
    assert world.explain(3, 81)["exit"] in (None, 3)
