"""What a node knows of the mesh, on disk: the list of nodes, and what NATs need.

With the list a node finds the others when its configured server is gone. The second file has a line for each
network: the address that others saw this node at, and for how many seconds its NAT remembers.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from pathlib import Path
from typing import Final

from uservpn.mesh.binding import Binding
from uservpn.mesh.directory import Directory

log: Final = logging.getLogger("uservpn")
NAME: Final = "nodes"
NATS_NAME: Final = "nats"
SIZE_MAX: Final = 1024 * 1024


def load_nodes(state_dir: Path, directory: Directory, now: float) -> None:
    """Merges the stored list; a damaged file is set aside, and that is said."""
    path = state_dir / NAME
    data = _read(path)
    if data is None:
        return
    try:
        directory.load(data, now)
    except ValueError as error:
        aside = path.with_suffix(".damaged")
        log.warning("%s is %s: set aside as %s", path, error, aside.name)
        try:
            path.replace(aside)
        except OSError:
            return  # it will be overwritten


def save_nodes(state_dir: Path, directory: Directory, now: float) -> None:
    """Writes the list in one piece; a full disk leaves the old one."""
    _write(state_dir / NAME, directory.dump(now))


def load_nats(state_dir: Path, binding: Binding) -> None:
    """What was found before; lines that make no sense are left out, it is found again."""
    found: dict[str, float] = {}
    for line in (_read(state_dir / NATS_NAME) or b"").decode("ascii", "replace").splitlines():
        try:
            address, seconds = line.split()
            found[str(ipaddress.ip_address(address))] = float(seconds)
        except ValueError:
            continue
    binding.restore(found)


def save_nats(state_dir: Path, binding: Binding) -> None:
    """Writes what was found, if that is something."""
    if binding.found:
        lines = [f"{network} {interval_s:g}\n" for network, interval_s in binding.found.items()]
        _write(state_dir / NATS_NAME, "".join(lines).encode())


def _read(path: Path) -> bytes | None:
    """The file; None: there is none that can be read, which was said."""
    try:
        with path.open("rb") as file:
            return file.read(SIZE_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s cannot be read (%s): starting without it", path, error.strerror)
        return None


def _write(path: Path, data: bytes) -> None:
    draft = path.with_name(f"{path.name}.new")
    try:
        with draft.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(data)
        draft.replace(path)
    except OSError as error:
        log.warning("%s was not saved: %s", path, error.strerror)
