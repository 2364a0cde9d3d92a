"""`python -m uservpn` is the same as `uservpn`."""

from __future__ import annotations

from uservpn.cli.start import main

if __name__ == "__main__":
    main()
