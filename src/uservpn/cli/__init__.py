"""The command line: `uservpn init, run, check, status, demo, key`."""
