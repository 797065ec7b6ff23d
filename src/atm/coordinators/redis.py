"""The coordinator of many nodes: queues, registry, messages and leadership in Redis.

    redis.py           the verbs                    lua/             what they do there, each in one step
    redis_plan.py      who gets what                redis_link.py    threads, outages
    redis_listener.py  channels                     redis_wire.py    connections
    redis_words.py     what is written, and read

A node may die between any two steps, and any message may be lost: what was handed over and is not taken goes
back, what is lost comes again by the leader's sweep of the store.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
import trio
from msgspec.structs import replace

from atm.coordinator import Balance, CancelRequest, Hint, Overview, TaskEvent, WorkerInfo
from atm.coordinators.redis_link import Link, Request
from atm.coordinators.redis_plan import Plan
from atm.coordinators.redis_wire import SCRIPTS, RedisSettings
from atm.coordinators.redis_words import (
    encode,
    hint_of,
    lines_of,
    overview_of,
    room_of,
    says,
    seconds,
    workers_of,
    written,
)
from atm.flag import Flag
from atm.task import QUEUES, TERMINAL, Status

REGISTRATION_TTL = 30.0
"""Seconds after which a worker that is not heard of is forgotten."""

HANDOVER_PATIENCE = 0.3
"""Seconds after which what was handed to a worker, and not taken, goes back."""

SUBSCRIBE_PATIENCE = 2.0
"""Seconds that a new subscription is waited for; during an outage it comes later."""

JAM_PATIENCE = 0.5
"""Seconds that a push waits while too much waits already."""

MAX_CREDIT = 1000
"""Room remembered for a type that is not blocked; too much of it costs a refused claim, no more."""

TTL_MARGIN = 1 / 6
"""The part of a term, at its end, that its holder does not trust."""

RENEW_PAUSE = 0.02
"""Seconds between two tries to renew."""

FIRST_REACH = 16
"""Hints that a dispatch looks at for one slot, as the first may not be able to run; then four times more."""

PAGE = 1000

EVENTS = {
    Status.PENDING: "task_created",
    Status.PROCESSING: "task_assigned",
    Status.SUCCESS: "task_completed",
    Status.FAILED: "task_failed",
    Status.TIMEOUT: "task_failed",
    Status.CANCELLED: "task_cancelled",
}

__all__ = ["RedisCoordinator", "RedisSettings"]

logger = logging.getLogger("atm.redis")


class _Hand:
    """A worker of this node: what was last told of it, and its wake-up.

    Args:
        leads: whether this node leads.
    """

    def __init__(self, info: WorkerInfo, leads: Callable[[], bool]) -> None:
        self.info = info
        self.wake = Flag()
        # An answer may have been lost that handed something over: the next one has to tell all.
        self.again = True
        # One object each, so that those in a row are merged; they tell what holds when they are sent.
        self.settle = Request(SCRIPTS["settle"], self._settle_arguments)
        self.register = Request(SCRIPTS["register"], self._register_arguments)
        self._leads = leads

    def _settle_arguments(self, hints: Sequence[Hint]) -> tuple[bytes, ...]:
        document = {
            "id": self.info.id,
            "hints": [written(hint) for hint in hints],
            "load": str(self.info.load),
            "seen": seconds(time.time()),
            "leads": self._leads(),
        }
        return (encode(document),)

    def _register_arguments(self, _: object) -> tuple[bytes, ...]:
        info = self.info
        facts: dict[str, object] = {
            "id": info.id,
            "name": info.name,
            "address": info.address,
            "capacity": info.capacity,
            "current_load": info.load,
            "last_heartbeat": seconds(info.last_seen),
            "draining": int(info.draining),
        }
        document = {
            "id": info.id,
            "facts": [str(part) for pair in facts.items() for part in pair],
            "types": sorted(info.task_types),
            "draining": info.draining,
            "ttl": round(REGISTRATION_TTL * 1000),
            "leads": self._leads(),
        }
        return (encode(document),)


class _Term:
    def __init__(self, candidate: str, run_id: str, scope: trio.CancelScope) -> None:
        self.candidate = candidate
        self.run_id = run_id
        self.scope = scope
        self.mark = ""
        """The incarnation whose queues are filled; empty while that is not known."""


class _Ends(msgspec.Struct):
    """A message of a node to the others."""

    node: str
    ends: list[tuple[str, Status]]


class _Seen(NamedTuple):
    """What a look saw."""

    workers: list[WorkerInfo]
    room: dict[str, int]
    lines: set[str]
    heads: list[list[str]]


class RedisCoordinator:
    """Implements ``atm.coordinator.Coordinator``.

    Args:
        leader_ttl: seconds until another node leads when the leader falls silent.
        renew_interval: seconds between two renewals.
    Raises: ConfigError for settings that cannot be read. ``run`` raises StartError when Redis cannot be used.
    """

    def __init__(self, settings: RedisSettings, *, leader_ttl: float = 0.6, renew_interval: float = 0.15) -> None:
        self._link = Link(settings, self._on_renewed)
        self._ttl = leader_ttl
        self._renew_interval = renew_interval
        self._node = uuid.uuid4().hex
        self._hands: dict[str, _Hand] = {}
        self._term: _Term | None = None
        self._term_began = Flag()
        self._resigned = Flag()
        self._leader: str | None = None
        self._changed = Flag()
        self._next_due = math.inf
        self._looks = 0
        self._slots_were_short = False  # at the last look, for what waits
        self._losses_before_rebuild = 0
        self._event_listeners: list[Callable[[Sequence[TaskEvent]], None]] = []
        self._cancel_listeners: dict[str, Callable[[CancelRequest], None]] = {}
        self._push = Request(SCRIPTS["push"], self._pushed)
        self._publish = Request(SCRIPTS["publish"], self._published)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await self._link.check()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._link.run)
            nursery.start_soon(self._renew)
            self._link.listener.hear("scheduler:hello", self._on_hello, self._announce)
            task_status.started()

    def _leads(self) -> bool:
        return self._term is not None

    def _on_renewed(self) -> None:
        """What was said during an outage is lost."""
        self._announce()
        for hand in self._hands.values():
            hand.again = True
            hand.wake.set()
        self._changed.set()
        self._resigned.set()

    def _on_hello(self, _: bytes) -> None:
        self._announce()

    def _announce(self) -> None:
        for hand in self._hands.values():
            self._link.post(hand.register, told=self._news())

    def _news(self) -> Callable[[int], None]:
        """Hears the answer of a script that is about to be sent: 1 if this node, which leads, should look."""
        return partial(self._heard, self._looks)

    def _heard(self, looks: int, answer: int) -> None:
        # What was sent later has seen it.
        if answer == 1 and self._looks == looks:
            self._changed.set()

    # terms

    def leader(self) -> str | None:
        return self._leader

    async def away(self) -> None:
        await self._link.away()

    async def back(self) -> None:
        await self._link.back()

    async def lead(self, candidate: str, duties: Callable[[], Awaitable[None]]) -> None:
        request = says("lead", me=candidate, ttl=round(self._ttl * 1000))
        self._link.listener.hear("scheduler:resigned", lambda _: self._resigned.set(), self._resigned.set)
        try:
            while True:
                asked_at = trio.current_time()
                answer = await self._link.ask(request, aside=True)
                if answer is None or not answer[0]:
                    await self._follow(answer)
                elif await self._hold(_Term(candidate, answer[1].decode(), trio.CancelScope()), asked_at, duties):
                    return
        finally:
            self._leader = None
            self._link.listener.leave("scheduler:resigned")
            self._link.post(says("resign", me=candidate), aside=True)

    async def _follow(self, refusal: Any) -> None:
        """Wait until another try makes sense."""
        pause = self._renew_interval
        if refusal is None:
            self._leader = None
        else:
            _, holder, left = refusal
            self._leader = holder.decode()
            pause = min(pause, left / 1000 + 0.001) if left >= 0 else pause
        with trio.move_on_after(pause):
            await self._resigned.wait()

    async def _hold(self, term: _Term, asked_at: float, duties: Callable[[], Awaitable[None]]) -> bool:
        """Lead while the term lasts; whether the duties ended by themselves."""
        logger.info("this node leads, as %s", term.candidate)
        self._extend(term, asked_at)
        self._term = term
        self._leader = term.candidate
        self._changed.set()
        self._term_began.set()
        self._link.listener.hear("scheduler:wake", lambda _: self._changed.set(), self._changed.set)
        try:
            with term.scope:
                await duties()
        finally:
            self._term = self._leader = None
            self._link.listener.leave("scheduler:wake")
        if term.scope.cancelled_caught:
            logger.warning("this node leads no more: its right was lost or could not be renewed")
        return not term.scope.cancelled_caught

    def _extend(self, term: _Term, asked_at: float) -> None:
        term.scope.deadline = asked_at + self._ttl * (1 - TTL_MARGIN)

    async def _renew(self) -> None:
        while True:
            await self._term_began.wait()
            while self._term is not None:
                await trio.sleep(self._renew_interval)
                if self._term is not None:
                    await self._renew_once(self._term)

    async def _renew_once(self, term: _Term) -> None:
        asked_at = trio.current_time()
        request = says("renew", me=term.candidate, ttl=round(self._ttl * 1000))
        answer = None
        while answer is None and self._term is term:
            asked_at = trio.current_time()
            answer = await self._link.ask(request, aside=True)
            if answer is None:
                await trio.sleep(RENEW_PAUSE)
        if answer is not None and answer.decode() == term.run_id:
            self._extend(term, asked_at)
        elif answer is not None:
            term.scope.cancel(reason="the leadership was lost" if not answer else "Redis was started anew")

    # what the queues hold

    async def has_forgotten(self) -> bool:
        answer = await self._link.ask(says("incarnation"))
        if answer is None or answer[0] != answer[1]:
            return True
        self._trust(answer[0])
        return False

    def _trust(self, mark: bytes) -> None:
        if self._term is not None:
            self._term.mark = mark.decode()

    async def begin_rebuild(self) -> None:
        self._losses_before_rebuild = self._link.losses
        await self._link.ask(says("begin_rebuild", me=self._leader))

    async def end_rebuild(self) -> None:
        await self._link.flush()
        mark = b""
        if self._link.losses == self._losses_before_rebuild:
            mark = await self._link.ask(says("end_rebuild", me=self._leader)) or b""
        if mark:
            self._trust(mark)
        elif self._term is not None:
            self._term.scope.cancel(reason="the queues were not filled well")

    async def push(self, hints: Sequence[Hint]) -> None:
        # If there may be slots for them the look comes in the same trip.
        looks = self._term is not None and not self._slots_were_short and any(hint.delay <= 0 for hint in hints)
        for start in range(0, len(hints), PAGE):
            if self._link.is_jammed:
                with trio.move_on_after(JAM_PATIENCE):
                    await self._link.flush()
            told = None if looks else self._news()
            self._link.post(self._push, hints[start : start + PAGE], told=told)
        if looks:
            self._changed.set()

    async def requeue(self, hints: Sequence[Hint]) -> int:
        now: dict[str, list[str]] = {}
        for hint in hints:
            now.setdefault(str(hint.priority), []).append(f"{hint.task_id}:{hint.task_type}")
        heard = self._news()
        answer = await self._link.ask(says("requeue", now=now, leads=self._leads()))
        if answer is None:
            return 0
        missing, news = answer
        heard(news)
        return int(missing)

    def _pushed(self, hints: Sequence[Hint]) -> tuple[bytes, ...]:
        now: dict[str, list[str]] = {}
        later: dict[str, int] = {}
        for hint in hints:
            if hint.delay > 0:
                text, delay = written(hint), math.ceil(hint.delay * 1000)
                later[text] = min(delay, later.get(text, delay))
            else:
                now.setdefault(str(hint.priority), []).append(f"{hint.task_id}:{hint.task_type}")
        if now and later:
            # The earlier time counts.
            for priority, elements in now.items():
                for element in elements:
                    later.pop(f"{element}:{priority}", None)
        delayed = [part for pair in later.items() for part in pair]
        return (encode({"now": now, "later": delayed, "leads": self._leads()}),)

    async def overview(self) -> Overview | None:
        answer = await self._link.ask(says("overview"))
        return None if answer is None else overview_of(*answer)

    async def changed(self) -> None:
        with trio.CancelScope(deadline=self._next_due):
            await self._changed.wait()

    async def dispatch(self, balance: Balance, limit: int) -> int:
        moved, reach = 0, FIRST_REACH
        while moved < limit:
            seen = await self._look(limit - moved, reach)
            if seen is None or not seen.workers:
                break
            plan = Plan(balance, seen.workers, seen.room, seen.lines, limit - moved)
            await self._fill(plan, seen)
            self._slots_were_short = not plan.left
            moved += await self._move(plan)
            if not plan.parks or not plan.left:
                break
            reach = min(reach * 4, limit)
        return moved

    async def _look(self, limit: int, reach: int) -> _Seen | None:
        term = self._term
        self._next_due = math.inf
        if term is None:
            await trio.lowlevel.checkpoint()
            return None
        patience = round(HANDOVER_PATIENCE * 1000)
        self._looks += 1
        request = says("look", me=term.candidate, mark=term.mark, limit=limit, reach=reach, patience=patience)
        answer = await self._link.ask(request)
        if answer is None:
            return None
        if answer[0] != b"ok":
            term.scope.cancel(reason=answer[0].decode())
            return None
        if answer[1]:
            self._next_due = trio.current_time() + int(answer[1]) / 1000
        workers = workers_of(answer[2])
        workers.sort(key=lambda info: info.id)
        return _Seen(
            workers, room_of(answer[3]), set(lines_of(answer[4])), [lines_of(text) for text in answer[5:]]
        )

    async def _fill(self, plan: Plan, seen: _Seen) -> None:
        runnable = [line for line in seen.lines if plan.can_run(line.rpartition(":")[0])]
        asked = plan.left
        parked: dict[str, list[str]] = {}
        if runnable:
            answer = await self._link.ask(says("heads", lines=runnable, limit=asked))
            parked = dict(zip(runnable, map(lines_of, answer or ()), strict=False))
        for (priority, name), heads in zip(QUEUES.items(), seen.heads, strict=True):
            of_priority = {line: found for line, found in parked.items() if line.endswith(f":{priority}")}
            if of_priority:
                plan.serve_lines(priority, of_priority, asked)
            plan.serve_queue(f"queue:{name}", priority, heads)

    async def _move(self, plan: Plan) -> int:
        term = self._term
        if not plan.sources or term is None:
            return 0
        own = [worker_id in self._hands for worker_id in plan.workers]
        for worker_id in plan.workers:
            if worker_id in self._hands:
                # Now, so that it asks in the same trip.
                self._hands[worker_id].wake.set()
        request = says(
            "move", me=term.candidate, workers=plan.workers, own=own, room=plan.used_room, sources=plan.sources
        )
        moved: int | None = await self._link.ask(request)
        if moved is None:
            return 0
        if moved < 0:
            term.scope.cancel(reason="the leadership was lost")
            return 0
        return moved

    # workers

    async def register(self, worker: WorkerInfo) -> None:
        hand = self._hands.get(worker.id)
        if hand is None:
            hand = self._hands[worker.id] = _Hand(worker, self._leads)
            self._link.listener.hear(f"worker:{worker.id}:wake", lambda _: hand.wake.set(), hand.wake.set)
        hand.info = worker
        self._link.post(hand.register, told=self._news())

    async def unregister(self, worker_id: str) -> None:
        if self._hands.pop(worker_id, None) is not None:
            self._link.listener.leave(f"worker:{worker_id}:wake")
        self._link.post(says("unregister", id=worker_id, leads=self._leads()), told=self._news())

    async def take(self, worker_id: str) -> list[Hint]:
        hand = self._hands[worker_id]
        while True:
            await hand.wake.wait()
            again, hand.again = hand.again, True
            try:
                text = await self._link.ask(says("take", id=worker_id, again=again))
            except trio.Cancelled:
                self._link.post(says("give_back", id=worker_id, leads=self._leads()), told=self._news())
                raise
            if text is not None:
                hand.again = False
                if text:
                    return [hint_of(hint) for hint in lines_of(text)]

    async def settle(self, worker_id: str, hints: Sequence[Hint], load: int) -> None:
        hand = self._hands.get(worker_id)
        if hand is not None:
            if load < hand.info.load and self._term is not None and self._slots_were_short:
                # What waits goes into the slots that are free now: the look comes in the same trip.
                self._changed.set()
            if hand.info.load != load:
                hand.info = replace(hand.info, load=load)
            self._link.post(hand.settle, hints, told=partial(self._on_settled, hand, self._news()))

    def _on_settled(self, hand: _Hand, heard: Callable[[int], None], answer: int) -> None:
        if answer < 0 and self._hands.get(hand.info.id) is hand:
            # Redis has forgotten this worker.
            self._link.post(hand.register, told=self._news())
        heard(answer)

    async def block(self, worker_id: str, hints: Sequence[Hint]) -> None:
        types = sorted({hint.task_type for hint in hints})
        refused = [written(hint) for hint in hints]
        leads = self._leads()
        self._link.post(says("block", id=worker_id, hints=refused, types=types, leads=leads), told=self._news())

    async def unblock(self, task_type: str, room: int | None) -> None:
        document: dict[str, object] = {"type": task_type, "max": MAX_CREDIT, "leads": self._leads()}
        if room is not None:
            document["room"] = room
        self._link.post(says("unblock", **document), told=self._news())

    # messages

    async def request_cancel(self, worker_id: str, request: CancelRequest) -> None:
        deliver = self._cancel_listeners.get(worker_id)
        document = {"id": worker_id, "task": request.task_id, "attempt": request.attempt}
        self._link.post(says("cancel", silent=deliver is not None, **document))
        if deliver is not None:
            deliver(request)

    async def listen_cancels(
        self,
        worker_id: str,
        deliver: Callable[[CancelRequest], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        def hear(message: bytes) -> None:
            task_id, _, attempt = message.decode(errors="replace").partition(" ")
            if attempt.isdecimal():
                deliver(CancelRequest(task_id, int(attempt)))

        channel = f"worker:{worker_id}:cancel"
        subscribed = trio.Event()
        self._cancel_listeners[worker_id] = deliver
        self._link.listener.hear(channel, hear, subscribed.set)
        try:
            with trio.move_on_after(SUBSCRIBE_PATIENCE):
                await subscribed.wait()
            task_status.started()
            await trio.sleep_forever()
        finally:
            self._link.listener.leave(channel)
            del self._cancel_listeners[worker_id]

    async def publish(self, events: Sequence[TaskEvent]) -> None:
        if events:
            self._link.post(self._publish, events)
            for deliver in self._event_listeners:
                deliver(events)

    def _published(self, events: Sequence[TaskEvent]) -> tuple[bytes, ...]:
        ends = [(event.task_id, event.status) for event in events if event.status in TERMINAL]
        message = encode(_Ends(self._node, ends)) if ends else b""
        facts = [part for event in events for part in (EVENTS[event.status], event.task_id, event.status)]
        return (b"{}", message, encode(facts))

    async def listen_events(
        self,
        deliver: Callable[[Sequence[TaskEvent]], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Of other nodes' events the ends alone."""
        subscribed = trio.Event()
        self._event_listeners.append(deliver)
        self._link.listener.hear("task:ended", self._on_ends, subscribed.set)
        try:
            with trio.move_on_after(SUBSCRIBE_PATIENCE):
                await subscribed.wait()
            task_status.started()
            await trio.sleep_forever()
        finally:
            self._event_listeners.remove(deliver)
            if not self._event_listeners:
                self._link.listener.leave("task:ended")

    def _on_ends(self, message: bytes) -> None:
        try:
            told = msgspec.json.decode(message, type=_Ends)
        except msgspec.DecodeError:
            return
        if told.node != self._node:
            events = [TaskEvent(task_id, status) for task_id, status in told.ends]
            for deliver in self._event_listeners:
                deliver(events)
