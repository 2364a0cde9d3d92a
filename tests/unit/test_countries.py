"""The country of an address: from MMDB files in several shapes, from iptocc, and when there is neither."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from mmdb import write_mmdb
from uservpn.chooser.geo import CountryLookup
from uservpn.runtime.geo import Countries


def test_a_database_of_the_owner_s(tmp_path: Path) -> None:
    path = write_mmdb(
        tmp_path / "countries.mmdb",
        {
            "192.0.2.0/24": {
                "country": {"iso_code": "DE"},
                "registered_country": {"iso_code": "US"},
            },
            "198.51.100.0/24": {"registered_country": {"iso_code": "FR"}},
            "203.0.113.0/25": {"country_code": "jp"},
            "203.0.113.128/25": {"country": "SG"},
            "2001:db8::/32": {"country": {"iso_code": "BR"}},
            "2001:db9::/32": {"country": {"iso_code": "ZZ"}, "continent": {"code": "EU"}},
            "2001:dba::/32": {},
        },
    )
    countries: CountryLookup = Countries("auto", path)
    meant = {
        "192.0.2.9": "DE",
        "::ffff:192.0.2.9": "DE",
        "198.51.100.1": "FR",
        "203.0.113.1": "JP",
        "203.0.113.200": "SG",
        "2001:db8::1": "BR",
        "2001:db9::1": None,  # no country of ISO 3166
        "2001:dba::1": None,
        "10.0.0.1": None,
        "fe80::1%eth0": None,
        "example.com": None,
        "": None,
    }
    assert {ip: countries.country_of(ip) for ip in meant} == meant


def test_a_file_that_was_replaced_is_read_after_close(tmp_path: Path) -> None:
    path = write_mmdb(tmp_path / "countries.mmdb", {"192.0.2.0/24": {"country": "DE"}})
    countries = Countries("auto", path)
    assert countries.country_of("192.0.2.1") == "DE"
    write_mmdb(tmp_path / "new.mmdb", {"192.0.2.0/24": {"country": "FR"}}).replace(path)
    assert countries.country_of("192.0.2.1") == "DE"
    countries.close()
    assert countries.country_of("192.0.2.1") == "FR"


@pytest.mark.parametrize(
    "content", [None, b"", b"no database", b"\xab\xcd\xefMaxMind.com\xff\xff\xff"]
)
def test_a_database_that_cannot_be_used_is_said_once(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "countries.mmdb"
    if content is not None:
        path.write_bytes(content)
    countries = Countries("auto", path)
    assert [countries.country_of("192.0.2.1") for _ in range(3)] == [None] * 3
    assert [record.getMessage()[:26] for record in caplog.records] == ["geo.database cannot be use"]


def test_damage_inside_a_database_is_no_answer(tmp_path: Path) -> None:
    path = write_mmdb(tmp_path / "countries.mmdb", {"192.0.2.0/24": {"country": "DE"}})
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        countries = Countries("auto", path)
        assert countries.country_of("192.0.2.1") in (None, "DE")
        countries.close()


def test_the_data_of_iptocc() -> None:
    countries = Countries(True, None)
    assert countries.country_of("8.8.8.8") == "US"
    assert countries.country_of("::ffff:8.8.8.8") == "US"
    assert countries.country_of("2001:4860:4860::8888") == "US"
    assert countries.country_of("127.0.0.1") is None


def test_switched_off_nothing_is_known() -> None:
    assert Countries(False, None).country_of("8.8.8.8") is None


def test_without_the_packages_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for name in ("iptocc", "maxminddb"):
        monkeypatch.setitem(sys.modules, name, None)
    assert Countries("auto", None).country_of("8.8.8.8") is None
    assert Countries("auto", tmp_path / "countries.mmdb").country_of("8.8.8.8") is None
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]


def test_nothing_optional_is_imported_before_the_first_question() -> None:
    program = (
        "import sys\nfrom uservpn.runtime.geo import Countries\nCountries('auto', None)\n"
        "assert not {'iptocc', 'maxminddb'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
