"""Writes the first configuration of a node as TOML, with the words that explain it.

The result always reads back: values are quoted as TOML strings, and `uservpn init` runs it
through `config.parse` before it writes a file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class ServerLine(NamedTuple):
    """One server as `[[servers]]` shows it."""

    id: int
    endpoints: Sequence[str]


def render_initial(
    *,
    id: int,
    key: str | None = None,
    key_file: str | None = None,
    name: str | None = None,
    country: str | None = None,
    listen: Sequence[str] = (),
    public: Sequence[str] = (),
    entry: str | None = None,
    users: Mapping[str, str] | None = None,
    is_exit: bool = False,
    servers: Sequence[ServerLine] = (),
    state_dir: str | None = None,
    allow: Sequence[str] = (),
) -> str:
    """The text of a configuration file; exactly one of `key` and `key_file` is given."""
    node = [f"id = {id}{' ' * 24}# 1 to 254, another number on every node"]
    node += [f"name = {quote(name)}"] if name else []
    node += [f"country = {quote(country)}"] if country else []
    node += [f"listen = {_array(listen)}"] if listen else []
    node += [f"public = {_array(public)}"] if public else []
    node += [f"state_dir = {quote(state_dir)}"] if state_dir else []
    parts = [_network(key, key_file), "\n".join(["[node]", *node])]
    parts += [render_servers(servers)] if servers else []
    parts += [_entry(entry, users or {})] if entry else []
    parts += [_exit(is_exit, allow)]
    return "\n\n".join(parts) + "\n"


def render_servers(servers: Sequence[ServerLine]) -> str:
    """The `[[servers]]` tables for the configuration of another node."""
    return "\n\n".join(
        f"[[servers]]\nid = {server.id}\nendpoints = {_array(server.endpoints)}"
        for server in servers
    )


def quote(text: str) -> str:
    """A TOML basic string; JSON's escapes are a subset of TOML's, but for one character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _network(key: str | None, key_file: str | None) -> str:
    assert (key is None) != (key_file is None)
    comment = "# The same on every node. Whoever has it is a member: keep it secret."
    line = f"key = {quote(key)}" if key is not None else f"key_file = {quote(key_file or '')}"
    return f"[network]\n{comment}\n{line}"


def _entry(listen: str, users: Mapping[str, str]) -> str:
    lines = ["[entry]", f"listen = {quote(listen)}{' ' * 8}# SOCKS5 and HTTP proxy for programs"]
    if users:
        pairs = ", ".join(f"{quote(name)} = {quote(word)}" for name, word in users.items())
        lines.append(f"users = {{ {pairs} }}")
    return "\n".join(lines)


def _exit(is_exit: bool, allow: Sequence[str]) -> str:
    lines = ["[exit]", f"enabled = {'true' if is_exit else 'false'}"]
    return "\n".join(lines + ([f"allow = {_array(allow)}"] if allow else []))


def _array(texts: Sequence[str]) -> str:
    return "[" + ", ".join(quote(text) for text in texts) + "]"
