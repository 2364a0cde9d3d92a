"""uservpn nodes, sites and transfers in the hosts of a lab, as real processes."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import threading
import time
from pathlib import Path

from mesh import BLOCK, KEY, NodeProcess, Site, curl, digest_of, wait_until
from tests.netns.lab import Host, Lab

PORT = 7000
ENTRY = 1080
MIB = 1 << 20
EXIT_TABLE = '[exit]\nenabled = true\nallow = ["198.18.0.0/15"]\n'


class Node:
    """One node in one host; every host has a loopback of its own, so all use the same ports."""

    def __init__(self, host: Host, number: int, folder: Path, text: str) -> None:
        self.host = host
        self.number = number
        self.folder = folder
        self.text = text
        self.process = self._start()

    def _start(self) -> NodeProcess:
        with self.host:
            return NodeProcess(self.folder, self.text)

    def status(self) -> dict:
        """The status document."""
        return self.process.status()

    def states(self) -> dict[int, str]:
        """Of the other nodes, by number: "up" and so on."""
        return {row["id"]: row["state"] for row in self.status()["nodes"]}

    def row(self, number: int) -> dict:
        """What the status document says of another node; empty when it does not know it."""
        rows = [row for row in self.status()["nodes"] if row["id"] == number]
        return rows[0] if rows else {}

    def curl(self, *words: str, exit: int = 0, timeout: float = 60) -> bytes:
        """What curl prints, through this node's entry; it may end badly."""
        with self.host:
            user = f"exit%3D{exit}:x" if exit else ""
            return curl(ENTRY, *words, user=user, timeout=timeout).stdout

    def kill(self) -> None:
        """As kill -9: nobody is told."""
        self.process.process.kill()
        self.process.stop()

    def restart(self) -> None:
        """The same node anew, after `kill` or while it runs."""
        self.process.stop()
        self.process = self._start()


