"""From text to meaning, one value at a time: addresses, keys, durations, paths and exits of a configuration.

Whatever is wrong with a value is noted with its place, and reading goes on with a default, or without it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from uservpn.control.files import exposure, read_file
from uservpn.control.keys import KEY_FORM, decode_key
from uservpn.control.model import IpNetwork
from uservpn.control.problems import KeyPath, Problems, reason, shown
from uservpn.control.schema import EXIT_FORM
from uservpn.kit.endpoint import ENDPOINT_FORM, Endpoint
from uservpn.kit.units import parse_duration

if TYPE_CHECKING:
    from uservpn.chooser.targets import Group

BUILT_IN_PROTOCOLS: Final = frozenset({"tcp", "udp"})
LINK_PLUGINS: Final = "uservpn.links"
KEY_FILE_SIZE_MAX: Final = 4096
NODE_NUMBER: Final = re.compile(r"[0-9]{1,3}", re.ASCII)
DAY_S: Final = 86_400.0

ValueT = TypeVar("ValueT")


class Values:
    """Reads values of one file; every problem goes to `problems`, every doubt to `warnings`."""

    def __init__(self, base: Path, problems: Problems, warnings: list[str]) -> None:
        """`base` is the file's directory."""
        self._base = base
        self._problems = problems
        self._warnings = warnings
        self._protocols = Protocols()
        self.has_to_run = True
        """Is the node to run with this? Else nobody need know whether it can."""

    def key(self, place: KeyPath, text: str) -> bytes | None:
        """A shared key in base64."""
        try:
            return decode_key(text)
        except ValueError as error:
            self._problems.add(place, str(error), KEY_FORM)
            return None

    def key_file(self, place: KeyPath, name: str) -> bytes | None:
        """The key in a file; says who else can read it."""
        path = self.path_of(place, name)
        if path is None:
            return None
        content = read_file(path, KEY_FILE_SIZE_MAX)
        if isinstance(content, str):
            self._problems.add(place, f"{content}: {path}", f"a file that holds {KEY_FORM}")
            return None
        self._warnings.extend(exposure(path, content))
        try:
            return decode_key(content.data.decode("ascii"))
        except UnicodeDecodeError:
            found = "bytes that are not base64"
        except ValueError as error:
            found = str(error)
        self._problems.add(place, f"{found} in {path}", f"a file that holds {KEY_FORM}")
        return None

    def endpoints(
        self, place: KeyPath, texts: Sequence[str], is_dialled: bool = False
    ) -> tuple[Endpoint, ...]:
        """Endpoints, each once; `is_dialled`: by others, so no wildcard."""
        endpoints: dict[Endpoint, None] = {}
        for index, text in enumerate(texts):
            at = (*place, index)
            endpoint = self.read(at, text, Endpoint.parse, ENDPOINT_FORM)
            if endpoint is None:
                continue
            self.check_protocol(at, endpoint, text, is_dialled=is_dialled)
            if is_dialled and endpoint.address.is_wildcard:
                allowed = "an address that others can dial"
                self._problems.add(at, f"the wildcard {text!r}", allowed, value=text)
            if endpoint in endpoints:
                self._problems.add(at, f"{text!r} a second time", "each endpoint once", value=text)
            endpoints[endpoint] = None
        return tuple(endpoints)

    def check_protocol(
        self,
        place: KeyPath,
        endpoint: Endpoint,
        text: str,
        source: str | None = None,
        is_dialled: bool = True,
    ) -> None:
        """Is there a plug-in for the protocol, and does it agree with the endpoint?"""
        if endpoint.protocol in self._protocols:
            role = "check_dialling" if is_dialled else "check_listening"
            complaint = self._protocols.complaint(endpoint, role if self.has_to_run else "check")
            if complaint is not None:
                self._problems.add(place, text, complaint, value=text, source=source)
            return
        found = f"the protocol {endpoint.protocol!r}, which has no link plug-in"
        allowed = f"the installed protocols: {self._protocols}"
        self._problems.add(place, found, allowed, value=text, source=source)

    def networks(self, place: KeyPath, texts: Sequence[str]) -> tuple[IpNetwork, ...]:
        """Networks, and single addresses."""
        allowed = "a network such as 10.0.0.0/8 or fd00::/8, or one address"
        return self.read_each(place, texts, ipaddress.ip_network, allowed)

    def exit_choice(self, choice: int | str | None, groups: Mapping[str, Group]) -> int | str:
        """An exit, a group, or "auto"."""
        if choice is None or choice == "auto":
            return "auto"
        from uservpn.chooser.targets import parse_target

        try:
            parse_target(choice, groups)
        except ValueError as error:
            self._problems.add(("chooser", "default"), reason(str(choice), error), EXIT_FORM)
            return "auto"
        return int(choice) if NODE_NUMBER.fullmatch(str(choice)) else choice

    def duration(
        self, place: KeyPath, text: str | None, bounds: tuple[float, float], default: float
    ) -> float:
        """Seconds within the bounds."""
        if text is None:
            return default
        low, high = bounds
        allowed = f"a duration from {low:g} to {high:g} seconds, such as "
        allowed += '"60s"' if high <= DAY_S else '"12h"'
        seconds = self.read(place, text, parse_duration, allowed)
        if seconds is not None and not low <= seconds <= high:
            self._problems.add(place, shown(text), allowed)
        return default if seconds is None else seconds

    def read_each(
        self,
        place: KeyPath,
        texts: Sequence[str],
        parse: Callable[[str], ValueT],
        allowed: str,
    ) -> tuple[ValueT, ...]:
        """Those that `parse` does not refuse with ValueError; `allowed` is what they should be."""
        values = (self.read((*place, at), text, parse, allowed) for at, text in enumerate(texts))
        return tuple(value for value in values if value is not None)

    def read(
        self, place: KeyPath, text: str, parse: Callable[[str], ValueT], allowed: str
    ) -> ValueT | None:
        """As `read_each`, of one."""
        try:
            return parse(text)
        except ValueError as error:
            self._problems.add(place, reason(text, error), allowed, value=text)
            return None

    def path_of(self, place: KeyPath, text: str | None) -> Path | None:
        """A path of the file: `~` is a home directory, and relative means beside the file."""
        if text is None:
            return None
        try:
            if "\0" not in text:
                return self._base / Path(text).expanduser()
        except RuntimeError:
            pass  # no such home directory
        self._problems.add(place, shown(text), "a path that this system can have", value=text)
        return None


