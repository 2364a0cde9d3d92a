"""What is installed is what pyproject.toml says; the lock binds every dependency by its hash."""

from __future__ import annotations

import re
from importlib.metadata import entry_points, version
from pathlib import Path

import uservpn

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements" / "dev.lock").read_text(encoding="utf-8")


def test_one_version() -> None:
    assert uservpn.__version__ == version("uservpn")


def test_the_tcp_link_is_found_as_a_plug_in() -> None:
    (plugin,) = entry_points(group="uservpn.links", name="tcp")
    assert plugin.load() is not None


def test_the_command_is_installed() -> None:
    (command,) = entry_points(group="console_scripts", name="uservpn")
    assert callable(command.load())


def test_every_locked_package_has_a_hash() -> None:
    entries = re.split(r"^(?=[a-z0-9])", LOCK, flags=re.MULTILINE)[1:]
    assert len(entries) > 10
    for entry in entries:
        assert "==" in entry and "--hash=sha256:" in entry, entry


def test_the_lock_names_no_place() -> None:
    assert not re.search(r"://|@ |\s[./~]|--(find-links|index-url|extra-index-url)", LOCK)


def test_every_dependency_and_the_build_backend_are_locked() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wanted = {"setuptools"} | set(re.findall(r'^ *"([a-z0-9-]+)>=', text, flags=re.MULTILINE))
    assert len(wanted) > 10
    locked = set(re.findall(r"^([a-z0-9-]+)==", LOCK, flags=re.MULTILINE))
    assert wanted <= locked
