"""Where hosts are, and how long light takes between them."""

from __future__ import annotations

from math import asin, cos, radians, sin, sqrt
from typing import Final, NamedTuple


class Site(NamedTuple):
    """A place with hosts."""

    name: str
    country: str
    latitude: float
    longitude: float


SITES: Final = (
    Site("frankfurt", "DE", 50.1, 8.7),
    Site("london", "GB", 51.5, -0.1),
    Site("new york", "US", 40.7, -74.0),
    Site("san francisco", "US", 37.8, -122.4),
    Site("sao paulo", "BR", -23.5, -46.6),
    Site("johannesburg", "ZA", -26.2, 28.0),
    Site("mumbai", "IN", 19.1, 72.9),
    Site("singapore", "SG", 1.3, 103.8),
    Site("tokyo", "JP", 35.7, 139.7),
    Site("sydney", "AU", -33.9, 151.2),
)
_EARTH_KM: Final = 6371.0
_FIBRE_KM_S: Final = 200_000.0
_DETOUR: Final = 1.5
"""Cables do not follow great circles."""
_LOCAL_S: Final = 0.0005


def flight_s(a: Site, b: Site) -> float:
    """One way through the fibre between two places, seconds."""
    half_lat = radians(b.latitude - a.latitude) / 2
    half_lon = radians(b.longitude - a.longitude) / 2
    flat = cos(radians(a.latitude)) * cos(radians(b.latitude))
    chord = sin(half_lat) ** 2 + flat * sin(half_lon) ** 2
    return _LOCAL_S + _DETOUR * 2 * _EARTH_KM * asin(sqrt(chord)) / _FIBRE_KM_S