class Fleet:
    """All nodes of one test, and a site that every exit reaches; closing it shows what any log says."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        self.net = lab.internet()
        self.nodes: dict[int, Node] = {}
        self._urls: dict[int, list[str]] = {}
        self._place = self.net.host("site")
        with self._place:
            self.site = Site(self._place.address, 80)
        self.url = f"http://{self._place.address}"

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *error: object) -> None:
        self.site.shutdown()
        self.site.server_close()
        for node in reversed(self.nodes.values()):
            node.process.stop()
        logs = {n: node.process.log.read_text() for n, node in self.nodes.items()}
        for number, log in logs.items():
            print(f"--- log of node {number} ({self.nodes[number].host.name})\n{log}")
        assert not any("Traceback" in log for log in logs.values())

    def server(
        self, host: Host, number: int, protocols: tuple[str, ...] = ("tcp",), more: str = ""
    ) -> Node:
        """A node with a fixed address, an exit; it knows the servers made before it."""
        listen = [f"{protocol}://0.0.0.0:{PORT}" for protocol in protocols]
        public = [f"{protocol}://{host.address}:{PORT}" for protocol in protocols]
        node = self._node(
            host, number, f"listen = {listen}\npublic = {public}\n", EXIT_TABLE + more
        )
        self._urls[number] = public
        return node

    def client(
        self,
        host: Host,
        number: int,
        knows: tuple[int, ...] = (),
        is_exit: bool = False,
        more: str = "",
    ) -> Node:
        """A node with an entry that listens nowhere else; it is told of these servers (default: all)."""
        entry = f'[entry]\nlisten = "127.0.0.1:{ENTRY}"\n' + EXIT_TABLE * is_exit
        return self._node(host, number, "", entry + more, knows)

    def _node(
        self, host: Host, number: int, own: str, tables: str, knows: tuple[int, ...] = ()
    ) -> Node:
        folder = self.folder / str(number)
        text = (
            f'[network]\nkey = "{KEY}"\n[node]\nid = {number}\nname = "{host.name}"\n'
            f'state_dir = "{folder}/s"\n{own}'
        )
        for server in knows or tuple(self._urls):
            text += f"[[servers]]\nid = {server}\nendpoints = {self._urls[server]}\n"
        self.nodes[number] = Node(host, number, folder, (text + tables).replace("'", '"'))
        return self.nodes[number]

    def wait_until_all_know_all(self, seconds: float = 20) -> None:
        """Until every node lists every other."""
        for node in self.nodes.values():
            others = set(self.nodes) - {node.number}
            wait_until(lambda n=node, o=others: set(n.states()) == o, seconds)

    def routes(self) -> dict[tuple[int, int], list[int]]:
        """By (from, to): the way there, as the nodes on it; of those that have one."""
        return {
            (node.number, row["id"]): row["route"]
            for node in self.nodes.values()
            if node.process.process.poll() is None
            for row in node.status()["nodes"]
            if row["route"]
        }

    def fetches(self, client: Node, size: int, exit: int = 0, timeout: float = 20) -> bool:
        """Did so many bytes of the site arrive whole?"""
        data = client.curl(f"{self.url}/{size}", exit=exit, timeout=timeout)
        return len(data) == size and hashlib.sha256(data).hexdigest() == digest_of(size)


class Transfer(threading.Thread):
    """A download or upload with curl that goes on while things happen to the path.

    `done` tells how many bytes came by (or went into curl), `longest_stall_s` the longest time between
    two of them.
    """

    def __init__(
        self, fleet: Fleet, client: Node, size: int, exit: int = 0, is_upload: bool = False,
        limit_s: float = 110,
    ) -> None:  # fmt: skip
        super().__init__(daemon=True)
        self.size = size
        self.done = 0
        self.longest_stall_s = 0.0
        self.took_s = 0.0
        self._is_upload = is_upload
        self._answer = b""
        user = f"exit%3D{exit}:x@" if exit else ""
        words = ["curl", "-sS", "-m", str(limit_s), "-x", f"socks5h://{user}127.0.0.1:{ENTRY}"]
        if is_upload:
            words += ["-X", "POST", "-H", f"Content-Length: {size}", "-H", "Expect:", "-T", "-"]
            words += ["-H", "Transfer-Encoding:"]
        self._curl = client.host.popen(
            [*words, f"{fleet.url}/{'' if is_upload else size}"],
            stdin=subprocess.PIPE if is_upload else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._digest = hashlib.sha256()
        self._last = time.monotonic()
        self.start()

    def run(self) -> None:
        begin = time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            self._upload() if self._is_upload else self._download()
        self.took_s = time.monotonic() - begin

    def _download(self) -> None:
        assert self._curl.stdout is not None
        while part := self._curl.stdout.read1(1 << 16):
            self._digest.update(part)
            self._moved(len(part))

    def _upload(self) -> None:
        assert self._curl.stdin is not None and self._curl.stdout is not None
        while self.done < self.size:
            at = self.done % len(BLOCK)
            part = BLOCK[at : at + min(1 << 14, self.size - self.done)]
            self._curl.stdin.write(part)
            self._curl.stdin.flush()
            self._moved(len(part))
        self._curl.stdin.close()
        self._answer = self._curl.stdout.read()
        self._moved(0)

    def _moved(self, size: int) -> None:
        now = time.monotonic()
        self.longest_stall_s = max(self.longest_stall_s, now - self._last)
        self._last = now
        self.done += size

    def wait_for(self, size: int, seconds: float = 60) -> None:
        """Until so many bytes came by."""
        wait_until(lambda: self.done >= size or not self.is_alive(), seconds)
        assert self.done >= size, f"it ended after {self.done} bytes: {self._words()}"

    def end(self, seconds: float = 110) -> None:
        """Waits for its end; every byte came, and is right."""
        self.join(seconds)
        assert not self.is_alive(), f"not done within {seconds} s; {self.done} of {self.size} bytes"
        digest = self._answer.decode() if self._is_upload else self._digest.hexdigest()
        words = self._words()
        self._curl.wait(10)
        assert self.done == self.size, f"{self.done} of {self.size} bytes: {words}"
        assert digest == digest_of(self.size), words

    def _words(self) -> str:
        assert self._curl.stderr is not None
        return self._curl.stderr.read().decode() if not self.is_alive() else ""
