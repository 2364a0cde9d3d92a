"""`python tests/unit/compare_congestion.py`: the table in docs/congestion.md, in simulated time."""

from __future__ import annotations

import statistics
import sys

from paths import SIZE_MAX, WIRE, Conditions, Line
from references import Copa, Cubic, TcpFlow
from uservpn.tunnel.bbr import Bbr

MBIT = 1e6 / 8
BEST = (SIZE_MAX - 25) / (SIZE_MAX + WIRE)
CONTROLLERS = {"BBR": Bbr, "Copa": Copa, "CUBIC": Cubic}


def alone(controller, start=5.0, end=15.0, rate=100 * MBIT, rtt_s=0.1, **conditions):
    """Share of what the path can carry (after its loss), median and 95 % of the queue's delay in ms."""
    path = Conditions(rate, rtt_s, **conditions)
    line = Line(path, controller, seed=1)
    line.fill()
    line.clock.run(start)
    line.forth.delays.clear()
    got = line.goodput(start, end)
    delays = sorted(line.forth.delays)
    best = BEST * path.rate * (1 - path.loss)
    return (
        f"{got / best:.0%}, {statistics.median(delays) * 1e3:.0f} / "
        f"{delays[int(len(delays) * 0.95)] * 1e3:.0f} ms"
    )


def fallen(controller):
    """The rate falls from 100 to 10 Mbit/s: from the third second after it."""
    line = Line(Conditions(100 * MBIT, 0.1), controller, seed=1)
    line.fill()
    line.clock.run(5.0)
    line.forth.now_is.rate = 10 * MBIT
    line.clock.run(8.0)
    line.forth.delays.clear()
    got = line.goodput(8.0, 14.0)
    return f"{got / (BEST * 10 * MBIT):.0%}, {statistics.median(line.forth.delays) * 1e3:.0f} ms"


def changed(controller, after=2.0, **change):
    """Something of the path changes: the goodput's share of what there is now, two seconds later."""
    line = Line(Conditions(20 * MBIT, 0.05), controller, seed=1)
    line.fill()
    line.clock.run(5.0)
    for name, value in change.items():
        setattr(line.forth.now_is, name, value)
        if name == "rtt_s":
            line.back.now_is.rtt_s = value
    line.clock.run(5.0 + after)
    line.forth.delays.clear()
    got = line.goodput(5.0 + after, 8.0 + after)
    delay = statistics.median(line.forth.delays) * 1e3
    return f"{got / (BEST * line.forth.now_is.rate):.0%}, {delay:.0f} ms"


def first_second(controller, loss):
    """Goodput of the first two seconds, as a share of what the path can deliver."""
    line = Line(Conditions(100 * MBIT, 0.1, loss=loss), controller, seed=1)
    line.fill()
    seconds = [line.goodput(at, at + 1.0) / (BEST * 100 * MBIT * (1 - loss)) for at in (0.0, 1.0)]
    return ", ".join(f"{share:.0%}" for share in seconds)


def both(controller, queue, rate=20 * MBIT, rtt=0.05):
    """The share of the first of two flows of ours, and the queue's median delay."""
    path = Conditions(rate, rtt, int(queue * rate * rtt))
    line = Line(path, controller, seed=1)
    other = Line(path, controller, seed=2, clock=line.clock, forth=line.forth)
    line.fill()
    line.clock.at(3.0, other.fill)
    line.clock.run(15.0)
    line.forth.delays.clear()
    before = other.sink.got
    first = line.goodput(15.0, 30.0)
    second = (other.sink.got - before) / 15.0
    delay = statistics.median(line.forth.delays) * 1e3
    return f"{first / (first + second):.0%}, {delay:.0f} ms"


def beside(controller, queue, rate=20 * MBIT, rtt=0.05):
    """Its share of a bottleneck with one TCP flow (CUBIC), and the queue's median delay."""
    line = Line(Conditions(rate, rtt, int(queue * rate * rtt)), controller, seed=1)
    flow = TcpFlow(line.clock, line.forth, rtt)
    line.fill()
    line.clock.at(2.0, flow.start)
    line.clock.run(15.0)
    line.forth.delays.clear()
    before = flow.got
    ours = line.goodput(15.0, 45.0) / BEST
    theirs = (flow.got - before) / 30.0
    delay = statistics.median(line.forth.delays) * 1e3
    return f"{ours / (ours + theirs):.0%}, {delay:.0f} ms"


ROWS = {
    "no loss": lambda c: alone(c),
    "1 % loss": lambda c: alone(c, loss=0.01),
    "3 % loss": lambda c: alone(c, loss=0.03),
    "10 % loss": lambda c: alone(c, loss=0.1),
    "30 % loss": lambda c: alone(c, loss=0.3),
    "a queue of 10 ms": lambda c: alone(c, queue=125_000),
    "a queue of 1 s": lambda c: alone(c, queue=12_500_000),
    "1 Mbit/s, 20 ms, a queue of 2 s": lambda c: alone(
        c, 10.0, 60.0, rate=1 * MBIT, rtt_s=0.02, queue=250_000
    ),
    "256 kbit/s, 100 ms, a queue of 2 s": lambda c: alone(
        c, 10.0, 60.0, rate=0.256 * MBIT, queue=64_000
    ),
    "jitter of 30 ms": lambda c: alone(c, jitter_s=0.03),
    "rate falls by ten": fallen,
    "rate rises by five": lambda c: changed(c, rate=100 * MBIT),
    "round trip three times as long": lambda c: changed(c, rtt_s=0.15),
    "first and second second": lambda c: first_second(c, 0.0),
    "the same, 1 % loss": lambda c: first_second(c, 0.01),
    "beside TCP, queue of half a round trip": lambda c: beside(c, 0.5),
    "beside TCP, queue of one": lambda c: beside(c, 1.0),
    "beside TCP, queue of four": lambda c: beside(c, 4.0),
    "two of them, queue of half a round trip": lambda c: both(c, 0.5),
    "two of them, queue of one": lambda c: both(c, 1.0),
    "two of them, queue of four": lambda c: both(c, 4.0),
}


def main(words: list[str]) -> None:
    chosen = {name: one for name, one in CONTROLLERS.items() if not words or name in words}
    print("| | " + " | ".join(chosen) + " |\n|---|" + "---:|" * len(chosen))
    for row, measure in ROWS.items():
        cells = [measure(controller) for controller in chosen.values()]
        print(f"| {row} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
