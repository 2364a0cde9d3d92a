"""What these tests start nodes with."""

from __future__ import annotations

import os

from forks import Fork

COUNT = 20
"""A child that was not ours at once was so in every fourth case."""


def test_a_forked_node_is_a_child_of_this_process_as_soon_as_its_number_is_known(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text("no configuration")
    errors = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    try:
        for _ in range(COUNT):
            node = Fork(config, errors)
            node.poll()
            assert node.wait() != 0
            node.stdout.close()
    finally:
        os.close(errors)
