"""The test vectors of docs/wire.md: derived anew from the specification, then asked of the code."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from uservpn.wire.header import HeaderCodec, pack_fields
from uservpn.wire.keys import KeyRing
from uservpn.wire.session import Session

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())
DOCUMENT = Path(__file__).parents[2] / "docs" / "wire.md"
KEY = bytes(range(32))
AEADS = {"aesgcm": AESGCM, "chacha": ChaCha20Poly1305}
by_name = pytest.mark.parametrize("message", VECTORS["messages"], ids=lambda m: m["name"])


def _derive(size, info):
    return HKDF(algorithm=SHA256(), length=size, salt=None, info=info).derive(KEY)


def _header_siv():
    return AESSIV(_derive(64, b"uservpn header"))


def _payload_key(suite, origin, destination, boot):
    info = b"uservpn payload " + suite.encode() + struct.pack(">BBQ", origin, destination, boot)
    return info, _derive(32, info)


def _fields(kind_flags, origin, destination, length, boot, number, stamp):
    start = struct.pack(">BBBIQ", kind_flags, origin, destination, length, boot)
    return start + number.to_bytes(6, "big") + bytes(2) + stamp + bytes(6)


def _seal_by_the_book(message):
    bound_to = message["bound_to"]
    flags = (0x20 if bound_to else 0) | (0x40 if message["suite"] == "chacha" else 0)
    plain = bytes.fromhex(message["payload"])
    if not bound_to:
        plain = struct.pack(">Q", message["wall_ms"]) + plain
    ends = message["origin"], message["destination"]
    fields = _fields(
        message["kind"] | flags,
        *ends,
        len(plain) + 16,
        message["boot"],
        message["number"],
        bytes.fromhex(message["stamp"]),
    )
    associated = fields[:21] + (struct.pack(">Q", bound_to) if bound_to else b"")
    aead = AEADS[message["suite"]](_payload_key(message["suite"], *ends, message["boot"])[1])
    body = aead.encrypt(message["number"].to_bytes(12, "big"), plain, associated)
    return _header_siv().encrypt(fields, None), body


def test_header_key_and_payload_keys_follow_the_specification():
    assert VECTORS["key"] == KEY.hex()
    assert VECTORS["header_key"] == _derive(64, b"uservpn header").hex()
    for vector in VECTORS["payload_keys"]:
        info, key = _payload_key(
            vector["suite"], vector["origin"], vector["destination"], vector["boot"]
        )
        assert (vector["info"], vector["key"]) == (info.hex(), key.hex())


def test_code_derives_the_payload_keys_of_the_vectors():
    ring = KeyRing([KEY])
    nonce = bytes(12)
    for vector in VECTORS["payload_keys"]:
        suite = vector["suite"]
        aead = ring.payload(
            0, vector["origin"], vector["boot"], vector["destination"], suite == "chacha"
        )
        sealed = AEADS[suite](bytes.fromhex(vector["key"])).encrypt(nonce, b"x", b"y")
        assert aead.encrypt(nonce, b"x", b"y") == sealed


def test_header_is_sealed_and_opened_as_specified():
    vector = VECTORS["header"]
    stamp = bytes.fromhex(vector["stamp"])
    names = ("kind_flags", "origin", "destination", "length", "boot", "number")
    values = [vector[name] for name in names]
    fields = _fields(*values, stamp)
    assert fields.hex() == vector["fields"] == pack_fields(*values, stamp).hex()
    codec = HeaderCodec(KeyRing([KEY]))
    sealed = codec.seal(fields)
    assert sealed.hex() == vector["sealed"] == _header_siv().encrypt(fields, None).hex()
    header = codec.open(sealed)
    assert header is not None
    assert header.kind | header.flags == vector["kind_flags"]
    assert [getattr(header, name) for name in names[1:]] == values[1:]
    assert (header.hop1, header.hop2, header.stamp) == (0, 0, stamp)
    assert header.associated == fields[:21]


@by_name
def test_message_follows_the_specification(message):
    header, body = _seal_by_the_book(message)
    assert (header.hex(), body.hex()) == (message["header"], message["body"])


@by_name
def test_code_seals_the_message_to_the_same_bytes(message):
    ring = KeyRing([KEY])
    session = Session(
        ring,
        HeaderCodec(ring),
        message["origin"],
        message["boot"],
        message["destination"],
        message["suite"] == "chacha",
    )
    stamp = bytes.fromhex(message["stamp"])
    for _ in range(message["number"]):
        session.seal(3, b"", stamp, 0)
    payload = bytes.fromhex(message["payload"])
    header, body = session.seal(
        message["kind"], payload, stamp, message["wall_ms"], message["bound_to"]
    )
    assert (header.hex(), body.hex()) == (message["header"], message["body"])


@by_name
def test_code_opens_the_message_once(message):
    ring = KeyRing([KEY])
    codec = HeaderCodec(ring)
    boot = message["bound_to"] or 1
    session = Session(ring, codec, message["destination"], boot, message["origin"], False)
    header = codec.open(bytes.fromhex(message["header"]))
    assert header is not None
    body = bytes.fromhex(message["body"])
    assert header.length == len(body)
    payload = bytes.fromhex(message["payload"])
    if message["bound_to"]:
        assert session.open_bound(header, body) == payload
        assert session.open_bound(header, body) is None
    else:
        assert session.open_first(header, body) == (payload, message["wall_ms"])
        assert session.accept_first(header)
        assert session.open_first(header, body) is None
    assert session.peer_boot == message["boot"]


def test_document_shows_the_same_vectors():
    text = re.sub(r"\s+", "", DOCUMENT.read_text())
    shown = [VECTORS["header_key"], VECTORS["header"]["fields"], VECTORS["header"]["sealed"]]
    shown += [vector["key"] for vector in VECTORS["payload_keys"]]
    for message in VECTORS["messages"][:2]:
        shown += [message["payload"], message["header"], message["body"]]
    for value in shown:
        assert value in text
