"""Plug-ins of a node: programs of others that use its out-of-band messages (docs/messages.md).

An entry point of the group `uservpn.plugins` names a callable. It is called once with a `Messages` when the
node starts, and registers what it wants to hear; nothing else of the node is promised to it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from uservpn.errors import ConfigError
from uservpn.runtime.post import Post
from uservpn.types import NodeId

GROUP: Final = "uservpn.plugins"
log: Final = logging.getLogger("uservpn")


class Messages(Protocol):
    """What a plug-in gets."""

    @property
    def node_id(self) -> NodeId:
        """This node's number."""

    def on_message(self, topic: str, handler: Callable[[NodeId, bytes], None] | None) -> None:
        """See `Post.on_message`."""

    def send_message(
        self,
        peer: NodeId,
        topic: str,
        payload: bytes,
        *,
        confirmed: bool = False,
        on_result: Callable[[bool], None] | None = None,
    ) -> int:
        """See `Post.send_message`."""


Plugin = Callable[[Messages], object]


def load(names: Sequence[str]) -> list[tuple[str, Plugin]]:
    """The plug-ins with these names. Raises ConfigError for one that cannot be loaded."""
    if not names:
        return []
    from importlib.metadata import entry_points  # megabytes that few need

    found = []
    for name in names:
        entries = list(entry_points(group=GROUP, name=name))
        if not entries:
            raise ConfigError([f"node.plugins: no plug-in {name!r} is installed"])
        try:
            found.append((name, entries[0].load()))
        except Exception as error:  # whatever its import does
            raise ConfigError([f"node.plugins: {name!r} cannot be loaded: {error}"]) from error
    return found


def start(plugins: Sequence[tuple[str, Plugin]], post: Post) -> None:
    """Hands the node's messages to each; one that fails is logged, and hurts nobody else."""
    for name, plugin in plugins:
        try:
            plugin(post)
        except Exception:
            log.exception("the plug-in %r did not start", name)
