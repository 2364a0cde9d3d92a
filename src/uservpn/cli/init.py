"""`uservpn init`: the first configuration of a node.

The text is rendered, read back as any configuration is, and only then written, so that what
`init` leaves behind passes `check`. The file has mode 0600 from its first moment, and nothing
that exists is overwritten without `--force`. A key file that exists is used as it is: that is
how a second node joins the first. One that does not exist is made.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import click

from uservpn.control import config as configuration
from uservpn.control.config import Config, ServerLine
from uservpn.errors import ConfigError, UservpnError

DEFAULT_ENTRY: Final = "127.0.0.1:1080"


class InitOptions(NamedTuple):
    """The command line of `init`, as given."""

    id: int
    name: str | None
    country: str | None
    listen: tuple[str, ...]
    public: tuple[str, ...]
    entry: str | None
    is_exit: bool | None
    servers: tuple[str, ...]
    key_file: Path | None
    force: bool


def write_initial(path: Path, options: InitOptions) -> Config:
    """Write the file at `path` (and the key file where it is missing); the configuration.

    Raises ConfigError, with nothing written, when an option is wrong or a file is in the way.
    """
    if not options.force and os.path.lexists(path):
        raise ConfigError([f"{path}: the file exists; allowed: a new file, or --force"])
    key_file = options.key_file.expanduser().absolute() if options.key_file else None
    fresh = configuration.new_key()
    is_key_new = key_file is not None and not os.path.lexists(key_file)
    trial = _render(options, path, None if key_file and not is_key_new else fresh, key_file)
    configuration.parse(trial, path)
    if key_file is not None and is_key_new:
        _write(key_file, fresh + "\n", may_replace=False)
    text = _render(options, path, fresh if key_file is None else None, key_file)
    _write(path, text, may_replace=options.force)
    return configuration.load(path)


def free_number(path: Path, options: InitOptions) -> int:
    """A number that no node of the mesh has, asked of the servers in `options` (its own `id` is ignored).

    Raises ConfigError when an option is wrong, UservpnError when no server answers or none is free.
    """
    key_file = options.key_file.expanduser().absolute() if options.key_file else None
    if key_file is None or not os.path.lexists(key_file):
        raise ConfigError(["command line: --key-file: a free number needs the key of the mesh"])
    servers = {line.id for line in _server_lines(options.servers)}
    if not servers:
        raise ConfigError(["command line: --server: a free number needs a server to ask"])
    trial = next(number for number in range(1, 255) if number not in servers)
    text = _render(options._replace(id=trial), path, None, key_file)
    config = configuration.parse(text, path)
    from uservpn import app  # after the options proved right: it is much to load

    free = set(range(1, 255)) - servers - app.ask_taken_numbers(config)
    if not free:
        raise UservpnError("all 254 numbers are taken")
    return secrets.choice(sorted(free))


def next_steps(path: Path, config: Config, key_file: Path | None) -> str:
    """What to do now, with the lines that another node needs, and the command that writes them there."""
    name = click.format_filename(path)
    print_of_key = configuration.fingerprint(config.network.keys[0])
    lines = [
        f"Wrote {name} (mode 0600). Fingerprint of the key: {print_of_key}",
        "",
        "Next:",
        f"  uservpn -c {name} check",
        f"  uservpn -c {name} run",
    ]
    if config.entry is not None:
        address = config.entry.listen
        lines.append(f"  curl --proxy socks5h://{address} https://example.com/")
    if config.node.listen:
        server = _reachable(config)
        lines += ["", "Every other node needs the same key, a number of its own, and these lines:"]
        lines += ["", configuration.render_servers([server]).rstrip(), ""]
        if key_file is None:
            lines.append(f"Copy the key from {name} into a file there; this writes the rest:")
        else:
            lines.append(f"Copy {click.format_filename(key_file)} there; this writes the rest:")
        key_name = key_file.name if key_file is not None else "KEY-FILE"
        urls = " ".join(f"--server {server.id}={url}" for url in server.endpoints)
        lines.append(f"  uservpn join --key-file {key_name} {urls}")
    elif not config.servers:
        lines += ["", "This node needs a server: add [[servers]], or run with --server ID=URL."]
    return "\n".join(lines)


def _render(options: InitOptions, path: Path, key: str | None, key_file: Path | None) -> str:
    is_client = options.entry is None and not options.listen
    return configuration.render_initial(
        id=options.id,
        key=key,
        key_file=None if key is not None or key_file is None else _beside(path, key_file),
        name=options.name,
        country=options.country,
        listen=options.listen,
        public=options.public,
        entry=DEFAULT_ENTRY if is_client else options.entry,
        is_exit=bool(options.listen) if options.is_exit is None else options.is_exit,
        servers=_server_lines(options.servers),
    )


def _server_lines(texts: Sequence[str]) -> list[ServerLine]:
    known: dict[int, list[str]] = {}
    problems = []
    for text in texts:
        try:
            number, endpoint = configuration.parse_server(text)
        except ValueError as error:
            problems.append(f"command line: --server: {error}")
        else:
            known.setdefault(number, []).append(str(endpoint))
    if problems:
        raise ConfigError(problems)
    return [ServerLine(number, endpoints) for number, endpoints in known.items()]


def _reachable(config: Config) -> ServerLine:
    """This node as others would list it; a wildcard says where its address belongs."""
    node = config.node
    texts = [str(endpoint) for endpoint in node.public] or [
        f"{endpoint.protocol}://ADDRESS-OF-THIS-NODE:{endpoint.port}"
        if endpoint.address.is_wildcard
        else str(endpoint)
        for endpoint in node.listen
    ]
    return ServerLine(node.id, texts)


def _beside(path: Path, key_file: Path) -> str:
    """Relative when the key lies below the configuration's directory, so both can move."""
    base = path.absolute().parent
    return str(key_file.relative_to(base) if key_file.is_relative_to(base) else key_file)


def _write(path: Path, text: str, may_replace: bool) -> None:
    """The whole file or none, for its owner only; FileExistsError unless it may be replaced."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = path.with_name(f".{path.name}.new") if may_replace else path
    if may_replace:
        target.unlink(missing_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        if may_replace:
            os.replace(target, path)
    except OSError:
        target.unlink(missing_ok=True)
        raise
