"""What a configuration means, in a few lines; the output of `uservpn check`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from uservpn.control.config import Config, fingerprint, state_dir_of
from uservpn.kit.units import format_duration


def summary(path: Path, config: Config) -> str:
    """One line per part; keys by their fingerprints only, users by their number."""
    node = config.node
    country = f", {node.country}" if node.country else ""
    lines = [
        f"{path} is right.",
        f"node     {node.id} ({node.name}{country}), {_roles(config)}",
        f"keys     {', '.join(fingerprint(key) for key in config.network.keys)}",
        f"listen   {_list(node.listen)}",
        f"public   {_list(node.public)}",
    ]
    lines += [f"server   {server.id} at {_list(server.endpoints)}" for server in config.servers]
    lines += [
        f"entry    {_entry(config)}",
        f"exit     {_exit(config)}",
        f"tunnel   grace {format_duration(config.tunnel.grace)}, "
        f"optimistic {str(config.tunnel.optimistic).lower()}",
        f"chooser  default {config.chooser.default}, "
        f"session idle {format_duration(config.chooser.session_idle)}",
        *_rules(config),
        *_geo(config),
        f"state    {state_dir_of(config)}",
    ]
    return "\n".join(lines)


def _roles(config: Config) -> str:
    roles = [
        ("server", bool(config.node.public)),
        ("entry", config.entry is not None),
        ("exit", config.exit.enabled),
    ]
    return " and ".join(name for name, has in roles if has) or "no role"


def _entry(config: Config) -> str:
    if config.entry is None:
        return "none"
    users = len(config.entry.users)
    return f"{config.entry.listen}, " + (f"{users} users" if users else "no password")


def _exit(config: Config) -> str:
    if not config.exit.enabled:
        return "no"
    names = (("allow", config.exit.allow), ("deny", config.exit.deny))
    lists = [f"{name} {_list(networks)}" for name, networks in names if networks]
    if config.exit.resolvers:
        lists.append(f"resolvers {_list(config.exit.resolvers)}")
    return "; ".join(["yes", *lists])


def _rules(config: Config) -> list[str]:
    """Rules, lists and groups, where there are some."""
    rules = config.chooser.rules
    lines = []
    if rules is not None:
        count = sum(source.condition_count for source in rules.sources)
        lines.append(
            f"rules    {len(rules)}, with {count} conditions, {-(-rules.size // 1024)} KiB"
        )
        for number, source in enumerate(rules.sources, 1):
            if source.file:
                what = f"{source.file}, {source.condition_count} conditions -> {source.target}"
                lines.append(f"list     rule {number}: {what}")
    for name, group in config.chooser.groups.items():
        how = _PICKS[group.pick.value]
        lines.append(f"group    {name}: {how} {_list(group.members)}")
    return lines


def _geo(config: Config) -> list[str]:
    """Where the countries of addresses come from, where that is told."""
    geo = config.geo
    if geo.enabled is False:
        return ["geo      off"]
    if geo.database is not None:
        return [f"geo      {geo.database}"]
    return ["geo      iptocc"] if geo.enabled is True else []


_PICKS: Final = {
    "fastest": "the fastest of",
    "fallback": "in this order,",
    "spread": "sites spread over",
}


def _list(values: tuple[object, ...]) -> str:
    return ", ".join(str(value) for value in values) or "none"
