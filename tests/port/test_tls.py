"""TLS with ALPN on the same port as cleartext."""

from __future__ import annotations

import asyncio
import datetime
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lakemesh.server import h2_frames as h2
from lakemesh.server.port import PortLimits
from lakemesh.server.tls import BadCertificate, server_context
from tests.port.port_serving import Packet, Served, call, serve
from tests.port.test_arrivals import GET, OPENING, answer_of, ends, request, streams_of


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate of localhost and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(signed.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture(params=["grpcio", "h2"])
async def secure(
    request: pytest.FixtureRequest, certificate: tuple[Path, Path]
) -> AsyncIterator[Served]:
    limits = PortLimits(first_request_seconds=1.0)
    async with serve(
        grpc_edge=request.param, tls=server_context(*certificate), limits=limits
    ) as served:
        yield served


async def open_tls(
    served: Served, certificate: tuple[Path, Path], *protocols: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.create_default_context(cafile=str(certificate[0]))
    if protocols:
        context.set_alpn_protocols(protocols)
    return await asyncio.open_connection(
        "127.0.0.1", served.port.port, ssl=context, server_hostname="localhost"
    )


async def test_grpc_over_tls(secure: Served, certificate: tuple[Path, Path]) -> None:
    credentials = grpc.ssl_channel_credentials(certificate[0].read_bytes())
    async with grpc.aio.secure_channel(
        secure.target, credentials, options=[("grpc.ssl_target_name_override", "localhost")]
    ) as channel:
        body = b"x" * 1_000_000
        assert (await call(channel, "Echo", Packet(body=body))).body == body
        known = json.loads((await call(channel, "Who", Packet())).text)
    assert known["peer"].startswith("127.0.0.1:")


async def test_http1_over_tls(secure: Served, certificate: tuple[Path, Path]) -> None:
    for offered in ((), ("http/1.1",)):
        reader, writer = await open_tls(secure, certificate, *offered)
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == (
            offered[0] if offered else None
        )
        writer.write(GET)
        status, body = await answer_of(reader)
        assert (status, body["scheme"]) == (200, "https")
        writer.close()


async def test_json_over_http2_and_tls(secure: Served, certificate: tuple[Path, Path]) -> None:
    reader, writer = await open_tls(secure, certificate, "h2", "http/1.1")
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
    writer.write(OPENING + request(1, "/y", "application/json", b"{}"))
    found = (await streams_of(reader, 1))[1]
    assert any(isinstance(item, bytes) and b'"https"' in item for item in found)
    writer.close()


async def test_cleartext_is_served_beside_it(secure: Served) -> None:
    reader, writer = await secure.open()
    writer.write(GET)
    status, body = await answer_of(reader)
    assert (status, body["scheme"]) == (200, "http")
    writer.close()
    async with secure.channel() as channel:
        await call(channel, "Echo", Packet())


@pytest.mark.parametrize("begin", [b"", b"\x16\x03\x01", h2.PREFACE[:5]])
async def test_a_peer_that_stops_early_is_closed(secure: Served, begin: bytes) -> None:
    reader, writer = await secure.open()
    writer.write(begin)
    await ends(reader)
    writer.close()
    async with asyncio.timeout(2):
        while secure.port.connections:
            await asyncio.sleep(0.01)


def test_a_bad_certificate_is_named(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    with pytest.raises(BadCertificate, match=r"no\.pem"):
        server_context(tmp_path / "no.pem", None)
    (tmp_path / "bad.pem").write_text("not a certificate")
    with pytest.raises(BadCertificate, match=r"bad\.pem"):
        server_context(tmp_path / "bad.pem", None)
    server_context(*certificate)
