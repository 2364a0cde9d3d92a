"""Where a peer is dialled, in which order, and how its links are proved: the rules one by one."""

from __future__ import annotations

import itertools

import pytest

from uservpn.mesh.addresses import AGAIN_S, STAGGER_S, Dials, Networks, Scope, preferred, scope_of
from uservpn.mesh.contact import Contact, Dial, GiveUp, Probe
from uservpn.mesh.liveness import HURRY_S, PUNCH_S
from uservpn.mesh.records import EndpointKind, Known
from uservpn.mesh.redial import OFFLINE_S

FIXED, LOCAL, OBSERVED = EndpointKind.FIXED, EndpointKind.LOCAL, EndpointKind.OBSERVED
A, B = "tcp://192.0.2.1:7000", "tcp://192.0.2.2:7000"
UDP, TCP = "udp://192.0.2.1:7000", "tcp://192.0.2.1:7000"


def _dials(*known: Known) -> Dials:
    dials = Dials(lambda span: span / 2)
    dials.offer(known)
    return dials


def _contact(*endpoints: str) -> Contact:
    return Contact(endpoints, keepalive_s=600.0, grace_s=60.0, jitter=lambda span: 0.0)


def _linked(protocol: str = "tcp", lossy: bool = False):
    """A contact with one dialled link (1) that was heard, and an RTT of 50 ms."""
    endpoint = UDP if lossy else TCP
    contact = _contact(endpoint)
    contact.want(0.0)
    state = contact.link_up(1, protocol, endpoint, True, 0.0, is_lossy=lossy)
    contact.proved(state, 0.05)
    contact.heard(state, 0.05)
    state.measured(0.05)
    contact.take_plans()
    return contact, state


# --- the order -----------------------------------------------------------------------------------


def test_a_local_network_goes_before_fixed_and_observed_ones():
    known = [
        Known(OBSERVED, "udp://203.0.113.9:41000"),
        Known(FIXED, "tcp://203.0.113.5:7000"),
        Known(LOCAL, "tcp://192.168.1.5:7000"),
        Known(LOCAL, "tcp://10.9.9.9:7000"),
    ]
    home = Networks(["192.168.1.7/24", "fe80::1/64"])
    order = [place.endpoint for place in preferred(known, home, (), ())]
    assert order == [known[2].endpoint, known[1].endpoint, known[0].endpoint]
    away = Networks(["172.16.0.2/16"])
    order = [place.endpoint for place in preferred(known, away, (), ())]
    assert order == [known[1].endpoint, known[0].endpoint], "hopeless ones are not dialled"


def test_behind_the_same_router_private_addresses_are_worth_a_try():
    known = [Known(OBSERVED, "udp://203.0.113.9:41000"), Known(LOCAL, "udp://10.9.9.9:7000")]
    order = preferred(known, Networks(["10.1.1.1/24"]), (), {"203.0.113.9"})
    assert [place.kind for place in order] == [LOCAL, OBSERVED]


def test_nobody_dials_himself():
    known = [Known(LOCAL, "udp://192.168.1.5:7000"), Known(LOCAL, "udp://192.168.1.6:7000")]
    order = preferred(known, Networks(["192.168.1.5/24"]), {"udp://192.168.1.5:7000"}, ())
    assert [place.endpoint for place in order] == ["udp://192.168.1.6:7000"]


@pytest.mark.parametrize(
    ("host", "scope"),
    [
        ("203.0.113.5", Scope.BEYOND),
        ("10.0.0.5", Scope.BEYOND),
        ("[2001:db8::5]", Scope.BEYOND),
        ("[fd00::5]", Scope.BEYOND),
        ("[::ffff:203.0.113.5]", Scope.BEYOND),
        ("127.0.0.1", Scope.MACHINE),
        ("127.8.9.10", Scope.MACHINE),
        ("[::1]", Scope.MACHINE),
        ("[::ffff:127.0.0.1]", Scope.MACHINE),
        ("0.0.0.0", Scope.NOWHERE),
        ("0.1.2.3", Scope.NOWHERE),
        ("[::]", Scope.NOWHERE),
        ("[::ffff:0.0.0.0]", Scope.NOWHERE),
        ("224.0.0.1", Scope.NOWHERE),
        ("[ff02::1]", Scope.NOWHERE),
        ("240.0.0.1", Scope.NOWHERE),
        ("255.255.255.255", Scope.NOWHERE),
        ("169.254.169.254", Scope.NOWHERE),
        ("[fe80::1]", Scope.NOWHERE),
    ],
)
def test_how_far_an_address_reaches(host, scope):
    assert scope_of(f"udp://{host}:7000") is scope


