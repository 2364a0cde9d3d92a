"""Countries: their codes, where they are, and how far one is from another.

`TABLE` has every code of ISO 3166-1 and one place for each: the capital or, where most people or the
cables are elsewhere, the largest city (for big countries a city near the middle of their people), in
degrees to two decimals, from general knowledge. Good for one question: which exit is probably nearest
to a site when nothing has been measured. A measurement always knows better.

`CountryLookup` is what an exit asks for the country of an address; `runtime.geo` has what answers it.
"""

from __future__ import annotations

from functools import cache
from math import asin, cos, radians, sin, sqrt
from typing import Final, NamedTuple, Protocol

EARTH_RADIUS_KM: Final = 6371.0088
"""Mean radius (IUGG)."""

TABLE: Final = """
AD 42.51 1.52,AE 25.20 55.27,AF 34.53 69.17,AG 17.12 -61.85,AI 18.22 -63.06,AL 41.33 19.82,
AM 40.18 44.51,AO -8.84 13.23,AQ -77.85 166.67,AR -34.60 -58.38,AS -14.28 -170.70,AT 48.21 16.37,
AU -33.87 151.21,AW 12.52 -70.03,AX 60.10 19.93,AZ 40.41 49.87,BA 43.86 18.41,BB 13.10 -59.62,
BD 23.81 90.41,BE 50.85 4.35,BF 12.37 -1.52,BG 42.70 23.32,BH 26.23 50.59,BI -3.36 29.36,
BJ 6.37 2.43,BL 17.90 -62.85,BM 32.29 -64.78,BN 4.90 114.94,BO -16.50 -68.15,BQ 12.15 -68.27,
BR -23.55 -46.63,BS 25.05 -77.35,BT 27.47 89.64,BV -54.42 3.36,BW -24.65 25.91,BY 53.90 27.57,
BZ 17.50 -88.20,CA 43.65 -79.38,CC -12.19 96.83,CD -4.32 15.31,CF 4.36 18.56,CG -4.26 15.24,
CH 47.38 8.54,CI 5.36 -4.01,CK -21.21 -159.78,CL -33.45 -70.67,CM 4.05 9.70,CN 31.23 121.47,
CO 4.71 -74.07,CR 9.93 -84.08,CU 23.11 -82.37,CV 14.93 -23.51,CW 12.11 -68.93,CX -10.42 105.68,
CY 35.17 33.36,CZ 50.08 14.44,DE 50.11 8.68,DJ 11.59 43.15,DK 55.68 12.57,DM 15.30 -61.39,
DO 18.49 -69.93,DZ 36.75 3.06,EC -0.18 -78.47,EE 59.44 24.75,EG 30.04 31.24,EH 27.15 -13.20,
ER 15.32 38.93,ES 40.42 -3.70,ET 9.03 38.74,FI 60.17 24.94,FJ -18.14 178.44,FK -51.69 -57.86,
FM 6.92 158.16,FO 62.01 -6.77,FR 48.86 2.35,GA 0.39 9.45,GB 51.51 -0.13,GD 12.05 -61.75,
GE 41.72 44.78,GF 4.92 -52.31,GG 49.46 -2.54,GH 5.60 -0.19,GI 36.14 -5.35,GL 64.18 -51.72,
GM 13.45 -16.58,GN 9.64 -13.58,GP 16.24 -61.53,GQ 3.75 8.78,GR 37.98 23.73,GS -54.28 -36.51,
GT 14.63 -90.51,GU 13.48 144.79,GW 11.86 -15.58,GY 6.80 -58.16,HK 22.32 114.17,HM -53.10 73.51,
HN 14.07 -87.19,HR 45.81 15.98,HT 18.59 -72.31,HU 47.50 19.04,ID -6.21 106.85,IE 53.35 -6.26,
IL 32.09 34.78,IM 54.15 -4.48,IN 19.08 72.88,IO -7.31 72.41,IQ 33.31 44.37,IR 35.69 51.39,
IS 64.15 -21.94,IT 45.46 9.19,JE 49.19 -2.11,JM 17.97 -76.79,JO 31.95 35.93,JP 35.68 139.69,
KE -1.29 36.82,KG 42.87 74.59,KH 11.56 104.92,KI 1.33 172.98,KM -11.70 43.26,KN 17.30 -62.72,
KP 39.03 125.75,KR 37.57 126.98,KW 29.38 47.99,KY 19.29 -81.38,KZ 43.24 76.89,LA 17.97 102.60,
LB 33.89 35.50,LC 14.01 -60.99,LI 47.14 9.52,LK 6.93 79.86,LR 6.30 -10.80,LS -29.31 27.48,
LT 54.69 25.28,LU 49.61 6.13,LV 56.95 24.11,LY 32.89 13.19,MA 33.57 -7.59,MC 43.74 7.42,
MD 47.01 28.86,ME 42.44 19.26,MF 18.07 -63.08,MG -18.88 47.51,MH 7.09 171.38,MK 42.00 21.43,
ML 12.64 -8.00,MM 16.87 96.20,MN 47.89 106.91,MO 22.20 113.54,MP 15.18 145.75,MQ 14.60 -61.07,
MR 18.08 -15.98,MS 16.71 -62.22,MT 35.90 14.51,MU -20.16 57.50,MV 4.18 73.51,MW -13.96 33.79,
MX 19.43 -99.13,MY 3.14 101.69,MZ -25.97 32.57,NA -22.56 17.08,NC -22.27 166.45,NE 13.51 2.11,
NF -29.06 167.96,NG 6.52 3.38,NI 12.11 -86.24,NL 52.37 4.90,NO 59.91 10.75,NP 27.72 85.32,
NR -0.55 166.92,NU -19.06 -169.92,NZ -36.85 174.76,OM 23.59 58.41,PA 8.98 -79.52,PE -12.05 -77.04,
PF -17.54 -149.57,PG -9.44 147.18,PH 14.60 120.98,PK 24.86 67.00,PL 52.23 21.01,PM 46.78 -56.18,
PN -25.07 -130.10,PR 18.47 -66.11,PS 31.90 35.20,PT 38.72 -9.14,PW 7.34 134.48,PY -25.26 -57.58,
QA 25.29 51.53,RE -20.88 55.45,RO 44.43 26.10,RS 44.79 20.45,RU 55.76 37.62,RW -1.94 30.06,
SA 24.71 46.68,SB -9.43 159.95,SC -4.62 55.45,SD 15.50 32.56,SE 59.33 18.07,SG 1.35 103.82,
SH -15.92 -5.72,SI 46.06 14.51,SJ 78.22 15.65,SK 48.15 17.11,SL 8.47 -13.23,SM 43.94 12.46,
SN 14.69 -17.45,SO 2.05 45.32,SR 5.85 -55.20,SS 4.85 31.58,ST 0.34 6.73,SV 13.69 -89.22,
SX 18.03 -63.05,SY 33.51 36.29,SZ -26.31 31.14,TC 21.46 -71.14,TD 12.13 15.06,TF -49.35 70.22,
TG 6.13 1.22,TH 13.76 100.50,TJ 38.56 68.77,TK -9.20 -171.85,TL -8.56 125.57,TM 37.96 58.33,
TN 36.81 10.18,TO -21.14 -175.20,TR 41.01 28.98,TT 10.65 -61.51,TV -8.52 179.20,TW 25.03 121.57,
TZ -6.79 39.21,UA 50.45 30.52,UG 0.35 32.58,UM 19.28 166.65,US 39.10 -84.51,UY -34.90 -56.16,
UZ 41.30 69.24,VA 41.90 12.45,VC 13.16 -61.22,VE 10.48 -66.90,VG 18.43 -64.62,VI 18.34 -64.93,
VN 10.82 106.63,VU -17.73 168.32,WF -13.28 -176.17,WS -13.83 -171.77,YE 15.37 44.19,YT -12.78 45.23,
ZA -26.20 28.05,ZM -15.39 28.32,ZW -17.83 31.05
"""


