"""The configuration: one TOML file in, one frozen `Config` out, or every problem at once.

    bytes -> text (UTF-8) -> tables (tomllib) -> sections (schema) -> meaning (here) -> Config

A `Config` cannot be wrong: addresses are numeric, numbers are in range, keys are 32 bytes, the
protocols have a link plug-in. What this version does not do is refused rather than ignored. A
problem never shows a key or a password; nor does the `repr` of anything here.

`diff` names the sections that differ between two configurations, so that a reload touches only
what changed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from uservpn.control import places
from uservpn.control.files import exposure, read_file
from uservpn.control.initial import ServerLine, render_initial, render_servers
from uservpn.control.keys import fingerprint, new_key
from uservpn.control.model import (
    ChooserConfig,
    Config,
    ControlConfig,
    EntryConfig,
    ExitConfig,
    GeoConfig,
    IpAddress,
    IpNetwork,
    NetworkConfig,
    NodeConfig,
    ServerConfig,
    TunnelConfig,
    UpdateConfig,
)
from uservpn.control.problems import Problems
from uservpn.control.reader import Reader, parse_server
from uservpn.control.schema import SECTIONS
from uservpn.errors import ConfigError

__all__ = [
    "ChooserConfig",
    "Config",
    "ControlConfig",
    "EntryConfig",
    "ExitConfig",
    "GeoConfig",
    "IpAddress",
    "IpNetwork",
    "NetworkConfig",
    "NodeConfig",
    "ServerConfig",
    "ServerLine",
    "TunnelConfig",
    "UpdateConfig",
    "diff",
    "fingerprint",
    "load",
    "new_key",
    "parse",
    "parse_server",
    "render_initial",
    "render_servers",
    "state_dir_of",
]

CONFIG_SIZE_MAX: Final = 1 << 20


def load(path: Path, extra_servers: Sequence[str] = (), *, with_rules: bool = True) -> Config:
    """Read the file at `path` and the `ID=URL` texts of `--server`.

    `with_rules` False is for those who only want to find the running node: rules and their lists, which
    may be long, are not read. Raises ConfigError with one sentence per problem, all that can be
    told at once.
    """
    problems = Problems(str(path))
    content = read_file(path, CONFIG_SIZE_MAX)
    if isinstance(content, str):
        hint = " (write a new one with: uservpn init)" if content == "no such file" else ""
        raise ConfigError([f"{path}: {content}{hint}"])
    warnings = exposure(path, content)
    try:
        text = content.data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.data.count(b"\n", 0, error.start) + 1
        problems.note(f"found bytes that are not UTF-8 ({error.reason}); allowed: UTF-8", line)
        raise ConfigError(problems.sentences) from None
    return parse(text, path, extra_servers, warnings, with_rules=with_rules)


def parse(
    text: str,
    path: Path,
    extra_servers: Sequence[str] = (),
    warnings: Iterable[str] = (),
    *,
    with_rules: bool = True,
) -> Config:
    """Like `load`, for a text already in hand; `path` names it and anchors relative paths."""
    problems = Problems(str(path), text)
    document = _tables(text, problems)
    if document is None:
        raise ConfigError(problems.sentences)
    reader = Reader(document, path, problems, list(warnings))
    config = reader.read(extra_servers, with_rules=with_rules)
    if config is None:
        raise ConfigError(problems.sentences)
    return config


def state_dir_of(config: Config) -> Path:
    """The directory for the control socket and for what a node remembers."""
    return config.node.state_dir or places.default_state_dir()


def diff(old: Config, new: Config) -> frozenset[str]:
    """The names of the sections that differ; empty when a reload has nothing to do."""
    return frozenset(name for name in SECTIONS if getattr(old, name) != getattr(new, name))


def _tables(text: str, problems: Problems) -> dict[str, object] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problems.note(*_explain(str(error), text))
    except (ValueError, RecursionError):
        problems.note("found a number or nesting beyond all bounds; allowed: TOML")
    return None


def _explain(message: str, text: str) -> tuple[str, int | None]:
    """Tomllib's message as a sentence of ours, and its line."""
    reason, _, place = message.partition(" (at ")
    line = None
    if place.startswith("line "):
        line = int(place[5:].partition(",")[0])
    elif place.startswith("end of document"):
        line = max(1, len(text.splitlines()))
    repeats = ("Cannot overwrite", "Cannot declare", "Cannot mutate", "Duplicate inline table key")
    if reason.startswith(repeats):
        written = text.splitlines()[line - 1] if line else ""
        name = written.partition("=")[0].strip() or "a key"
        return f"{name}: found for the second time; allowed: each key and each section once", line
    return f"found text that is not TOML ({reason}); allowed: TOML", line
