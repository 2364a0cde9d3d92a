"""A laboratory of network namespaces: hosts, an internet between them, NAT routers, emulated paths.

    with Lab() as lab:
        net = lab.internet()
        one = net.host("one")                              # 198.18.1.2, a cable to the internet's router
        far = net.host("far", delay_ms=50, rate_mbit=100)  # 198.18.2.2, over an emulated path
        home = net.nat("home")                             # outside 198.18.3.2
        laptop = home.host("laptop")                       # inside 192.168.3.2
        with laptop:                                       # this thread is there, what it starts as well
            subprocess.run(["ping", "-c1", one.address])
        net.block(one, home, "-p", "udp")
        far.path.set("ab", loss=0.3)                       # "ab": from the host
        home.change_address()

The namespaces have no name and belong to open files of this process: the kernel removes them, with all
devices, when the lab is closed or the process ends, however it ends, and the processes in them have
ended. Nothing leads out of them. To look into one while a test stands still: nsenter --net=PATH, where
PATH is `host.space`.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.netns.emulator import Emulator

CLONE_NEWNET: Final = 0x40000000
LIMIT_S: Final = 30.0
_libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """What a command of the lab said when it failed, or what the machine lacks."""


def missing() -> str | None:
    """What this machine lacks for a lab, in a sentence; None when it has all."""
    if not Path("/dev/net/tun").exists():
        return (
            "/dev/net/tun is missing: the kernel has no TUN devices, or this container hides them"
        )
    for program in ("ip", "iptables", "conntrack", "ss", "gcc"):
        if shutil.which(program, path=_PATH) is None:
            return f"the program {program!r} is missing: install it (.ci/run names the package)"
    return None


_PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Host:
    """A network namespace. In `with host:` this thread, and what it starts, is in it."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.name = name
        self.lab = lab
        self._file = _new_namespace()
        self.space = f"/proc/{os.getpid()}/fd/{self._file}"
        """The namespace as a path, for `nsenter --net=` and the emulator."""
        self._before = threading.local()
        self.ports: list[Port] = []
        """Where it is joined to a router, first the one with the default route."""
        self.ip("link set lo up")

    @property
    def address(self) -> str:
        """Its first IPv4 address."""
        return self.ports[0].address

    @property
    def path(self) -> Emulator:
        """The emulated path of its first port; "ab" is from the host."""
        emulator = self.ports[0].emulator
        assert emulator is not None, f"{self.name} hangs on a plain cable"
        return emulator

    def __enter__(self) -> Host:
        stack = self._before.__dict__.setdefault("stack", [])
        stack.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        _enter(self._file)
        return self

    def __exit__(self, *error: object) -> None:
        back = self._before.stack.pop()
        _enter(back)
        os.close(back)

    def run(self, *words: str, given: str | None = None) -> str:
        """The output of a command in the namespace; LabError when it fails or takes too long."""
        with self:
            return run(*words, given=given)

    def popen(self, words: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """A program in the namespace; the lab kills what still runs when it closes."""
        with self:
            process = subprocess.Popen(words, **options)
        self.lab.processes.append(process)
        return process

    def ip(self, *commands: str) -> None:
        """Commands of ip(8), all or an error."""
        self.run("ip", "-batch", "-", given="\n".join(commands) + "\n")

    def iptables(self, *words: str) -> None:
        """One command of iptables(8)."""
        self.run("iptables", "-w", *words)

    def sysctl(self, **values: object) -> None:
        """Sets such as `net__ipv4__ip_forward=1`: two underscores are a dot."""
        with self:
            for name, value in values.items():
                Path("/proc/sys", *name.split("__")).write_text(str(value))

    def block(self, *words: str, chain: str = "OUTPUT") -> None:
        """Packets that match these words of iptables are dropped, until `unblock` with the same words.

        A target of one's own may stand at the end: `-j REJECT --reject-with tcp-reset`.
        """
        self.iptables("-I", chain, *_with_target(words))

    def unblock(self, *words: str, chain: str = "OUTPUT") -> None:
        """The opposite of `block`."""
        self.iptables("-D", chain, *_with_target(words))

    def reset_connections(self, *filters: str) -> None:
        """Its TCP connections that match (words of ss(8), such as "dport = 7000") are reset."""
        self.run("ss", "-K", "-t", *filters)

    def change_address(self) -> str:
        """Another address in another network, on the same port; the old one is gone. The new one."""
        return self.ports[0].renumber()

    def cut(self) -> None:
        """The cable is cut at the router: the host still believes in its address."""
        self.ports[0].set_router_side("down")

    def mend(self) -> None:
        """After `cut`."""
        self.ports[0].set_router_side("up")

    def unplug(self) -> None:
        """The host's own device goes down: no route, no address in use."""
        self.ports[0].set_host_side("down")

    def plug(self) -> None:
        """After `unplug`."""
        self.ports[0].set_host_side("up")

    def close(self) -> None:
        """Gives the namespace up."""
        for port in self.ports:
            port.close()
        os.close(self._file)


class Port:
    """A cable or an emulated path between a host and its router, with a network of its own."""

    def __init__(self, router: Router, host: Host, settings: dict[str, float] | None) -> None:
        self.router = router
        self.host = host
        self.host_side = f"eth{len(host.ports)}"
        self.router_side = f"{host.name[:10]}{len(host.ports)}"
        self.emulator: Emulator | None = None
        host.ports.append(self)
        if settings is None:
            host.ip(
                f"link add {self.host_side} type veth peer name {self.router_side} netns {router.space}"
            )
        else:
            ends = ((host.space, self.host_side), (router.space, self.router_side))
            self.emulator = Emulator(ends, router.lab.next_seed())
            self.emulator.set("both", **settings)
        for side, name in ((host, self.host_side), (router, self.router_side)):
            side.ip(
                f"link set {name} addrgenmode none",  # no IPv6 chatter on an idle network
                f"link set {name} txqueuelen 10000",
            )
        self._number = 0
        self.renumber()
        self.set_router_side("up")
        self.set_host_side("up")

    @property
    def network(self) -> str:
        """Its three bytes in front: "198.18.1"."""
        return f"{self.router.prefix}.{self._number}"

    @property
    def address(self) -> str:
        """The host's."""
        return f"{self.network}.2"

    def renumber(self) -> str:
        """A new network for both sides; the host's new address."""
        self._number = self.router.next_network()
        self.router.ip(
            f"addr flush dev {self.router_side}",
            f"addr add {self.network}.1/24 dev {self.router_side}",
        )
        self.host.ip(
            f"addr flush dev {self.host_side}",
            f"addr add {self.address}/24 dev {self.host_side}",
        )
        self._set_route()
        return self.address

    def set_router_side(self, state: str) -> None:
        """ "up" or "down"."""
        self.router.ip(f"link set {self.router_side} {state}")

    def set_host_side(self, state: str) -> None:
        """ "up", with the default route, or "down"."""
        self.host.ip(f"link set {self.host_side} {state}")
        self._set_route()

    def _set_route(self) -> None:
        with self.host:
            is_up = "state DOWN" not in run("ip", "link", "show", "up", "dev", self.host_side)
            is_up = is_up and bool(run("ip", "link", "show", "up", "dev", self.host_side))
        if is_up:
            metric = 100 + self.host.ports.index(self)
            self.host.ip(
                f"route replace default via {self.network}.1 dev {self.host_side} metric {metric}"
            )

    def close(self) -> None:
        """Ends the emulator."""
        if self.emulator is not None:
            self.emulator.close()


class Router(Host):
    """A host that passes packets on between the hosts that hang on it."""

    def __init__(self, lab: Lab, name: str, prefix: str) -> None:
        super().__init__(lab, name)
        self.prefix = prefix
        self._networks = itertools.count(1)
        self.sysctl(net__ipv4__ip_forward=1)

    def next_network(self) -> int:
        """The third byte of a network nobody had so far."""
        return next(self._networks)

    def host(self, name: str, /, **settings: float) -> Host:
        """A new host on a cable, or with settings on an emulated path (their names: Emulator.set)."""
        return self.join(self.lab.host(name), **settings)

    def join(self, host: Host, /, **settings: float) -> Host:
        """A further port for a host, on a cable or on an emulated path."""
        Port(self, host, settings or None)
        return host

    def block_pair(self, one: Host, other: Host, *words: str) -> None:
        """Between these two nothing passes (that matches the words), until `unblock_pair`.

        They are told by the ports they hang on, so the block outlives a change of address. For a host
        behind a NAT router name that router.
        """
        for pair in self._pairs(one, other):
            self.block(*pair, *words, chain="FORWARD")

    def unblock_pair(self, one: Host, other: Host, *words: str) -> None:
        """The opposite of `block_pair`."""
        for pair in self._pairs(one, other):
            self.unblock(*pair, *words, chain="FORWARD")

    def _pairs(self, one: Host, other: Host) -> list[tuple[str, ...]]:
        sides = [
            next(port.router_side for port in host.ports if port.router is self)
            for host in (one, other)
        ]
        return [("-i", a, "-o", b) for a, b in (sides, sides[::-1])]


class Internet(Router):
    """The router all public hosts hang on; 198.18.0.0/16 (RFC 2544)."""

    def nat(self, name: str, /, *, is_symmetric: bool = False, **settings: float) -> Nat:
        """A NAT router with one public address, on a cable or an emulated path."""
        return Nat(self, name, is_symmetric, settings)


class Nat(Router):
    """A NAT router: MASQUERADE, and nothing unasked comes in.

    The mapping keeps the inner port where that is free, whatever the destination, so holes can be
    punched; `is_symmetric` takes a new random port for each destination, so they cannot.
    """

    def __init__(
        self, outside: Internet, name: str, is_symmetric: bool, settings: dict[str, float]
    ) -> None:
        super().__init__(outside.lab, name, "192.168")
        outside.lab.keep(self)
        outside.join(self, **settings)
        self._networks = itertools.count(int(self.address.split(".")[2]))
        mode = ("--random-fully",) if is_symmetric else ()
        self.iptables("-t", "nat", "-A", "POSTROUTING", "-o", "eth0", "-j", "MASQUERADE", *mode)
        fresh = ("-m", "conntrack", "!", "--ctstate", "ESTABLISHED,RELATED")
        for chain in ("INPUT", "FORWARD"):
            self.iptables("-A", chain, "-i", "eth0", *fresh, "-j", "DROP")

    def forget(self) -> None:
        """All mappings are lost, as when the router starts anew."""
        self.run("conntrack", "-F")

    def set_udp_timeout(self, seconds: int) -> None:
        """How long an idle mapping of UDP lives, from the next packet on."""
        self.sysctl(
            net__netfilter__nf_conntrack_udp_timeout=seconds,
            net__netfilter__nf_conntrack_udp_timeout_stream=seconds,
        )


class Lab:
    """All hosts of one experiment; closing it ends what runs in them."""

    def __init__(self, seed: int = 1) -> None:
        lack = missing()
        if lack:
            raise LabError(lack)
        self._seeds = itertools.count(seed * 1000)
        self._hosts: list[Host] = []
        self.processes: list[subprocess.Popen[bytes]] = []

    def host(self, name: str) -> Host:
        """A host that hangs on nothing yet."""
        return self.keep(Host(self, name))

    def internet(self, name: str = "internet") -> Internet:
        """A router for public hosts; usually there is one."""
        net = Internet(self, name, "198.18")
        self.keep(net)
        return net

    def keep(self, host: Host) -> Host:
        """Closes it with the lab."""
        self._hosts.append(host)
        return host

    def next_seed(self) -> int:
        """For the next emulator: the same in every run of the same lab."""
        return next(self._seeds)

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(10)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        for host in reversed(self._hosts):
            host.close()


def run(*words: str, given: str | None = None) -> str:
    """The output of a command; LabError when it fails or takes too long."""
    try:
        done = subprocess.run(
            words,
            input=given,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            env=os.environ | {"PATH": _PATH},
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"{' '.join(words)}: not done within {LIMIT_S:g} s") from None
    if done.returncode != 0:
        raise LabError(f"{' '.join(words)}: {done.stderr.strip()} {given or ''}")
    return done.stdout


def _with_target(words: tuple[str, ...]) -> tuple[str, ...]:
    return words if "-j" in words else (*words, "-j", "DROP")


def _new_namespace() -> int:
    """A file that is a new network namespace; made by a thread, since only a thread can leave its own."""
    made: list[int | OSError] = []

    def make() -> None:
        try:
            if _libc.unshare(CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "unshare: a network namespace needs root")
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


def _enter(file: int) -> None:
    if _libc.setns(file, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