def test_a_place_in_a_form_of_a_plugins_own_is_the_plugins_business():
    assert scope_of("carrier pigeon") is Scope.BEYOND


def test_networks_tell_versions_apart():
    networks = Networks(["10.0.0.1/8", "2001:db8::1/64"])
    assert networks.holds("10.200.0.1") and networks.holds("2001:db8::99")
    assert not networks.holds("11.0.0.1") and not networks.holds("2001:db9::1")
    assert networks.addresses == {"10.0.0.1", "2001:db8::1"}


# --- races ---------------------------------------------------------------------------------------


def test_candidates_start_one_after_the_other_and_protocols_side_by_side():
    dials = _dials(Known(FIXED, A), Known(FIXED, UDP), Known(FIXED, B))
    dials.start(10.0, ())
    assert dials.take_due(10.0) == [A, UDP]
    assert dials.take_due(10.0 + STAGGER_S) == [B]
    assert not dials.take_due(99.0)


def test_a_failure_brings_the_next_one_forward():
    dials = _dials(Known(FIXED, A), Known(FIXED, B))
    dials.start(10.0, ())
    assert dials.take_due(10.0) == [A]
    dials.failed(A, True, 10.01)
    assert dials.take_due(10.01) == [B]


def test_what_is_not_fixed_and_failed_is_left_alone_for_longer_each_time():
    dials = _dials(Known(LOCAL, A), Known(FIXED, B))
    now, waits = 0.0, []
    for _ in range(4):
        dials.start(now, ())
        assert A in dials.take_due(now + 1)
        dials.failed(A, False, now)
        dials.failed(B, False, now)
        waits.append(dials.retry_at() - now)
        dials.start(now + 0.9 * waits[-1], ())
        assert dials.take_due(now + waits[-1]) == [B]
        dials.failed(B, False, now)
        now = dials.retry_at()
    assert waits == [AGAIN_S * 2**n for n in range(4)]
    dials.forget()
    dials.start(now, ())
    assert set(dials.take_due(now + 1)) == {A, B}


def test_a_round_is_bounded_whatever_a_record_says():
    dials = _dials(*(Known(FIXED, f"tcp://192.0.2.{n}:1") for n in range(1, 13)))
    dials.start(0.0, ())
    assert len(dials.take_due(100.0)) <= 6


def test_the_slower_of_two_dials_is_closed_unused():
    contact = _contact(A, B)
    contact.want(0.0)
    contact.on_deadline(STAGGER_S)
    assert contact.take_plans() == [Dial(A), Dial(B)]
    assert contact.takes("tcp", A)
    contact.link_up(1, "tcp", A, True, 0.2)
    assert not contact.takes("tcp", B)
    assert contact.takes("udp", UDP), "another protocol is no competitor"


def test_of_datagram_links_the_first_answer_wins():
    other = "udp://192.0.2.2:7000"
    contact = _contact(UDP, other)
    contact.want(0.0)
    contact.on_deadline(STAGGER_S)
    contact.link_up(1, "udp", UDP, True, 0.0, is_lossy=True)
    late = contact.link_up(2, "udp", other, True, 0.2, is_lossy=True)
    contact.take_plans()
    contact.proved(late, 0.3)
    assert contact.take_plans() == [GiveUp(1)]


def test_once_a_link_is_answered_the_rest_of_its_race_is_called_off():
    contact = _contact(A, B)
    contact.want(0.0)
    assert contact.take_plans() == [Dial(A)]
    state = contact.link_up(1, "tcp", A, True, 0.02)
    contact.heard(state, 0.05)
    contact.on_deadline(1.0)
    assert not contact.take_plans()


