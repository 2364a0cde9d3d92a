"""A TCP forwarder between client and server: its connections can be cut, heard, damaged and held up."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable


class Flow:
    """One direction of one connection: what passed, while it was recorded, as it came."""

    def __init__(self, is_upstream: bool) -> None:
        self.is_upstream = is_upstream
        """From the side that dialled."""
        self.segments: list[bytes] = []
        self.tail = bytearray()
        """For a mangler: what it keeps back."""

    @property
    def heard(self) -> bytes:
        """All that was recorded."""
        return b"".join(self.segments)


class Cutter:
    """The forwarder.

    `mangle(flow, data)` returns what passes instead of `data`; `record` keeps both flows of every
    connection that begins while it is a list; `gates` hold up a direction (True: upstream) until they
    are set.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.pairs: list[tuple[socket.socket, socket.socket]] = []
        self.carried = 0
        self.mangle: Callable[[Flow, bytes], bytes] | None = None
        self.record: list[tuple[Flow, Flow]] | None = None
        self.gates = {True: threading.Event(), False: threading.Event()}
        self.set_open(True, True)
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def set_open(self, up: bool, down: bool) -> None:
        """Which directions pass; what waits in a closed one is not lost."""
        for is_upstream, is_open in ((True, up), (False, down)):
            gate = self.gates[is_upstream]
            gate.set() if is_open else gate.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self.target), 5)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                self.pairs.append((near, far))
                thread = threading.Thread(target=self._both, args=(near, far), daemon=True)
                self.threads.append(thread)
                thread.start()

    def _both(self, near: socket.socket, far: socket.socket) -> None:
        up, down = Flow(True), Flow(False)
        if self.record is not None:
            self.record.append((up, down))
        back = threading.Thread(target=self._carry, args=(far, near, down), daemon=True)
        back.start()
        self._carry(near, far, up)
        back.join()
        near.close()
        far.close()

    def _carry(self, source: socket.socket, sink: socket.socket, flow: Flow) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if self.record is not None:
                    flow.segments.append(data)
                if self.mangle is not None:
                    data = self.mangle(flow, data)
                self.gates[flow.is_upstream].wait()
                sink.sendall(data)
                self.carried += len(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Every connection ends now; what was on its way in them is lost."""
        pairs, self.pairs = self.pairs, []
        for pair in pairs:
            for sock in pair:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends all."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.set_open(True, True)
        self.cut()
        for thread in self.threads:
            thread.join(10)
