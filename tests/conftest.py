"""What holds for all tests: none depends on the user's proxies or on the machine's speed."""

from __future__ import annotations

import os

from hypothesis import settings

# A shared machine may be slow for a second: an example that takes long is no fault of the code.
settings.register_profile("uservpn", deadline=None)
settings.load_profile("uservpn")

# curl, git, wget and Python read these; the tests say which proxy they mean.
for _name in ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"):
    os.environ.pop(_name, None)
    os.environ.pop(_name.upper(), None)
