"""`python -m uservpn.sim`: one world, or a campaign of them."""

from __future__ import annotations

import sys

from uservpn.sim.campaign import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
