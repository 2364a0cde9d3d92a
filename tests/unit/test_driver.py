"""The loop around the core survives what links, dials and owners do wrong."""

from __future__ import annotations

import asyncio
import errno
import sys

import pytest
import uvloop

from drivers import make_driver
from uservpn.errors import Fault, UsageError
from uservpn.links.base import LinkCaps
from uservpn.node.options import CloseWanted
from uservpn.runtime import driver as driver_module
from uservpn.runtime.dials import DialFailure
from uservpn.runtime.netwatch import Network

CAPS = LinkCaps("fake", 70_000, is_ordered=True, is_reliable=True)


class FakeLink:
    """Carries each message to its other end in the next turn of the loop."""

    def __init__(self, owner):
        self.id = owner.new_link_id()
        self.caps = CAPS
        self.local = self.remote = "fake://x"
        self.bytes_in = self.bytes_out = 0
        self.owner = owner
        self.other = None
        self.is_open = True

    def room(self):
        return 1 << 19

    def send(self, batch):
        loop = asyncio.get_running_loop()
        for index in range(0, len(batch), 2):
            loop.call_soon(self.other.arrive, bytes(batch[index]), bytes(batch[index + 1]))

    def arrive(self, head, body):
        if self.is_open:
            self.owner.link_message(self, self.owner.node.codec.open(head), body)

    def close(self):
        for link in (self, self.other):
            if link is not None and link.is_open:
                link.is_open = False
                asyncio.get_running_loop().call_soon(link.owner.link_closed, link, "closed")


class FakePlugin:
    """Opens links to the drivers in `servers`; `breaks` lists what goes wrong, dial by dial."""

    scheme = "fake"

    def __init__(self):
        self.servers = {}
        self.breaks = []
        self.dials = 0

    async def connect(self, endpoint, codec, owner):
        self.dials += 1
        trouble = self.breaks.pop(0) if self.breaks else None
        if isinstance(trouble, Exception):
            raise trouble
        link = FakeLink(owner)
        if trouble == "dead":  # accepted, and closed before anybody could look
            link.is_open = False
            owner.link_closed(link, "closed")
            return link
        link.other = FakeLink(self.servers[endpoint.port])
        link.other.other = link
        self.servers[endpoint.port].link_opened(link.other)
        return link


class Owner:
    """A stream's owner that takes notes, and may fail."""

    def __init__(self, fails=False):
        self.fails = fails
        self.received = b""
        self.reset = None

    def stream_opened(self, fault, detail):
        pass

    def stream_data(self, chunk):
        if self.fails:
            raise ZeroDivisionError("on purpose")
        self.received += bytes(chunk)

    def stream_room(self):
        pass

    def stream_finished(self):
        pass

    def stream_reset(self, fault):
        self.reset = fault


def _run(main):
    async def bounded():
        async with asyncio.timeout(20):
            await main()

    uvloop.run(bounded())


async def _until(condition):
    while not condition():
        await asyncio.sleep(0.01)


def _pair(plugin):
    offered = []

    def offer(stream, host, port):
        server.node.tunnel(stream).accept(stream)
        owner = stream.owner = Owner()
        offered.append((stream, owner))
        server.kick()

    server = make_driver({"fake": plugin}, 1, {}, offer)
    plugin.servers[1] = server
    client = make_driver({"fake": plugin}, 7, {1: ("fake://127.0.0.1:1",)})
    return client, server, offered


@pytest.mark.parametrize("trouble", ["dead", ValueError("a plug-in's own"), OSError("weather")])
def test_a_dial_that_ends_in_any_way_is_followed_by_another(trouble):
    """A link that died before it was known would else stand for ever, and nobody would dial."""

    async def main():
        plugin = FakePlugin()
        plugin.breaks = [trouble]
        client, _server, offered = _pair(plugin)
        client.start()
        stream = client.open(1, "site.test", 80, Owner())
        client.write(stream, b"hello")
        await _until(lambda: offered and offered[0][1].received == b"hello")
        assert plugin.dials == 2
        assert len(client.links) == len(client.node.links) == 1
        await client.close()

    _run(main)


