"""The shape of the configuration file: sections, keys, types and ranges.

Each section is a `msgspec.Struct`, and each key says in its description what is allowed. A
section is converted key by key, so that one wrong key does not hide the next; what is wrong is
noted and left out. Every key is optional here: what must be present, and what values mean, is
the business of `config`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from uservpn.control.keys import KEY_FORM
from uservpn.control.problems import KeyPath, Problems, kind_of, shown
from uservpn.kit.endpoint import ADDRESS_FORM, ENDPOINT_FORM
from uservpn.kit.units import DURATION_FORM

NODE_NAME_PATTERN: Final = r"[A-Za-z][A-Za-z0-9_.-]{0,31}"
RULES_MAX: Final = 10_000
EXITS_FORM: Final = 'the number (1 to 254), the name, or the country ("us") of an exit'
EXIT_FORM: Final = (
    'an exit\'s number (1 to 254) or name, a country such as "us", a group of [chooser.groups], '
    '"auto", "direct" or "reject"'
)

_SECRET: Final = {"secret": True}
_Names = Annotated[list[str], Meta(max_length=64)]
_Country = Annotated[str, Meta(pattern="^[A-Za-z]{2}$", description='two letters, such as "DE"')]
_NodeNumber = Annotated[
    int, Meta(ge=1, le=254, description="an integer from 1 to 254, unique among all nodes")
]
_Endpoints = Annotated[
    _Names, Meta(description=f"an array of at most 64 strings, each {ENDPOINT_FORM}")
]
_Texts = Annotated[
    str | list[str], Meta(description="a string, or an array of strings of which one must hold")
]
_Networks = Annotated[
    Annotated[list[str], Meta(max_length=10_000)],
    Meta(description='an array of networks, such as ["10.0.0.0/8", "fd00::/8"]'),
]


class _Section(msgspec.Struct, frozen=True):
    """A table of the file; a key that is absent is None."""


class RawNetwork(_Section, frozen=True):
    """`[network]` as written."""

    key: Annotated[str, Meta(description=KEY_FORM, extra=_SECRET)] | None = None
    keys: (
        Annotated[
            list[str],
            Meta(
                min_length=1,
                max_length=8,
                description=f"an array of 1 to 8 keys, each {KEY_FORM}",
                extra=_SECRET,
            ),
        ]
        | None
    ) = None
    key_file: (
        Annotated[
            str,
            Meta(min_length=1, description="the path of a file that holds a key", extra=_SECRET),
        ]
        | None
    ) = None


class RawNode(_Section, frozen=True):
    """`[node]` as written."""

    id: _NodeNumber | None = None
    name: (
        Annotated[
            str,
            Meta(
                pattern=f"^{NODE_NAME_PATTERN}$",
                description="a letter, then up to 31 letters, digits, '.', '_' or '-'",
            ),
        ]
        | None
    ) = None
    country: _Country | None = None
    listen: _Endpoints | None = None
    public: _Endpoints | None = None
    state_dir: Annotated[str, Meta(min_length=1, description="the path of a directory")] | None = (
        None
    )
    plugins: (
        Annotated[
            _Names,
            Meta(description='an array of at most 64 names of plug-ins, such as ["greeter"]'),
        ]
        | None
    ) = None


class RawServer(_Section, frozen=True):
    """`[[servers]]` as written."""

    id: _NodeNumber | None = None
    endpoints: _Endpoints | None = None


class RawEntry(_Section, frozen=True):
    """`[entry]` as written."""

    listen: Annotated[str, Meta(description=ADDRESS_FORM)] | None = None
    users: (
        Annotated[
            dict[str, str],
            Meta(
                max_length=1000,
                description='a table of names and passwords, such as { ann = "secret" }',
                extra=_SECRET,
            ),
        ]
        | None
    ) = None


class RawExit(_Section, frozen=True):
    """`[exit]` as written."""

    enabled: Annotated[bool, Meta(description="true or false")] | None = None
    allow: _Networks | None = None
    deny: _Networks | None = None
    resolvers: (
        Annotated[
            list[str],
            Meta(max_length=8, description="an array of at most 8 addresses of DNS servers"),
        ]
        | None
    ) = None


class RawTunnel(_Section, frozen=True):
    """`[tunnel]` as written."""

    relay_share: Annotated[float, Meta(ge=0, le=1, description="a number from 0 to 1")] | None = (
        None
    )
    optimistic: (
        Annotated[Literal["auto"] | bool, Meta(description='"auto", true or false')] | None
    ) = None
    grace: Annotated[str, Meta(description=DURATION_FORM)] | None = None


class RawChooser(_Section, frozen=True):
    """`[chooser]` as written."""

    default: Annotated[int | str, Meta(description=EXIT_FORM)] | None = None
    session_idle: Annotated[str, Meta(description=DURATION_FORM)] | None = None
    rules: (
        Annotated[
            list[dict[str, Any]],
            Meta(
                max_length=RULES_MAX,
                description=f"an array of at most {RULES_MAX} rules, such as "
                '{ suffix = "example.com", exit = "us" }',
            ),
        ]
        | None
    ) = None
    groups: (
        Annotated[
            dict[str, dict[str, Any]],
            Meta(
                max_length=254,
                description="a table of groups, such as "
                '{ fast = { pick = "fastest", exits = ["us", 3] } }',
            ),
        ]
        | None
    ) = None


class RawGroup(_Section, frozen=True):
    """A table of `[chooser.groups]` as written."""

    pick: (
        Annotated[
            Literal["fastest", "fallback", "spread"],
            Meta(description='"fastest", "fallback" or "spread"'),
        ]
        | None
    ) = None
    exits: (
        Annotated[
            list[int | str],
            Meta(
                min_length=1,
                max_length=254,
                description=f"an array of 1 to 254 exits, each {EXITS_FORM}",
            ),
        ]
        | None
    ) = None


class RawRule(_Section, frozen=True):
    """A rule of `chooser.rules` as written."""

    exact: _Texts | None = None
    suffix: _Texts | None = None
    keyword: _Texts | None = None
    wildcard: _Texts | None = None
    regex: _Texts | None = None
    cidr: _Texts | None = None
    port: (
        Annotated[
            int | str | list[int | str],
            Meta(description='a port, a range such as "8000-8999", or an array of them'),
        ]
        | None
    ) = None
    country: _Texts | None = None
    all: Annotated[Literal[True], Meta(description="true")] | None = None
    file: Annotated[str, Meta(min_length=1, description="the path of a list of sites")] | None = (
        None
    )
    format: (
        Annotated[
            Literal["auto", "domains", "clash", "autoproxy"],
            Meta(description='"auto", "domains", "clash" or "autoproxy"'),
        ]
        | None
    ) = None
    exit: Annotated[int | str, Meta(description=EXIT_FORM)] | None = None
    avoid: (
        Annotated[
            str | list[str],
            Meta(description='countries whose exits are not used, such as ["cn", "ru"]'),
        ]
        | None
    ) = msgspec.field(default=None, name="not")
    strict: Annotated[bool, Meta(description="true or false")] | None = None


class RawGeo(_Section, frozen=True):
    """`[geo]` as written."""

    enabled: Annotated[Literal["auto"] | bool, Meta(description='"auto", true or false')] | None = (
        None
    )
    database: (
        Annotated[str, Meta(min_length=1, description="the path of an MMDB file with countries")]
        | None
    ) = None


class RawControl(_Section, frozen=True):
    """`[control]` as written."""

    listen: Annotated[str, Meta(description=ADDRESS_FORM)] | None = None


class RawUpdate(_Section, frozen=True):
    """`[update]` as written."""

    enabled: Annotated[bool, Meta(description="true or false")] | None = None


SECTIONS: Final = (
    "network",
    "node",
    "servers",
    "entry",
    "exit",
    "tunnel",
    "chooser",
    "geo",
    "control",
    "update",
)

SectionT = TypeVar("SectionT", bound=_Section)


def read_section(
    document: Mapping[str, object], name: str, kind: type[SectionT], problems: Problems
) -> SectionT:
    """The section `name`, empty when it is absent; its problems are noted."""
    table = document.get(name, {})
    if not isinstance(table, dict):
        problems.add((name,), f"a value of the kind {kind_of(table)}", f"a table: [{name}]")
        table = {}
    return read_table(table, (name,), kind, problems)


def read_servers(
    document: Mapping[str, object], problems: Problems
) -> list[tuple[KeyPath, RawServer]]:
    """Every `[[servers]]` table with its place."""
    tables = document.get("servers", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        found = f"a value of the kind {kind_of(tables)}"
        if isinstance(tables, list):
            found = "an array with something else than tables in it"
        problems.add(("servers",), found, "an array of tables, each written [[servers]]")
        return []
    places: list[KeyPath] = [("servers", index) for index in range(len(tables))]
    return [
        (place, read_table(table, place, RawServer, problems))
        for place, table in zip(places, tables, strict=True)
    ]


def read_table(
    table: Mapping[str, object], place: KeyPath, kind: type[SectionT], problems: Problems
) -> SectionT:
    """Convert key by key; a key that is unknown or wrong is noted and left out."""
    fields = _fields(kind)
    note_unknown(table, place, tuple(fields), problems)
    good = {}
    for name, value in table.items():
        if name not in fields:
            continue
        try:
            msgspec.convert(value, fields[name])
            if isinstance(value, float) and not math.isfinite(value):
                raise msgspec.ValidationError("not finite")
            good[name] = value
        except (msgspec.ValidationError, OverflowError):
            allowed, is_secret = _description(fields[name])
            found = f"a value of the kind {kind_of(value)}" if is_secret else shown(value)
            problems.add((*place, name), found, allowed)
    return msgspec.convert(good, kind)


@cache
def _fields(kind: type[_Section]) -> dict[str, Any]:
    """The types of the keys of a table, by their names in the file."""
    return {field.encode_name: field.type for field in msgspec.structs.fields(kind)}


def note_unknown(
    table: Mapping[str, object], place: KeyPath, known: Sequence[str], problems: Problems
) -> None:
    """Note the keys that nobody reads, each with the known key it may have meant."""
    for name in table:
        if name in known:
            continue
        import difflib  # only a mistake needs it

        close = difflib.get_close_matches(name, known, 1)
        guess = f" (did you mean {close[0]!r}?)" if close else ""
        what = "section" if not place else "key"
        problems.add((*place, name), f"an unknown {what}{guess}", ", ".join(known))


def _description(kind: Any) -> tuple[str, bool]:
    """What `schema` says is allowed for a key, and whether its value is a secret."""
    for part in (kind, *getattr(kind, "__args__", ())):
        for meta in reversed(getattr(part, "__metadata__", ())):
            if isinstance(meta, Meta) and meta.description:
                return meta.description, bool(meta.extra and meta.extra.get("secret"))
    raise AssertionError(f"a key of the schema without a description: {kind}")
