"""`uservpn ping` and `uservpn trace`: the running node measures, these show."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from uservpn.control.client import ask
from uservpn.control.status import plain

ANSWER_S: Final = 20.0
"""How long the node may take for one ping or trace; it takes half of it at most."""

Row = Mapping[str, Any]


def ping(socket_path: Path, node: int, count: int, interval_s: float) -> bool:
    """Pings `count` times and shows each; was there any answer? Raises ControlError."""
    times: list[float] = []
    for number in range(count):
        if number:
            time.sleep(interval_s)
        answer = ask(socket_path, {"command": "ping", "node": node}, ANSWER_S)
        if answer["rtt_ms"] is not None:
            times.append(answer["rtt_ms"])
        click.echo(ping_line(number + 1, answer))
    click.echo(summary(count, times))
    return bool(times)


def trace(socket_path: Path, node: int) -> bool:
    """Shows every hop; was there any? Raises ControlError."""
    answer = ask(socket_path, {"command": "trace", "node": node}, ANSWER_S)
    if not answer["hops"]:
        click.echo(f"no answer from node {_named(answer)}")
        return False
    for line in trace_lines(answer["hops"]):
        click.echo(line)
    return True


def ping_line(number: int, answer: Row) -> str:
    """One probe."""
    who = f"{number}: node {_named(answer)}"
    if answer["rtt_ms"] is None:
        return f"{who}: no answer"
    relays = [str(relay) for relay in answer["route"][:-1]]
    over = f"{plain(answer['protocol'])}, relayed by {' and '.join(relays)}" if relays else ""
    return f"{who}: {answer['rtt_ms']:.2f} ms over {over or plain(answer['protocol'])}"


def summary(sent: int, times: Sequence[float]) -> str:
    """What all probes together say."""
    lost = (sent - len(times)) / sent
    text = f"{sent} sent, {len(times)} answered, {lost:.0%} lost"
    if times:
        found = sorted(times)
        middle = (found[(len(found) - 1) // 2] + found[len(found) // 2]) / 2
        text += f"; min/median/max {found[0]:.2f}/{middle:.2f}/{found[-1]:.2f} ms"
    return text


_COLUMNS: Final[Sequence[tuple[str, Callable[[Row], str]]]] = (
    ("node", lambda hop: _named(hop)),
    ("protocol", lambda hop: plain(hop["protocol"])),
    ("round trip", lambda hop: f"{hop['rtt_ms']:.2f} ms"),
    ("there", lambda hop: f"{hop['out_ms']:.2f} ms"),
    ("back", lambda hop: f"{hop['back_ms']:.2f} ms"),
    ("clock", lambda hop: f"{hop['clock_ms']:+.1f} ms"),
)


def trace_lines(hops: Sequence[Row]) -> list[str]:
    """A line per hop below a line of titles; `clock` is what it says beyond ours."""
    cells = [["hop", *(title for title, _ in _COLUMNS)]]
    cells += [[str(at), *(show(hop) for _, show in _COLUMNS)] for at, hop in enumerate(hops, 1)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(cells[0]))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def _named(row: Row) -> str:
    return f"{row['node']} ({plain(row['name'])})" if row.get("name") else str(row["node"])
