"""What holds for all tests: none depends on the user's proxies or on the machine's speed."""

from __future__ import annotations

import os
import sys

from hypothesis import settings

# A shared machine may be slow for a second: an example that takes long is no fault of the code.
settings.register_profile("uservpn", deadline=None)
settings.load_profile("uservpn")

# curl, git, wget and Python read these; the tests say which proxy they mean.
for _name in ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"):
    os.environ.pop(_name, None)
    os.environ.pop(_name.upper(), None)

# Hundreds of processes start here. Where compiled modules may not be kept, as in many containers, each of
# them would compile the whole program, which takes longer than its start.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
