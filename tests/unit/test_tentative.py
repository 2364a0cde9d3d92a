"""Datagram links: open at once, whether anybody is there or not, so that only an answer makes one count."""

from __future__ import annotations

import pytest

from uservpn.mesh.contact import Contact, Dead, Dial, GiveUp, Probe
from uservpn.mesh.liveness import ANSWER_S
from world import pair

UDP, TCP = "udp://192.0.2.1:7000", "tcp://192.0.2.1:7000"


def _contact(*endpoints: str) -> Contact:
    contact = Contact(endpoints, keepalive_s=600.0, grace_s=60.0, jitter=lambda span: 0.0)
    contact.want(0.0)
    assert contact.take_plans() == [Dial(endpoint) for endpoint in endpoints]
    return contact


def _advance(contact: Contact, start: float, end: float) -> list[tuple[float, object]]:
    """The plans until `end`, and when they were made."""
    plans: list[tuple[float, object]] = []
    now = start
    while (due := contact.next_deadline()) is not None and due <= end:
        now = max(now, due)
        contact.on_deadline(now)
        plans += [(now, plan) for plan in contact.take_plans()]
    return plans


def test_an_unanswered_link_is_a_dial_under_way():
    contact = _contact(UDP, TCP)
    state = contact.link_up(1, "udp", UDP, True, 0.0, is_lossy=True)
    assert contact.direct() is None
    contact.want(1.0)
    assert not contact.take_plans()  # it is being dialled
    contact.heard(state, 1.1)
    assert contact.direct() is None  # whoever copies a message can send it from any address
    contact.proved(state, 1.2)
    assert contact.direct() is state


def test_it_is_asked_at_growing_intervals_and_given_up_like_a_failed_dial():
    contact = _contact(UDP)
    contact.link_up(1, "udp", UDP, True, 0.0, is_lossy=True)
    plans = _advance(contact, 0.0, 2 * ANSWER_S)
    assert plans == [
        (1.0, Probe(1, False)),
        (3.0, Probe(1, False)),
        (4.0, Probe(1, False)),
        (7.0, Probe(1, False)),
        (8.0, GiveUp(1)),
    ]
    contact.link_down(1, 8.0)
    assert contact.last_failure == f"{UDP}: no answer"
    waits = []
    for attempt in range(1, 9):  # no hot loop: the back-off grows as for any dial
        began = contact.next_deadline()
        contact.on_deadline(began)
        assert contact.take_plans() == [Dial(UDP)]
        contact.link_up(attempt, "udp", UDP, True, began, is_lossy=True)
        _advance(contact, began, began + 8)
        contact.link_down(attempt, began + 8)
        waits.append(contact.next_deadline() - began - 8)
    assert waits == sorted(waits) and waits[-1] > 30


def test_one_lost_answer_does_not_end_a_datagram_link():
    contact = _contact(UDP)
    state = contact.link_up(1, "udp", UDP, True, 0.0, is_lossy=True)
    contact.proved(state, 0.1)
    contact.sent(state, True, 100.0)
    assert [at for at, _ in _advance(contact, 100.0, 103.0)] == [101.0, 103.0]
    contact.heard(state, 103.1)
    assert not state.probed and not _advance(contact, 103.1, 200.0)
    contact.sent(state, True, 200.0)  # and it begins anew
    assert [at for at, _ in _advance(contact, 200.0, 202.0)] == [201.0]


def test_whatever_is_connected_goes_before_what_has_not_answered():
    contact = _contact(UDP, TCP)
    contact.link_up(1, "udp", UDP, True, 0.0, is_lossy=True)
    contact.link_up(2, "tcp", TCP, True, 0.1)
    assert contact.best().link == 2 and contact.direct() is contact.links[0]
    contact.link_up(3, "udp", "udp://192.0.2.2:7000", True, 0.2, is_lossy=True)
    assert [state.link for state in contact.links] == [2, 1, 3]


def test_streams_end_when_every_endpoint_refuses_a_datagram_one_too():
    contact = _contact(UDP, TCP)
    contact.want_stream(0.0)
    contact.has_streams = True
    contact.link_up(1, "udp", UDP, True, 0.0, is_lossy=True)
    contact.dial_failed(TCP, True, "refused", 0.1)
    assert not contact.take_plans()
    contact.link_down(1, 0.2, refused=True)
    assert contact.take_plans() == [Dead("refused")]


def test_no_answer_is_no_refusal():
    contact = _contact(UDP)
    contact.want_stream(0.0)
    contact.has_streams = True
    contact.link_up(1, "udp", UDP, True, 0.0, is_lossy=True)
    contact.link_down(1, 8.0)
    assert not contact.take_plans()