def test_a_protocol_that_is_not_loaded_is_a_failed_dial():
    async def main():
        client = make_driver({"fake": FakePlugin()}, 7, {1: ("other://127.0.0.1:1",)})
        client.start()
        await _until(lambda: client.node.peers[1].contact.last_failure)
        assert "other" in client.node.peers[1].contact.last_failure
        await client.close()

    _run(main)


def test_before_a_flush_for_bytes_alone_only_tunnels_are_asked_what_is_due():
    """A report that is due leaves with that flush; a deadline of the node itself is kept as ever."""

    async def main():
        client, _server, offered = _pair(FakePlugin())
        client.start()
        stream = client.open(1, "site.test", 80, Owner())
        await _until(lambda: offered)
        await _until(lambda: not client._is_wanted)
        node, calls = client.node, []

        def watched(name):
            work = getattr(node, name)

            def call(*words):
                calls.append(name)
                return work(*words)

            setattr(node, name, call)

        for name in ("next_deadline", "on_deadline", "on_tunnel_deadlines", "take_transmits"):
            watched(name)
        client._deadline = client._timer_at + 1000.0
        client.write(stream, b"more")
        client._flush()
        ahead = calls[: calls.index("take_transmits")]
        assert ahead == ["on_tunnel_deadlines"] and calls[-1] == "next_deadline"
        calls.clear()
        client.kick()
        client._flush()
        assert calls[0] == "next_deadline" and "on_tunnel_deadlines" not in calls
        calls.clear()
        client._deadline = 0.0  # it has come
        client.write(stream, b"more")
        client._flush()
        assert calls[0] == "on_deadline"
        inbox = node.peers[1].tunnel.inbox
        inbox._report_at = 1.0
        client._deadline = client._timer_at + 1000.0
        client.write(stream, b"more")
        client._flush()
        assert inbox._report_at is None and not inbox.is_due, "reported"
        await client.close()

    _run(main)


def test_an_owner_that_fails_loses_its_own_stream_only(caplog):
    """What else came in the same turn is handed on, and the timer is set."""

    async def main():
        client, server, offered = _pair(FakePlugin())
        client.start()
        owners = [Owner(fails=index == 0) for index in range(3)]
        streams = [client.open(1, "site.test", 80, owner) for owner in owners]
        await _until(lambda: len(offered) == 3)
        for stream, _ in offered:
            server.write(stream, b"answer")
        await _until(lambda: all(owner.received for owner in owners[1:]))
        await _until(lambda: offered[0][1].reset is not None)
        assert streams[0].is_over and not streams[1].is_over
        assert offered[1][1].reset is None
        assert owners[0].reset is Fault.FAILED
        await client.close()

    _run(main)
    assert "on purpose" in caplog.text


def test_closing_a_link_that_is_not_there_ends_it_in_the_core():
    async def main():
        client, server, offered = _pair(FakePlugin())
        client.start()
        client.open(1, "site.test", 80, Owner())
        await _until(lambda: offered)
        (link,) = client.links.values()
        client.links.clear()  # whatever made them disagree
        client._on_close(CloseWanted(link.id))
        assert not client.node.links
        await client.close()
        await server.close()

    _run(main)


def test_a_message_after_a_long_idle_time_is_judged_by_the_clock_of_now(monkeypatch):
    """The wall clock was put right while nothing happened: the next first contact is fresh."""

    async def main():
        client, server, offered = _pair(FakePlugin())
        server.kick()
        await asyncio.sleep(0)  # its flush has looked at the clock
        server._wall_at -= 3600.0  # ...an hour ago
        server.node.wall_s -= 3600.0
        client.start()
        client.open(1, "site.test", 80, Owner())
        held = []
        monkeypatch.setattr(server.node._admission, "_hold", lambda *args: held.append(args))
        await _until(lambda: offered or held)
        assert offered and not held
        await client.close()

    _run(main)