# --- proof ---------------------------------------------------------------------------------------


def test_a_datagram_link_of_the_peer_carries_nothing_until_a_probe_is_answered():
    contact, first = _linked("udp", lossy=True)
    new = contact.link_up(2, "udp", "udp://198.51.100.9:1", False, 1.0, is_lossy=True)
    for at in (1.0, 1.1, 1.2):
        contact.heard(new, at)
        assert contact.links == [first] and contact.best() is first
    contact.proved(new, 1.3)
    assert contact.links[0] is new and not contact.unproved


def test_without_an_answer_it_is_given_up_soon():
    contact, first = _linked("udp", lossy=True)
    contact.link_up(2, "udp", "udp://198.51.100.9:1", False, 1.0, is_lossy=True)
    plans, now = [], 1.0
    while (due := contact.next_deadline()) is not None and due <= 1.0 + PUNCH_S:
        now = max(now, due)
        contact.on_deadline(now)
        plans += contact.take_plans()
    assert plans[-1] == GiveUp(2) and 3 <= plans.count(Probe(2, False)) <= 10
    contact.link_down(2, now)
    assert contact.links == [first] and not first.probed and not contact.unproved


def test_unproved_links_are_bounded():
    contact, _ = _linked("udp", lossy=True)
    for link in range(2, 20):
        contact.link_up(link, "udp", f"udp://198.51.100.9:{link}", False, 1.0, is_lossy=True)
        for plan in contact.take_plans():
            contact.link_down(plan.link, 1.0)
    assert len(contact.unproved) == 4


def test_the_link_that_a_proved_one_seems_to_replace_is_asked_and_wins_if_it_lives():
    contact = _contact()
    old = contact.link_up(1, "udp", "udp://198.51.100.1:1", False, 0.0, is_lossy=True)
    contact.proved(old, 0.1)
    new = contact.link_up(2, "udp", "udp://198.51.100.9:1", False, 1.0, is_lossy=True)
    contact.take_plans()
    contact.proved(new, 1.1)
    assert contact.links == [new, old] and old.probed
    assert contact.take_plans() == [Probe(1, False)]
    contact.heard(old, 1.2)
    assert contact.links == [old, new]


def test_a_connection_of_the_peer_is_used_at_once_but_robs_no_other_link_without_proof():
    """Whoever copies a fresh message can put it on a connection of his own."""
    contact = _contact()
    old = contact.link_up(1, "tcp", "tcp://198.51.100.1:1", False, 0.0)
    contact.heard(old, 0.0)
    assert contact.links == [old]
    new = contact.link_up(2, "tcp", "tcp://198.51.100.2:1", False, 5.0)
    contact.heard(new, 5.0)
    assert contact.links == [old] and not contact.take_plans()
    contact.proved(new, 5.1)
    assert contact.links == [new, old] and contact.take_plans() == [Probe(1, False)]
    third = contact.link_up(3, "tcp", "tcp://198.51.100.3:1", False, 6.0)
    contact.proved(third, 6.1)
    assert not any(isinstance(plan, GiveUp) for plan in contact.take_plans())
    fourth = contact.link_up(4, "tcp", "tcp://198.51.100.4:1", False, 7.0)
    contact.proved(fourth, 7.1)
    assert GiveUp(1) in contact.take_plans(), "beside the newest one two others are kept"


def test_a_connection_beside_a_silent_one_is_used_at_once():
    contact = _contact()
    old = contact.link_up(1, "tcp", "tcp://198.51.100.1:1", False, 0.0)
    old.probed = True
    new = contact.link_up(2, "tcp", "tcp://198.51.100.2:1", False, 5.0)
    contact.heard(new, 5.0)
    assert contact.links == [new, old]


# --- waking up -----------------------------------------------------------------------------------


