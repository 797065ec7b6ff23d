"""What a client sends for one request, as the application sees it."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from atm.api.guard import Message
from atm.api.inbox import PARTS, Inbox


def part(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_body_is_whole_when_its_end_has_come() -> None:
    inbox = Inbox()
    assert inbox.whole_body() is None
    await inbox.put(part(b"a"))
    assert inbox.whole_body() is None
    await inbox.put(part(b"b"))
    await inbox.put(part(b"", more=False))
    assert inbox.whole_body() == b"ab"
    assert inbox.whole_body() == b"ab"


async def test_a_look_takes_nothing_out() -> None:
    inbox = Inbox()
    for letter in (b"a", b"b"):
        await inbox.put(part(letter))
        assert inbox.whole_body() is None
    await inbox.put(part(b"c", more=False))
    assert [(await inbox())["body"] for _ in range(3)] == [b"a", b"b", b"c"]


async def test_a_client_that_leaves_is_told_after_what_it_has_sent() -> None:
    inbox = Inbox()
    await inbox.put(part(b"a"))
    await inbox.put({"type": "http.disconnect"})
    assert inbox.is_over
    assert inbox.whole_body() is None
    assert [(await inbox())["type"] for _ in range(3)] == ["http.request", "http.disconnect", "http.disconnect"]


async def test_a_sender_waits_for_an_application_that_is_slow(autojump_clock: MockClock) -> None:
    inbox = Inbox()
    for _ in range(PARTS):
        await inbox.put(part(b"a"))
    with trio.move_on_after(1) as patience:
        await inbox.put(part(b"a"))
    assert patience.cancelled_caught
    inbox.close()
    await inbox.put(part(b"nobody wants it"))
