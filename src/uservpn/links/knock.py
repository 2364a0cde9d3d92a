"""Is anybody there? UDP itself does not say; the other machine does, to whoever asks in the right way.

Where no program has the port, the other machine answers a datagram with an ICMP "port unreachable". The
kernel tells that only to a socket that is connected to the place, and a link's socket is connected to none.
So a socket is made for the question: it sends one datagram of random bytes, foreign to whoever hears it,
and hears either nothing or the refusal. ICMP can be forged and routers refuse what they do not know, so
a refusal counts only if the link itself stays silent for a moment, too.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any, Final

LISTEN_S: Final = 3.0
"""How long a refusal is waited for."""
SILENCE_S: Final = 0.5
"""How long the link is given to be heard after all."""
SIZE_MIN: Final = 64
SIZE_SPAN: Final = 256


class Knock:
    """One question. `refused` is called once, or never; `cancel` ends it at any time."""

    def __init__(self, family: int, address: tuple[Any, ...], refused: Callable[[], None]) -> None:
        self._refused = refused
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        sock: socket.socket | None = None
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM)
            sock.setblocking(False)
            sock.connect(address)
            sock.send(os.urandom(SIZE_MIN + os.urandom(1)[0] % SIZE_SPAN))
        except OSError:  # no way there, or no descriptor left, just now: no answer either
            if sock is not None:
                sock.close()
            return
        self._sock = sock
        self._loop.add_reader(sock.fileno(), self._on_readable)
        self._timer = self._loop.call_later(LISTEN_S, self.cancel)

    def cancel(self) -> None:
        """Nothing more will be called."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._end()

    def _end(self) -> None:
        if self._sock is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def _on_readable(self) -> None:
        assert self._sock is not None
        try:
            self._sock.recv(1)
        except ConnectionRefusedError:
            self.cancel()
            self._timer = self._loop.call_later(SILENCE_S, self._refused)
        except OSError:
            self._end()
