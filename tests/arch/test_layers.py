"""The walls stand: imports go downwards, the core does no I/O, tasks are made in the rim only.

The contracts themselves are in pyproject.toml. Each is also shown to break: in a copy of the
sources with one forbidden line planted.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "uservpn"
LAYERS = "Imports go downwards only"
SANS_IO = "The core has no I/O"


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Runs all contracts of `root`/pyproject.toml on the sources below `root`."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    environment = os.environ | {"PYTHONPATH": str(root / "src"), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_contracts_hold() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 kept, 0 broken" in result.stdout


PLANTED = [
    ("kit", "import asyncio", SANS_IO),
    ("wire", "from time import monotonic", SANS_IO),
    ("node", "import os.path", SANS_IO),
    ("exits", "import socket", SANS_IO),
    ("tunnel", "import uservpn.node", LAYERS),
    ("mesh", "from uservpn import tunnel", LAYERS),
    ("wire", "import uservpn.links.tcp", LAYERS),
    ("control", "import uservpn.runtime", LAYERS),
    ("runtime", "import uservpn.app", LAYERS),
    ("stranger", "import uservpn.kit", LAYERS),
]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is said of each contract when all these lines are planted, each in a module of its own."""
    root = tmp_path_factory.mktemp("planted")
    shutil.copy(ROOT / "pyproject.toml", root)
    copy = root / "src" / "uservpn"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for number, (module, line, _) in enumerate(PLANTED):
        package = copy / module
        package.mkdir(exist_ok=True)
        (package / f"planted{number}.py").write_text(f"{line}\n")
        (package / "__init__.py").touch()
    result = lint_imports(root)
    assert result.returncode != 0
    text = result.stdout.partition("Broken contracts")[2]
    assert LAYERS in text and SANS_IO in text, result.stdout + result.stderr
    layers, _, sans_io = text.partition(SANS_IO)
    return {LAYERS: layers, SANS_IO: sans_io}


@pytest.mark.parametrize("number", range(len(PLANTED)))
def test_a_planted_violation_is_found(broken: dict[str, str], number: int) -> None:
    module, _, contract = PLANTED[number]
    said = "uservpn.stranger" if module == "stranger" else f"uservpn.{module}.planted{number} -> "
    assert said in broken[contract], broken


# ---- calls that no import betrays ----------------------------------------------------------

MAKE_TASKS = frozenset({"create_task", "ensure_future", "run_coroutine_threadsafe"})
TASK_MAKERS = ("uservpn.runtime", "uservpn.app", "uservpn.demo")


def banned_calls(module: str, source: str) -> Iterator[str]:
    """Says where `source` blocks in time.sleep, or makes a task though `module` must not."""
    may_make_tasks = any(f"{module}.".startswith(f"{maker}.") for maker in TASK_MAKERS)
    meanings: dict[str, str] = {}  # a local name: what it stands for
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            meanings |= {name.asname or name.name: name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                meanings[name.asname or name.name] = f"{node.module}.{name.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            called = meanings.get(node.id, node.id)
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            called = f"{meanings.get(owner, owner)}.{node.attr}"
        else:
            continue
        if called == "time.sleep" and not module.startswith("uservpn.cli."):
            yield f"{module}:{node.lineno}: time.sleep"
        elif called.rpartition(".")[2] in MAKE_TASKS and not may_make_tasks:
            yield f"{module}:{node.lineno}: {called}"


def test_no_banned_call() -> None:
    found = [
        call
        for path in sorted(SOURCE.rglob("*.py"))
        for call in banned_calls(
            ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts),
            path.read_text(encoding="utf-8"),
        )
    ]
    assert found == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("uservpn.links.tcp", "self.loop.create_task(run())"),
        ("uservpn.control.server", "from asyncio import ensure_future as go\ngo(run())"),
        ("uservpn.application", "import asyncio\nasyncio.create_task(run())"),
        ("uservpn.runtime.driver", "import time\ntime.sleep(1)"),
        ("uservpn.app", "import time as clock\nclock.sleep(1)"),
        ("uservpn.app", "from time import sleep\nsleep(1)"),
    ],
)
def test_a_planted_call_is_found(module: str, source: str) -> None:
    assert list(banned_calls(module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("uservpn.runtime.driver", "import asyncio\nasyncio.create_task(run())"),
        ("uservpn.app", "import asyncio\nasyncio.ensure_future(run())"),
        ("uservpn.links.tcp", "import asyncio\nasyncio.sleep(0)"),
    ],
)
def test_an_allowed_call_is_not_found(module: str, source: str) -> None:
    assert not list(banned_calls(module, source))
