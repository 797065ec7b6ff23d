"""A session with MySQL or MariaDB, from the login on: a text of several statements is one round trip.

It is read here, not by the driver: there a packet a row costs a task switch. A connection on which anything went
wrong, a cancellation included, is never used again, except that a statement which the server refused leaves it
sound: then its transaction is rolled back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import trio

MAX_TRIP = 8 << 20
"""Bytes sent in one go where several statements are to be sent; servers take 16 MiB at least."""

MAX_PACKET = (1 << 24) - 1

RETRY = frozenset({1205, 1213, 1020})
"""Lock wait timeout, deadlock, record changed: to be rolled back and run again."""

OUTAGE = frozenset(
    {1021, 1030, 1037, 1038, 1040, 1041, 1044, 1045, 1049, 1053, 1114, 1129, 1135, 1158, 1159, 1160}
)
OUTAGE |= {1161, 1180, 1181, 1203, 1226, 1290, 1836, 3032, 3168, 4025}
"""Full, read only, too many connections, denied, tables gone: nothing that the caller is to blame for."""

NOT_NULL, DUPLICATE = 1048, 1062

READ_ONLY = frozenset({1290, 1836})

GONE = frozenset({1053, 1077, 1079, 1152, 1158, 1159, 1160, 1161, 1184, 1317, 1927, 2006, 2013, 4031})
"""The connection is ended or the statement was: whether it counted is unknown."""

_IN_TRANSACTION, _MORE_RESULTS = 1, 8


class Rejected(Exception):
    """The server refused a statement. The connection is sound; the transaction is rolled back."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{text} ({code})")
        self.code = code
        self.text = text


class Lost(Exception):
    """The connection was lost on the way: whether the statements were carried out is unknown."""


class Result(NamedTuple):
    """What one statement answered. ``met``: rows that an UPDATE, INSERT or DELETE has met."""

    rows: list[tuple[bytes | None, ...]]
    met: int

    @property
    def column(self) -> list[bytes]:
        """The first column, which has no NULLs."""
        return [row[0] for row in self.rows]  # type: ignore[misc]

    @property
    def number(self) -> int:
        """The one number that was asked for."""
        value = self.rows[0][0]
        assert value is not None
        return int(value)


class Connection:
    """A session. ``run`` is for one task at a time."""

    def __init__(self, stream: trio.abc.Stream, name: str, patience: float) -> None:
        self._stream = stream
        self._name = name
        self._patience = patience
        self._buffer = bytearray()
        self.broken = False
        self.in_transaction = False
        self.used_at = trio.current_time()

    async def run(self, *statements: bytes) -> list[Result]:
        """Carry the statements out, in as few round trips as their size allows; the result of each.

        Raises: Rejected at the first one that is refused, those behind it are not carried out; Lost.
        """
        results: list[Result] = []
        for trip in _trips(statements):
            results += await self._ask(trip)
        return results

    def close(self) -> None:
        self.broken = True
        hang_up(self._stream)

    async def _ask(self, text: bytes) -> list[Result]:
        if len(text) >= MAX_PACKET:
            raise ValueError("a statement is too long")
        assert not self.broken
        self.broken = True
        try:
            with trio.fail_after(self._patience):
                await self._stream.send_all((len(text) + 1).to_bytes(3, "little") + b"\0\x03" + text)
                reply = await self._receive()
        except trio.TooSlowError:
            raise Lost(f"MySQL at {self._name} does not answer") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            raise Lost(f"MySQL at {self._name} hung up") from None
        self.used_at = trio.current_time()
        self.in_transaction = bool(reply.status & _IN_TRANSACTION)
        if reply.error is not None:
            code, message = reply.error
            if code in GONE:
                raise Lost(f"MySQL at {self._name}: {message}")
            # Of a server that became read only: the next connection may lead to the new primary.
            self.broken = code in READ_ONLY
            self.in_transaction = True  # perhaps: an error does not say
            raise Rejected(code, message)
        self.broken = False
        return reply.results

    async def _receive(self) -> _Reply:
        reply, buffer, at, large = _Reply(), self._buffer, 0, b""
        while True:
            while len(buffer) - at >= 4:
                end = at + 4 + int.from_bytes(buffer[at : at + 3], "little")
                if len(buffer) < end:
                    break
                packet = bytes(buffer[at + 4 : end])
                at = end
                if len(packet) == MAX_PACKET:
                    large += packet
                elif reply.take(large + packet if large else packet):
                    del buffer[:at]
                    return reply
                else:
                    large = b""
            data = await self._stream.receive_some(65536)
            if not data:
                raise trio.BrokenResourceError
            del buffer[:at]
            at = 0
            buffer += data


def _trips(statements: Iterable[bytes]) -> Iterator[bytes]:
    some: list[bytes] = []
    size = 0
    for statement in statements:
        if some and size + len(statement) > MAX_TRIP:
            yield b";".join(some)
            some, size = [], 0
        some.append(statement)
        size += len(statement) + 1
    if some:
        yield b";".join(some)


class _Reply:
    """The answer to a text of statements, put together from its packets."""

    def __init__(self) -> None:
        self.results: list[Result] = []
        self.error: tuple[int, str] | None = None
        self.status = 0
        self._columns = 0
        self._heads = 0
        self._rows: list[tuple[bytes | None, ...]] | None = None

    def take(self, packet: bytes) -> bool:
        """True when this was the last one."""
        first = packet[0]
        if first == 0xFF:
            self.error = int.from_bytes(packet[1:3], "little"), packet[9:].decode(errors="replace")
            return True
        if self._heads:
            self._heads -= 1  # names of columns, and the mark behind them
            return False
        if self._rows is None:
            return self._begin(packet)
        if first == 0xFE and len(packet) < 9:
            self.results.append(Result(self._rows, len(self._rows)))
            self._rows = None
            return self._end(int.from_bytes(packet[3:5], "little"))
        self._rows.append(_fields(packet, self._columns))
        return False

    def _begin(self, packet: bytes) -> bool:
        if packet[0] == 0:
            count, at = _length(packet, 1)
            _, at = _length(packet, at)
            self.results.append(Result([], count))
            return self._end(int.from_bytes(packet[at : at + 2], "little"))
        self._columns, _ = _length(packet, 0)
        self._heads = self._columns + 1
        self._rows = []
        return False

    def _end(self, status: int) -> bool:
        self.status = status
        return not status & _MORE_RESULTS


def _fields(packet: bytes, columns: int) -> tuple[bytes | None, ...]:
    fields: list[bytes | None] = []
    at = 0
    for _ in range(columns):
        if packet[at] == 0xFB:
            fields.append(None)
            at += 1
        else:
            size, at = _length(packet, at)
            fields.append(packet[at : at + size])
            at += size
    return tuple(fields)


def _length(packet: bytes, at: int) -> tuple[int, int]:
    """A number in the protocol's own coding, and where the next thing begins."""
    first = packet[at]
    if first < 0xFB:
        return first, at + 1
    width = {0xFC: 2, 0xFD: 3, 0xFE: 8}[first]
    return int.from_bytes(packet[at + 1 : at + 1 + width], "little"), at + 1 + width


def hang_up(stream: Any) -> None:
    """Close the socket below, without a word to the other side."""
    while not isinstance(stream, trio.SocketStream):
        stream = stream.transport_stream
    stream.socket.close()
