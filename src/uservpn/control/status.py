"""The status document as text for people.

The document (docs and `uservpn status --json`) is versioned; this renders version 1. Names,
countries and sites come from other nodes and from programs, so whatever is not printable is
escaped: nothing in a document can steer a terminal. A key that is absent shows as "-".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import localtime, strftime
from typing import Any, Final

STATUS_VERSION: Final = 1

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str]]


def render(document: Mapping[str, Any]) -> str:
    """The whole document; sections with nothing in them are one line."""
    parts = [_head(document)]
    for title, columns in _SECTIONS.items():
        rows = document.get(title)
        if isinstance(rows, list):
            parts.append(_table(title, columns, rows))
        elif isinstance(rows, Mapping) or (isinstance(rows, int) and title == "connections"):
            parts.append(f"{title}: {plain(rows)}")
    return "\n\n".join(parts) + "\n"


def render_nodes(document: Mapping[str, Any]) -> str:
    """Only the table of nodes."""
    return _table("nodes", _SECTIONS["nodes"], document.get("nodes", ())) + "\n"


def render_connections(document: Mapping[str, Any]) -> str:
    """Only the table of connections."""
    return _table("connections", _SECTIONS["connections"], document.get("connections", ())) + "\n"


def render_sites(rows: Sequence[Any]) -> str:
    """The table of `uservpn sites`."""
    return _table("sites", _TRAFFIC, rows) + "\n"


def render_candidates(rows: Sequence[Any]) -> str:
    """The table of `uservpn explain`."""
    return _table("exits", _CANDIDATES, rows) + "\n"


def format_bytes(count: float) -> str:
    """A size with a binary prefix, four characters of precision at most."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def format_age(seconds: float) -> str:
    """A length of time in its two largest units: `3d 4h`, `12m 5s`."""
    left = max(0, int(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        amount, left = divmod(left, size)
        if amount or parts or unit == "s":
            parts.append(f"{amount}{unit}")
    return " ".join(parts[:2])


def _head(document: Mapping[str, Any]) -> str:
    node = document.get("node")
    node = node if isinstance(node, Mapping) else {}
    lines = [
        f"node {plain(node.get('id'))} ({plain(node.get('name'))}), "
        f"up {_age(node.get('uptime_s'))}, uservpn {plain(node.get('software'))}",
        f"entry: {_entry(document.get('entry'))}",
    ]
    lines += [_duplicate(duplicate) for duplicate in document.get("duplicates") or ()]
    version = document.get("version")
    if version != STATUS_VERSION:
        lines.insert(0, f"note: this is status version {plain(version)}, not {STATUS_VERSION}")
    return "\n".join(lines)


def _duplicate(duplicate: Any) -> str:
    """Another node with our number."""
    row = duplicate if isinstance(duplicate, Mapping) else {}
    line = f"duplicate: this number is also used at {plain(row.get('address'))}, "
    line += f"heard {_age(row.get('heard_s'))} ago; {plain(row.get('outcome'))}"
    if row.get("retry_s") is not None:
        line += f" (tries again in {_age(row.get('retry_s'))}, or with a reload)"
    return line


def _entry(entry: Any) -> str:
    if isinstance(entry, Mapping):
        return plain(entry.get("listen")) if entry.get("listen") else "none"
    return "none" if entry in (None, False, "") else plain(entry)


def _table(title: str, columns: Sequence[Column], found: Sequence[Any]) -> str:
    rows = [row for row in found if isinstance(row, Mapping)]
    if not rows:
        return f"{title}: none"
    cells = [[name for name, _ in columns]]
    cells += [[show(row) for _, show in columns] for row in rows]
    widths = [max(len(line[at]) for line in cells) for at in range(len(columns))]
    lines = [
        "  " + "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
        for line in cells
    ]
    return f"{title}: {len(rows)}\n" + "\n".join(line.rstrip() for line in lines)


def plain(value: Any) -> str:
    """One value on one line, safe for a terminal."""
    if value is None or value == "" or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ",".join(plain(part) for part in value)
    if isinstance(value, Mapping):
        return " ".join(f"{plain(name)}={plain(part)}" for name, part in value.items())
    text = str(value)
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _number(value: Any, show: Callable[[float], str]) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return show(value) if is_number else plain(value)


def _age(value: Any) -> str:
    return _number(value, format_age)


def _field(name: str) -> Column:
    return name, lambda row: plain(row.get(name))


def _size(name: str) -> Column:
    return name.removesuffix("_bytes"), lambda row: _number(row.get(name), format_bytes)


def _milliseconds(name: str) -> Column:
    title = name.removesuffix("_ms")
    return title, lambda row: _number(row.get(name), lambda ms: f"{ms:.1f} ms")


def _share(name: str) -> Column:
    return name, lambda row: _number(row.get(name), lambda share: f"{share:.1%}")


def _time(name: str) -> Column:
    """Unix time, shown as this machine's local time."""
    return name, lambda row: _number(row.get(name), _local_time)


def _local_time(at: float) -> str:
    try:
        return strftime("%Y-%m-%d %H:%M", localtime(at))
    except (ValueError, OverflowError, OSError):  # no time of this world
        return "?"


def _length(name: str) -> Column:
    return name, lambda row: _number(row.get(name), format_age)


_TRAFFIC: Final[Sequence[Column]] = (
    _field("site"),
    _field("exit"),
    _field("now"),
    _milliseconds("first_rtt_ms"),
    _field("samples"),
    _field("connections"),
    ("in", _size("bytes_in")[1]),
    ("out", _size("bytes_out")[1]),
)
_CANDIDATES: Final[Sequence[Column]] = (
    _field("exit"),
    _field("name"),
    _field("country"),
    _field("state"),
    ("allowed", _field("is_allowed")[1]),
    _milliseconds("flight_ms"),
    _milliseconds("expected_ms"),
    _milliseconds("first_rtt_ms"),
    _field("samples"),
    _milliseconds("connect_ms"),
    _field("tests"),
    ("age", _length("age_s")[1]),
)


def _reached(row: Row) -> str:
    return plain(row.get("way") or row.get("route"))


def _endpoints(row: Row) -> str:
    """Each with how it is known, where that is told."""
    endpoints, kinds = row.get("endpoints"), row.get("kinds")
    if not isinstance(endpoints, list) or not isinstance(kinds, list):
        return plain(endpoints)
    pairs = zip(endpoints, kinds, strict=False)
    return ", ".join(f"{plain(endpoint)} {plain(kind)}" for endpoint, kind in pairs) or "-"


_SECTIONS: Final[Mapping[str, Sequence[Column]]] = {
    "nodes": (
        _field("id"),
        _field("name"),
        _field("country"),
        _field("roles"),
        _field("state"),
        _milliseconds("rtt_ms"),
        ("way", _reached),
        ("endpoints", _endpoints),
        _field("software"),
        ("heard", _length("heard_s")[1]),
    ),
    "links": (
        _field("peer"),
        _field("protocol"),
        _field("local"),
        _field("remote"),
        _milliseconds("rtt_ms"),
        _share("loss"),
        ("in", _size("bytes_in")[1]),
        ("out", _size("bytes_out")[1]),
    ),
    "tunnels": (
        _field("peer"),
        _field("streams"),
        _size("cache_bytes"),
        _field("resent"),
        _size("relayed_bytes"),
        _size("direct_bytes"),
    ),
    "connections": (
        _field("id"),
        _field("target"),
        _field("client"),
        _field("exit"),
        ("in", _size("bytes_in")[1]),
        ("out", _size("bytes_out")[1]),
    ),
    "sites": (
        _field("site"),
        _field("session"),
        _field("exit"),
        _field("reason"),
        _milliseconds("first_rtt_ms"),
        _field("samples"),
        _time("expires"),
    ),
}
