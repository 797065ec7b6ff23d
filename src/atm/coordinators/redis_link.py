"""The way to Redis: the threads that use it, and whether messages get through.

    loop ── ask, post ──▶ command thread ── one group of scripts at a time ──▶ Redis
    loop ── ask, post ──▶ leadership thread (a renewal never waits behind a big group)
    loop ◀── handlers ─── listener thread ◀── channels ──────────────────────── Redis

Everything here may lose a message, and says nothing twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import msgspec
import trio

from atm.coordinators.redis_listener import Listener
from atm.coordinators.redis_wire import (
    SCRIPTS,
    Away,
    RedisSettings,
    Refused,
    Script,
    Wire,
    check,
    is_full,
    pool_of,
)
from atm.flag import Flag
from atm.serial import Call, Result, SerialThread

COMMAND_TIMEOUT = 2.0
LEADERSHIP_TIMEOUT = 0.4
"""Seconds that an answer may take."""

AWAY_AFTER = 1.0
"""Seconds of an outage until it counts as one."""

PROBE_PAUSE = (0.2, 1.0)
"""Seconds between two looks whether Redis is back: the first pause, and the longest."""

MAX_WAITING = 20_000
"""Rows that may wait for the thread; more are dropped."""

COMPLAINT_INTERVAL = 10.0
"""Seconds between two log lines about what is lost."""

logger = logging.getLogger("atm.redis")


class Request(NamedTuple):
    """A script, and what makes its arguments of a call's rows. Calls in a row with the same one are merged."""

    script: Script
    arguments: Callable[[Sequence[Any]], tuple[bytes, ...]]


