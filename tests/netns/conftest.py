"""Labs need root. Without it these tests are skipped, and say so; without anything else they fail."""

from __future__ import annotations

import os

import pytest

from tests.netns import lab


@pytest.fixture(scope="session", autouse=True)
def machine() -> None:
    """What every test here stands on."""
    if os.geteuid() != 0:
        pytest.skip("needs root: network namespaces, TUN devices and iptables")
    lack = lab.missing()
    assert lack is None, lack
