"""A web server for tests: real sockets, real TLS, and whatever misbehaviour a test asks for."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Stream = trio.abc.Stream
Answer = bytes | Callable[[Stream], Awaitable[None]]


class Asked(NamedTuple):
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


def answer(status: str = "200 OK", body: bytes = b"", **headers: str) -> bytes:
    """A response; ``content_type`` becomes Content-Type."""
    given = {"content_length": str(len(body))} | headers
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


class Web:
    """What was asked, in order, and what is answered, by path.

    Attributes:
        answers: bytes, or a function that is given the connection.
        asked: the requests that came.
        came, gone: how many connections there were, and how many have ended.
    """

    def __init__(self, answers: dict[str, Answer], tls: ssl.SSLContext | None) -> None:
        self.answers = answers
        self.asked: list[Asked] = []
        self.came = 0
        self.gone = 0
        self._tls = tls
        self.port = 0

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    async def serve(self, stream: Stream) -> None:
        self.came += 1
        try:
            await self._talk(trio.SSLStream(stream, self._tls, server_side=True) if self._tls else stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the client has gone
        finally:
            self.gone += 1
            await trio.aclose_forcefully(stream)

    async def _talk(self, stream: Stream) -> None:
        asked = await _read(stream)
        if asked is None:
            return
        self.asked.append(asked)
        given = self.answers.get(asked.target.partition("?")[0], answer("404 Not Found"))
        if isinstance(given, bytes):
            await stream.send_all(given)
        else:
            await given(stream)


async def _read(stream: Stream) -> Asked | None:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (chunk := await stream.receive_some(65536)):
            return None
        data += chunk
        if data.startswith(b"\x16"):  # the hello of TLS
            await stream.send_all(answer("400 Bad Request"))
            return None
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        if not (chunk := await stream.receive_some(65536)):
            return None
        body += chunk
    method, target, _ = first.split(" ")
    return Asked(method, target, headers, body)


@contextlib.asynccontextmanager
async def web(answers: dict[str, Answer] | None = None, tls: ssl.SSLContext | None = None) -> AsyncIterator[Web]:
    server = Web(answers or {}, tls)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(_serve, server)
        server.port = listeners[0].socket.getsockname()[1]
        yield server
        nursery.cancel_scope.cancel()


async def _serve(server: Web, *, task_status: trio.TaskStatus[list[trio.SocketListener]]) -> None:
    await trio.serve_tcp(server.serve, 0, host="127.0.0.1", task_status=task_status)


async def silence(stream: Stream) -> None:
    """Say nothing until the client goes."""
    while await stream.receive_some(4096):
        pass


async def hang_up(stream: Stream) -> None:
    """End without a word."""


class Certificate(NamedTuple):
    authority: Path
    server: ssl.SSLContext
    chain: Path


def certificate(folder: Path, *names: str) -> Certificate:
    """A certificate that is its own authority, for names and addresses."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public = made.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    authority, chain = folder / "authority.pem", folder / "chain.pem"
    authority.write_bytes(public)
    chain.write_bytes(private + public)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return Certificate(authority, context, chain)


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Names:
    """A resolver that answers as it is told.

    Attributes:
        known: addresses by name; what is a list of lists is told one list a question, the last again and again.
        asked: the names that were asked for.
    """

    def __init__(self, **known: Sequence[str] | Sequence[Sequence[str]]) -> None:
        self.known = {name.replace("_", "."): list(addresses) for name, addresses in known.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        self.asked.append(host)
        found = self.known.get(host)
        if found is None:
            raise OSError("no such name")
        if not isinstance(found[0], str):
            return found.pop(0) if len(found) > 1 else found[0]
        return [address for address in found if isinstance(address, str)]
