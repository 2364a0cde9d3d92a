"""What tells one start of a node from another, and one node from another with the same number.

The boot number: a node's start, always greater than any before it.

Milliseconds since 1970 and 16 random bits; the last one is kept in the state directory, so that a clock that
was set back cannot make it repeat. Payload keys depend on it: a repeated boot would repeat nonces.

The instance: random, made at the first start and kept beside it. It stays, so a restart is told from another
node that has the number by mistake.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from uservpn.mesh.claims import INSTANCE_SIZE
from uservpn.wire.constants import BOOT_CHANCE


def next_boot(state_dir: Path) -> int:
    """A fresh boot number, written down before it is used. Raises OSError when it cannot be."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = state_dir / "boot"
    try:
        last = int(file.read_text())
    except (OSError, ValueError):
        last = 0
    boot = max(random_boot(), last + 1)
    draft = state_dir / "boot.new"
    with draft.open("w") as out:
        out.write(f"{boot}\n")
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)
    return boot


def instance_of(state_dir: Path) -> bytes:
    """The 8 bytes that stay the same from start to start. Raises OSError when they cannot be kept."""
    file = state_dir / "instance"
    try:
        instance = bytes.fromhex(file.read_text().strip())
    except (OSError, ValueError):
        instance = b""
    if len(instance) != INSTANCE_SIZE:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        instance = os.urandom(INSTANCE_SIZE)
        draft = state_dir / "instance.new"
        draft.write_text(instance.hex() + "\n")
        draft.replace(file)
    return instance


def random_boot() -> int:
    """A boot number by the clock alone, for a node that keeps no state."""
    return int(time.time() * 1000) << BOOT_CHANCE | int.from_bytes(
        os.urandom(BOOT_CHANCE // 8), "big"
    )
