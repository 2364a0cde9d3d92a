"""What all commands share: the configuration option and the way errors reach the user.

`-c/--config` is understood before and after a command; the last one counts. An error is one
sentence on standard error, never a traceback, and the exit status says what kind it was: 1
failed, 2 wrong usage or configuration. (USERVPN_TRACEBACK=1 lets a developer see tracebacks.)
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from uservpn.cli.failures import explain
from uservpn.control import places

_CONFIG_META: Final = "uservpn.config"

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class Group(click.Group):
    """A click group that turns every exception of a command into a sentence and a status."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; every exception of ours ends in `ctx.exit`."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly when nobody reads the output
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except Exception as error:
            sentences, status = explain(error)
            for sentence in sentences:
                click.echo(f"uservpn: {sentence}", err=True)
            ctx.exit(status)


def config_option(function: FunctionT) -> FunctionT:
    """Give a command `-c/--config`; ask `config_path` for the outcome."""
    option = click.option(
        "-c",
        "--config",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        callback=_remember,
        expose_value=False,
        help="The configuration file (default: config.toml in the platform's place for uservpn).",
    )
    return option(function)


def config_path() -> Path:
    """The file that this invocation is about."""
    chosen = click.get_current_context().meta.get(_CONFIG_META)
    return chosen if isinstance(chosen, Path) else places.default_config_path()


def warn(sentences: tuple[str, ...]) -> None:
    """Show what is allowed but hardly meant."""
    for sentence in sentences:
        click.echo(f"uservpn: warning: {sentence}", err=True)


def finish(status: int) -> None:
    """End with the status that a part of the program returned."""
    sys.stdout.flush()
    click.get_current_context().exit(status)


def _remember(ctx: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.meta[_CONFIG_META] = value
