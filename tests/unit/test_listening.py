"""What a node listens on: what cannot be is refused, when it is read or when it is tried, with its place."""

from __future__ import annotations

import asyncio
import base64
import errno
import random
import socket
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives import serialization

from uservpn.app import new_loop
from uservpn.control.config import Config, parse
from uservpn.errors import ConfigError
from uservpn.kit.endpoint import Address, Endpoint
from uservpn.links.ws import self_signed
from uservpn.runtime.entry import Entry
from uservpn.runtime.protocols import Protocols
from uservpn.service import Service, load_plugins
from uservpn.wire.header import HeaderCodec
from uservpn.wire.keys import KeyRing

pytestmark = pytest.mark.timeout(30)

KINDS = ("tcp", "udp", "kcp", "ws", "wss")
BASE = f'[network]\nkey = "{base64.b64encode(bytes(32)).decode()}"\n[node]\nid = 7\n'


def _read(text: str, *, with_rules: bool = True) -> Config:
    return parse(BASE + text, Path("/etc/c.toml"), with_rules=with_rules)


def _problem(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        _read(text)
    (problem,) = caught.value.problems
    return problem


def _run(work) -> None:
    async def with_protocols() -> None:
        protocols = Protocols(
            SimpleNamespace(), HeaderCodec(KeyRing((bytes(32),))), load_plugins(set(KINDS))
        )
        try:
            await work(protocols)
        finally:
            protocols.close()
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(with_protocols())


def _taken() -> tuple[socket.socket, socket.socket, int]:
    """A port of 127.0.0.1 for which others listen, and which others have for datagrams.

    It is outside the range from which the kernel takes ports for clients.
    """
    while True:
        port = random.randrange(15_000, 20_000)
        try:
            stream = socket.create_server(("127.0.0.1", port))
        except OSError:
            continue
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            datagrams.bind(("127.0.0.1", port))
        except OSError:
            stream.close()
            datagrams.close()
            continue
        return stream, datagrams, port


@pytest.mark.parametrize("protocol", KINDS)
@pytest.mark.parametrize(
    ("host", "number", "reason"),
    [
        ("127.0.0.1", errno.EADDRINUSE, "Address already in use"),
        ("192.0.2.77", errno.EADDRNOTAVAIL, "Cannot assign requested address"),
    ],
)
def test_an_address_that_cannot_be_had_is_told_with_its_reason(protocol, host, number, reason):
    stream, datagrams, port = _taken()
    endpoint = Endpoint(protocol, host, port)

    async def work(protocols: Protocols) -> None:
        with pytest.raises(OSError) as caught:
            await protocols.listen(endpoint)
        assert caught.value.strerror == f"cannot listen on {endpoint}: {reason}"
        assert caught.value.errno == number and not protocols.listening

    with stream, datagrams:
        _run(work)


def test_so_is_that_of_an_entry():
    stream, datagrams, port = _taken()

    async def work(_: Protocols) -> None:
        driver = SimpleNamespace(loop=asyncio.get_running_loop())
        with pytest.raises(OSError) as caught:
            await Entry(Address("127.0.0.1", port), {}, driver, SimpleNamespace(), "auto").start()
        told = f"cannot listen on 127.0.0.1:{port} (entry.listen): Address already in use"
        assert caught.value.strerror == told

    with stream, datagrams:
        _run(work)


@pytest.mark.parametrize("protocol", KINDS)
def test_the_wildcards_of_both_families_have_one_port(protocol):
    stream, datagrams, port = _taken()
    stream.close()
    datagrams.close()

    async def work(protocols: Protocols) -> None:
        for host in ("0.0.0.0", "::"):
            await protocols.listen(Endpoint(protocol, host, port))

    _run(work)


def test_a_reload_opens_what_an_earlier_one_had_to_leave_shut():
    """Though the configuration is what it was."""
    stream, datagrams, port = _taken()
    endpoint = Endpoint("tcp", "127.0.0.1", port)

    async def work(protocols: Protocols) -> None:
        driver = SimpleNamespace(
            loop=asyncio.get_running_loop(),
            protocols=protocols,
            listen=protocols.listen,
            unlisten=protocols.unlisten,
        )
        entry = Entry(Address("127.0.0.2", port), {}, driver, SimpleNamespace(), "auto")
        service = SimpleNamespace(driver=driver, entry=entry, _leaving=[])
        service._spot = partial(Service._spot, service)
        config = SimpleNamespace(
            node=SimpleNamespace(listen=(endpoint,)),
            entry=SimpleNamespace(listen=Address("127.0.0.2", port), users={}),
            tunnel=SimpleNamespace(optimistic="auto"),
        )
        with pytest.raises(OSError):  # still taken
            await Service._reconfigure_listeners(service, config, config)
        assert not protocols.listening and not entry.is_listening
        stream.close()
        touched = await Service._reconfigure_listeners(service, config, config)
        assert touched == {"node", "entry"}
        assert list(protocols.listening) == [str(endpoint)] and entry.is_listening
        assert await Service._reconfigure_listeners(service, config, config) == set()
        entry.leave()

    with stream, datagrams:
        _run(work)


# --- as it is read --------------------------------------------------------------------------


def test_a_protocol_for_dialling_is_not_listened_on():
    problem = _problem('listen = ["socks5://127.0.0.1:9050/203.0.113.5:7000"]')
    assert "node.listen[0]" in problem and "socks5:// is for dialling" in problem


@pytest.mark.parametrize(
    "text",
    [
        'listen = ["tcp://0.0.0.0:1"]\npublic = ["wss://203.0.113.5:443/way?cert=/site.pem"]',
        '[[servers]]\nid = 1\nendpoints = ["wss://203.0.113.5:443/way?key=/k&cert=/site.pem"]',
    ],
)
def test_where_a_certificate_lies_is_not_for_those_who_dial(text):
    assert "node.listen only" in _problem(text)


def _pem(name: str, folder: Path) -> tuple[Path, Path]:
    """A private key and a certificate for it."""
    key, begin, certificate = self_signed(name).partition(b"-----BEGIN CERT")
    files = folder / f"{name}.key", folder / f"{name}.pem"
    files[0].write_bytes(key)
    files[1].write_bytes(begin + certificate)
    return files


def _sealed(key: Path) -> Path:
    """The same key, under a passphrase."""
    sealed = serialization.load_pem_private_key(key.read_bytes(), None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    file = key.with_suffix(".sealed")
    file.write_bytes(sealed)
    return file


def test_a_certificate_is_tried_and_what_is_wrong_with_it_is_told_with_its_file(tmp_path):
    key, certificate = _pem("a", tmp_path)
    other, _ = _pem("b", tmp_path)
    cases = (
        (certificate, key, ""),
        (certificate, certificate, f"{certificate}: no private key in PEM form"),
        (certificate, other, f"{other}: not the private key of {certificate}"),
        (certificate, _sealed(key), "a.sealed: a private key with a passphrase"),
        (certificate, tmp_path, f"{tmp_path}: Is a directory"),
        (key, key, f"{key}: no certificate in PEM form"),
        (tmp_path / "none.pem", key, "none.pem: No such file or directory"),
    )
    for cert, private, told in cases:
        text = f'listen = ["wss://0.0.0.0:443/way?cert={cert}&key={private}"]'
        if told:
            problem = _problem(text)
            assert told in problem and "node.listen[0]" in problem
        else:
            _read(text)
        _read(text, with_rules=False)  # for who only asks the running node
