"""The workers of this node, as Redis knows them: registration, taking, settling, blocked types."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import trio
from msgspec.structs import replace

from atm.coordinator import Hint, WorkerInfo
from atm.coordinators.redis_bell import Bell
from atm.coordinators.redis_link import Link, Request
from atm.coordinators.redis_wire import SCRIPTS
from atm.coordinators.redis_words import encode, hint_of, lines_of, says, seconds, written
from atm.flag import Flag

REGISTRATION_TTL = 30.0
"""Seconds after which a worker that is not heard of is forgotten."""

MAX_CREDIT = 1000
"""Room remembered for a type that is not blocked; too much of it costs a refused claim, no more."""


class _Hand:
    """A worker of this node: what was last told of it, and its wake-up.

    Args:
        leads: whether this node leads.
    """

    def __init__(self, info: WorkerInfo, leads: Callable[[], bool]) -> None:
        self.info = info
        self.wake = Flag()
        self.told_of = b""  # hints that came with the wake-up, and have not been taken
        # An answer may have been lost that handed something over: the next one has to tell all.
        self.again = True
        # One object each, so that those in a row are merged; they tell what holds when they are sent.
        self.settle = Request(SCRIPTS["settle"], self._settle_arguments)
        self.register = Request(SCRIPTS["register"], self._register_arguments)
        self._leads = leads

    def hear(self, message: bytes) -> None:
        """Something was handed to this worker: this, or if nothing is said, what it has to ask for."""
        self.told_of = message
        self.wake.set()

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


class Workers:
    """The verbs of the coordinator that are a worker's."""

    def __init__(self, link: Link, bell: Bell) -> None:
        self._link = link
        self._bell = bell
        self._hands: dict[str, _Hand] = {}

    def announce(self) -> None:
        """Register all of this node once more."""
        for hand in self._hands.values():
            self._bell.post(hand.register)

    def recover(self) -> None:
        """What was said during an outage is lost, in both directions."""
        self.announce()
        for hand in self._hands.values():
            hand.again = True
            hand.wake.set()

    def wake(self, worker_id: str) -> bool:
        """Have the worker take what it was handed, if it is one of this node; whether it is."""
        hand = self._hands.get(worker_id)
        if hand is not None:
            hand.wake.set()
        return hand is not None

    async def register(self, worker: WorkerInfo) -> None:
        hand = self._hands.get(worker.id)
        if hand is None:
            hand = self._hands[worker.id] = _Hand(worker, self._bell.leads)
            self._link.listener.hear(f"worker:{worker.id}:wake", hand.hear, hand.wake.set)
        hand.info = worker
        self._bell.doubt()
        self._bell.post(hand.register)

    async def unregister(self, worker_id: str) -> None:
        if self._hands.pop(worker_id, None) is not None:
            self._link.listener.leave(f"worker:{worker_id}:wake")
        self._bell.doubt()
        self._bell.tell("unregister", id=worker_id)

    async def take(self, worker_id: str) -> list[Hint]:
        hand = self._hands[worker_id]
        while True:
            await hand.wake.wait()
            told_of, hand.told_of = hand.told_of, b""
            if told_of and not hand.again:
                return self._take(hand, lines_of(told_of))
            again, hand.again = hand.again, True
            try:
                text = await self._link.ask(says("take", id=worker_id, again=again))
            except trio.Cancelled:
                self._bell.doubt()
                self._bell.tell("give_back", id=worker_id)
                raise
            if text is not None:
                hand.again = False
                if text:
                    return [hint_of(line) for line in lines_of(text)]

    def _take(self, hand: _Hand, told_of: list[str]) -> list[Hint]:
        """Without waiting for Redis to say so: whether they are this worker's is for the store to judge."""

        def hear(left: int) -> None:
            if left:
                hand.wake.set()

        self._link.post(says("took", id=hand.info.id, hints=told_of), told=hear)
        return [hint_of(line) for line in told_of]

    async def settle(self, worker_id: str, hints: Sequence[Hint], load: int) -> None:
        hand = self._hands.get(worker_id)
        if hand is not None:
            if load < hand.info.load:
                self._bell.slots_are_freed()
            if hand.info.load != load:
                hand.info = replace(hand.info, load=load)
            self._link.post(hand.settle, hints, told=partial(self._on_settled, hand, self._bell.news()))

    def _on_settled(self, hand: _Hand, heard: Callable[[int], None], answer: int) -> None:
        if answer < 0 and self._hands.get(hand.info.id) is hand:
            # Redis has forgotten this worker.
            self._bell.post(hand.register)
        heard(answer)

    async def block(self, worker_id: str, hints: Sequence[Hint]) -> None:
        types = sorted({hint.task_type for hint in hints})
        self._bell.doubt()
        self._bell.tell("block", id=worker_id, hints=[written(hint) for hint in hints], types=types)

    async def unblock(self, task_type: str, room: int | None) -> None:
        capped = {} if room is None else {"room": room}
        self._bell.tell("unblock", type=task_type, max=MAX_CREDIT, **capped)
