"""What a tunnel tells its owner. Tuples, because the bulk path makes one per message."""

from __future__ import annotations

from typing import NamedTuple

from uservpn.errors import Fault
from uservpn.tunnel.stream import Stream
from uservpn.types import Buffer


class Offered(NamedTuple):
    """The peer asks us to connect to `host`:`port`; answer with `accept` or `refuse`."""

    stream: Stream
    host: str
    port: int


class Opened(NamedTuple):
    """The peer's answer to our `open`; `fault` is NONE when it connected."""

    stream: Stream
    fault: Fault
    detail: bytes


class Data(NamedTuple):
    """The stream's next bytes, in order."""

    stream: Stream
    chunk: Buffer


class Room(NamedTuple):
    """A stream whose `write` returned False may be written to again."""

    stream: Stream


class Finished(NamedTuple):
    """The peer will send no more on this stream; ours may still flow."""

    stream: Stream


class Reset(NamedTuple):
    """The stream is over, both ways, at once."""

    stream: Stream
    fault: Fault


Event = Offered | Opened | Data | Room | Finished | Reset