def test_after_a_wake_a_busy_peer_is_asked_and_dialled_at_once():
    contact, state = _linked()
    contact.has_streams = True
    contact.wake(100.0)
    assert contact.take_plans() == [Probe(1, False), Dial(TCP)]
    assert contact.takes("tcp", TCP), "the old one has not answered"
    new = contact.link_up(2, "tcp", TCP, True, 100.1)
    contact.heard(new, 100.2)
    assert contact.links == [new, state] and contact.take_plans() == [GiveUp(1)]


def test_after_a_wake_a_link_that_answers_stays():
    contact, state = _linked()
    contact.has_streams = True
    contact.wake(100.0)
    contact.take_plans()
    contact.heard(state, 100.05)
    assert not contact.takes("tcp", TCP) and contact.links == [state]


def test_after_a_wake_an_idle_peer_is_dialled_only_if_it_does_not_answer():
    contact, state = _linked()
    contact.wake(100.0)
    assert contact.take_plans() == [Probe(1, False)]
    contact.on_deadline(100.0 + HURRY_S)
    assert contact.take_plans() == [Dial(TCP)]
    contact.wake(200.0)
    contact.heard(state, 200.01)
    contact.on_deadline(200.0 + HURRY_S)
    assert Dial(TCP) not in contact.take_plans()


def test_a_wake_forgets_every_back_off():
    contact = _contact(TCP)
    contact.want(0.0)
    for now in range(20):
        contact.dial_failed(TCP, False, "no answer", now)
    contact.take_plans()
    contact.wake(100.0)
    assert contact.take_plans() == [Dial(TCP)]


def test_a_peer_nobody_needs_is_not_dialled_by_a_wake():
    contact = _contact(TCP)
    contact.is_kept = False
    contact.wake(100.0)
    assert not contact.take_plans() and contact.next_deadline() is None


@pytest.mark.parametrize("busy", [False, True])
def test_offline_it_waits_for_the_network(busy):
    """A minute without any network: a handful of attempts, and one at once when it is back."""
    contact = _contact(TCP)
    contact.has_streams = busy
    contact.want(0.0)
    attempts, wakes, now = 0, 0, 0.0
    while now < 60.0:
        for plan in contact.take_plans():
            attempts += 1
            contact.dial_failed(plan.endpoint, False, "unreachable", now, offline=True)
        now = contact.next_deadline() or 60.0
        contact.on_deadline(now)
        wakes += 1
    assert attempts <= 60 / OFFLINE_S + 1 and wakes <= 4


def test_offline_a_silent_connection_makes_no_haste():
    """Streams wait on it; a dial beside it fails at once each time, since there is no way out."""
    contact = _contact(TCP)
    contact.has_streams = True
    contact.want(0.0)
    contact.take_plans()
    state = contact.link_up(1, "tcp", TCP, True, 0.0)
    contact.heard(state, 0.1)
    contact.wake(1.0)
    attempts, now = 0, 1.0
    while now < 20.0:
        for plan in contact.take_plans():
            if isinstance(plan, Dial):
                attempts += 1
                contact.dial_failed(plan.endpoint, False, "unreachable", now, offline=True)
            elif isinstance(plan, GiveUp):
                contact.link_down(state.link, now)
        now = max(now + 0.01, contact.next_deadline() or 20.0)
        contact.on_deadline(now)
    assert 0 < attempts <= 3


def test_while_one_protocol_carries_another_is_tried_now_and_then():
    contact = _contact(UDP, TCP)
    contact.has_streams = True
    contact.want(0.0)
    tcp = contact.link_up(1, "tcp", TCP, True, 0.0)
    contact.heard(tcp, 0.1)
    contact.take_plans()
    times, now = [], 0.1
    while now < 300:
        contact.heard(tcp, now)
        contact.dial_failed(UDP, False, "no answer", now)
        now = contact.redial.at or 1e9
        contact.on_deadline(now)
        if Dial(UDP) in contact.take_plans():
            times.append(now)
    waits = [round(b - a) for a, b in itertools.pairwise(times)]
    assert 4 <= len(times) <= 12 and waits == sorted(waits)
    contact.has_streams = False
    contact.dial_failed(UDP, False, "no answer", now)
    assert contact.redial.at is None, "an idle peer is not tried for nothing"
