"""The demo's start, where somebody else is quicker with a port."""

from __future__ import annotations

import asyncio
import itertools
import socket

import pytest

from uservpn import demo
from uservpn.demo import STARTS_MAX, run_demo


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def _run(port: int = 0) -> int:
    boots = itertools.count(1000)
    return asyncio.run(run_demo(True, port, lambda: next(boots)))


@pytest.mark.parametrize("which", range(3))
def test_a_port_that_was_taken_in_between_costs_a_second_try(monkeypatch, taken, which, capsys):
    """For the entry and for either exit."""
    free = demo._free_port
    asked = itertools.count()
    monkeypatch.setattr(demo, "_free_port", lambda: taken if next(asked) == which else free())
    assert _run() == 0
    assert capsys.readouterr().out.count(": ok") == 2


def test_a_port_that_the_user_chose_and_that_is_taken_is_one_clear_line(taken, capsys):
    assert _run(taken) == 1
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and str(taken) in out and STARTS_MAX > 1
