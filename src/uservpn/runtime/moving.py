"""From old addresses to new ones, all or nothing.

New ones are opened first, so that whatever cannot be had changes nothing. But an old one may be in the way of
a new one, as 127.0.0.1:7000 is of 0.0.0.0:7000: those close before, and open again should a new one fail.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from uservpn.kit.endpoint import Address

log: Final = logging.getLogger("uservpn")
AGAIN_S: Final = 0.05
TRIES: Final = 10
"""Some sockets close only in the loop's next turns."""


class Spot(NamedTuple):
    """A place to listen at."""

    address: Address
    open: Callable[[], Awaitable[None]]
    """Raises OSError."""
    close: Callable[[], None]
    """Accepts no more; what stands is not touched."""


async def move(leaving: Sequence[Spot], arriving: Sequence[Spot]) -> None:
    """Closes the ones and opens the others. Raises OSError: one cannot be opened, all is as before."""
    in_the_way = [spot for spot in leaving if any(_collide(spot, new) for new in arriving)]
    for spot in in_the_way:
        spot.close()
    opened: list[Spot] = []
    try:
        for spot in arriving:
            await _open(spot, TRIES if in_the_way else 1)
            opened.append(spot)
    except BaseException:
        for spot in opened:
            spot.close()
        for spot in in_the_way:
            await _reopen(spot)
        raise
    for spot in leaving:
        if spot not in in_the_way:
            spot.close()


def _collide(one: Spot, other: Spot) -> bool:
    """May only one of them be open? Both may, if they are of different protocols: then it does no harm."""
    return one.address.collides(other.address)


async def _open(spot: Spot, tries: int) -> None:
    for left in range(tries - 1, -1, -1):
        try:
            await spot.open()
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not left:
                raise
        await asyncio.sleep(AGAIN_S)


async def _reopen(spot: Spot) -> None:
    try:
        await _open(spot, TRIES)
    except OSError as error:
        log.error(
            "what was open until now is shut, and is tried again by the next reload: %s",
            error.strerror or error,
        )