def test_messages_go_to_their_topic_and_a_failing_handler_hurts_nobody(caplog):
    async def main():
        client, server, _ = _pair(FakePlugin())
        heard, told = [], []
        server.post.on_message("bad", lambda peer, payload: 1 / 0)
        server.post.on_message("good", lambda peer, payload: heard.append((peer, payload)))
        with pytest.raises(UsageError):
            server.post.on_message("good", print)
        client.start()
        for topic in ("unknown", "bad", "good"):
            assert client.post.send_message(1, topic, topic.encode()) == 0
        client.post.send_message(1, "good", b"sure", confirmed=True, on_result=told.append)
        await _until(lambda: told)
        assert heard == [(7, b"good"), (7, b"sure")] and told == [True]
        assert server.post.ignored_count == 1
        server.post.on_message("good", None)
        server.post.on_message("good", print)
        await client.close()

    _run(main)
    assert "Message was not dealt with" in caplog.text


def test_a_protocol_that_only_other_nodes_have_is_loaded_with_the_first_dial():
    """Asked for once, also where it is not installed."""

    async def main():
        plugin = FakePlugin()
        asked = []
        servers = {1: ("fake://127.0.0.1:1",), 2: ("none://127.0.0.1:1",)}
        client = make_driver(
            {}, 7, servers, find=lambda name: asked.append(name) or {"fake": plugin}.get(name)
        )
        server = make_driver({}, 1, {})
        plugin.servers[1] = server
        client.start()
        await _until(lambda: client.node.peers[1].contact.direct())
        await _until(lambda: client.node.peers[2].contact.last_failure)
        client.node.wake(client.loop.time())
        client.kick()
        await asyncio.sleep(0.01)
        assert sorted(asked) == ["fake", "none"]
        assert "no link plug-in" in client.node.peers[2].contact.last_failure
        await client.close()
        await server.close()

    _run(main)


def test_plug_ins_with_sockets_of_a_node_are_made_once_for_each_node_and_closed_with_it():
    class Plugin(FakePlugin):
        def __init__(self):
            super().__init__()
            self.calls = []

        async def serve(self, endpoint, codec, owner):
            raise NotImplementedError

        def rebind(self):
            self.calls.append("rebind")

        def describe(self):
            return [{"protocol": "fake"}]

        def close(self):
            self.calls.append("close")

    class Factory:
        scheme = "fake"

        def __init__(self):
            self.made = []

        def for_node(self):
            self.made.append(Plugin())
            return self.made[-1]

    async def main():
        factory = Factory()
        one, two = (make_driver({"fake": factory}, node, {}) for node in (1, 2))
        one.protocols.add({"fake": factory})  # as a reload does
        assert len(factory.made) == 2
        one._wake(0.0)
        assert one.protocols.describe() == [{"protocol": "fake"}]
        await one.close()
        assert [plugin.calls for plugin in factory.made] == [["rebind", "close"], []]
        await two.close()

    _run(main)


class LocalLink(FakeLink):
    """A link that leaves from an address."""

    def __init__(self, owner, local="fake://10.0.0.7:40000"):
        super().__init__(owner)
        self.local = local


def test_links_from_an_address_that_is_gone_end_at_once_and_are_dialled_anew(monkeypatch):
    """And where the machine can be reached now, is told to the mesh."""
    monkeypatch.setattr(sys.modules[__name__], "FakeLink", LocalLink)

    async def main():
        plugin = FakePlugin()
        client, _server, offered = _pair(plugin)
        client.protocols.listening["fake://0.0.0.0:9"] = None
        client.start(Network(("10.0.0.7/24",), ("10.0.0.7",)), True)
        stream = client.open(1, "site.test", 80, Owner())
        await _until(lambda: offered)
        (old,) = client.links
        client.network_changed(Network(("10.0.0.7/24", "10.1.1.1/8"), ("10.1.1.1",)))
        assert old in client.links, "its address is still there"
        client.network_changed(Network(("10.1.1.1/8",), ("10.1.1.1",)))
        assert old not in client.links
        client.write(stream, b"still")
        await _until(lambda: offered[0][1].received == b"still")
        own = client.node.directory.own
        assert [place.endpoint for place in own.endpoints] == ["fake://10.1.1.1:9"]
        client.protocols.listening.clear()
        await client.close()

    _run(main)


