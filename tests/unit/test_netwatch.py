"""What a machine notices of its own network and of its own sleep, on the real kernel."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import subprocess
import sys
import textwrap

import pytest
import uvloop

from uservpn.runtime import netwatch
from uservpn.runtime.netwatch import NetWatch, Network, read_network
from uservpn.runtime.timejump import TimeJump

IN_NAMESPACE = """
    import asyncio, subprocess, uvloop
    from uservpn.runtime.netwatch import NetWatch

    def ip(*commands):
        for command in commands:
            subprocess.run(["ip", *command.split()], check=True)

    async def main():
        loop = asyncio.get_running_loop()
        changes = []
        reads = []
        watch = NetWatch(loop, changes.append)
        look = watch.look
        watch.look = lambda: (reads.append(1), look())
        watch.start()
        assert watch.is_watching and watch.network.interfaces == () == watch.network.sources

        async def settled():
            count = -1
            while count != len(reads):
                count = len(reads)
                await asyncio.sleep(0.15)

        ip("link set lo up", "link add d0 type veth peer name d1")
        # no IPv6 addresses of their own, which become usable a second or two later
        ip("link set d0 addrgenmode none", "link set d1 addrgenmode none")
        ip("link set d1 up", "link set d0 up")
        await settled()
        assert changes == [], "loopback and a link without an address are nothing"
        reads.clear()
        ip("addr add 10.1.2.3/24 dev d0", "route add default via 10.1.2.1")
        await settled()
        assert changes[-1].interfaces == ("10.1.2.3/24",) and changes[-1].sources == ("10.1.2.3",)
        assert len(changes) <= 2 and len(reads) <= 3, "a burst is few"
        ip("route add 10.9.0.0/16 via 10.1.2.1")
        before = len(changes)
        await settled()
        assert len(changes) == before, "a route that leads nowhere new is none"
        ip("link set d0 down")
        await settled()
        assert changes[-1].sources == ()
        ip("link set d0 up", "addr flush dev d0", "addr add 10.7.7.7/16 dev d0")
        await settled()
        assert changes[-1].interfaces == ("10.7.7.7/16",)
        for _ in range(20):  # the kernel may have more to say, but comes to an end
            reads.clear()
            await asyncio.sleep(0.3)
            if not reads:
                break
        assert not reads, "asleep while nothing happens"
        watch.close()
        print("done")

    uvloop.run(main())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="netlink is Linux's")
def test_changes_are_told_and_coalesced():
    unshare = (
        ["unshare", "--net"]
        if os.geteuid() == 0
        else ["unshare", "--user", "--map-root-user", "--net"]
    )
    done = subprocess.run(
        [*unshare, sys.executable, "-c", textwrap.dedent(IN_NAMESPACE)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "done\n", done.stderr


def test_reading_does_not_raise_and_leaves_loopback_out():
    network = read_network()
    assert not any(text.startswith(("127.", "::1/", "fe80")) for text in network.interfaces)


def test_nothing_is_left_open():
    async def main():
        loop = asyncio.get_running_loop()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            watch = NetWatch(loop, lambda network: None)
            jump = TimeJump(loop, lambda: None)
            watch.start()
            jump.start()
            watch.close()
            jump.close()
        assert len(os.listdir("/proc/self/fd")) == before

    uvloop.run(main())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="timerfd is Linux's")
def test_a_jump_of_time_is_told_again_and_again():
    """The kernel's timer ends as it would when the clock is set; nobody here may set that."""

    async def main():
        told = asyncio.Queue()
        jump = TimeJump(asyncio.get_running_loop(), lambda: told.put_nowait(None), far_s=0.02)
        jump.start()
        for _ in range(3):
            await asyncio.wait_for(told.get(), 5)
        jump.close()

    uvloop.run(main())


class ClockSetMeanwhile:
    """The C library, on a machine whose clock is set while a timer is being armed."""

    def __init__(self, libc: ctypes.CDLL, number: int) -> None:
        self._libc = libc
        self._number = number
        self.timerfd_create = self._libc.timerfd_create

    def timerfd_settime(self, *words) -> int:
        self._libc.timerfd_settime(*words)  # the kernel arms it in any case
        ctypes.set_errno(self._number)
        return -1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="timerfd is Linux's")
@pytest.mark.parametrize(("number", "is_told"), [(errno.ECANCELED, True), (errno.EINVAL, False)])
def test_a_clock_that_is_set_during_the_start_does_not_end_the_watch(
    number, is_told, monkeypatch, caplog
):
    """timerfd_settime() says ECANCELED then, and the timer stands."""

    async def main():
        told = asyncio.Event()
        jump = TimeJump(asyncio.get_running_loop(), told.set, far_s=0.02)
        libc = ClockSetMeanwhile(ctypes.CDLL(None, use_errno=True), number)
        with monkeypatch.context() as patch:
            patch.setattr(ctypes, "CDLL", lambda *words, **options: libc)
            jump.start()
        assert (jump._fd >= 0) is is_told
        if is_told:
            await asyncio.wait_for(told.wait(), 5)
        jump.close()

    caplog.set_level("INFO")
    uvloop.run(main())
    assert ("no timer that tells" in caplog.text) is not is_told


def test_where_changes_are_not_told_they_are_found_when_something_fails(monkeypatch):
    """Not by polling, and not with every one of many failures."""

    async def main():
        now, changes, reads = [Network(("10.0.0.7/32",), ("10.0.0.7",))], asyncio.Queue(), []
        monkeypatch.setattr(netwatch, "read_network", lambda: reads.append(1) or now[0])
        monkeypatch.setattr(netwatch, "SUSPECT_S", 0.2)
        loop = asyncio.get_running_loop()
        watch = NetWatch(loop, changes.put_nowait)
        watch.start()
        assert not watch.is_watching
        now[0] = Network(("10.9.0.1/32",), ("10.9.0.1",))
        began = loop.time()
        for _ in range(100):
            watch.suspect()
        assert await asyncio.wait_for(changes.get(), 5) == now[0]
        now[0] = Network((), ())
        for _ in range(100):
            watch.suspect()
        assert await asyncio.wait_for(changes.get(), 5) == now[0]
        assert loop.time() >= began + netwatch.SETTLE_S + 0.2
        assert len(reads) == 3 and changes.empty()
        watch.suspect()
        watch.close()
        await asyncio.sleep(0.3)
        assert len(reads) == 3

    monkeypatch.setattr(sys, "platform", "darwin")
    asyncio.run(main())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="netlink is Linux's")
def test_where_changes_are_told_nothing_is_looked_at_on_suspicion():
    async def main():
        watch = NetWatch(asyncio.get_running_loop(), lambda network: None)
        watch.start()
        watch.suspect()
        assert watch.is_watching and watch._timer is None
        watch.close()

    uvloop.run(main())
