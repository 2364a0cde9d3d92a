"""Reloads: what changes is taken over, what goes wrong is told, and the next reload is heard."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from uservpn import app

pytestmark = pytest.mark.timeout(30)


def test_a_reload_that_fails_by_a_mistake_of_ours_is_logged_and_the_next_one_is_heard(
    monkeypatch, caplog, tmp_path
) -> None:
    outcomes = [AssertionError("ours"), frozenset({"exit"})]
    seen = []

    async def reconfigure(config):
        seen.append(config)
        outcome = outcomes[len(seen) - 1]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def play() -> None:
        told = asyncio.Event()
        service = SimpleNamespace(reconfigure=reconfigure)
        task = asyncio.create_task(app._reload_when_told(service, tmp_path, (), told))
        for count in (1, 2):
            told.set()
            async with asyncio.timeout(10):
                while len(seen) < count:
                    await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
        assert not task.done()
        task.cancel()

    monkeypatch.setattr(app, "load", lambda *words: SimpleNamespace(warnings=()))
    caplog.set_level("INFO", "uservpn")
    asyncio.run(play())
    assert "the reload failed" in caplog.text and "AssertionError: ours" in caplog.text
    assert "configuration reread: exit" in caplog.text
