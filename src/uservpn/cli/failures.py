"""What an error says to the user, and the exit status that goes with it."""

from __future__ import annotations

import os
from typing import Final

from uservpn.errors import ConfigError, UservpnError

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2


def explain(error: Exception) -> tuple[tuple[str, ...], int]:
    """Sentences for standard error, and the exit status.

    Raises `error` itself where USERVPN_TRACEBACK is set and it is a mistake of ours.
    """
    if isinstance(error, ConfigError):
        return error.problems, EXIT_USAGE
    if isinstance(error, UservpnError):
        return (str(error),), EXIT_FAILED
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return (f"{where}{error.strerror or error}",), EXIT_FAILED
    if os.environ.get("USERVPN_TRACEBACK"):
        raise error
    return (f"internal error: {type(error).__name__}: {error}",), EXIT_FAILED
