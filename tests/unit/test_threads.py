"""Work in threads that nobody waits for."""

from __future__ import annotations

import asyncio
import threading

import pytest

from uservpn.runtime.threads import in_thread


def test_a_result_and_an_error_come_back():
    async def main():
        assert await in_thread(lambda: threading.current_thread().daemon) is True
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda: 1 / 0)

    asyncio.run(main())


def test_the_loop_ends_while_the_work_goes_on(caplog):
    """And what comes of it later disturbs nobody."""
    go_on, done = threading.Event(), threading.Event()

    def work() -> None:
        go_on.wait(20)
        done.set()

    async def main():
        task = asyncio.create_task(in_thread(work))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert not done.is_set()
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "work")
    go_on.set()
    thread.join(20)
    assert done.is_set() and not caplog.records
