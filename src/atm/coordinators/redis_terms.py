"""Leadership: standing for it, holding a term, renewing it.

A term is a scope whose deadline is moved by each renewal, to well before the time at which Redis would let another
node lead. All that speaks of it goes by the connection of leadership.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from atm.coordinators.redis_link import Link
from atm.coordinators.redis_words import says
from atm.flag import Flag

TTL_MARGIN = 1 / 6
"""The part of a term, at its end, that its holder does not trust."""

RENEW_PAUSE = 0.02
"""Seconds between two tries to renew."""

logger = logging.getLogger("atm.redis")


class Term:
    """While this node leads.

    Attributes:
        run_id: Redis' own, when the term began.
        mark: the incarnation whose queues are filled; empty while that is not known.
    """

    def __init__(self, candidate: str, run_id: str) -> None:
        self.candidate = candidate
        self.run_id = run_id
        self.scope = trio.CancelScope()
        self.mark = ""

    def end(self, reason: str) -> None:
        self.scope.cancel(reason=reason)


class Terms:
    """The terms of this node, one after the other.

    Args:
        wake: is called when a term begins, and whenever somebody wakes the leader.
        ttl: seconds until another node leads when the leader falls silent.
        renew_interval: seconds between two renewals.

    Attributes:
        current: None while this node does not lead.
        leader: who leads, as far as this node knows.
    """

    def __init__(self, link: Link, wake: Callable[[], None], *, ttl: float, renew_interval: float) -> None:
        self.current: Term | None = None
        self.leader: str | None = None
        self._link = link
        self._wake = wake
        self._ttl = ttl
        self._renew_interval = renew_interval
        self._began = Flag()
        self._resigned = Flag()

    def leads(self) -> bool:
        return self.current is not None

    def try_again(self) -> None:
        """Another try to lead makes sense now."""
        self._resigned.set()

    async def lead(self, candidate: str, duties: Callable[[], Awaitable[None]]) -> None:
        request = says("lead", me=candidate, ttl=round(self._ttl * 1000))
        self._link.listener.hear("scheduler:resigned", lambda _: self.try_again(), self.try_again)
        try:
            while True:
                asked_at = trio.current_time()
                answer = await self._link.ask(request, aside=True)
                if answer is None or not answer[0]:
                    await self._follow(answer)
                elif await self._hold(Term(candidate, answer[1].decode()), asked_at, duties):
                    return
        finally:
            self.leader = None
            self._link.listener.leave("scheduler:resigned")
            self._link.post(says("resign", me=candidate), aside=True)

    async def _follow(self, refusal: Any) -> None:
        """Wait until another try makes sense."""
        pause = self._renew_interval
        if refusal is None:
            self.leader = None
        else:
            _, holder, left = refusal
            self.leader = holder.decode()
            pause = min(pause, left / 1000 + 0.001) if left >= 0 else pause
        with trio.move_on_after(pause):
            await self._resigned.wait()

    async def _hold(self, term: Term, asked_at: float, duties: Callable[[], Awaitable[None]]) -> bool:
        """Lead while the term lasts; whether the duties ended by themselves."""
        logger.info("this node leads, as %s", term.candidate)
        self._extend(term, asked_at)
        self.current = term
        self.leader = term.candidate
        self._wake()
        self._began.set()
        self._link.listener.hear("scheduler:wake", lambda _: self._wake(), self._wake)
        try:
            with term.scope:
                await duties()
        finally:
            self.current = self.leader = None
            self._link.listener.leave("scheduler:wake")
        if term.scope.cancelled_caught:
            logger.warning("this node leads no more: its right was lost or could not be renewed")
        return not term.scope.cancelled_caught

    def _extend(self, term: Term, asked_at: float) -> None:
        term.scope.deadline = asked_at + self._ttl * (1 - TTL_MARGIN)

    async def renew(self) -> None:
        """Renew term after term, until cancelled."""
        while True:
            await self._began.wait()
            while self.current is not None:
                await trio.sleep(self._renew_interval)
                if self.current is not None:
                    await self._renew_once(self.current)

    async def _renew_once(self, term: Term) -> None:
        asked_at = trio.current_time()
        request = says("renew", me=term.candidate, ttl=round(self._ttl * 1000))
        answer = None
        while answer is None and self.current is term:
            asked_at = trio.current_time()
            answer = await self._link.ask(request, aside=True)
            if answer is None:
                await trio.sleep(RENEW_PAUSE)
        if answer is not None and answer.decode() == term.run_id:
            self._extend(term, asked_at)
        elif answer is not None:
            term.end("the leadership was lost" if not answer else "Redis was started anew")
