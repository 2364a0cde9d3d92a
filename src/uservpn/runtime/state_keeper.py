"""When the chooser's memory is written: a while after it changed, in a thread, and at the end.

Nothing happens while nothing changes. A write that failed is tried again later, as a whole; the
first failure and the first success after it are said.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import Final

from uservpn.chooser.chooser import Chooser
from uservpn.chooser.memory import everything, has_changes, restore, take_changes
from uservpn.runtime.allocator import give_back
from uservpn.runtime.clock import monotonic, wall_offset
from uservpn.runtime.state_file import StateFile
from uservpn.runtime.threads import in_thread

log: Final = logging.getLogger("uservpn")
SAVE_AFTER_S: Final = 5.0
RETRY_S: Final = 60.0


class StateKeeper:
    """Keeps one chooser's memory in one directory."""

    def __init__(self, chooser: Chooser, state_dir: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._chooser = chooser
        self._file = StateFile(state_dir)
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._saving: asyncio.Task[None] | None = None
        self._is_all = False  # the last write failed: the next one writes everything
        self._is_closed = False

    def load(self) -> None:
        """What was learned before; once, at the start."""
        rows = self._file.load()
        if rows is None:
            return
        bad = restore(self._chooser, *rows, now=monotonic() + wall_offset())
        if bad:
            log.warning("%s: %d rows made no sense", self._file.path, bad)

    def changed(self) -> None:
        """There may be something to write; what comes while a write is under way is seen at its end."""
        if self._timer is None and self._saving is None and not self._is_closed:
            delay = RETRY_S if self._is_all else SAVE_AFTER_S
            self._timer = self._loop.call_later(delay, self._start)

    async def close(self) -> None:
        """Writes what is new. Never raises: what cannot be written is said."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._saving is not None:
            await asyncio.wait((self._saving,))
        try:
            await self._save()
            self._file.close()
        except Exception:
            log.exception("the chooser's memory was not written")

    def _start(self) -> None:
        self._timer = None
        self._saving = self._loop.create_task(self._save())
        self._saving.add_done_callback(self._saved)

    def _saved(self, task: asyncio.Task[None]) -> None:
        self._saving = None
        if not task.cancelled() and task.exception() is not None:
            log.error("the chooser's memory was not written", exc_info=task.exception())
            self._is_all = True
        if self._is_all or has_changes(self._chooser):
            self.changed()
        else:
            give_back()  # nothing was learned meanwhile: the node rests, and SQLite is large

    async def _save(self) -> None:
        is_all = self._is_all
        changes = everything(self._chooser) if is_all else take_changes(self._chooser)
        if not changes:
            return
        at = monotonic() + wall_offset()
        trouble = await in_thread(partial(self._file.save, changes, at, is_all))
        if trouble and not is_all:
            log.warning("%s was not written: %s; going on without", self._file.path, trouble)
        elif not trouble and is_all:
            log.info("%s is written again", self._file.path)
        self._is_all = bool(trouble)