class CountryLookup(Protocol):
    """Tells where an address is registered. Used by exits; never by a client."""

    def country_of(self, ip: str) -> str | None:
        """Two capital letters; None: not known, or no address. Never raises, never waits."""


class Place(NamedTuple):
    """Degrees; north and east are positive."""

    latitude: float
    longitude: float


def is_country(code: str) -> bool:
    """Two capital letters of ISO 3166-1?"""
    return len(code) == 2 and code in _places()


def place_of(country: str) -> Place | None:
    """Where a country's people or cables are, roughly; None: no such code."""
    return _places().get(country)


def distance_km(one: str, other: str) -> float | None:
    """The great circle between two countries' places, 0 within one; None: a code that is none."""
    start, end = place_of(one), place_of(other)
    if start is None or end is None:
        return None
    return great_circle_km(start, end)


def great_circle_km(start: Place, end: Place) -> float:
    """By the haversine formula, which holds for near places too."""
    north, south = radians(start.latitude), radians(end.latitude)
    east = radians(end.longitude - start.longitude)
    square = sin((south - north) / 2) ** 2 + cos(north) * cos(south) * sin(east / 2) ** 2
    return 2 * EARTH_RADIUS_KM * asin(min(1.0, sqrt(square)))


@cache
def _places() -> dict[str, Place]:
    """Read at the first question."""
    rows = (row.split() for row in TABLE.split(",") if row.strip())
    return {code: Place(float(latitude), float(longitude)) for code, latitude, longitude in rows}
