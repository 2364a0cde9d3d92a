"""The node list on disk: so that a node finds the others when its configured server is gone."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from uservpn.mesh.directory import Directory

log: Final = logging.getLogger("uservpn")
NAME: Final = "nodes"
SIZE_MAX: Final = 1024 * 1024


def load_nodes(state_dir: Path, directory: Directory, now: float) -> None:
    """Merges the stored list; a damaged file is set aside, and that is said."""
    path = state_dir / NAME
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_MAX + 1)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("%s cannot be read (%s): starting without it", path, error.strerror)
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
    draft = state_dir / f"{NAME}.new"
    try:
        with draft.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(directory.dump(now))
        draft.replace(state_dir / NAME)
    except OSError as error:
        log.warning("the node list was not saved to %s: %s", state_dir / NAME, error.strerror)
