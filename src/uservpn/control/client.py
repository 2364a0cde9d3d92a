"""Asks a running node over its control socket: one JSON line there, one JSON line back.

Plain blocking sockets, so that a command needs no event loop. What goes wrong is a
`ControlError` with a sentence for the user; the two that matter are "no node is running" and
"the node did not answer".
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from uservpn.errors import UservpnError

REQUEST_SIZE_MAX: Final = 64 * 1024
ANSWER_SIZE_MAX: Final = 64 * 1024 * 1024
SOCKET_PATH_SIZE_MAX: Final = 103
"""The shortest limit of the systems that have Unix sockets (macOS: 104 with the final NUL)."""


class ControlError(UservpnError):
    """The control socket cannot be opened, or nobody answers there."""


def ask(path: Path, request: Mapping[str, object], timeout: float = 5.0) -> dict[str, Any]:
    """The node's answer to `request`, within `timeout` seconds in all.

    Raises ControlError when no node is running, when it does not answer in time or not in JSON,
    and when it answers with an error.
    """
    check_path(path)
    deadline = time.monotonic() + timeout
    line = json.dumps(request, ensure_ascii=True).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(str(path))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(line)  # refused before it was read: the answer says why
            answer = _read_line(connection, deadline)
    except (FileNotFoundError, ConnectionRefusedError):
        raise ControlError(f"no node is running here (nobody answers at {path})") from None
    except TimeoutError:
        raise ControlError(f"the node at {path} did not answer in {timeout:g} seconds") from None
    except OSError as error:
        raise ControlError(f"{path}: {error.strerror or error}") from None
    return _checked(answer, path)


def check_path(path: Path) -> None:
    """ControlError when the system cannot have a socket at a path that long."""
    size = len(str(path).encode("utf-8", "surrogateescape"))
    if size > SOCKET_PATH_SIZE_MAX:
        raise ControlError(
            f"{path}: {size} bytes are too long for a socket (allowed: {SOCKET_PATH_SIZE_MAX}); "
            "choose a shorter node.state_dir"
        )


def _read_line(connection: socket.socket, deadline: float) -> bytes:
    answer = bytearray()
    while not answer.endswith(b"\n") and len(answer) <= ANSWER_SIZE_MAX:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        connection.settimeout(remaining)
        chunk = connection.recv(256 * 1024)
        if not chunk:
            break
        answer += chunk
    return bytes(answer)


def _checked(line: bytes, path: Path) -> dict[str, Any]:
    try:
        answer = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ControlError(f"the node at {path} gave no usable answer")
    if "error" in answer:
        raise ControlError(f"the node at {path} answered: {answer['error']}")
    return answer
