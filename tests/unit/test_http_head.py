"""HTTP on the entry's port: heads as values, and the proxy against sites that the test plays."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from test_socks import USERS, Bench, FakeStream, on_bench, opened, vanish
from uservpn.errors import Fault
from uservpn.socks.http_head import (
    Target,
    absolute_target,
    connect_target,
    error_answer,
    fault_answer,
    login,
    request_headers,
    response_headers,
)

GET = b"GET http://site.example/a HTTP/1.1\r\nHost: site.example\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

# ---- heads -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"http://a.example", Target("a.example", 80, b"a.example", b"/")),
        (b"HTTP://a.example:8080/x?y#z", Target("a.example", 8080, b"a.example:8080", b"/x?y")),
        (b"http://a.example?q=/", Target("a.example", 80, b"a.example", b"/?q=/")),
        (b"http://u:p@a.example/", Target("a.example", 80, b"a.example", b"/")),
        (b"http://[::1]:81/", Target("::1", 81, b"[::1]:81", b"/")),
        (b"http://[::1]/", Target("::1", 80, b"[::1]", b"/")),
        (b"http://a.example/http://b/", Target("a.example", 80, b"a.example", b"/http://b/")),
        (
            b"http://b%C3%BCcher.example/",
            Target("bücher.example", 80, b"xn--bcher-kva.example", b"/"),
        ),
        (b"http://b%FCcher.example/", None),
        (b"http://ex%61mple.org/", Target("example.org", 80, b"example.org", b"/")),
        (b"http://ex%61mple.org:81/", Target("example.org", 81, b"example.org:81", b"/")),
        (b"http://[fe80::1%251]:81/", Target("fe80::1%251", 81, b"[fe80::1%251]:81", b"/")),
        (b"http://a%3a81/", None),
        (b"http://%3A%3A1/", None),
        (b"https://a.example/", None),
        (b"/a", None),
        (b"http://", None),
        (b"http:///a", None),
        (b"http://a:0/", None),
        (b"http://a:65536/", None),
        (b"http://a:+8/", None),
        (b"http://::1/", None),
        (b"http://[::1]x/", None),
        (b"http://[a]/", None),
        (b"http://a%0ab\\/", None),
    ],
)
def test_absolute_targets(target: bytes, expected: Target | None) -> None:
    assert absolute_target(b"GET", target) == expected


def test_other_targets() -> None:
    options = absolute_target(b"OPTIONS", b"http://a.example")
    assert options is not None and options.path == b"*"
    assert connect_target(b"a.example:443") == ("a.example", 443)
    assert connect_target(b"[2001:db8::1]:443") == ("2001:db8::1", 443)
    for bad in (b"a.example", b":443", b"a.example:", b"2001:db8::1:443", b"a:b", b"a:99999999999"):
        assert connect_target(bad) is None


@given(st.binary(max_size=60))
def test_any_target_is_taken_or_refused(raw: bytes) -> None:
    connect_target(raw)
    found = absolute_target(b"GET", b"http://" + raw)
    if found is not None:
        assert 0 < found.port < 65536 and found.path[:1] == b"/" and found.host


def test_headers_of_one_connection_stay_there() -> None:
    raw = [
        (b"host", b"other.example"),
        (b"Connection", b"close, X-Mine, Content-Length"),
        (b"Proxy-Connection", b"keep-alive"),
        (b"Proxy-Authorization", b"Basic YTpi"),
        (b"X-Mine", b"1"),
        (b"Upgrade", b"h2c"),
        (b"Accept", b"*/*"),
        (b"Content-Length", b"3"),
    ]
    assert request_headers(raw, b"site.example") == [
        (b"Host", b"site.example"),
        (b"Accept", b"*/*"),
        (b"Content-Length", b"3"),
    ]
    upgrade = [(b"Connection", b"keep-alive, upgrade"), (b"Upgrade", b"websocket")]
    assert request_headers(upgrade, b"a") == [
        (b"Host", b"a"),
        (b"Upgrade", b"websocket"),
        (b"Connection", b"Upgrade"),
    ]
    both = [(b"Content-Length", b"3"), (b"Transfer-Encoding", b"chunked")]
    assert response_headers(both) == [(b"Transfer-Encoding", b"chunked")]


def basic(text: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"proxy-authorization", b"Basic " + base64.b64encode(text))]


def test_logins() -> None:
    assert login([], {}) == ""
    assert login(basic(b"exit=3:"), {}) == "exit=3"
    assert login(basic(b"alice:secret"), USERS) == "alice"
    assert login(basic(b"alice:secret:more"), USERS) is None
    assert login(basic(b"alice:"), USERS) is None
    assert login([], USERS) is None
    assert login([(b"Proxy-Authorization", b"Basic ?")], USERS) is None
    assert login([(b"Proxy-Authorization", b"Bearer x")], USERS) is None


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault.NOT_ALLOWED, b"403 Forbidden"),
        (Fault.TIMEOUT, b"504 Gateway Timeout"),
        (Fault.REFUSED, b"502 Bad Gateway"),
        (Fault.FAILED, b"502 Bad Gateway"),
        (Fault.EXIT_DEAD, b"502 Bad Gateway"),
    ],
)
def test_answers_tell_what_happened(fault: Fault, status: bytes) -> None:
    answer = fault_answer(fault, "2001:db8::1", 80, b"GET")
    assert answer.startswith(b"HTTP/1.1 " + status + b"\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"[2001:db8::1]:80" in body
    assert b"Content-Length: %d\r\n" % len(body) in head
    assert error_answer(502, "x", b"HEAD").endswith(b"\r\n\r\n")


# ---- the proxy ---------------------------------------------------------------------------------


async def head_at(bench: Bench, stream: FakeStream, end: bytes = b"\r\n\r\n") -> bytes:
    """What the site got, once it ends so; and forgotten."""
    await bench.driver.until(lambda: stream.written.endswith(end))
    got, stream.written = stream.written, b""
    return got


def says(stream: FakeStream, data: bytes) -> None:
    stream.owner.stream_data(memoryview(data))


def connect(extra: bytes = b"") -> bytes:
    return b"CONNECT site.example:443 HTTP/1.1\r\nHost: site.example:443\r\n" + extra + b"\r\n"


def test_connect_is_answered_as_socks_is() -> None:
    async def test(bench: Bench) -> None:
        reader, _ = await bench.program(connect() + b"hello")
        stream = await bench.driver.stream()
        assert stream.opened_for == (1, "site.example", 443)
        await bench.driver.until(lambda: stream.written == b"hello")
        opened(stream)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
        says(stream, b"bytes")
        assert await reader.readexactly(5) == b"bytes"
        assert stream.consumed == 5

    on_bench(test)


def test_connect_byte_by_byte_and_refused() -> None:
    async def test(bench: Bench) -> None:
        reader, writer = await bench.program()
        for byte in connect():
            writer.write(bytes((byte,)))
            await asyncio.sleep(0)
        opened(await bench.driver.stream(), Fault.NOT_ALLOWED)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 403 ") and b"site.example:443" in answer

    on_bench(test)


def test_users_are_asked_for() -> None:
    async def test(bench: Bench) -> None:
        for request in (GET, connect()):
            reader, _ = await bench.program(request)
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 407 ")
            assert b"\r\nProxy-Authenticate: Basic " in answer
        token = base64.b64encode(b"alice:secret")
        await bench.program(connect(b"Proxy-Authorization: basic " + token + b"\r\n"))
        await bench.driver.stream()
        assert bench.chooser.users == ["alice"]

    on_bench(test, users=USERS)


@pytest.mark.parametrize(
    ("host", "proxy"),
    [
        (b"laptop.lan:1080", b"laptop.lan:1080"),
        (b"[fd00::1]:1080", b"[fd00::1]:1080"),
        (b"laptop", b"laptop:80"),
        (b'x"; alert(1); "', None),
    ],
)
def test_the_proxy_tells_browsers_how_to_use_it(host: bytes, proxy: bytes | None) -> None:
    async def test(bench: Bench) -> None:
        request = b"GET /proxy.pac HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"
        reader, _ = await bench.program(request)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"application/x-ns-proxy-autoconfig" in answer
        shown = proxy or str(bench.entry.address).encode()
        assert b'return "SOCKS5 %b; SOCKS %b; PROXY %b"' % (shown, shown, shown) in answer
        assert not bench.driver.streams

    on_bench(test, users=USERS)


def test_requests_wait_for_their_exit() -> None:
    async def test(bench: Bench) -> None:
        bench.chooser.waits = True
        reader, writer = await bench.program(GET)
        await bench.driver.until(lambda: bench.chooser.waiting)
        writer.write(GET)
        await writer.drain()
        assert not bench.driver.streams
        bench.chooser.decide()
        stream = await bench.driver.stream()
        opened(stream)
        says(stream, OK)
        assert await reader.readuntil(b"ok")
        await bench.driver.until(lambda: bench.chooser.waiting)
        bench.chooser.decide()
        await bench.driver.until(lambda: stream.written.count(b"GET /a") == 2)

    on_bench(test)


def test_a_refusal_says_why() -> None:
    async def test(bench: Bench) -> None:
        bench.chooser.exit, bench.chooser.refusal = None, (Fault.NOT_ALLOWED, "exot is no option")
        for request in (GET, connect()):
            reader, _ = await bench.program(request)
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 403 ") and b"exot is no option" in answer

    on_bench(test)


def test_requests_to_one_site_share_a_stream_and_another_site_gets_its_own() -> None:
    async def test(bench: Bench) -> None:
        reader, writer = await bench.program(GET)
        stream = await bench.driver.stream()
        assert await head_at(bench, stream) == b"GET /a HTTP/1.1\r\nHost: site.example\r\n\r\n"
        opened(stream)
        assert (1, "site.example", 80) in bench.chooser.known
        for split in range(1, len(OK), 7):
            says(stream, OK[:split])
            says(stream, OK[split:])
            assert await reader.readuntil(b"ok")
            assert stream.consumed == len(OK)
            stream.consumed = 0
            writer.write(GET)
            await head_at(bench, stream)
        says(stream, OK)
        await reader.readuntil(b"ok")
        writer.write(GET.replace(b"site.example", b"other.example:81"))
        other = await bench.driver.stream(1)
        assert other.opened_for == (1, "other.example", 81)
        assert b"Host: other.example:81\r\n" in await head_at(bench, other)
        assert stream.reset_fault is Fault.CANCELLED

    on_bench(test)


def test_requests_sent_ahead_are_answered_in_turn() -> None:
    async def test(bench: Bench) -> None:
        reader, _ = await bench.program(GET + GET.replace(b"/a", b"/b") + GET.replace(b"/a", b"/c"))
        stream = await bench.driver.stream()
        for path in (b"/a", b"/b", b"/c"):
            assert (await head_at(bench, stream)).startswith(b"GET " + path + b" ")
            says(stream, OK)
            await reader.readuntil(b"ok")
        assert len(bench.driver.streams) == 1

    on_bench(test)


def test_bodies_stream_both_ways_with_back_pressure() -> None:
    async def test(bench: Bench) -> None:
        post = (
            b"POST http://site.example/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        reader, writer = await bench.program(post)
        stream = await bench.driver.stream()
        await head_at(bench, stream)
        bench.driver.has_room = False
        writer.write(b"3\r\nabc\r\n")
        await head_at(bench, stream, b"abc\r\n")
        (connection,) = bench.entry.connections
        transport: Any = connection.transport
        assert not transport.is_reading()
        bench.driver.has_room = True
        stream.owner.stream_room()
        writer.write(b"2\r\nde\r\n0\r\n\r\n")
        assert await head_at(bench, stream, b"0\r\n\r\n") == b"2\r\nde\r\n0\r\n\r\n"
        says(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 8000000\r\n\r\n")
        sent = 0
        while not connection.is_full:
            says(stream, bytes(100_000))
            sent += 100_000
        assert sent < 8_000_000 and stream.consumed < sent
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(sent)
        await bench.driver.until(lambda: stream.consumed >= sent)
        says(stream, bytes(8_000_000 - sent))
        await reader.readexactly(8_000_000 - sent)

    on_bench(test)


def test_an_answer_that_ends_with_its_connection_keeps_the_program_going() -> None:
    async def test(bench: Bench) -> None:
        reader, writer = await bench.program(GET)
        stream = await bench.driver.stream()
        await head_at(bench, stream)
        says(stream, b"HTTP/1.0 200 OK\r\n\r\nall of it")
        stream.owner.stream_finished()
        answer = await reader.readuntil(b"0\r\n\r\n")
        assert b"chunked" in answer and b"all of it" in answer
        writer.write(GET)
        await head_at(bench, await bench.driver.stream(1))

    on_bench(test)


def test_half_an_answer_ends_with_a_reset() -> None:
    async def test(bench: Bench) -> None:
        for end in ("finished", "reset"):
            reader, _ = await bench.program(GET)
            stream = await bench.driver.stream(len(bench.driver.streams))
            await head_at(bench, stream)
            says(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
            await reader.readuntil(b"half")
            if end == "finished":
                stream.owner.stream_finished()
            else:
                stream.owner.stream_reset(Fault.CONNECTION_LOST)
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)

    on_bench(test)


@pytest.mark.parametrize(
    ("fault", "status"),
    [(Fault.REFUSED, b"502"), (Fault.TIMEOUT, b"504"), (Fault.NOT_ALLOWED, b"403")],
)
def test_no_way_to_the_site_is_told_also_to_one_who_is_still_sending(
    fault: Fault, status: bytes
) -> None:
    async def test(bench: Bench) -> None:
        post = b"POST http://site.example/ HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\nabc"
        reader, writer = await bench.program(post)
        stream = await bench.driver.stream()
        bench.chooser.known.add((1, "site.example", 80))
        opened(stream, fault)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 " + status) and b"uservpn: site.example:80: " in answer
        assert not bench.chooser.known
        writer.write(bytes(100_000))
        await writer.drain()
        writer.close()

    on_bench(test)


def test_a_stream_that_its_site_closed_costs_a_second_try() -> None:
    async def test(bench: Bench) -> None:
        reader, writer = await bench.program(GET)
        stream = await bench.driver.stream()
        await head_at(bench, stream)
        says(stream, OK)
        await reader.readuntil(b"ok")
        writer.write(GET)
        await head_at(bench, stream)
        stream.owner.stream_finished()
        again = await bench.driver.stream(1)
        await head_at(bench, again)
        says(again, OK)
        await reader.readuntil(b"ok")
        again.owner.stream_finished()  # while nobody waits: the program does not notice
        writer.write(GET)
        third = await bench.driver.stream(2)
        await head_at(bench, third)
        third.owner.stream_finished()  # a first try is not repeated
        assert (await reader.read()).startswith(b"HTTP/1.1 502 ")

    on_bench(test)


def test_what_a_site_says_unasked_is_not_the_next_answer() -> None:
    async def test(bench: Bench) -> None:
        reader, writer = await bench.program(GET)
        stream = await bench.driver.stream()
        await head_at(bench, stream)
        says(stream, OK + OK.replace(b"ok", b"no"))
        await reader.readuntil(b"ok")
        assert stream.reset_fault is Fault.CANCELLED
        writer.write(GET)
        await head_at(bench, await bench.driver.stream(1))

    on_bench(test)


def test_an_upgrade_turns_into_bytes() -> None:
    async def test(bench: Bench) -> None:
        upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        reader, writer = await bench.program(GET[:-2] + upgrade)
        stream = await bench.driver.stream()
        assert b"Upgrade: websocket\r\nConnection: Upgrade\r\n" in await head_at(bench, stream)
        says(stream, b"HTTP/1.1 101 Switching Protocols\r\n" + upgrade + b"frame")
        assert b"upgrade: websocket\r\n" in (await reader.readuntil(b"\r\n\r\n")).lower()
        assert await reader.readexactly(5) == b"frame"
        writer.write(b"mine")
        await bench.driver.until(lambda: stream.written == b"mine")
        before = stream.consumed
        says(stream, b"more")
        assert await reader.readexactly(4) == b"more"
        assert stream.consumed == before + 4
        assert stream.owner.target == "site.example:80"

    on_bench(test)


def test_an_upgrade_that_is_not_taken_is_an_ordinary_answer() -> None:
    async def test(bench: Bench) -> None:
        reader, writer = await bench.program(
            GET[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        )
        stream = await bench.driver.stream()
        await head_at(bench, stream)
        says(stream, OK)
        await reader.readuntil(b"ok")
        writer.write(GET)
        await head_at(bench, stream)

    on_bench(test)


def test_expectations_are_passed_on() -> None:
    async def test(bench: Bench) -> None:
        post = (
            b"POST http://site.example/ HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            b"Content-Length: 2\r\n\r\n"
        )
        reader, writer = await bench.program(post)
        stream = await bench.driver.stream()
        assert b"Expect: 100-continue\r\n" in await head_at(bench, stream)
        says(stream, b"HTTP/1.1 100 Continue\r\n\r\n")
        assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"hi")
        await head_at(bench, stream, b"hi")
        says(stream, OK)
        await reader.readuntil(b"ok")

    on_bench(test)


def test_a_program_that_has_said_all_still_gets_its_answer() -> None:
    async def test(bench: Bench) -> None:
        reader, writer = await bench.program(GET)
        writer.write_eof()
        stream = await bench.driver.stream()
        await head_at(bench, stream)
        says(stream, OK)
        assert (await reader.read()).endswith(b"ok")

    on_bench(test)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET https://a/ HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"CONNECT a HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET http://a/ HTTP/1.1\r\n\r\n", b"400"),
        (b"GET http://a/ HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 300_000, b"431"),
    ],
)
def test_bad_requests_are_told_so(request_: bytes, status: bytes) -> None:
    async def test(bench: Bench) -> None:
        reader, _ = await bench.program(request_)
        assert (await reader.read()).startswith(b"HTTP/1.1 " + status)
        assert not bench.driver.streams

    on_bench(test)


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_urls_as_people_read_them_become_urls(step: int) -> None:
    """curl sends what it was given, byte by byte; also where requests, or raw bodies, follow each other."""

    async def test(bench: Bench) -> None:
        raw = GET.replace(b"/a", "/grün?q=日本".encode()).replace(
            b"\r\n\r\n", b"\r\nX: \xff\r\n\r\n"
        )
        post = b"POST http://site.example/\xe9 HTTP/1.1\r\nHost: s\r\nContent-Length: 3\r\n\r\n\xe9\n\xe9"
        reader, writer = await bench.program(b"")
        requests = raw + raw + GET + post + raw
        for at in range(0, len(requests), step):
            writer.write(requests[at : at + step])
            await writer.drain()
            await asyncio.sleep(0)
        quoted = b"GET /gr%C3%BCn?q=%E6%97%A5%E6%9C%AC HTTP/1.1\r\n"
        first, end, body = b"GET /a HTTP/1.1\r\n", b"\r\n\r\n", b"\xe9\n\xe9"
        asked = [(0, quoted, end), (0, quoted, end), (0, first, end)]
        asked += [(1, b"POST /%E9 HTTP/1.1\r\n", end + body), (1, quoted, end)]
        for number, line, last in asked:
            stream = await bench.driver.stream(number)
            head = await head_at(bench, stream, last)
            assert head.startswith(line) and (b"X: \xff\r\n" in head or line != quoted)
            says(stream, OK)
            await reader.readuntil(b"ok")

    on_bench(test)


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (b"GET  http://a/ HTTP/1.1\r\n\r\n", b"its first line has to be METHOD URL HTTP/1.1"),
        (b"G\xc3T http://a/ HTTP/1.1\r\n\r\n", b"its first line has to be METHOD URL HTTP/1.1"),
        (b"GET http://a/ HTTP/1.1\r\nno header\r\n\r\n", b"a line such as Name: value"),
        (b"GET /\xc3\xbc HTTP/1.1\r\nHost: x\r\n\r\n", b"this is a proxy"),
    ],
)
def test_what_is_no_request_is_refused_in_words_of_ours(request_: bytes, told: bytes) -> None:
    async def test(bench: Bench) -> None:
        reader, _ = await bench.program(request_)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 400 ") and told in answer and b"bytearray" not in answer

    on_bench(test)


@given(st.binary(max_size=200))
def test_any_answer_is_survived(noise: bytes) -> None:
    async def test(bench: Bench) -> None:
        reader, _ = await bench.program(GET)
        stream = await bench.driver.stream()
        await head_at(bench, stream)
        if noise:
            says(stream, noise)
        if stream.owner is not None:
            stream.owner.stream_finished()
        try:
            await reader.read(1)
        except ConnectionResetError:
            pass

    on_bench(test, handshake_limit_s=5)


def test_a_head_that_never_ends_is_cut_also_on_a_connection_in_use() -> None:
    async def test(bench: Bench) -> None:
        reader, writer = await bench.program(GET)
        stream = await bench.driver.stream()
        await head_at(bench, stream)
        says(stream, OK)
        await reader.readuntil(b"ok")
        assert not bench.entry._waiting
        writer.write(b"GET http://si")
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        assert stream.reset_fault is Fault.CANCELLED

    on_bench(test, handshake_limit_s=0.2)


def test_a_program_that_goes_away_ends_its_request() -> None:
    async def test(bench: Bench) -> None:
        _, writer = await bench.program(GET)
        stream = await bench.driver.stream()
        await head_at(bench, stream)
        vanish(writer)
        await bench.driver.until(lambda: stream.reset_fault)
        assert not bench.entry.connections

    on_bench(test)
