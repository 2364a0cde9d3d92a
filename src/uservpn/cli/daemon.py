"""The daemon, without the command line that started it.

`uservpn run` reads its options, then puts this in its place, in the same process: a node that runs
for months keeps no parser, no help texts and no command in memory (1.3 MiB of them).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from uservpn.cli.failures import explain
from uservpn.runtime.signals import EARLY


def become(config: Path, servers: tuple[str, ...]) -> NoReturn:
    """This process is the daemon from here on; its number stays. Never returns."""
    if os.name != "posix" or getattr(sys, "frozen", False):
        sys.exit(run(config, servers))
    sys.stdout.flush()
    sys.stderr.flush()
    # -P: a module of the working directory must not take the place of one of the library
    words = [sys.executable, "-P", "-m", __spec__.name, str(config), *servers]
    os.execv(sys.executable, words)


def run(config: Path, servers: tuple[str, ...]) -> int:
    """Runs the node until it is stopped; the exit status."""
    EARLY.listen()
    from uservpn import app

    try:
        return app.run(config, servers)
    except Exception as error:
        sentences, status = explain(error)
        for sentence in sentences:
            print(f"uservpn: {sentence}", file=sys.stderr)
        return status


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), tuple(sys.argv[2:])))
