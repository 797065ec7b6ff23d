"""Which addresses are public, and what an allow-list adds."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from atm.executors.addresses import LOOKUP_LIMIT, LOOKUPS_AT_A_TIME, Gate, NotAllowed, is_public, system_lookup
from atm.testing.leftovers import busy_threads

NOT_PUBLIC = """
0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.127.255.255 127.0.0.1 127.255.255.254 168.63.129.16 169.254.169.254
172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1 192.168.255.1 198.18.0.1 198.19.255.255
198.51.100.1 203.0.113.9 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
:: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:0:127.0.0.1 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe
64:ff9b:1::1 100::1 2001::1 2001:10::1 2001:20::1 2001:db8::1 2002:7f00:1:: 2002:5db8:d70e::1 3fff::1 5f00::1
fc00::1 fd00:ec2::254 fe80::1 fe80::1%eth0 fec0::1 ff02::1
"""

PUBLIC = """
1.1.1.1 93.184.215.14 100.63.255.255 100.128.0.0 172.15.255.255 172.32.0.0 198.20.0.0 223.255.255.255
::ffff:93.184.215.14 64:ff9b::5db8:d70e 2606:4700:4700::1111 2a00:1450::1
"""


@pytest.mark.parametrize("address", NOT_PUBLIC.split())
def test_an_address_of_nobody_in_the_internet_is_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC.split())
def test_others_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def gate(*allow: str, public: bool = True, **known: str) -> Gate:
    async def lookup(host: str, port: int) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        return known[host.replace(".", "_")].split()

    return Gate(allow, public=public, lookup=lookup)


@pytest.mark.parametrize(
    ("allow", "host", "address"),
    [
        ("10.0.0.0/8", "10.1.2.3", ""),
        ("10.0.0.0/8", "::ffff:10.1.2.3", ""),
        ("10.0.0.0/8", "a.test", "10.1.2.3 10.9.9.9"),
        ("127.0.0.1", "127.0.0.1", ""),
        ("::1", "::1", ""),
        ("fd00::/8", "a.test", "fd00::7"),
        ("Internal.Example", "internal.example", "10.1.2.3"),
        ("internal.example.", "internal.example", "192.168.0.1 fd00::1"),
        ("*.example", "a.b.example", "10.1.2.3"),
        ("", "a.test", "93.184.215.14 2606:4700:4700::1111"),
    ],
)
async def test_what_is_allowed_may_be_reached(allow: str, host: str, address: str) -> None:
    open_one = gate(*filter(None, [allow]), **{host.replace(".", "_"): address})
    assert await open_one.addresses_of(host, 80) == (address.split() or [host])


@pytest.mark.parametrize(
    ("allow", "host", "address"),
    [
        ("10.0.0.0/8", "11.0.0.1.example", "192.168.0.1"),
        ("10.0.0.0/8", "a.test", "10.1.2.3 192.168.0.1"),
        ("10.0.0.0/8", "a.test", "93.184.215.14 ::1"),
        ("internal.example", "other.example", "10.1.2.3"),
        ("internal.example", "a.internal.example", "10.1.2.3"),
        ("*.example", "example", "10.1.2.3"),
        ("*.example", "a.example.evil.test", "10.1.2.3"),
        ("*.example", "aexample", "10.1.2.3"),
    ],
)
async def test_nothing_beside_it_may_be_reached(allow: str, host: str, address: str) -> None:
    with pytest.raises(NotAllowed) as caught:
        await gate(allow, **{host.replace(".", "_"): address}).addresses_of(host, 80)
    assert address.split()[-1] not in str(caught.value)
    assert caught.value.address in address.split()


async def test_without_the_public_ones_only_the_list_counts() -> None:
    closed = gate("10.0.0.0/8", public=False, a_test="93.184.215.14", b_test="10.0.0.1")
    assert await closed.addresses_of("b.test", 80) == ["10.0.0.1"]
    with pytest.raises(NotAllowed):
        await closed.addresses_of("a.test", 80)


async def test_a_resolver_that_says_nothing_is_left(autojump_clock: MockClock) -> None:
    async def silent(host: str, port: int) -> Sequence[str]:
        await trio.sleep_forever()
        raise AssertionError

    with pytest.raises(OSError, match=r"a\.test has no address"):
        await Gate(lookup=silent).addresses_of("a.test", 80)
    assert trio.current_time() == LOOKUP_LIMIT


async def test_who_waits_for_the_systems_resolver_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its threads end when it answers; of those there are only so many."""
    answers, asked = threading.Event(), threading.Semaphore(0)

    def slow(host: str, port: int, **how: object) -> list[object]:
        asked.release()
        assert answers.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    lookup = system_lookup()
    before = len(busy_threads())
    async with trio.open_nursery() as nursery:
        for _ in range(LOOKUPS_AT_A_TIME + 5):
            nursery.start_soon(lookup, "a.test", 80)
        for _ in range(LOOKUPS_AT_A_TIME):
            assert await trio.to_thread.run_sync(asked.acquire, True, 20)
        assert not asked.acquire(blocking=False)
        nursery.cancel_scope.cancel()
    assert len(busy_threads()) == before + LOOKUPS_AT_A_TIME
    answers.set()
    with trio.fail_after(20):
        while len(busy_threads()) > before:
            await trio.sleep(0.01)
