"""The way to Redis: the connections that lead there, and whether messages get through.

    ask, post ──▶ commands ── one group of scripts at a time ──▶ Redis
    ask, post ──▶ leadership (a renewal never waits behind a big group)
    handlers ◀─── listener ◀── channels ──────────────────────── Redis

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

import trio

from atm.coordinators.redis_listener import Listener
from atm.coordinators.redis_wire import (
    SCRIPTS,
    Away,
    Ear,
    Line,
    RedisSettings,
    Refused,
    Script,
    check,
    is_full,
)
from atm.flag import Flag
from atm.lane import Lane
from atm.serial import Call, Result

COMMAND_TIMEOUT = 2.0
LEADERSHIP_TIMEOUT = 0.4
"""Seconds that an answer may take."""

AWAY_AFTER = 1.0
"""Seconds of an outage until it counts as one."""

PROBE_PAUSE = (0.2, 1.0)
"""Seconds between two looks whether Redis is back: the first pause, and the longest."""

MAX_WAITING = 20_000
"""Rows that may wait to be sent; more are dropped."""

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
        self._line = Line(settings, COMMAND_TIMEOUT)
        self._quick_line = Line(settings, LEADERSHIP_TIMEOUT)
        self._commands = self._lane(self._line)
        self._leadership = self._lane(self._quick_line)
        self.listener = Listener(Ear(settings, COMMAND_TIMEOUT), settings.prefix, self._suspicion.set)
        self._probe = Request(SCRIPTS["probe"], lambda _: (b"{}",))
        self._fails_since: float | None = None
        self._turn = trio.Event()
        self._complained = -COMPLAINT_INTERVAL
        self._dropped = 0
        self.losses = 0

    def _lane(self, line: Line) -> Lane:
        return Lane(partial(self._carry_out, line), mixed=True, thorough=True, closed=partial(Away, "closed"))

    async def check(self) -> None:
        """Raises StartError when Redis cannot be used."""
        await check(self._settings, self._line)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the connections until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._commands.serve)
                await nursery.start(self._leadership.serve)
                nursery.start_soon(self.listener.serve)
                nursery.start_soon(self._watch)
                task_status.started()
        finally:
            self._line.close()
            self._quick_line.close()

    # messages

    async def ask(self, request: Request, rows: Sequence[Any] = (), *, aside: bool = False) -> Any:
        """What the script answers; None when it, or its answer, was lost.

        Args:
            aside: by the connection of leadership.
        """
        lane = self._leadership if aside else self._commands
        try:
            return await lane.call(self._carry_out, request, rows)
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
        lane = self._leadership if aside else self._commands
        if lane.waiting_rows + len(rows) > MAX_WAITING:
            self.losses += 1
            self._dropped += len(rows)
            self._complain(f"Redis is too slow: {self._dropped} messages dropped so far")
            return

        def hear(result: Result) -> None:
            if told is not None:
                with suppress(Away):
                    told(result.unwrap())

        lane.post(self._carry_out, request, rows, told=hear)

    async def flush(self) -> None:
        """Return when all that was said before has been carried out, or is lost."""
        await self.ask(self._probe)

    @property
    def is_jammed(self) -> bool:
        """Whether so much waits that more had better wait, too."""
        return self._commands.waiting_rows > MAX_WAITING // 4

    async def _carry_out(self, line: Line, calls: list[Call]) -> None:
        began = time.monotonic()
        if self._fails_since is not None and line is self._line:
            calls = self._but_for_probes(calls)
        if not calls:
            return
        groups = list(_merged(calls))
        try:
            answers = await line.evaluate(
                [(request.script, request.arguments(rows)) for request, rows, _ in groups]
            )
        except Away as away:
            answers = [away] * len(groups)
            self._note_failure(line, began, str(away))
        else:
            self._note_success(line, answers)
        for (request, _, members), answer in zip(groups, answers, strict=True):
            if isinstance(answer, Refused):
                self._note_refusal(line, began, request, answer)
                answer = Away(str(answer))
            for call in members:
                if isinstance(answer, Away):
                    self.losses += line is self._line
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

    def _note_failure(self, line: Line, began: float, reason: str) -> None:
        """What fails aside is a reason to doubt."""
        if line is not self._line:
            self._suspicion.set()
        elif self._fails_since is None:
            self._fall_out(began, reason)

    def _note_success(self, line: Line, answers: Sequence[Any]) -> None:
        if self._fails_since is not None and line is self._line and not isinstance(answers[0], Refused):
            self._come_back()

    def _note_refusal(self, line: Line, began: float, request: Request, refusal: Refused) -> None:
        """A full memory is an outage, all else is for the operator."""
        text = f"{request.script.name}: {refusal}"
        if is_full(refusal):
            self._note_failure(line, began, text)
        else:
            self._complain(f"Redis refused {text}")

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
