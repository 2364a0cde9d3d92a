"""A TCP link over a long path that loses packets carries what a connection without a tunnel does (R33).

Both over Linux' BBR, in one run: what the machine can do counts for both. Margins are wide; the benchmark
(`python -m benchmarks lossy`) has the figures.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.lossy import Conditions, Found, congestion_controls, measure, systems

PATH = Conditions(rate_mbit=50, rtt_ms=80, queue=500_000, loss=0.02)
SECONDS = (4.0, 5.0)
"""Before the counting, and of it."""


pytestmark = pytest.mark.skipif(
    os.environ.get("USERVPN_NETNS") != "full",
    reason="a measurement: it has its place in `make netns`",
)


@pytest.fixture(scope="module")
def found() -> dict[str, Found]:
    available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    if "bbr" not in available:
        pytest.skip("this kernel has no BBR (modprobe tcp_bbr)")
    names = ("uservpn tcp, bbr", "no proxy, bbr")
    with congestion_controls({"bbr"}):
        return {
            system.name: measure(system, PATH, False, SECONDS)
            for system in systems()
            if system.name in names
        }


def test_random_loss_does_not_make_a_tcp_link_slow(found: dict[str, Found]) -> None:
    ours, plain = found["uservpn tcp, bbr"], found["no proxy, bbr"]
    print(f"{ours.goodput_mbit:.1f} Mbit/s, without a tunnel {plain.goodput_mbit:.1f}")
    assert ours.goodput_mbit > 0.6 * plain.goodput_mbit


def test_an_interactive_stream_beside_it_does_not_wait_for_repairs(found: dict[str, Found]) -> None:
    ours = found["uservpn tcp, bbr"]
    print(f"{ours.median_ms:.0f} ms, alone {ours.quiet_ms:.0f}")
    assert ours.median_ms < ours.quiet_ms + 50