def test_offline_nothing_is_dialled_until_the_network_is_back():
    async def main():
        plugin = FakePlugin()
        plugin.breaks = [OSError(errno.ENETUNREACH, "Network is unreachable")] * 50
        client, _server, offered = _pair(plugin)
        client.start(Network((), ()), True)
        client.open(1, "site.test", 80, Owner())
        await asyncio.sleep(1.0)
        assert plugin.dials <= 3, "else a machine without a network would spin"
        plugin.breaks = []
        client.network_changed(Network(("10.0.0.7/24",), ("10.0.0.7",)))
        await asyncio.wait_for(_until(lambda: offered), 0.5)
        await client.close()

    _run(main)


def test_a_dial_that_hangs_in_the_old_network_is_begun_anew():
    async def main():
        plugin = FakePlugin()
        connect = plugin.connect
        hung = []

        async def hang(endpoint, codec, owner):
            hung.append(endpoint)
            await asyncio.sleep(3600)

        plugin.connect = hang
        client, _server, offered = _pair(plugin)
        client.start(Network(("10.0.0.7/24",), ("10.0.0.7",)), True)
        client.open(1, "site.test", 80, Owner())
        await _until(lambda: hung)
        plugin.connect = connect
        client.network_changed(Network(("10.0.0.8/24",), ("10.0.0.8",)))
        await asyncio.wait_for(_until(lambda: offered), 0.5)
        await client.close()

    _run(main)


def test_what_another_network_would_explain_is_told(monkeypatch):
    """For systems that do not tell of changes: dials and their ends, lost links, sleep."""

    async def main():
        told = []
        client, _server, offered = _pair(FakePlugin())
        client.start(suspect=lambda: told.append(1))
        client.open(1, "site.test", 80, Owner())
        await _until(lambda: offered and client.node.peers[1].contact.links[0].rtt_s)
        assert told, "a dial"
        told.clear()
        (link,) = client.links.values()
        link.close()
        await _until(lambda: client.links and link.id not in client.links)
        assert len(told) >= 2, "a lost link, and a dial"
        told.clear()
        monkeypatch.setattr("uservpn.runtime.driver.suspended_for", lambda: 3600.0)
        client.clock_jumped()
        await asyncio.sleep(0.02)
        assert told, "sleep"
        told.clear()
        client.dial_failed(1, "fake://127.0.0.1:1", DialFailure("no way"))
        assert told, "a dial that failed"
        await client.close()

    _run(main)


def test_after_sleep_every_peer_is_tried_at_once(monkeypatch):
    """The clock that counts sleep has moved on; a timer that time cancels has said so."""

    async def main():
        client, _server, offered = _pair(FakePlugin())
        client.start()
        client.open(1, "site.test", 80, Owner())
        await _until(lambda: offered and client.node.peers[1].contact.links[0].rtt_s)
        woken = []
        monkeypatch.setattr(client.node, "wake", woken.append)
        client.clock_jumped()
        await asyncio.sleep(0.02)
        assert not woken, "the clock was set, no more"
        monkeypatch.setattr("uservpn.runtime.driver.suspended_for", lambda: 3600.0)
        client.clock_jumped()
        await asyncio.sleep(0.02)
        assert len(woken) == 1
        await client.close()

    _run(main)


