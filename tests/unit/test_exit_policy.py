"""What the exit may dial: the rules, the forms in which an address hides, and the cache."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uservpn.exits import policy as module
from uservpn.exits.policy import Policy, is_literal

PUBLIC = [
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "168.63.129.15",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "223.255.255.255",
    "2000::",
    "2001:200::1",
    "2606:4700:4700::1111",
    "2a00:1450:4001::1",
    "2002:101:101::1",  # 6to4 of 1.1.1.1
    "64:ff9b::1.1.1.1",
    "::ffff:0:1.1.1.1",
    "::ffff:1.1.1.1",
]
SPECIAL = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.255",
    "168.63.129.16",
    "169.254.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::2",
    "::127.0.0.1",
    "::8.8.8.8",
    "64:ff9b:1::1.1.1.1",
    "100::1",
    "1fff::1",
    "2001::1",
    "2001:db8::1",
    "3fff:fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ffff::1",
]
HIDDEN = [
    "::ffff:127.0.0.1",
    "::ffff:7f00:1",
    "0:0:0:0:0:ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::1",
    "2002:a9fe:a9fe::",
    "2002:0a00:0001::1",
]
NAMES = [
    "example.com",
    "localhost",
    "host1",
    "1.2.3",
    "127.1",
    "0x7f000001",
    "2130706433",
    "a:b",
    "",
    "127.0.0.1.",
    "010.0.0.1",
    "1.1.1.1 ",
    "[::1]",
    "2606:4700::1111%eth0",
    "9" * 300,
]


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_may_be_dialled(address):
    assert Policy().verdict(address) is True
    assert Policy().check(address, 443)


@pytest.mark.parametrize("address", SPECIAL + HIDDEN)
def test_a_special_address_is_refused_in_every_form(address):
    assert Policy().verdict(address) is False
    assert not Policy().check(address, 443)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_no_address_and_never_passes(name):
    policy = Policy(allow=["0.0.0.0/0", "::/0"])
    assert policy.verdict(name) is None
    assert not policy.check(name, 443)


def test_port_0_is_no_target():
    assert not Policy().check("1.1.1.1", 0)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", *HIDDEN[:3]])
def test_allow_opens_what_it_covers_in_every_form(address):
    policy = Policy(allow=["127.0.0.0/8"])
    assert policy.verdict(address) is True
    assert policy.verdict("10.0.0.1") is False
    assert policy.verdict("::1") is False
    assert policy.verdict("1.1.1.1") is True


def test_allow_of_ipv6_does_not_open_ipv4_addresses_inside():
    policy = Policy(allow=["::/0"])
    assert policy.verdict("::1") is True
    assert policy.verdict("fe80::1%eth0") is True
    for address in HIDDEN:
        assert policy.verdict(address) is False
    assert Policy(allow=["127.0.0.0/8"]).verdict("64:ff9b::127.0.0.1") is True


def test_a_network_of_mapped_addresses_is_the_ipv4_network():
    policy = Policy(allow=["::ffff:127.0.0.0/104"], deny=["::ffff:1.1.1.0/120"])
    assert policy.verdict("127.0.0.1") is True
    assert policy.verdict("1.1.1.1") is False
    assert policy.verdict("1.1.2.1") is True


def test_deny_wins_in_every_form():
    policy = Policy(allow=["127.0.0.0/8", "1.1.1.0/24"], deny=["127.0.0.1/32", "1.1.1.1"])
    for address in (
        "127.0.0.1",
        "::ffff:127.0.0.1",
        "1.1.1.1",
        "2002:101:101::1",
        "64:ff9b::1.1.1.1",
    ):
        assert policy.verdict(address) is False
    assert policy.verdict("127.0.0.2") is True
    assert policy.verdict("1.1.1.2") is True
    assert Policy(allow=["0.0.0.0/0"], deny=["0.0.0.0/0"]).verdict("1.1.1.1") is False
    assert Policy(deny=["2000::/3"]).verdict("2606:4700::1") is False


def test_teredo_needs_both_addresses_named():
    address = "2001:0:101:101::80ff:fffe"  # server 1.1.1.1, client 127.0.0.1
    assert Policy(allow=["2001::/32"]).verdict(address) is False
    assert Policy(allow=["2001::/32", "127.0.0.0/8"]).verdict(address) is True


def test_a_text_that_is_no_network_is_an_error():
    with pytest.raises(ValueError, match="example"):
        Policy(allow=["example.com"])


def test_the_cache_is_bounded_and_keeps_what_is_asked_for(monkeypatch):
    monkeypatch.setattr(module, "CACHE_MAX", 64)
    judged = []
    policy = Policy()
    monkeypatch.setattr(Policy, "_judge", lambda self, address: judged.append(address) or True)
    for number in range(1000):
        policy.verdict("9.9.9.9")
        policy.verdict(str(ipaddress.IPv4Address(0x01000000 + number)))
        policy.verdict(f"host{number}")
        assert len(policy._young) + len(policy._old) <= 64
    assert judged.count(ipaddress.ip_address("9.9.9.9")) == 1


@given(st.ip_addresses())
def test_every_address_is_literal_and_judged(address):
    assert is_literal(str(address))
    assert Policy().verdict(str(address)) is not None


@given(st.ip_addresses(v=4))
def test_nothing_is_allowed_that_the_standard_library_calls_private(address):
    if Policy().verdict(str(address)):
        assert not (address.is_private or address.is_multicast or address.is_reserved)
        assert not (address.is_loopback or address.is_link_local or address.is_unspecified)


@given(st.ip_addresses(v=6, network="2000::/3"))
def test_global_ipv6_agrees_with_the_standard_library(address):
    if Policy().verdict(str(address)):
        assert not address.is_private


@given(st.lists(st.ip_addresses(v=4), max_size=6), st.ip_addresses(v=4))
def test_deny_lists_cover_exactly_their_networks(bases, address):
    networks = [
        ipaddress.ip_network((base, 8 + 3 * at), strict=False) for at, base in enumerate(bases)
    ]
    policy = Policy(allow=["0.0.0.0/0"], deny=[str(network) for network in networks])
    assert policy.verdict(str(address)) is not any(address in network for network in networks)
    for network in networks:
        assert policy.verdict(str(network[0])) is False
        assert policy.verdict(str(network[-1])) is False
