"""Where files live when nobody says otherwise.

The platform's own places: the XDG directories for a user, `/etc` and `/var/lib` for root on
Linux, `Application Support` on macOS, `%APPDATA%` and `%LOCALAPPDATA%` on Windows. An XDG
variable that is not an absolute path is ignored, as its specification demands.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

CONFIG_NAME: Final = "config.toml"
SOCKET_NAME: Final = "control.sock"


def default_config_path() -> Path:
    """The configuration file that is read when `-c` is not given."""
    return _config_home() / CONFIG_NAME


def default_state_dir() -> Path:
    """The directory for state when `node.state_dir` is absent."""
    if sys.platform == "win32":
        return _windows("LOCALAPPDATA") / "uservpn"
    chosen = _xdg("XDG_STATE_HOME")
    if chosen is not None:
        return chosen / "uservpn"
    if _is_root():
        return Path("/var/lib/uservpn")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "uservpn"
    return Path.home() / ".local" / "state" / "uservpn"


def control_socket(state_dir: Path) -> Path:
    """Where a node with this state directory answers `uservpn status`."""
    return state_dir / SOCKET_NAME


def _config_home() -> Path:
    if sys.platform == "win32":
        return _windows("APPDATA") / "uservpn"
    chosen = _xdg("XDG_CONFIG_HOME")
    if chosen is not None:
        return chosen / "uservpn"
    if _is_root():
        return Path("/etc/uservpn")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "uservpn"
    return Path.home() / ".config" / "uservpn"


def _xdg(variable: str) -> Path | None:
    value = os.environ.get(variable, "")
    return Path(value) if os.path.isabs(value) else None


def _windows(variable: str) -> Path:
    return Path(os.environ.get(variable) or Path.home())


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0
