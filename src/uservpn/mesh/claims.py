"""Whose number it is, when two live nodes have the same one.

Wall clocks may be wrong, so boots do not tell who came first. A node that learns of another one with its
number *claims* it: a `Claim` tells how long its author has been there without a break. The one that has
been there longer stays; the other *stands back*: it leaves the mesh and tries again seldom. Ages that
differ by less than CLOSE_S are decided by the instance, a random value kept in the state directory.

Claims are flooded: to every neighbour but the one they came from, each once, and one node's at most every
EVERY_S. A record of our number with a higher boot, which nobody claims, is one that was left behind: then
our own record takes a higher boot than that, so that the list returns to it.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from uservpn.errors import PeerFault

INSTANCE_SIZE: Final = 8
ADDRESS_SIZE_MAX: Final = 80
CLOSE_S: Final = 1.0
"""More than what a claim takes to arrive."""
EVERY_S: Final = 10.0
ANSWER_S: Final = 3.0
"""How long another claim may take, before a record with a higher boot counts as left behind."""
LEAVE_S: Final = 0.3
"""From the decision to stand back until it is done: our claim is to get through first."""
RETRY_S: Final = 300.0
"""A node that stands back tries again after so long, and up to half as long again."""
TOLD_S: Final = 3600.0
"""The log tells of the same duplicate at most so often; status forgets it after so long."""
OWN_S: Final = 60.0
"""After a restart, claims of the process before may still be under way for so long."""
KEPT_S: Final = 600.0
DUPLICATES_MAX: Final = 8
OTHERS_MAX: Final = 512
"""Claims of other numbers that are remembered; the oldest goes, if it is older than EVERY_S. Else the new one
is not passed on: one that was forgotten while it still goes round would go round for ever."""
_HEAD: Final = struct.Struct(">B8sQIIB")
_TICKS: Final = 10


class Claim(NamedTuple):
    """One node says: this number is mine."""

    node: int
    instance: bytes
    boot: int
    serial: int
    """Grows with each claim of one instance."""
    age_s: float
    """How long it has been there."""
    address: str
    """Where it was seen; empty: not yet."""

    def encode(self) -> bytes:
        """As it stands in messages."""
        address = self.address.encode()[:ADDRESS_SIZE_MAX]
        age = min(int(self.age_s * _TICKS), (1 << 32) - 1)
        return (
            _HEAD.pack(self.node, self.instance, self.boot, self.serial, age, len(address))
            + address
        )

    @classmethod
    def decode(cls, data: bytes) -> Claim:
        """The claim that `data` begins with.

        Raises:
            PeerFault: there is none.
        """
        try:
            node, instance, boot, serial, age, size = _HEAD.unpack_from(data)
            address = data[_HEAD.size : _HEAD.size + size].decode()
        except (struct.error, UnicodeDecodeError) as error:
            raise PeerFault(f"a claim is malformed: {error}") from None
        if size > ADDRESS_SIZE_MAX or len(data) < _HEAD.size + size or not 0 < node < 255:
            raise PeerFault("a claim is cut off, or impossible")
        if not address.isprintable():  # it will stand in logs
            raise PeerFault("the address in a claim is not printable")
        return cls(node, instance, boot, serial, age / _TICKS, address)


@dataclass(slots=True)
class Duplicate:
    """Another live node with our number."""

    address: str
    heard_at: float
    told_at: float
    stays: bool
    """True: it has been there longer."""


class Announce(NamedTuple):
    """Flood this claim of ours."""

    claim: Claim


class StandBack(NamedTuple):
    """Leave the mesh."""

    address: str


class Resume(NamedTuple):
    """Come back: perhaps the number is free now."""


class Supersede(NamedTuple):
    """Publish our record above this boot."""

    boot: int


class Tell(NamedTuple):
    """A line for the log."""

    text: str


Plan = Announce | StandBack | Resume | Supersede | Tell


class Claims:
    """This node's claim to its number. Bounds: see the constants."""

    def __init__(
        self, node: int, boot: int, instance: bytes, jitter: Callable[[float], float], now: float
    ) -> None:
        self.instance = instance
        self.is_back = False
        """It stands back."""
        self._node = node
        self._boot = boot
        self._jitter = jitter
        self._started_at = now
        self._since = now
        self._serial = 0
        self._announced_at = now - EVERY_S
        self._duplicates: dict[bytes, Duplicate] = {}
        self._leave_at: float | None = None
        self._leave_for = ""
        self._retry_at: float | None = None
        self._contested_boot = 0
        self._supersede_at: float | None = None
        self._plans: list[Plan] = []

    # --- outside events --------------------------------------------------------------------------

    def hear(self, other: Claim, now: float) -> None:
        """A claim of our number, in a flood or told by a peer that knows both of us."""
        if other.instance == self.instance and (
            other.boot == self._boot or (other.boot < self._boot and now < self._started_at + OWN_S)
        ):
            return  # our own, of now or of before the restart
        stays = self._is_before_us(other, now)
        self._note(other, stays, now)
        self._announce(now)
        if stays and not self.is_back and self._leave_at is None:
            self._leave_at = now + LEAVE_S
            self._leave_for = other.address

    def contradicted(self, boot: int, now: float) -> None:
        """The list has a record of our number with a higher boot than ours."""
        self._contested_boot = max(boot, self._contested_boot)
        if self._supersede_at is None:
            self._supersede_at = now + ANSWER_S
            self._announce(now)

    def retry(self, now: float) -> None:
        """Try now, if it stands back."""
        if self.is_back:
            self.is_back = False
            self._retry_at = None
            self._since = now
            self._plans.append(Resume())

    # --- time ------------------------------------------------------------------------------------

    def on_deadline(self, now: float) -> None:
        """Due work; harmless when early."""
        if self._leave_at is not None and now >= self._leave_at:
            self._leave_at = None
            self._supersede_at = None
            self.is_back = True
            self._retry_at = now + RETRY_S + self._jitter(RETRY_S / 2)
            self._plans.append(StandBack(self._leave_for))
        if self._supersede_at is not None and now >= self._supersede_at:
            self._supersede_at = None
            self._plans.append(Supersede(self._contested_boot))
            self._contested_boot = 0
        if self._retry_at is not None and now >= self._retry_at:
            self.retry(now)

    def next_deadline(self) -> float | None:
        """When `on_deadline` wants to be called."""
        times = (self._leave_at, self._supersede_at, self._retry_at)
        return min((time for time in times if time is not None), default=None)

    # --- takes and questions ---------------------------------------------------------------------

    def take_plans(self) -> list[Plan]:
        """What to do now."""
        plans = self._plans
        if plans:
            self._plans = []
        return plans

    def own(self, now: float) -> Claim:
        """A fresh claim of ours."""
        self._serial = min(self._serial + 1, (1 << 32) - 1)
        age_s = 0.0 if self.is_back else now - self._since
        return Claim(self._node, self.instance, self._boot, self._serial, age_s, "")

    def duplicates(self, now: float) -> list[Duplicate]:
        """Who else has had our number within the last hour; the newest heard from first."""
        found = [d for d in self._duplicates.values() if now < d.heard_at + TOLD_S]
        return sorted(found, key=lambda duplicate: -duplicate.heard_at)

    def retry_in(self, now: float) -> float | None:
        """Seconds until it tries again; None: it does not stand back."""
        return None if self._retry_at is None else max(0.0, self._retry_at - now)

    # --- inside ----------------------------------------------------------------------------------

    def _is_before_us(self, other: Claim, now: float) -> bool:
        """Has it been there longer?"""
        age_s = now - self._since
        if abs(other.age_s - age_s) > CLOSE_S:
            return other.age_s > age_s
        return (other.instance, other.boot) > (self.instance, self._boot)

    def _note(self, other: Claim, stays: bool, now: float) -> None:
        known = self._duplicates.pop(other.instance, None)
        address = other.address or (known.address if known else "")
        told_at = known.told_at if known else now - TOLD_S
        changed = known is None or known.stays != stays
        if changed or now >= told_at + TOLD_S:
            told_at = now
            what = "it was there first" if stays else "this node was there first, and stays"
            self._plans.append(
                Tell(
                    f"duplicate: another node with the number {self._node} runs at "
                    f"{address or 'an unknown address'}; {what}"
                )
            )
        if len(self._duplicates) >= DUPLICATES_MAX:
            del self._duplicates[next(iter(self._duplicates))]
        self._duplicates[other.instance] = Duplicate(address, now, told_at, stays)

    def _announce(self, now: float) -> None:
        if now >= self._announced_at + EVERY_S:
            self._announced_at = now
            self._plans.append(Announce(self.own(now)))


class Heard:
    """The claims of other numbers: what has been passed on, and what is known of whom."""

    def __init__(self) -> None:
        self._claims: OrderedDict[tuple[int, bytes], tuple[Claim, float]] = OrderedDict()

    def admit(self, claim: Claim, now: float) -> bool:
        """Is it to be passed on? Not twice, and not more often than a node may claim."""
        key = claim.node, claim.instance
        known = self._claims.get(key)
        if known is not None and now < known[1] + KEPT_S:
            if claim.serial <= known[0].serial and claim.boot <= known[0].boot:
                return False
            if now < known[1] + EVERY_S / 2:  # half: it was under way for different times
                return False
        if known is None and len(self._claims) >= OTHERS_MAX:
            oldest, (_, heard_at) = next(iter(self._claims.items()))
            if now < heard_at + EVERY_S:
                return False
            del self._claims[oldest]
        self._claims[key] = claim, now
        self._claims.move_to_end(key)
        return True

    def of(self, node: int, boot: int, now: float) -> Claim | None:
        """What the node that was started as `boot` claims, its age brought up to now."""
        for claim, at in self._claims.values():
            if claim.node == node and claim.boot == boot and now < at + KEPT_S:
                return claim._replace(age_s=claim.age_s + now - at)
        return None
