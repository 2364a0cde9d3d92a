"""The entry point of the program: signals wait while the command line, with all it needs, is loaded.

Else a SIGHUP in the first tenths of a second would kill a node that has just been started.
"""

from __future__ import annotations

from uservpn.runtime.signals import hold


def main() -> None:
    """Runs the command; `run` hears signals a little later than others."""
    hold()
    from uservpn.cli.main import main as command

    command()