class Link:
    """Scripts are run in order by ``commands`` (and aside by ``leadership``); ``listener`` hears channels.

    Args:
        renewed: is told in the loop when an outage is over.
    """

    def __init__(self, settings: RedisSettings, renewed: Callable[[], None]) -> None:
        self._settings = settings
        self._renewed = renewed
        self._suspicion = Flag()
        pool = pool_of(settings, COMMAND_TIMEOUT)
        self._wire = Wire(pool, settings.prefix)
        self._quick_wire = Wire(pool_of(settings, LEADERSHIP_TIMEOUT), settings.prefix)
        closed = partial(Away, "closed")
        self._commands = SerialThread(partial(self._carry_out, self._wire), closed=closed, last=self._end_listener)
        self._leadership = SerialThread(partial(self._carry_out, self._quick_wire), closed=closed)
        self.listener = Listener(partial(Wire, pool, settings.prefix), self._nudge, self._suspicion.set)
        self._probe = Request(SCRIPTS["probe"], lambda _: (b"{}",))
        self._token: trio.lowlevel.TrioToken | None = None
        self._bye = (msgspec.json.encode({"channel": self.listener.own}),)
        self._failing = False  # the command thread's own; the loop hears of it
        self._fails_since: float | None = None
        self._turn = trio.Event()
        self._complained = -COMPLAINT_INTERVAL
        self._dropped = 0
        self.losses = 0

    async def check(self) -> None:
        """Raises StartError when Redis cannot be used."""
        limiter = trio.CapacityLimiter(1)
        await trio.to_thread.run_sync(check, self._settings, self._wire, limiter=limiter)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the threads until cancelled."""
        self._token = trio.lowlevel.current_trio_token()
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._commands.serve)
                await nursery.start(self._leadership.serve)
                await nursery.start(self.listener.serve)
                nursery.start_soon(self._watch)
                task_status.started()
        finally:
            self._wire.close()
            self._quick_wire.close()

    # messages

    async def ask(self, request: Request, rows: Sequence[Any] = (), *, aside: bool = False) -> Any:
        """What the script answers; None when it, or its answer, was lost.

        Args:
            aside: by the thread of leadership.
        """
        thread = self._leadership if aside else self._commands
        try:
            return await thread.call(self._carry_out, request, rows)
        except Away:
            return None

    def post(
        self,
        request: Request,
        rows: Sequence[Any] = (),
        *,
        aside: bool = False,
        told: Callable[[Any], None] | None = None,
    ) -> None:
        """Have the script run, or lose it. ``told`` hears its answer, if there is one."""
        thread = self._leadership if aside else self._commands
        if thread.waiting_rows + len(rows) > MAX_WAITING:
            self.losses += 1
            self._dropped += len(rows)
            self._complain(f"Redis is too slow: {self._dropped} messages dropped so far")
            return

        def hear(result: Result) -> None:
            if told is not None:
                with suppress(Away):
                    told(result.unwrap())

        thread.post(self._carry_out, request, rows, told=hear)

    async def flush(self) -> None:
        """Return when all that was said before has been carried out, or is lost."""
        await self.ask(self._probe)

    @property
    def is_jammed(self) -> bool:
        """Whether so much waits that more had better wait, too."""
        return self._commands.waiting_rows > MAX_WAITING // 4

    def _nudge(self) -> None:
        self.post(Request(SCRIPTS["nudge"], lambda _: self._bye))

    def _end_listener(self) -> None:
        """In the command thread, when nothing else is left to do."""
        self.listener.end()
        if not self._failing:
            with suppress(Away):
                self._wire.evaluate([(SCRIPTS["nudge"], self._bye)])

    def _carry_out(self, wire: Wire, calls: list[Call]) -> None:
        """In a thread."""
        began = time.monotonic()
        if self._failing and wire is self._wire:
            calls = self._but_for_probes(calls)
        if not calls:
            return
        groups = list(_merged(calls))
        try:
            answers = wire.evaluate([(request.script, request.arguments(rows)) for request, rows, _ in groups])
        except Away as away:
            answers = [away] * len(groups)
            self._note_failure(wire, began, str(away))
        else:
            self._note_success(wire, answers)
        for (request, _, members), answer in zip(groups, answers, strict=True):
            if isinstance(answer, Refused):
                self._note_refusal(wire, began, request, answer)
                answer = Away(str(answer))
            for call in members:
                if isinstance(answer, Away):
                    self.losses += wire is self._wire
                    call.fail(answer)
                else:
                    call.succeed(answer)

    def _but_for_probes(self, calls: list[Call]) -> list[Call]:
        """During an outage all else is lost at once: nothing waits for timeout after timeout."""
        probes = [call for call in calls if call.argument is self._probe]
        self.losses += len(probes) < len(calls)
        for call in calls:
            call.fail(Away("Redis is away"))
        return probes

    # whether messages get through

    async def away(self) -> None:
        """Return when an outage has lasted for a second; at once while it goes on."""
        while True:
            if self._fails_since is None:
                await self._turn.wait()
                continue
            left = self._fails_since + AWAY_AFTER - time.monotonic()
            if left <= 0:
                await trio.lowlevel.checkpoint()
                return
            with trio.move_on_after(left):
                await self._turn.wait()

    async def back(self) -> None:
        """Return when there is no outage."""
        await trio.lowlevel.checkpoint()
        while self._fails_since is not None:
            await self._turn.wait()

    async def _watch(self) -> None:
        """Where there is reason to doubt it, ask whether messages get through, until they do."""
        while True:
            await self._suspicion.wait()
            pause, longest = PROBE_PAUSE
            while await self.ask(self._probe) is None:
                await trio.sleep(pause)
                pause = min(pause * 2, longest)

    def _note_failure(self, wire: Wire, began: float, reason: str) -> None:
        """In a thread. What fails aside is a reason to doubt."""
        if wire is not self._wire:
            self._in_loop(self._suspicion.set)
            return
        if not self._failing:
            self._failing = True
            self._in_loop(partial(self._fall_out, began, reason))

    def _note_success(self, wire: Wire, answers: Sequence[Any]) -> None:
        """In a thread."""
        if self._failing and wire is self._wire and not isinstance(answers[0], Refused):
            self._failing = False
            self._in_loop(self._come_back)

    def _note_refusal(self, wire: Wire, began: float, request: Request, refusal: Refused) -> None:
        """In a thread. A full memory is an outage, all else is for the operator."""
        text = f"{request.script.name}: {refusal}"
        if is_full(refusal):
            self._note_failure(wire, began, text)
        else:
            self._in_loop(partial(self._complain, f"Redis refused {text}"))

    def _in_loop(self, do: Callable[[], object]) -> None:
        assert self._token is not None
        self._token.run_sync_soon(do)

    def _fall_out(self, began: float, reason: str) -> None:
        logger.error("Redis is away: %s", reason)
        self._fails_since = began
        self._suspicion.set()
        self._take_turn()

    def _come_back(self) -> None:
        assert self._fails_since is not None
        logger.warning("Redis is back after %.1f s", time.monotonic() - self._fails_since)
        self._fails_since = None
        self._take_turn()
        self._renewed()

    def _take_turn(self) -> None:
        turn, self._turn = self._turn, trio.Event()
        turn.set()

    def _complain(self, text: str) -> None:
        now = time.monotonic()
        if now - self._complained >= COMPLAINT_INTERVAL:
            self._complained = now
            logger.error(text)


def _merged(calls: Sequence[Call]) -> Iterator[tuple[Request, list[Any], list[Call]]]:
    """Neighbours with the same request as one: request, rows, calls."""
    for request, members in groupby(calls, key=lambda call: call.argument):
        together = list(members)
        assert isinstance(request, Request)
        yield request, [row for call in together for row in call.rows], together
