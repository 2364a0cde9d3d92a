r"""Answers questions about the running node on a Unix socket.

    {"command": "status"}\n   ->   {"version": 1, ...}\n      or   {"error": "a sentence"}\n

One JSON object per line, any number of requests per connection, answered in order. The socket
is for its owner only (mode 0600) and also marks that the node runs: whoever holds the lock
beside it is the one node of this state directory. A socket that a killed node left behind is
replaced; one that answers is never touched.

Everything is bounded: the size of a request, the time it may take to arrive and to be read by
the asker, and the number of connections (the newest is refused). An idle server costs nothing:
no timer runs while nobody is connected.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from uservpn.control.client import REQUEST_SIZE_MAX, ControlError, check_path
from uservpn.errors import UservpnError

TIME_LIMIT_S: Final = 10.0
CONNECTIONS_MAX: Final = 32

Handler = Callable[[dict[str, Any]], dict[str, Any] | Awaitable[dict[str, Any]]]


class ControlServer:
    """The control socket of one node; `handler` runs on the loop and must not block.

    It may return an awaitable for an answer that takes time, which it must bound itself.
    A UservpnError that the handler raises becomes the error of the answer. Any other exception
    is a bug of ours: it goes to the loop's exception handler, and the asker is told that much.
    """

    def __init__(self, path: Path, handler: Handler, time_limit: float = TIME_LIMIT_S) -> None:
        self._path = path
        self._handler = handler
        self._time_limit = time_limit
        self._server: asyncio.Server | None = None
        self._lock: int | None = None
        self._identity: tuple[int, int] | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen.

        Raises ControlError when a node is already running here, or when the socket cannot be
        made; nothing is left behind then.
        """
        check_path(self._path)
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _lock(self._path)
            _clear(self._path)
            await self._listen(self._bind())
        except OSError as error:
            await self.close()
            raise ControlError(f"{self._path}: {error.strerror or error}") from None
        except ControlError:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop listening, drop who is connected, remove the socket; harmless when repeated."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()
        if self._identity is not None and _identity(self._path) == self._identity:
            self._path.unlink(missing_ok=True)
        self._identity = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _listen(self, listener: socket.socket) -> None:
        try:
            self._server = await asyncio.start_unix_server(
                self._serve, sock=listener, limit=REQUEST_SIZE_MAX
            )
        except OSError:
            listener.close()
            raise

    def _bind(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)  # the socket must never exist with a wider mode
        try:
            listener.bind(str(self._path))
            self._identity = _identity(self._path)
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(mask)
        listener.setblocking(False)
        return listener

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._writers) >= CONNECTIONS_MAX:
            writer.write(_encode({"error": "too many connections"}))
            writer.close()
            return
        self._writers.add(writer)
        try:
            while await self._answer_one(reader, writer):
                pass
        except (OSError, TimeoutError):
            writer.transport.abort()
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read one request and answer it; False when the connection is over."""
        try:
            async with asyncio.timeout(self._time_limit):
                line = await reader.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            return False
        except asyncio.LimitOverrunError:
            error = f"the request is longer than {REQUEST_SIZE_MAX} bytes"
            return await self._send(writer, _encode({"error": error}), goes_on=False)
        except TimeoutError:
            error = f"no request in {self._time_limit:g} seconds"
            return await self._send(writer, _encode({"error": error}), goes_on=False)
        return await self._send(writer, await self._answer(line), goes_on=True)

    async def _send(self, writer: asyncio.StreamWriter, line: bytes, goes_on: bool) -> bool:
        writer.write(line)
        async with asyncio.timeout(self._time_limit):
            await writer.drain()
        return goes_on

    async def _answer(self, line: bytes) -> bytes:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return _encode({"error": "the request is not JSON"})
        if not isinstance(request, dict):
            return _encode({"error": "the request is not a JSON object"})
        try:
            answer = self._handler(request)
            return _encode(answer if isinstance(answer, dict) else await answer)
        except UservpnError as error:
            return _encode({"error": str(error)})
        except Exception as error:
            context = {"message": "a control request failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
            return _encode({"error": "internal error (the node's log has the details)"})


def _encode(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


def _lock(path: Path) -> int:
    """Hold the file beside the socket until the process ends; two nodes can never both start."""
    import fcntl  # not on every platform that can import this module

    descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ControlError(_already_running(path)) from None
    return descriptor


def _clear(path: Path) -> None:
    """Remove a socket that nobody answers; ControlError when it answers or is no socket."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ControlError(f"{path}: there is a file that is not a socket; move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except TimeoutError:
            pass  # its queue is full: somebody is there
    raise ControlError(_already_running(path))


def _already_running(path: Path) -> str:
    return f"a node is already running with this state directory ({path.parent})"


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
