"""The chooser's memory on disk: what comes back, what a kill at any moment leaves, full disks, damage.

`USERVPN_KILL_POINTS` says how many moments are tried (`make kill-points`: 10,000).
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from uservpn.chooser.affinity import Key
from uservpn.chooser.chooser import Chooser
from uservpn.chooser.memory import everything, has_changes, restore, take_changes
from uservpn.chooser.site import site_of
from uservpn.control.config import Config, NetworkConfig, NodeConfig
from uservpn.runtime.state_file import StateFile
from uservpn.runtime.state_keeper import StateKeeper
from uservpn.service import Service

AT = 1_700_000_000.0
POINTS = int(os.environ.get("USERVPN_KILL_POINTS", "150"))


class NoMesh:
    def heard_at(self, exit):
        return 0.0

    def exits(self):
        return []

    def is_linked(self, exit):
        return False

    def is_lost(self, exit):
        return False

    def flight_ms(self, exit):
        return None


def new_chooser() -> Chooser:
    return Chooser(NoMesh(), site_of=site_of, wall_s=lambda: 0.0)


def fill(chooser: Chooser, seed: int, count: int = 20) -> None:
    rng = random.Random(seed)
    for number in range(count):
        site = f"site{rng.randrange(60)}.test"
        exit = rng.randrange(1, 13)
        chooser.sessions.begin(Key(site, rng.choice(("", "x"))), exit, "test", AT + number)
        chooser.knowledge.replied(site, exit, rng.uniform(10, 300), AT + number)
        chooser.knowledge.moved(site, exit, rng.randrange(10**6), 10)
        if number % 3 == 0:
            chooser.lookups.learn(site, "DE")


def state_of(chooser: Chooser):
    sessions, _, pairs, _, countries, _ = everything(chooser)
    return sorted(sessions), sorted(pairs), sorted(countries)


def saved_and_read(folder: Path) -> Chooser:
    file = StateFile(folder)
    rows = file.load()
    assert rows is not None
    chooser = new_chooser()
    assert restore(chooser, *rows, now=AT + 1e6) == 0
    file.close()
    return chooser


def test_what_was_learned_comes_back(tmp_path):
    chooser = new_chooser()
    file = StateFile(tmp_path)
    assert file.load() is None and not list(tmp_path.iterdir())
    for seed in range(5):
        fill(chooser, seed)
        if seed == 3:
            chooser.forget("site7.test")
            chooser.pin("site8.test", 9, AT)
        assert file.save(take_changes(chooser), AT + seed) == ""
    file.close()
    assert state_of(saved_and_read(tmp_path)) == state_of(chooser)
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_the_order_of_use_comes_back(tmp_path):
    chooser, file = new_chooser(), StateFile(tmp_path)
    for number, site in enumerate(("c", "a", "b")):
        chooser.sessions.begin(Key(site), 1, "test", AT + number)
        chooser.knowledge.replied(site, 1, 5.0, AT)
        file.save(take_changes(chooser), AT + number)
    file.close()
    again = saved_and_read(tmp_path)
    assert [key.site for key, _ in again.sessions.items()] == ["c", "a", "b"]
    assert again.knowledge.sites == ["c", "a", "b"]


def test_rows_that_make_no_sense_are_left_out():
    chooser = new_chooser()
    sessions = [("s", "", 1, "r", AT, AT + 1e9, 0, 0), ("s", "", 999, "r", AT, AT, 0, 0), (1, 2)]
    pairs = [
        ("s", 1, b"odd", b"", 0, 0, 0),
        ("s", 1, b"", b"", 0, -1, 0),
        ("s", 1, None, b"", 0, 0, 0),
    ]
    assert restore(chooser, sessions, pairs, [("s", 5)], now=AT) == 6
    session = chooser.sessions.peek(Key("s"))
    assert session is not None and session.used_at == AT  # not from the future


@pytest.mark.parametrize("damage", ["text", "page", "schema", "version"])
def test_a_damaged_file_is_set_aside_and_that_is_said(tmp_path, caplog, damage):
    chooser, file = new_chooser(), StateFile(tmp_path)
    for seed in range(20):
        fill(chooser, seed, 60)
    file.save(take_changes(chooser), AT)
    file.close()
    if damage == "text":
        file.path.write_bytes(b"this is no database at all" * 100)
    elif damage == "page":
        with file.path.open("r+b") as raw:
            raw.seek(4096)
            raw.write(os.urandom(3 * 4096))
    else:
        db = sqlite3.connect(file.path)
        db.execute("DROP TABLE pairs" if damage == "schema" else "PRAGMA user_version = 99")
        db.commit()
        db.close()
    assert file.load() is None
    assert "set aside as chooser.damaged" in caplog.text
    assert (tmp_path / "chooser.damaged").exists()
    assert not list(tmp_path.glob("chooser.sqlite*"))  # no log that would be read into a new file
    assert file.save(everything(chooser), AT, is_all=True) == ""
    file.close()
    assert state_of(saved_and_read(tmp_path)) == state_of(chooser)


def test_no_memory_grows_on_disk_without_bound(tmp_path):
    chooser, file = new_chooser(), StateFile(tmp_path)
    chooser.sessions._sessions_max = 50
    chooser.knowledge._sites_max = 50
    for number in range(2000):
        site = f"s{number}.test"
        chooser.sessions.begin(Key(site), 1, "test", AT + number)
        chooser.knowledge.replied(site, 1, 5.0, AT)
        if number % 50 == 0:
            file.save(take_changes(chooser), AT + number)
    file.save(take_changes(chooser), AT)
    file.close()
    db = sqlite3.connect(file.path)
    assert db.execute("SELECT count(*) FROM sessions").fetchone() == (50,)
    assert db.execute("SELECT count(*) FROM pairs").fetchone() == (50,)
    db.close()
    assert file.path.stat().st_size < 300_000


# ---- the keeper ----------------------------------------------------------------------------------


def run(main) -> None:
    with asyncio.Runner() as runner:
        runner.run(main())


def test_the_keeper_writes_a_while_after_a_change_and_sleeps_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr("uservpn.runtime.state_keeper.SAVE_AFTER_S", 0.01)

    async def main() -> None:
        chooser = new_chooser()
        keeper = StateKeeper(chooser, tmp_path, asyncio.get_running_loop())
        keeper.load()
        assert keeper._timer is None
        fill(chooser, 1)
        keeper.changed()
        keeper.changed()
        async with asyncio.timeout(10):
            while keeper._timer is not None or keeper._saving is not None:
                await asyncio.sleep(0.005)
        assert (tmp_path / "chooser.sqlite").exists()
        await keeper.close()
        assert state_of(saved_and_read(tmp_path)) == state_of(chooser)

    run(main)


def test_a_disk_that_cannot_be_written_is_said_once_and_tried_again(tmp_path, caplog, monkeypatch):
    """The directory is not there, and comes back: everything is written then."""
    monkeypatch.setattr("uservpn.runtime.state_keeper.RETRY_S", 0.01)
    monkeypatch.setattr("uservpn.runtime.state_keeper.SAVE_AFTER_S", 0.01)
    folder = tmp_path / "later"

    async def main() -> None:
        chooser = new_chooser()
        keeper = StateKeeper(chooser, folder, asyncio.get_running_loop())
        for seed in range(4):
            fill(chooser, seed)
            await keeper._save()
        assert caplog.text.count("going on without") == 1
        folder.mkdir()
        keeper.changed()
        await keeper.close()
        assert state_of(saved_and_read(folder)) == state_of(chooser)

    run(main)


def test_what_changes_while_it_is_written_is_written_too(tmp_path, monkeypatch):
    """Nobody may come by afterwards to say that there is something new. Memory is given back at the end."""
    given = []
    monkeypatch.setattr("uservpn.runtime.state_keeper.give_back", lambda: given.append(1))
    monkeypatch.setattr("uservpn.runtime.state_keeper.SAVE_AFTER_S", 0.01)

    async def main() -> None:
        chooser = new_chooser()
        keeper = StateKeeper(chooser, tmp_path, asyncio.get_running_loop())
        save = keeper._file.save

        def slow_save(*words):
            loop.call_soon_threadsafe(meanwhile)
            assert is_changed.wait(10)
            return save(*words)

        def meanwhile() -> None:
            fill(chooser, 2)
            keeper.changed()
            is_changed.set()
            keeper._file.save = save

        loop, is_changed = asyncio.get_running_loop(), threading.Event()
        keeper._file.save = slow_save
        fill(chooser, 1)
        keeper.changed()
        async with asyncio.timeout(10):
            while keeper._timer is not None or keeper._saving is not None:
                await asyncio.sleep(0.005)
        assert state_of(saved_and_read(tmp_path)) == state_of(chooser)
        assert len(given) == 1, "not between two writes"
        await keeper.close()

    run(main)


def test_a_write_that_fails_in_any_way_does_not_keep_the_node_from_closing(tmp_path, caplog):
    async def main() -> None:
        chooser = new_chooser()
        keeper = StateKeeper(chooser, tmp_path, asyncio.get_running_loop())
        chooser.sessions.begin(Key("no text: \ud800"), 1, "test", AT)
        await keeper.close()

    run(main)
    assert "was not written" in caplog.text


def test_who_keeps_no_memory_has_no_list_of_changes_that_grows():
    async def main() -> None:
        config = Config(NetworkConfig((bytes(32),)), NodeConfig(7, "client"))
        service = Service(config, 1, asyncio.get_running_loop())
        fill(service.chooser, 1)
        service.choosing.changed()
        assert not has_changes(service.chooser)
        await service.close()

    run(main)


def test_a_full_disk_keeps_what_was_written_before(tmp_path):
    """SQLite's own limit of pages stands for the disk: the same error comes from the same place."""
    chooser, file = new_chooser(), StateFile(tmp_path)
    fill(chooser, 1)
    assert file.save(take_changes(chooser), AT) == ""
    before = state_of(chooser)
    db = file._open()
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages}")
    for seed in range(40):
        fill(chooser, seed, 200)
    assert "full" in file.save(take_changes(chooser), AT)
    assert state_of(saved_and_read(tmp_path)) == before
    assert file.save(everything(chooser), AT, is_all=True) == ""  # there is room again
    file.close()
    assert state_of(saved_and_read(tmp_path)) == state_of(chooser)