class HeldClock:
    """The drivers' time: it passes where the test says so, however slow this machine is; no timer fires."""

    def __init__(self, monkeypatch, *drivers):
        self.now = driver_module.monotonic()
        self.drivers = drivers
        monkeypatch.setattr(driver_module, "monotonic", lambda: self.now)
        for driver in drivers:
            monkeypatch.setattr(driver, "_arm", lambda deadline, now: None)

    async def until(self, condition):
        """A millisecond in each turn of the loop, and whatever is due by then is done."""
        while not condition():
            self.now += 0.001
            for driver in self.drivers:
                driver.kick()
            await asyncio.sleep(0)


async def _all_quiet(*drivers):
    """Nobody wants a round any more; a message takes one turn of the loop, and its round two."""
    quiet = 0
    while quiet < 10:
        quiet = 0 if any(driver._is_wanted for driver in drivers) else quiet + 1
        await asyncio.sleep(0)


def test_what_happens_in_two_turns_of_the_loop_is_one_round(monkeypatch):
    """And what a round itself causes, here the credit for what came, needs no other."""

    async def main():
        client, server, offered = _pair(FakePlugin())
        # by the machine's clock a report or a ping may be due meanwhile and want a round of its own; and
        # where its slowness makes round trips long, reports are due sooner (is_far in tunnel/inbox.py)
        clock = HeldClock(monkeypatch, client, server)
        client.start()
        stream = client.open(1, "site.test", 80, Owner())
        await clock.until(lambda: offered and client.node.peers[1].contact.links[0].rtt_s)
        await _all_quiet(client, server)
        rounds = {client: 0, server: 0}

        def count(driver):
            once = driver._round

            def counted(now):
                rounds[driver] += 1
                return once(now)

            monkeypatch.setattr(driver, "_round", counted)

        count(client)
        count(server)
        back, owner = offered[0]
        take = owner.stream_data

        def take_and_tell(chunk):
            take(chunk)
            server.consumed(back, len(chunk))

        owner.stream_data = take_and_tell
        client.write(stream, b"one")
        asyncio.get_running_loop().call_soon(client.write, stream, b"two")
        await _all_quiet(client, server)
        assert owner.received == b"onetwo"
        assert [rounds[client], rounds[server]] == [1, 1]
        await client.close()

    _run(main)


def test_a_link_that_cannot_send_costs_no_other_its_batches(caplog):
    """It ends; what another link is given in the same flush leaves, and nothing waits for a second."""

    async def main():
        client, _, offered = _pair(FakePlugin())
        client.start()
        client.open(1, "site.test", 80, Owner())
        await _until(lambda: offered)
        (good,) = client.links.values()
        broken = FakeLink(client)
        broken.send = lambda batch: (_ for _ in ()).throw(OSError(errno.EMFILE, "none left"))
        client.link_opened(broken)
        take, sent = client.node.take_transmits, []
        good.send = sent.append
        plans = iter([[(broken.id, [b"lost"]), (good.id, [b"left"])]])
        client.node.take_transmits = lambda *words: next(plans, None) or take(*words)
        client.kick()
        await _until(lambda: sent)
        assert sent[0] == [b"left"]
        await _until(lambda: broken.id not in client.links and not broken.is_open)
        assert broken.id not in client.node.links and good.id in client.links
        del good.send
        await client.close()

    _run(main)
    assert "cannot send, and ends" in caplog.text and "the node failed" not in caplog.text


def test_a_mistake_in_the_node_does_not_stop_its_timers(monkeypatch, caplog):
    """Nothing else happens to it afterwards: only the timer brings it back."""
    monkeypatch.setattr(driver_module, "_AGAIN_S", 0.01)

    async def main():
        client, _, offered = _pair(FakePlugin())
        take = client.node.take_transmits
        failures = iter((True, False))

        def fail_once(*args):
            if next(failures, False):
                raise ZeroDivisionError("on purpose")
            return take(*args)

        monkeypatch.setattr(client.node, "take_transmits", fail_once)
        client.start()
        client.open(1, "site.test", 80, Owner())
        await _until(lambda: offered)
        await client.close()

    _run(main)
    assert "the node failed" in caplog.text
