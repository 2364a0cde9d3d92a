"""The control socket: one owner, bounded askers; and the status document as text."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from uservpn.control.client import REQUEST_SIZE_MAX, ControlError, ask
from uservpn.control.server import CONNECTIONS_MAX, ControlServer
from uservpn.control.status import format_age, format_bytes, render
from uservpn.errors import UservpnError

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
def path() -> Iterator[Path]:
    """A short path: a socket's may have some 100 bytes only."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="uv") as directory:
        yield Path(directory) / "state" / "control.sock"


def echo(request: dict[str, Any]) -> dict[str, Any]:
    return {"asked": request}


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def serving(
    path: Path,
    scene: Callable[[ControlServer], Awaitable[None]],
    handler: Callable[[dict[str, Any]], dict[str, Any]] = echo,
    time_limit: float = 5.0,
) -> list[dict[str, Any]]:
    """Play `scene` beside a running server; what reached the loop's exception handler."""
    reported: list[dict[str, Any]] = []

    async def play() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: reported.append(what))
        server = ControlServer(path, handler, time_limit)
        await server.start()
        try:
            await scene(server)
        finally:
            await server.close()

    asyncio.run(play())
    return reported


async def raw(path: Path, request: bytes) -> list[dict[str, Any]]:
    """Every answer to raw bytes, until the server closes or the request is used up."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    try:
        writer.write(request)
        if request.endswith(b"\n"):
            writer.write_eof()
        text = await reader.read()
    except ConnectionError:
        text = b""
    finally:
        writer.close()
    return [json.loads(line) for line in text.splitlines()]


def test_a_request_is_answered_and_the_socket_is_for_its_owner_only(path: Path) -> None:
    async def scene(_: ControlServer) -> None:
        assert (mode_of(path), mode_of(path.parent)) == (0o600, 0o700)
        answer = await asyncio.to_thread(ask, path, {"command": "status", "x": "\u00e4\n"})
        assert answer == {"asked": {"command": "status", "x": "\u00e4\n"}}

    assert serving(path, scene) == []
    assert not path.exists()


def test_requests_of_one_connection_are_answered_in_order(path: Path) -> None:
    async def scene(_: ControlServer) -> None:
        answers = await raw(path, b'{"n":1}\n{"n":2}\n{"n":3}\n')
        assert [answer["asked"]["n"] for answer in answers] == [1, 2, 3]

    serving(path, scene)


@pytest.mark.parametrize(
    ("request_line", "error"),
    [
        (b"hello\n", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (b"\n", "not JSON"),
        (b"[" * 50_000 + b"\n", "not JSON"),
        (b"[1]\n", "not a JSON object"),
        (b"5\n", "not a JSON object"),
        (b"x" * (REQUEST_SIZE_MAX + 10) + b"\n", "longer than 65536 bytes"),
        (b"x" * (REQUEST_SIZE_MAX + 10), "longer than 65536 bytes"),
    ],
)
def test_bad_input_gets_an_error_and_disturbs_nobody(
    path: Path, request_line: bytes, error: str
) -> None:
    async def scene(_: ControlServer) -> None:
        (answer,) = await raw(path, request_line)
        assert error in answer["error"]
        assert await asyncio.to_thread(ask, path, {}) == {"asked": {}}

    assert serving(path, scene) == []


def test_an_asker_that_says_nothing_is_dropped(path: Path) -> None:
    async def scene(_: ControlServer) -> None:
        (answer,) = await raw(path, b'{"half":')
        assert "no request in 0.05 seconds" in answer["error"]

    serving(path, scene, time_limit=0.05)


def test_an_asker_that_never_reads_is_dropped(path: Path) -> None:
    async def scene(_: ControlServer) -> None:
        reader, writer = await asyncio.open_unix_connection(str(path))
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"{}\n" * 8)
        await asyncio.sleep(0.4)
        writer.write(b"{}\n")
        with pytest.raises(ConnectionError):
            for _attempt in range(50):
                writer.write(b"{}\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        writer.transport.abort()
        await asyncio.sleep(0)

    serving(path, scene, lambda _: {"big": "x" * 4_000_000}, time_limit=0.05)


def test_only_so_many_askers_at_a_time(path: Path) -> None:
    async def scene(_: ControlServer) -> None:
        held = [await asyncio.open_unix_connection(str(path)) for _ in range(CONNECTIONS_MAX)]
        await asyncio.sleep(0.05)
        with pytest.raises(ControlError, match="too many connections"):
            await asyncio.to_thread(ask, path, {})
        for _reader, writer in held:
            writer.close()
        await asyncio.sleep(0.05)
        assert await asyncio.to_thread(ask, path, {}) == {"asked": {}}

    serving(path, scene)


def test_an_error_of_the_handler_reaches_the_asker(path: Path) -> None:
    def handler(_: dict[str, Any]) -> dict[str, Any]:
        raise UservpnError("no such node: 9")

    async def scene(_: ControlServer) -> None:
        with pytest.raises(ControlError, match="no such node: 9"):
            await asyncio.to_thread(ask, path, {})

    assert serving(path, scene, handler) == []


def test_an_answer_may_take_its_time_and_others_do_not_wait(path: Path) -> None:
    async def slow(request: dict[str, Any]) -> dict[str, Any]:
        await asked.wait()
        if request.get("fails"):
            raise UservpnError("it failed later")
        return {"slow": True}

    def handler(request: dict[str, Any]) -> dict[str, Any] | Awaitable[dict[str, Any]]:
        return slow(request) if "slow" in request else echo(request)

    async def scene(_: ControlServer) -> None:
        waiting = asyncio.create_task(raw(path, b'{"slow": 1}\n{"slow": 1, "fails": 1}\n'))
        assert len(await raw(path, b'{"a": 1}\n')) == 1
        assert not waiting.done()
        asked.set()
        assert await waiting == [{"slow": True}, {"error": "it failed later"}]

    asked = asyncio.Event()
    assert serving(path, scene, handler) == []


@pytest.mark.parametrize("result", [ZeroDivisionError("secret"), {"not": {"JSON"}}])
def test_a_bug_of_the_handler_is_reported_to_the_loop_and_not_to_the_asker(
    path: Path, result: Any
) -> None:
    def handler(request: dict[str, Any]) -> dict[str, Any]:
        if "fine" in request:
            return {}
        if isinstance(result, Exception):
            raise result
        return dict(result)

    async def scene(_: ControlServer) -> None:
        with pytest.raises(ControlError, match="internal error") as caught:
            await asyncio.to_thread(ask, path, {})
        assert "secret" not in str(caught.value)
        assert await asyncio.to_thread(ask, path, {"fine": True}) == {}

    assert len(serving(path, scene, handler)) == 1


def test_a_second_node_is_told_that_one_is_running(path: Path) -> None:
    async def scene(_: ControlServer) -> None:
        second = ControlServer(path, echo)
        with pytest.raises(ControlError, match="already running"):
            await second.start()
        await second.close()
        assert await asyncio.to_thread(ask, path, {}) == {"asked": {}}

    serving(path, scene)


def test_a_live_socket_without_a_lock_is_left_alone(path: Path) -> None:
    async def scene() -> None:
        with pytest.raises(ControlError, match="already running"):
            await ControlServer(path, echo).start()

    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        asyncio.run(scene())
        assert path.exists()


def test_a_stale_socket_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()

    async def scene(_: ControlServer) -> None:
        assert await asyncio.to_thread(ask, path, {}) == {"asked": {}}

    serving(path, scene)


def test_a_file_that_is_no_socket_is_not_removed(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(ControlError, match="not a socket"):
        asyncio.run(ControlServer(path, echo).start())
    assert path.read_text() == "precious"


def test_a_server_can_start_again_after_it_closed(path: Path) -> None:
    async def scene(_: ControlServer) -> None:
        assert await asyncio.to_thread(ask, path, {}) == {"asked": {}}

    serving(path, scene)
    serving(path, scene)


def test_closing_drops_whoever_is_connected(path: Path) -> None:
    async def scene(server: ControlServer) -> None:
        reader, writer = await asyncio.open_unix_connection(str(path))
        await asyncio.sleep(0.05)
        await server.close()
        assert await reader.read() == b""
        writer.close()

    serving(path, scene)


def test_asking_where_no_node_runs_says_so(path: Path) -> None:
    with pytest.raises(ControlError, match="no node is running"):
        ask(path, {})
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(ControlError, match="no node is running"):
        ask(path, {})


def test_a_path_too_long_for_a_socket_says_what_to_do() -> None:
    path = Path("/tmp") / ("x" * 120) / "control.sock"
    with pytest.raises(ControlError, match=r"choose a shorter node\.state_dir"):
        ask(path, {})
    with pytest.raises(ControlError, match=r"choose a shorter node\.state_dir"):
        asyncio.run(ControlServer(path, echo).start())


def test_a_state_directory_that_cannot_be_made_says_so(path: Path) -> None:
    path.parent.write_text("a file in the way")
    with pytest.raises(ControlError, match=r"control\.sock: "):
        asyncio.run(ControlServer(path, echo).start())


@pytest.mark.parametrize("answer", [None, b"", b"nonsense\n", b"[1]\n", b'{"no":"end"}'])
def test_a_node_that_answers_nothing_usable(path: Path, answer: bytes | None) -> None:
    path.parent.mkdir()

    async def scene() -> None:
        async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            if answer is None:
                await reader.read()
            else:
                writer.write(answer)
            writer.close()

        server = await asyncio.start_unix_server(reply, str(path))
        with pytest.raises(ControlError, match=r"did not answer|no usable answer"):
            await asyncio.to_thread(ask, path, {}, 0.2)
        server.close()

    asyncio.run(scene())


# --- the status document as text ----------------------------------------------------------

DOCUMENT: dict[str, Any] = {
    "version": 1,
    "node": {"id": 7, "name": "laptop", "boot": 5, "uptime_s": 93_784.5, "software": "0.1.0"},
    "entry": "127.0.0.1:1080",
    "nodes": [
        {
            "id": 1,
            "name": "fra",
            "country": "DE",
            "roles": ["server", "exit"],
            "state": "up",
            "rtt_ms": 21.25,
            "route": [7, 1],
            "way": "relay via 7",
            "endpoints": ["tcp://203.0.113.5:7000", "udp://203.0.113.9:41000"],
            "kinds": ["fixed", "observed"],
            "software": "0.1.0",
        },
        {"id": 2, "name": "evil\x1b[2J\nname", "rtt_ms": None},
    ],
    "links": [
        {
            "peer": 1,
            "protocol": "tcp",
            "local": "192.0.2.1:5",
            "remote": "203.0.113.5:7000",
            "rtt_ms": 21.25,
            "loss": 0.015,
            "bytes_in": 5 << 30,
            "bytes_out": 1536,
        }
    ],
    "tunnels": [{"peer": 1, "streams": 3, "cache_bytes": 0, "resent": 0, "direct_bytes": 12}],
    "connections": [],
    "sites": [],
}


def test_the_document_becomes_tables() -> None:
    text = render(DOCUMENT)
    assert "node 7 (laptop), up 1d 2h, uservpn 0.1.0\nentry: 127.0.0.1:1080\n" in text
    assert "21.2 ms" in text
    assert "server,exit" in text
    assert "5.0 GiB" in text
    assert "1.5 KiB" in text
    assert "1.5%" in text
    assert "relay via 7  tcp://203.0.113.5:7000 fixed, udp://203.0.113.9:41000 observed" in text
    assert "connections: none" in text
    assert all(not line.endswith(" ") for line in text.splitlines())


def test_nothing_in_a_document_steers_the_terminal() -> None:
    text = render(DOCUMENT)
    assert "\x1b" not in text
    assert "evil\\x1b[2J\\nname" in text


@pytest.mark.parametrize(
    "document", [{}, {"node": 5, "links": {"a": 1}, "nodes": [1, None]}, {"connections": 4}]
)
def test_a_document_with_gaps_is_shown_as_far_as_it_goes(document: dict[str, Any]) -> None:
    assert "entry: none" in render(document)


def test_another_version_is_pointed_out() -> None:
    assert render({**DOCUMENT, "version": 2}).startswith("note: this is status version 2, not 1")
    assert not render(DOCUMENT).startswith("note")


def test_sizes_and_ages() -> None:
    assert [format_bytes(size) for size in (0, 1023, 1024, 1 << 50)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1024.0 TiB",
    ]
    assert [format_age(age) for age in (0, 59.9, 60, 3600, 90_000)] == [
        "0s",
        "59s",
        "1m 0s",
        "1h 0m",
        "1d 1h",
    ]
