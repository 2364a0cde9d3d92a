"""The one loop around the core: sockets and timers on one side, `Node` on the other.

Whatever happens on the event loop is handed to the node at once and followed by *one* flush for all that
happens in two turns of the loop: due deadlines, sealed messages to their links, events to their owners,
and one timer for the next deadline. An idle node has exactly that timer and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from uservpn.errors import Fault
from uservpn.kit.endpoint import Endpoint
from uservpn.links.base import Link
from uservpn.node.node import Node
from uservpn.node.options import (
    CloseWanted,
    DialWanted,
    Message,
    MessageResult,
    NodeEvent,
    PeerNews,
    Pong,
)
from uservpn.runtime.chunks import JOIN_FROM, joined
from uservpn.runtime.clock import monotonic, suspended_for, wall_offset
from uservpn.runtime.dials import DialFailure, Dials
from uservpn.runtime.netwatch import Network
from uservpn.runtime.post import Post
from uservpn.runtime.protocols import Plugged, Protocols
from uservpn.runtime.pump import Pump
from uservpn.tunnel.events import Data, Finished, Offered, Opened, Reset, Room
from uservpn.tunnel.stream import Stream, StreamOwner
from uservpn.types import Buffer, LinkId, NodeId
from uservpn.wire.constants import Kind
from uservpn.wire.header import Header, Run

log: Final = logging.getLogger("uservpn")
_EPSILON_S: Final = 0.002
"""Timers may fire a little early: what is due within this is due (else the loop would spin)."""
_CLOCKS_S: Final = 1.0
"""What is known of the wall clock is at most this old whenever it counts."""
_AGAIN_S: Final = 1.0
"""After a mistake of ours: soon enough to go on, seldom enough not to spin."""
_SLEPT_S: Final = 1.0


class Driver:
    """Drives one node. Constructed complete; `start` listens and dials, `close` ends all."""

    def __init__(
        self,
        node: Node,
        plugins: Mapping[str, Plugged],
        loop: asyncio.AbstractEventLoop,
        offer: Callable[[Stream, str, int], None] | None,
        find_plugin: Callable[[str], Plugged | None] | None = None,
    ) -> None:
        """`offer` gets what others want to connect to; `find_plugin` protocols not in `plugins`."""
        self.node = node
        self.loop = loop
        self.offer = offer
        self.links: dict[LinkId, Link] = {}
        self.nodes_changed = asyncio.Event()
        """Set when the node list has news; cleared by whoever takes them."""
        self.post = Post(node, loop, self.kick)
        self.protocols = Protocols(self, node.codec, plugins, find_plugin)
        self._dials = Dials(loop, self.protocols.connect, self)
        self._last_link = 0
        self._generation = node.directory.generation
        self._flush_handle: asyncio.Handle | None = None
        self._is_wanted = False  # a flush is under way, or will come
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._deadline: float | None = None
        """The node's, by the end of the last round..."""
        self._has_news = True
        """...since when more than a stream's bytes went by."""
        self._wall_at = 0.0
        self._suspended = suspended_for()
        self._is_closed = False
        self._network: Network | None = None
        self._is_watched = False
        self._suspect: Callable[[], None] = lambda: None
        self._is_started = False

    # --- life ------------------------------------------------------------------------------------

    async def listen(self, endpoint: Endpoint) -> None:
        """Listens on one more endpoint. Raises OSError."""
        await self.protocols.listen(endpoint)
        if self._is_started:
            self._tell_places()

    def unlisten(self, endpoint: Endpoint) -> None:
        """Stops listening; links that stand are not touched."""
        if self.protocols.unlisten(endpoint):
            self._tell_places()

    def start(
        self,
        network: Network | None = None,
        is_watched: bool = False,
        suspect: Callable[[], None] = lambda: None,
    ) -> None:
        """Dials the configured servers.

        `network` is what the machine is connected to now; if that is watched, `network_changed` tells
        of every change, and where there is no way out nothing is dialled until then. `suspect` is told
        what another network would explain.
        """
        self._network = network
        self._is_watched = is_watched
        self._suspect = suspect
        self._is_started = True
        self._tell_places()
        self.node.start(monotonic())
        self.kick()

    async def close(self) -> None:
        """Says goodbye, closes every link and listener."""
        self.node.goodbye()
        self._flush()
        self._is_closed = self._is_wanted = True
        self.protocols.close()
        await asyncio.sleep(0)
        for link in list(self.links.values()):
            link.close()
        await self._dials.close()
        for handle in (self._timer, self._flush_handle):
            if handle is not None:
                handle.cancel()

    def network_changed(self, network: Network) -> None:
        """Addresses or ways out are others now: links from an address that is gone end at once.

        Where there is no way out, datagram links end too: nothing is sent into the void until there is one.
        """
        log.info("the network has changed: %s", ", ".join(network.sources) or "no way out")
        self._network = network
        self._tell_places()
        for link in list(self.links.values()):
            if link.caps.is_reliable:
                is_gone = not network.keeps(link.local)
            else:
                is_gone = not network.carries(link.local)
            if is_gone:
                del self.links[link.id]
                link.close()
                self.node.link_down(link.id, "its address is gone", monotonic())
        self._wake(monotonic())

    def clock_jumped(self) -> None:
        """The machine slept, or its clock was set: the clocks are looked at now."""
        self._wall_at = float("-inf")
        self.kick()

    def _wake(self, now: float) -> None:
        """Whatever was under way is begun anew, from sockets that are right for the network of now."""
        self._dials.give_up()
        self.protocols.rebind()
        self.node.wake(now)
        self.kick()

    def _tell_places(self) -> None:
        """The node learns of the machine's addresses, and of where it can be reached on them."""
        if self._network is None:
            return
        places = self.protocols.places(self._network)
        is_on_loopback = self.protocols.is_on_loopback
        self.node.moved(places, self._network.interfaces, monotonic(), is_on_loopback)
        self.kick()

    # --- streams (called by entry, exit and pumps) -----------------------------------------------

    def open(self, exit: NodeId, host: str, port: int, owner: StreamOwner | None) -> Stream:
        """A stream that leaves the mesh at `exit`. Raises StreamFault."""
        stream = self.node.open(exit, host, port, owner, monotonic())
        self.kick()
        return stream

    def accept(self, stream: Stream, owner: Pump, detail: bytes = b"") -> None:
        """The exit's connection stands: bytes flow."""
        owner.attach(stream)
        self.node.tunnel(stream).accept(stream, detail)
        self.kick()

    def refuse(self, stream: Stream, fault: Fault, detail: bytes = b"") -> None:
        """The exit could not connect."""
        stream.owner = None
        self.node.tunnel(stream).refuse(stream, fault, detail)
        self.kick()

    def write(self, stream: Stream, chunk: Buffer) -> bool:
        """Queues a copy; False: wait for `stream_room`."""
        self._go_on()
        return self.node.tunnel(stream).write(stream, chunk)

    def finish(self, stream: Stream) -> None:
        """No more will be written."""
        self.node.tunnel(stream).finish(stream)
        self.kick()

    def reset(self, stream: Stream, fault: Fault) -> None:
        """Ends the stream now."""
        self.node.tunnel(stream).reset(stream, fault)
        self.kick()

    def consumed(self, stream: Stream, size: int) -> None:
        """Delivered bytes have gone on."""
        self.node.tunnel(stream).consumed(stream, size, monotonic())
        self._go_on()

    # --- LinkOwner -------------------------------------------------------------------------------

    def new_link_id(self) -> LinkId:
        """A fresh number."""
        self._last_link += 1
        return LinkId(self._last_link)

    def link_opened(self, link: Link) -> None:
        """Somebody opened a link to us."""
        self._up(link)

    def link_message(self, link: Link, header: Header, body: Buffer) -> None:
        """A message with a genuine header."""
        self.link_runs(link, (Run(header, (body,)),))

    def link_runs(self, link: Link, runs: Sequence[Run]) -> None:
        """Messages with genuine headers: one look at the clock and one flush for all.

        None where they only passed on to others, from the buffers in which they came.
        """
        now = monotonic()
        if now - self._wall_at > _CLOCKS_S:  # before it is judged whether they are fresh
            self._look_at_clocks(now)
        for to, batch in self.node.receive_batch(link.id, runs, self._room, now):
            self._send(self.links[to], batch)
        if any(run.header.kind > Kind.SINK for run in runs):
            self._has_news = True
        if self.node.has_work():
            self._go_on()

    def link_progress(self, link: Link) -> None:
        """Part of a large message arrived."""
        self.node.link_progress(link.id, monotonic())

    def link_stalled(self, link: Link, silent_s: float) -> None:
        """What was sent is not acknowledged."""
        self.node.link_stalled(link.id, silent_s, monotonic())
        self.kick()

    def link_resized(self, link: Link) -> None:
        """Other sizes of messages fit."""
        self.node.link_resized(link.id, link.caps.payload_size_max, monotonic())
        self.kick()

    def link_is_proved(self, link: Link) -> bool:
        """Is it known whose link it is?"""
        entry = self.node.links.get(link.id)
        return entry is not None and entry.peer is not None

    def link_writable(self, link: Link) -> None:
        """The link takes more."""
        if link.caps.is_reliable:  # elsewhere the peer need not have had what went out
            self.node.link_progress(link.id, monotonic())
        self.kick()

    def link_closed(self, link: Link, reason: str) -> None:
        """The link is gone."""
        if self.links.pop(link.id, None) is not None:
            self._suspect()
            self.node.link_down(link.id, reason, monotonic())
            self.kick()
        else:
            self._dials.closed(link.id)

    def link_refused(self, link: Link) -> None:
        """Nobody is there: the link ends if the node believes it."""
        if self.node.link_refused(link.id, monotonic()):
            self.links.pop(link.id, None)
            link.close()
        self.kick()

    # --- DialOwner -------------------------------------------------------------------------------

    def dialled(self, peer: NodeId, endpoint: str, link: Link) -> None:
        """A link that the node wanted stands."""
        self._up(link, peer, endpoint)
        self.kick()

    def dial_failed(self, peer: NodeId, endpoint: str, failure: DialFailure) -> None:
        """There is no such link; where changes of the network are told, perhaps for want of one."""
        self._suspect()
        is_offline = self._is_watched and failure.is_offline
        self.node.dial_failed(
            peer, endpoint, failure.is_refused, failure.detail, monotonic(), is_offline
        )
        self.kick()

    # --- the loop --------------------------------------------------------------------------------

    def kick(self) -> None:
        """One flush at the end of the next turn of the event loop.

        The next one, since answers to what this turn writes are often there by then: 64 new connections at a
        time cost a client half as many flushes, and 40 % less CPU.
        """
        self._has_news = True
        self._go_on()

    def _go_on(self) -> None:
        """As `kick`, where only a stream's bytes went by: of all deadlines only the tunnel's are nearer.

        So bulk, with a flush for some hundred datagrams, does not ask every part of the node before it.
        """
        if not self._is_wanted:
            self._is_wanted = True
            self._flush_handle = self.loop.call_soon(self._flush_soon)

    def _flush_soon(self) -> None:
        self._flush_handle = self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        """One round; a mistake of ours in it must not be the end of all that the node has to do later."""
        self._is_wanted = True  # what the round itself causes needs no other one
        now = monotonic()
        is_quiet = True
        try:
            is_quiet = self._round(now)
        except Exception:
            log.exception("the node failed; it goes on in %g s", _AGAIN_S)
            self._has_news = True
            self._arm(now + _AGAIN_S, now)
        self._is_wanted = self._is_closed
        if not is_quiet:
            self._go_on()

    def _round(self, now: float) -> bool:
        """Until all is quiet; False: it is not yet, and others shall have their turn."""
        node = self.node
        is_quiet = False
        if now - self._wall_at > _CLOCKS_S:
            self._look_at_clocks(now)
        deadline = node.next_deadline() if self._has_news else self._deadline
        soon = now + _EPSILON_S
        if deadline is not None and deadline <= soon:
            node.on_deadline(soon)
        elif not self._has_news:
            node.on_tunnel_deadlines(soon)
        self._has_news = False
        for _ in range(4):  # events make messages, messages make room: a few rounds, then the loop
            batches = node.take_transmits(self._room, now)
            for link_id, batch in batches:
                link = self.links.get(link_id)
                if link is not None:
                    self._send(link, batch)
            events = node.take_events(now)
            if not events and not batches:  # a batch ends with the link's room, which may be back
                is_quiet = True
                break
            for event in joined(events) if len(events) > JOIN_FROM else events:
                try:
                    _HANDLERS[type(event)](self, event)
                except Exception:  # one owner's failure must not cost the others their events
                    self._failed(event)
        if node.directory.generation != self._generation:
            self._generation = node.directory.generation
            self.nodes_changed.set()
        self._deadline = node.next_deadline()
        self._arm(self._deadline, now)
        return is_quiet

    def _arm(self, deadline: float | None, now: float) -> None:
        if deadline is None:
            return  # a timer that is armed fires once more, for nothing: cheaper than cancelling
        if self._timer is not None:
            if self._timer_at <= deadline + _EPSILON_S and self._timer_at > now:
                return
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self.loop.call_later(max(0.001, deadline - now), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if not self._is_wanted:
            self._flush()

    def _room(self, link_id: LinkId) -> int:
        link = self.links.get(link_id)
        return 0 if link is None else link.room()

    def _look_at_clocks(self, now: float) -> None:
        self._wall_at = now
        self.node.wall_s = wall_offset()
        suspended = suspended_for()
        if suspended - self._suspended > _SLEPT_S:
            log.info("the machine slept for %.0f s: trying every peer", suspended - self._suspended)
            self._suspect()
            self._wake(now)
        self._suspended = suspended

    def _up(self, link: Link, peer: NodeId | None = None, endpoint: str = "") -> None:
        """The node has one more link; `peer` and `endpoint` are those of a dialled one."""
        self.links[link.id] = link
        self.node.link_up(
            link.id, link.caps.protocol, link.caps.payload_size_max, link.remote, monotonic(),
            peer, endpoint, link.caps.payload_size_base, link.caps.is_self_bounding,
            link.caps.is_costly,
        )  # fmt: skip

    def _send(self, link: Link, batch: Sequence[Buffer]) -> None:
        """One that raises, which no link should, ends soon; the batches of all others leave before."""
        try:
            link.send(batch)
        except Exception:
            log.exception("the link to %s cannot send, and ends", link.remote)
            self.loop.call_soon(self._end, link)

    def _end(self, link: Link) -> None:
        if self.links.pop(link.id, None) is not None:
            self.node.link_down(link.id, "it cannot send", monotonic())
            self.kick()
            link.close()

    # --- events ----------------------------------------------------------------------------------

    def _failed(self, event: NodeEvent) -> None:
        """Whoever was told of `event` raised: its stream ends."""
        log.exception("%s was not dealt with", type(event).__name__)
        if (
            isinstance(event, Offered | Opened | Data | Room | Finished)
            and not event.stream.is_over
        ):
            self.node.tunnel(event.stream).fail(event.stream, Fault.FAILED)

    def _on_dial(self, event: DialWanted) -> None:
        if not self._is_closed:
            self._suspect()
            self._dials.begin(event.peer, event.endpoint)

    def _on_close(self, event: CloseWanted) -> None:
        link = self.links.get(event.link)
        if link is not None:
            link.close()
        else:
            self.node.link_down(event.link, "closed", monotonic())
            self.kick()

    def _on_news(self, event: PeerNews) -> None:
        log.log(logging.WARNING if event.level == "warning" else logging.INFO, event.text)

    def _on_offered(self, event: Offered) -> None:
        if self.offer is None:
            self.refuse(event.stream, Fault.NOT_ALLOWED)
        else:
            self.offer(event.stream, event.host, event.port)

    def _on_opened(self, event: Opened) -> None:
        if event.stream.owner is not None:
            event.stream.owner.stream_opened(event.fault, event.detail)

    def _on_data(self, event: Data) -> None:
        if event.stream.owner is not None:
            event.stream.owner.stream_data(event.chunk)

    def _on_room(self, event: Room) -> None:
        if event.stream.owner is not None:
            event.stream.owner.stream_room()

    def _on_finished(self, event: Finished) -> None:
        if event.stream.owner is not None:
            event.stream.owner.stream_finished()

    def _on_reset(self, event: Reset) -> None:
        if event.stream.owner is not None:
            event.stream.owner.stream_reset(event.fault)


_HANDLERS: Final[dict[type, Callable[..., None]]] = {
    DialWanted: Driver._on_dial,
    CloseWanted: Driver._on_close,
    PeerNews: Driver._on_news,
    Message: lambda driver, event: driver.post.take_message(event),
    MessageResult: lambda driver, event: driver.post.take_result(event),
    Pong: lambda driver, event: driver.post.take_pong(event),
    Offered: Driver._on_offered,
    Opened: Driver._on_opened,
    Data: Driver._on_data,
    Room: Driver._on_room,
    Finished: Driver._on_finished,
    Reset: Driver._on_reset,
}