# ---- kills ---------------------------------------------------------------------------------------


def test_any_moment_of_a_kill_leaves_a_file_that_opens(tmp_path):
    """What a kill leaves is a prefix of what was written: of the log, or of its copy into the file.

    The states: the file as it was, with the log cut anywhere; and the file with the first so many
    pages of a checkpoint in it, with the whole log. Each must open, hold whole batches only, and take
    a new one.
    """
    rng = random.Random(5)
    chooser, file = new_chooser(), StateFile(tmp_path / "a")
    (tmp_path / "a").mkdir()
    fill(chooser, 0)
    file.save(take_changes(chooser), AT)
    file._open().execute("PRAGMA wal_autocheckpoint = 0")
    file._open().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    states = [state_of(chooser)]
    for seed in range(1, 7):
        fill(chooser, seed)
        file.save(take_changes(chooser), AT + seed)
        states.append(state_of(chooser))
    base = file.path.read_bytes()
    log = Path(f"{file.path}-wal").read_bytes()
    file._open().execute("PRAGMA wal_checkpoint(FULL)")
    copied = file.path.read_bytes()
    file.close()
    folder = tmp_path / "b"
    folder.mkdir()
    seen = set()
    for point in range(POINTS):
        for old in folder.iterdir():
            old.unlink()
        target = folder / file.path.name
        if point % 3:
            kept = rng.randrange(len(log) + 1)
            target.write_bytes(base)
            Path(f"{target}-wal").write_bytes(log[:kept])
        else:
            cut = rng.randrange(len(copied) // 4096 + 1) * 4096
            target.write_bytes(copied[:cut] + base[cut:])
            Path(f"{target}-wal").write_bytes(log)
        found = state_of(saved_and_read(folder))
        assert found in states, point
        seen.add(states.index(found))
        again = StateFile(folder)
        if point % 10 == 0:
            assert again.save(everything(chooser), AT, is_all=True) == ""
        again.close()
    assert len(seen) > 3


WRITER = """
import sys
sys.path[:0] = [%r]
from pathlib import Path
from test_state_file import fill, new_chooser, take_changes, AT, StateFile
chooser, file = new_chooser(), StateFile(Path(sys.argv[1]))
rows = file.load()
print("ready", flush=True)
seed = 0
while True:
    seed += 1
    fill(chooser, seed)
    assert file.save(take_changes(chooser), AT + seed) == ""
    print(seed, flush=True)
"""


def test_real_kills_leave_a_file_that_opens(tmp_path):
    rng = random.Random(7)
    for _ in range(max(3, POINTS // 200)):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER % str(Path(__file__).parent), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            writer.stdout.readline()
            time.sleep(rng.uniform(0, 0.05))
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait(10)
            writer.stdout.close()
        chooser = saved_and_read(tmp_path)
        assert len(chooser.sessions) > 0
    shutil.rmtree(tmp_path)


def test_sqlite_is_not_loaded_while_there_is_nothing_to_store(tmp_path):
    code = (
        "import sys; from pathlib import Path; import uservpn.app;"
        "from uservpn.runtime.state_file import StateFile;"
        f"assert StateFile(Path({str(tmp_path)!r})).load() is None; print('sqlite3' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "False\n"
