"""Signals while a node starts: a reload waits until it is ready, an end ends it without a word."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mesh import free_port, server_text, wait_until

WHEN = {
    "as the command line is loaded": """
import uservpn.cli.group, uservpn.cli.start
def told(*words):
    tell()
    return path()
path, uservpn.cli.group.config_path = uservpn.cli.group.config_path, told
sys.argv[1:] = ["run", "-c", config]
uservpn.cli.start.main()
""",
    "before it becomes the daemon": """
from uservpn.runtime.signals import hold
from uservpn.cli.daemon import become
hold()
tell()
become(Path(config), ())
""",
    "as the configuration is read": """
from uservpn.cli import daemon
from uservpn import app
def told(*words):
    app.load = load
    tell()
    return load(*words)
load, app.load = app.load, told
sys.exit(daemon.run(Path(config), ()))
""",
    "as it begins to listen": """
from uservpn.cli import daemon
from uservpn import app
async def told(self):
    tell()
    await start(self)
start, app.Service.start = app.Service.start, told
sys.exit(daemon.run(Path(config), ()))
""",
}


@contextlib.contextmanager
def _started(folder, when: str, number: int) -> Iterator[tuple[subprocess.Popen, callable]]:
    """A node that is sent the signal at that moment; and what it has logged."""
    (folder / "1").mkdir()
    config, log = folder / "1" / "c.toml", folder / "log"
    config.write_text(server_text(folder / "1", free_port()))
    config.chmod(0o600)
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        f"config = {str(config)!r}\n"
        f"def tell(): os.kill(os.getpid(), {number})\n{WHEN[when]}"
    )
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            yield process, log.read_text
        finally:
            process.kill()


@pytest.mark.parametrize("when", WHEN)
def test_a_reload_before_it_is_ready_waits_and_kills_nothing(tmp_path, when):
    with _started(tmp_path, when, signal.SIGHUP) as (process, log):
        assert process.stdout.readline().startswith("ready")
        wait_until(lambda: "configuration reread: nothing changed" in log())
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        assert "Traceback" not in log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", WHEN)
def test_an_end_before_it_is_ready_is_quiet(tmp_path, when, number):
    with _started(tmp_path, when, number) as (process, log):
        assert process.wait(15) == 0
        assert process.stdout.read() == ""
        assert re.fullmatch(r"(.* INFO .*\n)*", log())
        assert not (tmp_path / "1" / "s" / "control.sock").exists()
