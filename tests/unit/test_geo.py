"""The table of countries and the great circle between two of them."""

from __future__ import annotations

from itertools import product

import pytest

from uservpn.chooser import geo


def test_every_code_of_iso_3166_has_a_place_on_earth() -> None:
    codes = [row.split()[0] for row in geo.TABLE.split(",")]
    assert len(codes) == len(set(codes)) == 249
    assert codes == sorted(codes)
    for code in codes:
        place = geo.place_of(code)
        assert place is not None and geo.is_country(code)
        assert -90 <= place.latitude <= 90 and -180 <= place.longitude <= 180


@pytest.mark.parametrize("code", ["", "D", "de", "DEU", "XX", "ZZ", "UK"])
def test_what_is_no_country(code: str) -> None:
    assert not geo.is_country(code)
    assert geo.place_of(code) is None
    assert geo.distance_km(code, "DE") is None


def test_distances_are_those_of_a_map() -> None:
    assert geo.great_circle_km(geo.Place(0, 0), geo.Place(0, 180)) == pytest.approx(20015, abs=1)
    assert geo.great_circle_km(geo.Place(90, 0), geo.Place(0, 77)) == pytest.approx(10007.6, abs=1)
    assert geo.distance_km("FR", "GB") == pytest.approx(344, abs=10)  # Paris, London
    assert geo.distance_km("JP", "DE") == pytest.approx(9360, abs=60)  # Tokyo, Frankfurt


def test_distance_is_a_metric() -> None:
    codes = ["DE", "US", "JP", "FJ", "WS", "AQ", "GL", "ZA"]
    for a, b, c in product(codes, repeat=3):
        ab, bc, ac = geo.distance_km(a, b), geo.distance_km(b, c), geo.distance_km(a, c)
        assert ab is not None and bc is not None and ac is not None
        assert ab == pytest.approx(geo.distance_km(b, a))
        assert (ab == 0) == (a == b)
        assert ac <= ab + bc + 1e-6


def test_the_nearest_of_some_exits() -> None:
    def nearest(site: str, exits: list[str]) -> str:
        return min(exits, key=lambda exit: geo.distance_km(site, exit) or 0)

    exits = ["US", "DE", "SG", "BR", "ZA", "JP"]
    meant = {"CA": "US", "PL": "DE", "ID": "SG", "AR": "BR", "NA": "ZA", "KR": "JP", "FJ": "JP"}
    assert {site: nearest(site, exits) for site in meant} == meant
