"""What the chooser learned, on disk: an SQLite file with a write-ahead log.

Writes are batches, one transaction each, so a kill at any moment loses at most what was not yet
written and never more. A file that is damaged is set aside under another name, and that is said. A disk
that is full, or a directory that cannot be written, costs nothing but the memory over a restart: it is
said once, and tried again later.

`sqlite3` (1.5 MiB) is loaded when there is a file at the start, or with the first write.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from uservpn.chooser.memory import Changes

if TYPE_CHECKING:
    import sqlite3

log: Final = logging.getLogger("uservpn")
NAME: Final = "chooser.sqlite"
VERSION: Final = 1
BUSY_S: Final = 2.0
ROWS_MAX: Final = 50_000
"""Rows read of one table: more than the chooser keeps."""
_SIDES: Final = ("-wal", "-shm", "-journal")
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS sessions (site TEXT, session TEXT, exit INT, reason TEXT, since REAL,
    used_at REAL, is_pinned INT, moves INT, PRIMARY KEY (site, session)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pairs (site TEXT, exit INT, real BLOB, tests BLOB, connections INT,
    bytes_in INT, bytes_out INT, used_at REAL, PRIMARY KEY (site, exit)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS countries (site TEXT PRIMARY KEY, country TEXT) WITHOUT ROWID;
"""


class Rows(NamedTuple):
    """All that the file holds, what was used last at the end."""

    sessions: list[tuple[Any, ...]]
    pairs: list[tuple[Any, ...]]
    countries: list[tuple[Any, ...]]


class StateFile:
    """The file. Not for two threads at once."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / NAME
        self._db: sqlite3.Connection | None = None

    def load(self) -> Rows | None:
        """Everything; None: there is nothing, or nothing that can be read (which was logged)."""
        if not self.path.exists():
            return None
        import sqlite3

        try:
            db = self._open()
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            return Rows(
                self._read(db, "SELECT * FROM sessions ORDER BY used_at"),
                self._read(
                    db,
                    "SELECT site, exit, real, tests, connections, bytes_in, bytes_out"
                    " FROM pairs ORDER BY used_at",
                ),
                self._read(db, "SELECT * FROM countries"),
            )
        except sqlite3.OperationalError as error:
            if "no such" in str(error) or "malformed" in str(error):
                self._set_aside(error)  # it opens, and is not ours
            else:
                log.warning("%s cannot be read (%s): starting without it", self.path, error)
                self.close()
        except (sqlite3.DatabaseError, OverflowError, UnicodeDecodeError) as error:
            self._set_aside(error)
        return None

    def save(self, changes: Changes, at: float, is_all: bool = False) -> str:
        """Writes one batch; "" or why it is not written. `is_all`: what is not in it goes."""
        import sqlite3

        for attempt in range(2):
            try:
                self._write(self._open(), changes, at, is_all)
                return ""
            except sqlite3.OperationalError as error:
                self.close()
                return str(error)
            except sqlite3.DatabaseError as error:
                self._set_aside(error)
                if attempt or not is_all:
                    return f"damaged: {error}"
            except OSError as error:
                return error.strerror or str(error)
        return ""

    def close(self) -> None:
        """Writes the log back into the file."""
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def _open(self) -> sqlite3.Connection:
        import sqlite3

        if self._db is None:
            if not self.path.exists():  # for its owner only, from the first moment
                os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            db = sqlite3.connect(
                self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
            try:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = NORMAL")
                db.execute("PRAGMA cache_size = -256")
                db.execute("PRAGMA wal_autocheckpoint = 256")
                db.execute("PRAGMA journal_size_limit = 2097152")
                (version,) = db.execute("PRAGMA user_version").fetchone()
                if version not in (0, VERSION):
                    raise sqlite3.DatabaseError(f"it is of version {version}, not {VERSION}")
                if version == 0:
                    db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {VERSION};COMMIT;")
            except BaseException:
                db.close()
                raise
            self._db = db
        return self._db

    def _write(self, db: sqlite3.Connection, changes: Changes, at: float, is_all: bool) -> None:
        db.execute("BEGIN IMMEDIATE")
        try:
            if is_all:
                for table in ("sessions", "pairs", "countries"):
                    db.execute(f"DELETE FROM {table}")
            db.executemany(
                "DELETE FROM sessions WHERE site = ? AND session = ?", changes.gone_sessions
            )
            db.executemany("DELETE FROM pairs WHERE site = ? AND exit = ?", changes.gone_pairs)
            db.executemany("REPLACE INTO sessions VALUES (?,?,?,?,?,?,?,?)", changes.sessions)
            pairs = ((*row, at) for row in changes.pairs)
            db.executemany("REPLACE INTO pairs VALUES (?,?,?,?,?,?,?,?)", pairs)
            db.executemany("REPLACE INTO countries VALUES (?,?)", changes.countries)
            db.executemany("DELETE FROM countries WHERE site = ?", changes.gone_countries)
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(Exception):
                db.execute("ROLLBACK")
            raise

    @staticmethod
    def _read(db: sqlite3.Connection, query: str) -> list[tuple[Any, ...]]:
        return db.execute(f"{query} LIMIT {ROWS_MAX}").fetchall()

    def _set_aside(self, error: Exception) -> None:
        """Nothing is lost that somebody might still want to look at.

        The log goes first: after a kill in between, it must not be read into another file.
        """
        with contextlib.suppress(Exception):
            self.close()
        aside = self.path.with_suffix(".damaged")
        log.warning("%s is damaged (%s): set aside as %s", self.path, error, aside.name)
        try:
            for side in _SIDES:
                with contextlib.suppress(FileNotFoundError):
                    Path(f"{self.path}{side}").replace(f"{aside}{side}")
            self.path.replace(aside)
        except OSError as trouble:
            log.warning("%s cannot be set aside: %s", self.path, trouble.strerror)