def test_a_server_that_is_gone_is_one_line_of_the_log():
    """However often it is tried: datagram links come up each time, and nobody answers."""
    world, client, _ = pair()
    world.run(2)
    world.crash(1)
    world.run(1)
    before = len(client.news)
    for link in range(100, 120, 2):
        client.node.link_up(link, "udp", 1424, "udp://1", world.now, 1, "udp://1", size_base=1200)
        client.node.link_down(link, "refused", world.now)
        world.settle(client)
    assert [text for text in client.news if "lost the link" in text] == client.news[:before]
    assert before == 1


@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_data_goes_with_the_first_messages_of_a_datagram_link(loss):
    """No handshake: what a program says first is on its way before anything was heard."""
    world, client, server = pair(loss=loss, seed=3)
    world.payload_max = 1424
    stream = client.node.open(1, "site.test", 80, None, world.now)
    client.send(stream, b"hello")
    world.settle(client)
    if not loss:
        world.run(0.11)
    else:
        world.run(30)
    assert bytes(server.received[stream.id]) == b"hello"


def test_who_is_heard_over_relays_alone_is_asked_directly():
    """Its way here may be shut: what is sent directly meanwhile would be lost without a word."""
    contact = Contact((), keepalive_s=600.0, grace_s=60.0, jitter=lambda span: 0.0)
    for link, protocol in ((1, "tcp"), (2, "udp")):
        state = contact.link_up(link, protocol, "", False, 0.0, is_lossy=protocol == "udp")
        contact.proved(state, 0.0)
    direct = contact.links[:2]
    relayed = contact.link_up(-1, "relay", "relay:3", False, 0.0, relayed=True)
    contact.take_plans()
    contact.heard(direct[0], 5.0)
    contact.heard(relayed, 5.5)
    assert not contact.take_plans() and contact.best() in direct  # a share may always go that way
    contact.heard(relayed, 7.0)
    assert set(contact.take_plans()) == {Probe(1, False), Probe(2, False)}
    assert contact.best() is relayed
    contact.heard(relayed, 7.5)
    assert not contact.take_plans()
    contact.heard(direct[1], 7.6)
    assert contact.best() is direct[1]


def test_that_nobody_is_there_is_believed_only_of_places_that_are_the_peers_for_good():
    """Elsewhere a router may have said it, of a port that it does not know yet."""
    contact = _contact(UDP)
    fixed = contact.link_up(1, "udp", UDP, True, 0.0, is_lossy=True)
    accepted = contact.link_up(2, "udp", "udp://192.0.2.9:999", False, 0.0, is_lossy=True)
    assert contact.believes_refusal(fixed) and not contact.believes_refusal(accepted)
    behind_nat = "udp://198.51.100.1:4000"
    contact.punch([behind_nat], 1.0)
    assert Dial(behind_nat) in contact.take_plans()
    punched = contact.link_up(3, "udp", behind_nat, True, 1.0, is_lossy=True)
    assert not contact.believes_refusal(punched)
    contact.proved(punched, 1.1)
    assert not contact.believes_refusal(punched)


@pytest.mark.parametrize(("place", "is_asked"), [("192.0.2.7:1", False), ("198.51.100.7:1", True)])
def test_a_proved_link_from_another_place_puts_connections_from_the_old_one_in_doubt(
    place, is_asked
):
    """Behind a router with a new address a connection is dead, and neither end is told."""
    contact = Contact((), keepalive_s=600.0, grace_s=60.0, jitter=lambda span: 0.0)
    old = contact.link_up(1, "tcp", "tcp://192.0.2.7:4000", False, 0.0)
    new = contact.link_up(2, "udp", f"udp://{place}", False, 10.0, is_lossy=True)
    contact.take_plans()
    contact.proved(new, 10.1)
    assert contact.take_plans() == [Probe(1, False)] * is_asked
    assert old.probed == is_asked and contact.best() is new


def test_what_is_on_a_silent_connection_goes_over_the_link_that_carries():
    """Messages on a connection are not resent while it stands; a silent one must not hold them back."""
    world, client, server = pair()
    stream = client.node.open(1, "site.test", 80, None, world.now)
    client.send(stream, b"request")
    world.settle(client)
    world.run(1)
    ours, theirs = sorted(world.links)
    world.payload_max = 1400
    world.connect(client, 1, "sim://192.0.2.1:2", "other")
    world.run(1)
    back = server.offered[0][0]
    server.node.peers[7].contact.heard(server.node.links[theirs].state, world.now)
    world.dead |= {ours, theirs}
    server.send(back, b"answer", finish=True)
    world.settle(server)
    world.run(ANSWER_S + 1)
    assert bytes(client.received[stream.id]) == b"answer"
