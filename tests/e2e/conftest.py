"""What most of the end-to-end tests stand on: a web site and a mesh, one of each for a file."""

from __future__ import annotations

import pytest

from mesh import Mesh, Site


@pytest.fixture(scope="module")
def site():
    with Site() as server:
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def mesh():
    with Mesh() as made:
        yield made
