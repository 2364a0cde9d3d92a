"""What the control socket answers about sites.

{"command": "explain", "host": "example.org", "port": 443, "user": ""}
{"command": "sites"}
{"command": "pin", "site": "example.org", "exit": 3}
{"command": "forget", "site": "example.org"}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from uservpn.chooser import report
from uservpn.chooser.chooser import Chooser
from uservpn.chooser.hosts import number_of
from uservpn.chooser.site import site_of
from uservpn.chooser.targets import parse_selector
from uservpn.errors import UservpnError
from uservpn.socks.handshake import host_name
from uservpn.types import NodeId

SITE_COMMANDS: Final = frozenset(("explain", "sites", "pin", "forget"))
HOST_MAX: Final = 255


def answer_about_sites(
    chooser: Chooser,
    request: Mapping[str, Any],
    now: float,
    own: NodeId,
    changed: Callable[[], None],
) -> dict[str, Any]:
    """The answer of the node `own`; `changed` is called where there is something to remember.

    Raises UservpnError.
    """
    command = request["command"]
    if command == "sites":
        return {
            "sites": report.traffic(chooser, now, own),
            "sessions": report.sites(chooser, now, own),
        }
    if command == "explain":
        host, user = _text(request, "host"), request.get("user", "")
        port = request.get("port", 443)
        if not isinstance(port, int) or not 0 < port < 65536 or not isinstance(user, str):
            raise UservpnError("a port is a number from 1 to 65535, a user name a text")
        return report.explain(chooser, host, port, user, now)
    site = site_of(_text(request, "site"))
    if command == "forget":
        is_known = chooser.forget(site)
        changed()
        return {"site": site, "is_known": is_known}
    if not _is_host(site):  # one that was pinned in spite of that can still be forgotten
        raise UservpnError(
            f"{site!r} is no host name and no address: a site is such as example.org"
        )
    exit = _exit(chooser, request.get("exit"))
    if not chooser.pin(site, exit, now):
        raise UservpnError("there are too many pins: forget some")
    changed()
    return {"site": site, "exit": exit}


def _is_host(site: str) -> bool:
    """Can a program ask for it?"""
    if ":" in site:
        return number_of(site) is not None
    return host_name(site.encode()) is not None and "" not in site.split(".")


def _text(request: Mapping[str, Any], key: str) -> str:
    text = request.get(key)
    if not isinstance(text, str) or not 0 < len(text) <= HOST_MAX or not text.isprintable():
        raise UservpnError(f"{key}: a host name or an address is needed")
    return text


def _exit(chooser: Chooser, wanted: Any) -> NodeId:
    """The exit of this number or name; it need not be up."""
    try:
        selector = parse_selector(wanted if isinstance(wanted, int) else str(wanted))
    except ValueError as error:
        raise UservpnError(str(error)) from None
    found = [s.node for s in chooser.mesh.exits() if selector.takes(s.candidate)]
    if not found:
        raise UservpnError(f"no exit {wanted} is known (uservpn nodes lists them)")
    if len(found) > 1:
        raise UservpnError(f"{wanted} are several exits ({', '.join(map(str, found))}): name one")
    return found[0]
