"""The country of an address, as an exit knows it: from an MMDB file of the owner's, or from iptocc.

Both libraries are optional (`pip install 'uservpn[geo]'`) and imported when the first address is asked
for, so that a node that is no exit, or idle, pays nothing. Without either every answer is "not known":
rules on the site's country then hold for no site, and exits are chosen by measurement as ever.

What is told is where an address is registered or, in a file of the owner's, whatever that says. It is
no measurement: an anycast address is in one country for all of these.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from uservpn.chooser.geo import is_country

log: Final = logging.getLogger("uservpn")

_Source = Callable[[str], object]
"""An address in, a country, a record of an MMDB file or None out."""


class Countries:
    """A `CountryLookup` (chooser/geo.py); opened at the first question."""

    def __init__(self, enabled: Literal["auto"] | bool, database: Path | None) -> None:
        """As `[geo]` has it; `database` is asked where one is named, else iptocc."""
        self._is_enabled = enabled is not False
        self._database = database
        self._source: _Source | None = None
        self._close: Callable[[], None] = _nothing

    def country_of(self, ip: str) -> str | None:
        """Two capital letters of ISO 3166; None: not known, or no public address."""
        if not self._is_enabled:
            return None
        if self._source is None:
            self._source = self._open()
        try:
            address = ipaddress.ip_address(ip)
        except ValueError:
            return None
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        try:
            code = _code_in(self._source(str(mapped or address).partition("%")[0]))
        except (
            ValueError,
            OSError,
        ) as error:  # a damaged file; InvalidDatabaseError is no ValueError
            log.warning("no country for %s: %s", ip, error)
            return None
        return code if code is not None and is_country(code) else None

    def close(self) -> None:
        """Lets the file go; the next question opens it anew, with whatever is in it then."""
        self._close()
        self._close = _nothing
        self._source = None

    def _open(self) -> _Source:
        if self._database is not None:
            return self._open_file(self._database)
        try:
            from iptocc import country_code
        except ImportError:
            log.info("no Geo-IP: neither geo.database nor the package iptocc")
            return _unknown
        return country_code

    def _open_file(self, path: Path) -> _Source:
        try:
            import maxminddb

            reader = maxminddb.open_database(path)
        except ImportError:
            log.warning("geo.database cannot be read without the package maxminddb")
            return _unknown
        except (OSError, ValueError, maxminddb.InvalidDatabaseError) as error:
            log.warning("geo.database cannot be used: %s", error)
            return _unknown
        self._close = reader.close

        def look_up(ip: str) -> object:
            try:
                return reader.get(ip)
            except maxminddb.InvalidDatabaseError as error:
                raise ValueError(str(error)) from None

        return look_up


def _code_in(record: object) -> str | None:
    """The country in what the usual databases say about an address.

    MaxMind and DB-IP: `country.iso_code`, else `registered_country.iso_code`; ip-location-db:
    `country_code`; IPinfo: `country`.
    """
    if isinstance(record, str):
        return record.upper()
    if not isinstance(record, dict):
        return None
    for key in ("country", "registered_country", "country_code"):
        value = record.get(key)
        if isinstance(value, dict):
            value = value.get("iso_code")
        if isinstance(value, str) and len(value) == 2:
            return value.upper()
    return None


def _unknown(ip: str) -> object:
    return None


def _nothing() -> None:
    return None
