"""Links that are being dialled: each a task with a time limit, and one word at its end.

A link may close before the task that dials it has gone on: then the dial has failed.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple, Protocol

from uservpn.kit.endpoint import Endpoint
from uservpn.links.base import Link
from uservpn.mesh.addresses import DIAL_LIMIT_S
from uservpn.runtime.descriptors import SHORTAGE
from uservpn.types import LinkId, NodeId

log: Final = logging.getLogger("uservpn")
ABREAST_MAX: Final = 3
"""Dials to one endpoint at a time: a fresh one as packets of the older may be lost (mesh/redial.py)."""
_NO_WAY: Final = (errno.ENETUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL)


class DialFailure(NamedTuple):
    """Why there is no link."""

    detail: str
    is_refused: bool = False
    """Somebody is there, and said no."""
    is_offline: bool = False
    """The error of a machine that has no way out."""


class DialOwner(Protocol):
    """Who wanted the link."""

    def dialled(self, peer: NodeId, endpoint: str, link: Link) -> None:
        """It stands."""

    def dial_failed(self, peer: NodeId, endpoint: str, failure: DialFailure) -> None:
        """There is none."""


class Dials:
    """Dials with `connect`, for `owner`; how many at once is the node's choice."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connect: Callable[[Endpoint], Coroutine[Any, Any, Link]],
        owner: DialOwner,
    ) -> None:
        self._loop = loop
        self._connect = connect
        self._owner = owner
        self._tasks: set[asyncio.Task[None]] = set()
        self._latest: dict[tuple[NodeId, str], list[asyncio.Task[None]]] = {}
        self._stillborn: set[LinkId] = set()  # closed before their dial had gone on

    def begin(self, peer: NodeId, endpoint: str) -> None:
        """The owner hears how it ends, unless it is given up: that is the oldest of more than ABREAST_MAX."""
        task = self._loop.create_task(self._dial(peer, endpoint))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        latest = [t for t in self._latest.get((peer, endpoint), ()) if not t.done()]
        latest.append(task)
        if len(latest) > ABREAST_MAX:
            latest.pop(0).cancel()
        self._latest[peer, endpoint] = latest

    def closed(self, link: LinkId) -> None:
        """A link that nobody knows yet is gone."""
        if self._tasks:
            self._stillborn.add(link)

    def give_up(self) -> None:
        """Ends all; nobody is told."""
        for task in list(self._tasks):
            task.cancel()

    async def close(self) -> None:
        """As `give_up`; waits until they have ended."""
        self.give_up()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self._stillborn.clear()
            self._latest.clear()

    async def _dial(self, peer: NodeId, text: str) -> None:
        try:
            endpoint = Endpoint.parse(text)
            link = await asyncio.wait_for(self._connect(endpoint), timeout=DIAL_LIMIT_S)
        except (OSError, TimeoutError) as error:
            SHORTAGE.met(error)
            detail = "no answer in time" if isinstance(error, TimeoutError) else str(error)
            is_refused = isinstance(error, ConnectionRefusedError)
            failure = DialFailure(detail, is_refused, getattr(error, "errno", None) in _NO_WAY)
            self._owner.dial_failed(peer, text, failure)
            return
        except Exception as error:  # a plug-in's own trouble: for the node a dial like any other
            log.exception("a dial failed in a way nobody thought of")
            self._owner.dial_failed(peer, text, DialFailure(str(error)))
            return
        if link.id in self._stillborn:
            self._stillborn.discard(link.id)
            self._owner.dial_failed(peer, text, DialFailure("closed at once"))
        else:
            self._owner.dialled(peer, text, link)
