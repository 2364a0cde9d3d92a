"""What is said of file descriptors: as much as is so."""

from __future__ import annotations

import errno
import resource

import pytest

from uservpn.runtime import descriptors
from uservpn.runtime.descriptors import NEAR, Shortage, raise_limit


@pytest.fixture
def limited(monkeypatch):
    """A process with these limits."""

    def limited(soft: int, hard: int) -> Shortage:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
        shortage = Shortage()
        monkeypatch.setattr(descriptors, "SHORTAGE", shortage)
        return shortage

    return limited


def test_near_the_limit_it_is_not_said_to_be_reached(limited, caplog):
    shortage = limited(100, 100)
    assert raise_limit(100) == 100
    shortage.look(100 - NEAR - 1)
    assert not caplog.messages
    shortage.look(100 - NEAR)
    shortage.look(99)
    (told,) = caplog.messages
    assert told.startswith(
        "the limit of 100 open files is nearly reached: beyond it connections are"
    )


def test_at_the_limit_it_is(limited, caplog):
    shortage = limited(100, 100)
    assert shortage.met(OSError(errno.EMFILE, "")) and not shortage.met(OSError(errno.EPERM, ""))
    (told,) = caplog.messages
    assert told.startswith("the limit of 100 open files is reached: connections are turned away")


def test_where_there_is_no_limit_none_is_made_up(limited, caplog):
    shortage = limited(resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert raise_limit(65_536) == 0
    shortage.look(65_535)
    assert not caplog.messages
    assert shortage.met(OSError(errno.ENFILE, ""))
    (told,) = caplog.messages
    assert told.startswith("this system has no more open files to give")