class Protocols:
    """The protocols that have a link plug-in; the packages are searched only when it matters."""

    def __init__(self) -> None:
        self._installed: Set[str] | None = None

    def __contains__(self, protocol: str) -> bool:
        return protocol in BUILT_IN_PROTOCOLS or protocol in self._all()

    def __str__(self) -> str:
        return ", ".join(sorted(self._all()))

    def complaint(self, endpoint: Endpoint, role: str) -> str | None:
        """What the protocol's plug-in allows instead, where it has something against an endpoint.

        `role` is the check that it may have beside the one for all (links/base.py).
        """
        if endpoint.protocol in BUILT_IN_PROTOCOLS and not endpoint.options:
            return None
        from importlib.metadata import entry_points

        for entry in entry_points(group=LINK_PLUGINS, name=endpoint.protocol):
            try:
                plugin = entry.load()
                checks = [getattr(plugin, name, None) for name in ("check", role)]
                if checks[0] is None and endpoint.options:
                    return "no options: the protocol has none"
                for check in checks:
                    if check is not None:
                        check(endpoint)
            except ImportError as error:
                return f"a protocol whose packages are installed ({error})"
            except ValueError as error:
                return str(error)
        return None

    def _all(self) -> Set[str]:
        if self._installed is None:
            from importlib.metadata import entry_points  # slow, and needed by few

            plugins = entry_points(group=LINK_PLUGINS)
            self._installed = BUILT_IN_PROTOCOLS | {plugin.name for plugin in plugins}
        return self._installed
