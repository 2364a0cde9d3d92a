"""Many seeds, on every core: what broke, and the figures of the rest.

    python -m uservpn.sim --seed 7                 one world; what it drew, and how it went
    python -m uservpn.sim --seeds 1000             a campaign of seeds 0..999
    python -m uservpn.sim --seed 7 --nodes 40      the same with so many nodes
    python -m uservpn.sim --table                  what meshes of 8, 32, 128 and 254 nodes cost
    python -m uservpn.sim --table 254              one of them

A seed that breaks a law prints what it drew, the last steps of its story and the command that replays it.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from os import cpu_count
from time import process_time
from typing import Final

from uservpn import __version__
from uservpn.sim import big
from uservpn.sim.swarm import Run, draw
from uservpn.sim.world import InvariantBroken

STORY_SHOWN: Final = 60
SIZES: Final = (8, 32, 128, 254)
"""Of the meshes in the table."""
EVERY: Final = 100
"""Seeds between two lines of progress."""


@dataclass(frozen=True, slots=True)
class Result:
    """How one seed went."""

    seed: int
    text: str
    """Why it broke, with its story; empty: it did not."""
    digest: int
    nodes: int
    steps: int
    age_s: float
    cpu_s: float
    messages: int
    flows: int
    delivered_size: int
    agreed_s: float
    busiest_minute: float


def rare_collections() -> None:
    """Worlds are made of cycles and live long: looking through them often costs more than it frees."""
    gc.set_threshold(100_000, 50, 100)


def play(seed: int, nodes: int | None = None) -> Result:
    """One seed, from its drawing to its end. Never raises."""
    rare_collections()
    scenario = draw(seed, nodes)
    run = Run(scenario)
    world = run.world
    began = process_time()
    text = ""
    try:
        run.play()
    except InvariantBroken as broken:
        text = str(broken)
    except Exception:  # a bug of the core, or of the simulation: its place tells
        text = traceback.format_exc()
    if text:
        command = f"python -m uservpn.sim --seed {seed}" + (f" --nodes {nodes}" if nodes else "")
        story = "\n".join(map(_told, list(world.story)[-STORY_SHOWN:]))
        text = (
            f"seed {seed}, uservpn {__version__}: {text}\n"
            f"drew: {scenario}\nlast steps:\n{story}\nagain: {command}\n"
        )
    flows = sum(flow.is_done for flow in world.flows.values())
    return Result(
        seed,
        text,
        world.digest,
        len(world.seats),
        world.agenda.step_count,
        world.age_s,
        process_time() - began,
        sum(member.sent_count for member in world.members.values()),
        flows,
        world.delivered_size,
        run.agreed_s or 0.0,
        world.laws.busiest_minute,
    )


def campaign(seeds: Iterable[int], nodes: int | None = None, jobs: int | None = None) -> bool:
    """Plays them all, tells as it goes; True: no law was broken."""
    work = [(seed, nodes) for seed in seeds]
    results: list[Result] = []
    broken = 0
    with multiprocessing.Pool(jobs or cpu_count() or 1) as pool:
        for result in pool.imap_unordered(_play, work, chunksize=1):
            results.append(result)
            if result.text:
                broken += 1
                print(result.text, flush=True)
            if len(results) % EVERY == 0:
                print(f"{len(results)} of {len(work)} seeds, {broken} broken", flush=True)
    print(summary(results))
    return not broken


def summary(results: list[Result]) -> str:
    """The campaign's figures."""
    sound = [result for result in results if not result.text]
    agreed = sorted(result.agreed_s for result in sound) or [0.0]
    rows = (
        ("seeds", f"{len(results)}"),
        ("broken", f"{len(results) - len(sound)}"),
        ("nodes", f"{sum(result.nodes for result in results)}"),
        ("simulated hours", f"{sum(result.age_s for result in results) / 3600:.0f}"),
        ("messages", f"{sum(result.messages for result in results)}"),
        ("flows completed", f"{sum(result.flows for result in results)}"),
        ("bytes delivered", f"{sum(result.delivered_size for result in results)}"),
        ("lists equal after the end of trouble, median", f"{agreed[len(agreed) // 2]:.0f} s"),
        ("the same, 99th percentile", f"{agreed[len(agreed) * 99 // 100]:.0f} s"),
        ("the same, most", f"{agreed[-1]:.0f} s"),
        (
            "busiest idle minute, of what is allowed",
            f"{max((result.busiest_minute for result in sound), default=0):.0%}",
        ),
        ("CPU", f"{sum(result.cpu_s for result in results):.0f} s"),
    )
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value:>12}" for name, value in rows)


def table(sizes: Iterable[int], seed: int) -> bool:
    """Plays a mesh of each size and prints its row; True: all lists agreed in time."""
    rare_collections()
    print(big.HEAD)
    is_sound = True
    for count in sizes:
        mesh = big.Big(count, seed)
        began = process_time()
        try:
            mesh.play()
        except InvariantBroken as broken:
            is_sound = False
            print(f"{count} nodes: {broken}", file=sys.stderr)
        print(big.rows(count, mesh), flush=True)
        print(f"{count} nodes: {process_time() - began:.0f} s of CPU", file=sys.stderr)
    return is_sound


def main(arguments: list[str]) -> int:
    """The command line; 0: every law held, 1: one did not, 2: wrong usage."""
    parser = argparse.ArgumentParser(
        prog="uservpn sim", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--seed", type=int, help="one world")
    parser.add_argument("--seeds", type=int, metavar="N", help="a campaign of N seeds")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="its first seed")
    parser.add_argument("--nodes", type=int, help="how many nodes (default: drawn, 3 to 20)")
    parser.add_argument(
        "--table",
        type=int,
        nargs="*",
        metavar="NODES",
        help="what large meshes cost, in idleness and change",
    )
    parser.add_argument("--jobs", type=int, help="processes (default: one for each core)")
    options = parser.parse_args(arguments)
    if options.nodes is not None and not 2 <= options.nodes <= 254:
        parser.error("--nodes is from 2 to 254")
    if options.table is not None:
        return 0 if table(options.table or SIZES, options.seed or 7) else 1
    if options.seeds is not None:
        seeds = range(options.first, options.first + options.seeds)
        return 0 if campaign(seeds, options.nodes, options.jobs) else 1
    result = play(options.seed or 0, options.nodes)
    print(result.text or f"seed {result.seed}: {draw(result.seed, options.nodes)}")
    print(summary([result]))
    print(f"digest {result.digest:08x}")
    return 1 if result.text else 0


def _play(work: tuple[int, int | None]) -> Result:
    return play(*work)


def _told(step: tuple[object, ...]) -> str:
    at, node, *rest = step
    return f"  {at:>14}  {node:>3}  " + " ".join(map(str, rest))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
