"""What a node knows of the mesh, over a restart: the list, and what NATs need."""

from __future__ import annotations

import stat

import pytest

from uservpn.mesh.binding import MAX_S, MIN_S, NETWORKS_MAX, START_S, Binding
from uservpn.mesh.directory import Directory
from uservpn.mesh.records import Record
from uservpn.runtime.nodes_file import load_nats, load_nodes, save_nats, save_nodes

HOME = "203.0.113.9"


def _binding() -> Binding:
    return Binding(lambda span: span / 2)


def _found(seconds: float) -> Binding:
    """A search on the network HOME that has found so much."""
    binding = _binding()
    binding.enter(HOME, 0.0)
    now = 0.0
    while binding.interval_s < seconds:
        now += binding.asked(1, now)
        assert binding.probed(1, now)
    return binding


def test_what_was_found_of_a_nat_is_used_after_a_restart(tmp_path):
    """And the search goes on where it was."""
    save_nats(tmp_path, _found(100.0))
    assert stat.S_IMODE((tmp_path / "nats").stat().st_mode) == 0o600
    again = _binding()
    load_nats(tmp_path, again)
    again.enter("198.51.100.1", 0.0)
    assert again.interval_s == START_S, "another network"
    again.enter(HOME, 1.0)
    assert again.interval_s == 100.0
    assert again.asked(1, 1.0) == 200.0


def test_a_network_that_needs_the_least_is_not_tried_with_more(tmp_path):
    """A peer is never asked for more silence than it would keep."""
    save_nats(tmp_path, _found(MAX_S))
    again = _binding()
    load_nats(tmp_path, again)
    again.enter(HOME, 0.0)
    assert again.interval_s == MAX_S == again.asked(1, 0.0)


@pytest.mark.parametrize(
    "text",
    ["", "\xff\x00", f"{HOME}", f"{HOME} many", f"{HOME} 1e9", f"{HOME} nan", f"{HOME} 1", "x 100"],
)
def test_lines_that_make_no_sense_are_left_out(tmp_path, text):
    (tmp_path / "nats").write_bytes(text.encode("latin1") + b"\n2001:db8::1 100\n")
    binding = _binding()
    load_nats(tmp_path, binding)
    assert binding.found == {"2001:db8::1": 100.0}


def test_a_long_file_is_bounded(tmp_path):
    lines = "".join(f"10.0.0.{number} {MIN_S}\n" for number in range(200))
    (tmp_path / "nats").write_text(lines)
    binding = _binding()
    load_nats(tmp_path, binding)
    assert len(binding.found) == NETWORKS_MAX


def test_where_nothing_was_found_nothing_is_written(tmp_path):
    save_nats(tmp_path, _binding())
    assert not list(tmp_path.iterdir())


def test_the_list_comes_back_and_a_damaged_one_is_set_aside(tmp_path, caplog):
    directory = Directory(Record(1, 11), 0.0)
    directory.merge(Record(2, 22, name="two"), 0.0, 0)
    save_nodes(tmp_path, directory, 0.0)
    again = Directory(Record(1, 12), 0.0)
    load_nodes(tmp_path, again, 0.0)
    assert again.get(2).name == "two"
    (tmp_path / "nodes").write_bytes(b"no list")
    load_nodes(tmp_path, again, 0.0)
    assert "set aside as nodes.damaged" in caplog.text
    assert (tmp_path / "nodes.damaged").read_bytes() == b"no list"


def test_a_place_that_cannot_be_written_costs_one_line(tmp_path, caplog):
    save_nodes(tmp_path / "gone", Directory(Record(1, 11), 0.0), 0.0)
    save_nats(tmp_path / "gone", _found(50.0))
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
