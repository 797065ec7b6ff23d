"""Which hosts a request may go to: those at public addresses, and those that the operator allows.

A name is resolved once; every address it has is looked at, and the connection is made to one of those that were
looked at, not to the name again. So an answer of the DNS that changes in between changes nothing.

The networks below are those of the IANA special-purpose address registries (RFC 6890) that no public host has.
They are listed here because what ``ipaddress`` knows of them differs between the versions of Python.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence

import trio

from atm.errors import ConfigError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""Gives the addresses of a host, as texts. Raises OSError."""

LOOKUP_LIMIT = 10.0
"""Seconds that finding the addresses of a name may take."""

LOOKUPS_AT_A_TIME = 20

_NOT_PUBLIC_4 = [
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # behind a carrier's NAT
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's host agent, reached from any machine there
        "169.254.0.0/16",  # link-local; the clouds' metadata services
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # IETF protocols
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays, deprecated
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved; broadcast
    )
]
_GLOBAL_6 = ipaddress.IPv6Network("2000::/3")
"""All that IANA has given out as unicast; what lies outside is loopback, local, multicast or nobody's."""

_NOT_PUBLIC_6 = [
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # IETF protocols; Teredo, which embeds any IPv4 address
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which embeds any IPv4 address
        "3fff::/20",  # documentation
    )
]
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_PATTERN = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class NotAllowed(Exception):
    """The host may not be reached.

    Args:
        reason: for whoever made the task; tells no addresses.
        address: the one at fault, for the operator.
    """

    def __init__(self, reason: str, address: str = "") -> None:
        super().__init__(reason)
        self.address = address


class Gate:
    """Says to which addresses a host's name leads, if they may be reached.

    Args:
        allow: beside public addresses: networks, addresses and names (``*.example.com`` for all below that).
        public: False leaves only what is in ``allow``.
        lookup: finds addresses; by default the system's resolver does.
    Raises: ConfigError, naming the setting.
    """

    def __init__(self, allow: Sequence[str] = (), *, public: bool = True, lookup: Lookup | None = None) -> None:
        self._networks: list[Network] = []
        self._names: set[str] = set()
        self._public = public
        self._lookup = lookup or system_lookup()
        for entry in allow:
            self._add(entry)

    def _add(self, entry: object) -> None:
        text = entry.strip().lower().rstrip(".") if isinstance(entry, str) else ""
        if "/" in text or ":" in text or _ends_in_a_number(text):
            try:
                self._networks.append(ipaddress.ip_network(text))
            except ValueError as error:
                raise ConfigError("allow", f"{entry!r}: {error}") from None
        elif _PATTERN.fullmatch(text):
            self._names.add(text)
        else:
            raise ConfigError("allow", f"{entry!r} is neither a network, nor an address, nor the name of a host")

    async def addresses_of(self, host: str, port: int) -> list[str]:
        """Addresses of the host, each of which may be reached.

        Args:
            host: a name in ASCII and lower case, or an address.
        Raises: NotAllowed, OSError when there are none.
        """
        found = [host] if _is_address(host) else await self._look_up(host, port)
        for text in found:
            if not self._admits(host, ipaddress.ip_address(text)):
                raise NotAllowed(f"{host} is at an address that may not be reached", text)
        return found

    async def _look_up(self, host: str, port: int) -> list[str]:
        if len(host) > 253 or not _NAME.fullmatch(host) or _ends_in_a_number(host):
            raise NotAllowed("the host is neither a name nor an address in its usual form")
        with trio.move_on_after(LOOKUP_LIMIT):
            found = list(dict.fromkeys(await self._lookup(host, port)))
            if found:
                return found
        raise OSError(f"{host} has no address that could be found")

    def _admits(self, host: str, address: Address) -> bool:
        plain = _plain(address)
        if any(address in network or plain in network for network in self._networks):
            return True
        above = host.split(".")
        wider = {"*." + ".".join(above[count:]) for count in range(1, len(above))}
        return not self._names.isdisjoint({host} | wider) or (self._public and is_public(plain))


def is_public(address: Address) -> bool:
    """Whether the address can be that of a host in the internet, and of no other."""
    address = _plain(address)
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    return address in _GLOBAL_6 and not any(address in network for network in _NOT_PUBLIC_6)


def system_lookup() -> Lookup:
    """The system's resolver: hosts file, DNS.

    It knows no cancelling. Who waits for it can be cancelled all the same; the question itself, which changes
    nothing anywhere, ends by the resolver's own timeout, and no more than a few are under way at a time.
    """
    threads = trio.CapacityLimiter(LOOKUPS_AT_A_TIME)

    def ask(host: str, port: int) -> list[str]:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [str(where[0]) for *_, where in found]

    async def lookup(host: str, port: int) -> list[str]:
        return await trio.to_thread.run_sync(ask, host, port, abandon_on_cancel=True, limiter=threads)

    return lookup


def _plain(address: Address) -> Address:
    """The IPv4 address that a connection to this one ends at: mapped ones, and those a NAT64 translates."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host


def _ends_in_a_number(host: str) -> bool:
    """Resolvers take such a host for an address, in ways that differ: 127.1, 0x7f000001, 017700000001."""
    return _NUMBER.fullmatch(host.rpartition(".")[2]) is not None
