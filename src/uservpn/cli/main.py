"""The command line: `uservpn COMMAND`.

    init     write a first configuration        status   what a running node is doing
    join     the same, with a free number
    check    read the configuration, say what   demo     a client and two exits on loopback
             is wrong or what it means          key      fingerprints; `key new` makes a key
    run      run the node                       nodes    the nodes of the mesh
    ping     the round trip to a node           trace    every hop on the way to a node
    explain  where a site leaves, and why       sites    sites and their exits; pin, forget
    connections  what is open now               sim      meshes in simulated time

Each command imports what it needs when it runs: `run` loads no command but its own, and nothing
here loads the node. Exit status: 0 done, 1 failed, 2 wrong usage or configuration.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from uservpn import __version__
from uservpn.cli.group import Group, config_option, config_path, finish, warn
from uservpn.runtime.signals import release

if TYPE_CHECKING:
    from uservpn.control.config import Config

STATUS_TIMEOUT_S = 5.0


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="uservpn %(version)s")
@config_option
@click.pass_context
def cli(ctx: click.Context) -> None:
    """A user-space VPN to the internet: several exits behind one SOCKS5 proxy."""
    if ctx.invoked_subcommand != "run":
        release()


def _number(_ctx: click.Context, _option: click.Parameter, text: str) -> int:
    """1 to 254, or 0 for `auto`."""
    if text == "auto":
        return 0
    if text.isascii() and text.isdecimal() and 1 <= int(text) <= 254:
        return int(text)
    raise click.BadParameter(f"{text!r} is no node number; allowed: 1 to 254, or auto")


def _initial_options(function: Any) -> Any:
    """What `init` and `join` have in common."""
    for option in reversed(
        (
            click.option("--name", help="A name for people."),
            click.option("--country", metavar="CC", help="Where the node is, such as DE."),
            click.option(
                "--listen", metavar="URL", multiple=True, help="Such as tcp://0.0.0.0:7000."
            ),
            click.option(
                "--public", metavar="URL", multiple=True, help="A fixed address of this node."
            ),
            click.option(
                "--entry",
                metavar="[ADDRESS:PORT]",
                is_flag=False,
                flag_value="127.0.0.1:1080",
                help="Listen here for programs (default without --listen: 127.0.0.1:1080).",
            ),
            click.option(
                "--exit/--no-exit",
                "is_exit",
                default=None,
                help="Be an exit (default: with --listen).",
            ),
            click.option(
                "--server",
                "servers",
                metavar="ID=URL",
                multiple=True,
                help="A server to start from.",
            ),
            click.option(
                "--key-file",
                metavar="FILE",
                type=click.Path(dir_okay=False, path_type=Path),
                help="The key is kept there; `init` makes the file if it does not exist.",
            ),
            click.option("--force", is_flag=True, help="Overwrite the configuration file."),
        )
    ):
        function = option(function)
    return function


def _write_initial(number: int, **given: Any) -> None:
    from uservpn.cli.init import InitOptions, free_number, next_steps, write_initial

    options = InitOptions(number, **given)
    if not number:
        options = options._replace(id=free_number(config_path(), options))
        click.echo(f"Number {options.id} is free.")
    config = write_initial(config_path(), options)
    warn(config.warnings)
    click.echo(next_steps(config_path(), config, options.key_file))


@cli.command()
@config_option
@click.option(
    "--id",
    "number",
    metavar="NUMBER",
    callback=_number,
    required=True,
    help="This node; auto: a number that is free.",
)
@_initial_options
def init(number: int, **given: Any) -> None:
    """Write a new configuration, with a fresh key."""
    _write_initial(number, **given)


@cli.command()
@config_option
@_initial_options
def join(**given: Any) -> None:
    """Write a configuration with a number that is free, as a server of the mesh says.

    Needs --server ID=URL and --key-file with the key of the mesh.
    """
    _write_initial(0, **given)


@cli.command()
@config_option
@click.option("--server", "servers", metavar="ID=URL", multiple=True, help="One more server.")
def run(servers: tuple[str, ...]) -> None:
    """Run the node until SIGTERM or Ctrl-C; SIGHUP reloads the configuration."""
    from uservpn.cli.daemon import become

    become(config_path(), servers)


@cli.command()
@config_option
@click.option("--server", "servers", metavar="ID=URL", multiple=True, help="One more server.")
def check(servers: tuple[str, ...]) -> None:
    """Read the configuration and say what it means, or everything that is wrong with it."""
    from uservpn.cli.summary import summary

    config = _load(servers)
    warn(config.warnings)
    click.echo(summary(config_path(), config))


@cli.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="The versioned document, as it is.")
def status(as_json: bool) -> None:
    """Ask the running node what it is doing."""
    document = _status()
    if as_json:
        import json

        click.echo(json.dumps(document, indent=2, ensure_ascii=True))
        return
    from uservpn.control.status import render

    click.echo(render(document), nl=False)


@cli.command()
@config_option
def nodes() -> None:
    """List the nodes of the mesh, as the running node knows them."""
    from uservpn.control.status import render_nodes

    click.echo(render_nodes(_status()), nl=False)


@cli.command()
@config_option
@click.argument("node", type=click.IntRange(1, 254), metavar="ID")
@click.option("-n", "--count", type=click.IntRange(1, 10_000), default=4, show_default=True)
@click.option(
    "-i",
    "--interval",
    type=click.FloatRange(0.05, 3600),
    default=0.5,
    show_default=True,
    help="Seconds between two probes.",
)
def ping(node: int, count: int, interval: float) -> None:
    """Measure the round trip to a node; exit status 1 when no answer came."""
    from uservpn.cli.ping import ping as show

    finish(0 if show(_control_socket(), node, count, interval) else 1)


@cli.command()
@config_option
@click.argument("node", type=click.IntRange(1, 254), metavar="ID")
def trace(node: int) -> None:
    """Show every hop on the way to a node, one way each, and how its clock differs."""
    from uservpn.cli.ping import trace as show

    finish(0 if show(_control_socket(), node) else 1)


@cli.command()
@config_option
@click.argument("target", metavar="HOST[:PORT]")
@click.option("--user", default="", help="As a program with this SOCKS user name, such as exit=3.")
@click.option("--json", "as_json", is_flag=True, help="The answer as it is.")
def explain(target: str, user: str, as_json: bool) -> None:
    """Say which exit a site leaves through now, and why."""
    from uservpn.cli import sites as show

    show.explain(_control_socket(), target, user, as_json)


@cli.group(cls=Group, invoke_without_command=True)
@config_option
@click.option("--json", "as_json", is_flag=True, help="The answer as it is.")
@click.pass_context
def sites(ctx: click.Context, as_json: bool) -> None:
    """List sites with their exits and what they moved."""
    if ctx.invoked_subcommand is not None:
        return
    from uservpn.cli import sites as show

    show.list_sites(_control_socket(), as_json)


@sites.command("pin")
@config_option
@click.argument("site")
@click.argument("exit_name", metavar="EXIT")
def sites_pin(site: str, exit_name: str) -> None:
    """Let a site leave through this exit (number or name), until it is forgotten."""
    from uservpn.cli import sites as show

    show.pin(_control_socket(), site, exit_name)


@sites.command("forget")
@config_option
@click.argument("site")
def sites_forget(site: str) -> None:
    """Forget a site: its pin, its sessions, what was measured."""
    from uservpn.cli import sites as show

    finish(0 if show.forget(_control_socket(), site) else 1)


@cli.command()
@config_option
def connections() -> None:
    """List the open connections with their exits."""
    from uservpn.control.status import render_connections

    click.echo(render_connections(_status()), nl=False)


@cli.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def sim(arguments: tuple[str, ...]) -> None:
    """Play meshes in simulated time; --help says how."""
    from uservpn.sim.campaign import main

    finish(main(list(arguments)))


@cli.command()
@config_option
@click.option("--once", is_flag=True, help="End after the demonstration's own check.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="For programs (default: a free one)."
)
def demo(once: bool, port: int) -> None:
    """Run a client and two exits on loopback, and fetch a page through each."""
    from uservpn import demo as demonstration

    finish(demonstration.demo(once, port))


@cli.group(cls=Group, invoke_without_command=True)
@config_option
@click.pass_context
def key(ctx: click.Context) -> None:
    """Show the fingerprints of the configured keys (never a key)."""
    if ctx.invoked_subcommand is not None:
        return
    from uservpn.control.config import fingerprint

    for index, secret in enumerate(_load(with_rules=False).network.keys):
        role = "sends and receives" if index == 0 else "receives"
        click.echo(f"{fingerprint(secret)}  {role}")


@key.command("new")
@config_option
def key_new() -> None:
    """Print a new key."""
    from uservpn.control.keys import new_key

    click.echo(new_key())


def main() -> None:
    """What `start` calls, the entry point of the program."""
    cli(prog_name="uservpn")


def _status() -> dict[str, Any]:
    """The running node's status document."""
    from uservpn.control.client import ask

    return ask(_control_socket(), {"command": "status"}, STATUS_TIMEOUT_S)


def _control_socket() -> Path:
    """Where the running node answers."""
    from uservpn.control import places
    from uservpn.control.config import state_dir_of

    return places.control_socket(state_dir_of(_load(with_rules=False)))


def _load(servers: tuple[str, ...] = (), *, with_rules: bool = True) -> Config:
    from uservpn.control.config import load

    return load(config_path(), servers, with_rules=with_rules)
