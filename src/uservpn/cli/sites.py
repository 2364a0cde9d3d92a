"""`uservpn explain` and `uservpn sites`: the running node answers, these show."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from uservpn.control.client import ask
from uservpn.control.status import format_age, plain, render_candidates, render_sites

DEFAULT_PORT: Final = 443


def explain(socket_path: Path, target: str, user: str, as_json: bool) -> None:
    """Where a connection to `target` would leave. Raises ControlError."""
    host, port = _host_port(target)
    request = {"command": "explain", "host": host, "port": port, "user": user}
    answer = ask(socket_path, request)
    if as_json:
        click.echo(json.dumps(answer, indent=2, ensure_ascii=True))
        return
    for line in explain_lines(answer):
        click.echo(line)
    click.echo(render_candidates(answer["candidates"]), nl=False)


def explain_lines(answer: Mapping[str, Any]) -> list[str]:
    """The answer in sentences."""
    site, exit = plain(answer["site"]), answer["exit"]
    country = f" (in {plain(answer['country'])})" if answer["country"] else ""
    where = "no exit" if exit is None else f"exit {exit}"
    if answer["is_direct"]:
        where = "this node itself, no exit"
    elif answer["reason"] == "country":
        where = "that depends on the country of the site, which is asked for first"
    elif answer["is_asked"]:
        asked = "the exits are asked to connect, and the fastest is taken"
        where = asked if exit is None else f"{asked}; until then the best known is exit {exit}"
    lines = [
        f"{plain(answer['host'])}:{answer['port']} belongs to the site {site}{country}",
        f"leaves at: {where}",
        f"because: {plain(answer['reason'])} ({plain(answer['detail'])})",
    ]
    if answer["rule"]:
        lines.append(f"rule: {plain(answer['rule'])}")
    session = answer["session"]
    if session is not None:
        lines.append(_session_line(session))
    return lines


def list_sites(socket_path: Path, as_json: bool) -> None:
    """Every site with its exits. Raises ControlError."""
    answer = ask(socket_path, {"command": "sites"})
    if as_json:
        click.echo(json.dumps(answer, indent=2, ensure_ascii=True))
    else:
        click.echo(render_sites(answer["sites"]), nl=False)


def pin(socket_path: Path, site: str, exit: str) -> None:
    """Raises ControlError."""
    answer = ask(socket_path, {"command": "pin", "site": site, "exit": exit})
    click.echo(f"{plain(answer['site'])} leaves at exit {answer['exit']} from now on")


def forget(socket_path: Path, site: str) -> bool:
    """False: nothing was known. Raises ControlError."""
    answer = ask(socket_path, {"command": "forget", "site": site})
    known = bool(answer["is_known"])
    click.echo(f"{plain(answer['site'])} {'is forgotten' if known else 'was not known'}")
    return known


def _session_line(session: Mapping[str, Any]) -> str:
    name = f" {plain(session['name'])}" if session["name"] else ""
    moves = f", moved {session['moves']} times" if session["moves"] else ""
    since, used = format_age(session["since_s"]), format_age(session["used_s"])
    if session["expires"] is None:
        end = "until it is forgotten"
    elif session["is_live"]:
        end = f"unused, it ends in {format_age(session['expires'] - time.time())}"
    else:
        end = "over"
    return (
        f"session{name}: exit {session['exit']}, began {since} ago, used {used} ago{moves}; {end}"
    )


def _host_port(target: str) -> tuple[str, int]:
    """`example.org`, `example.org:80`, `2001:db8::1`, `[2001:db8::1]:80`."""
    if target.startswith("["):
        host, _, rest = target[1:].partition("]")
        port = rest.removeprefix(":")
    elif target.count(":") == 1:
        host, _, port = target.partition(":")
    else:
        host, port = target, ""
    if not port:
        return host, DEFAULT_PORT
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise click.BadParameter(f"{port!r} is no port")
    return host, int(port)
