"""`python -m uservpn` is the same as `uservpn`."""

from __future__ import annotations

from uservpn.cli.main import main

if __name__ == "__main__":
    main()
