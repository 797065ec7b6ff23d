"""The clients: creates at a steady rate, some of them followed by a cancel, a retry, or both."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import trio

from .ledger import Create, Ledger
from .wire import LostError, NotSentError, Requests

CLIENTS = 32
"""Creates under way at a time."""

CATCH_UP = 0.5
"""Seconds of creates that are made up for when the node was slow or away."""

RETRY_PAUSE = 0.05
LONG = 10.0
"""Seconds of the longest nap."""

NARROW_CAP = 4
"""Tasks of the type ``narrow`` that may run at a time."""

OUR_TYPES = ("quick", "nap", "narrow", "flaky", "late", "chatty")
"""Those whose runs are recorded and whose result tells the attempt."""

TASK_TYPES = {
    "flaky": {"retry_strategy": "FIXED", "retry_delay": 0.1},
    "late": {"retry_strategy": "EXPONENTIAL", "retry_delay": 0.1, "backoff_rate": 1.5},
    "narrow": {"max_concurrent": NARROW_CAP},
}

_KINDS = ("quick", "nap", "flaky", "late", "narrow", "chatty", "echo", "sleep")
_WEIGHTS = (45, 14, 12, 10, 5, 5, 5, 4)


class Load:
    """Clients of the node behind ``wire``. Runs until ``stop`` is called and every client has its answers.

    Args:
        rate: creates a second.
        long: the part of the naps that last for seconds. Unless it is 0, work of the capped type is long as well.
    """

    def __init__(
        self, wire: Requests, ledger: Ledger, rate: float, luck: random.Random, *, long: float = 0.0
    ) -> None:
        self._wire = wire
        self._long = long
        self._ledger = ledger
        self._rate = rate
        self._luck = luck
        self._numbers = itertools.count(1)
        self._clients = trio.Semaphore(CLIENTS)
        self._stopping = trio.Event()

    def stop(self) -> None:
        self._stopping.set()

    async def run(self) -> None:
        async with trio.open_nursery() as clients:
            due = trio.current_time()
            while not self._stopping.is_set():
                await self._clients.acquire()
                batch = list(self._wishes())
                self._ledger.creates += batch
                clients.start_soon(self._client, batch, clients)
                # What a dead node missed is not made up for: the rate is that of a node that is there.
                due = max(due, trio.current_time() - CATCH_UP) + len(batch) / self._rate
                with trio.move_on_at(due):
                    await self._stopping.wait()

    def _wishes(self) -> Iterator[Create]:
        """One create, or some for a batch. All of a batch have keys, so that it can be repeated."""
        if self._luck.random() < 0.02:
            for _ in range(self._luck.randint(2, 20)):
                yield self._wish(keyed=True)
        else:
            yield self._wish(keyed=self._luck.random() < 0.5)

    def _wish(self, *, keyed: bool) -> Create:
        luck, ref = self._luck, f"r{next(self._numbers)}"
        (kind,) = luck.choices(_KINDS, _WEIGHTS)
        payload: dict[str, Any] = {"ref": ref}
        body: dict[str, Any] = {"task_type": kind, "payload": payload, "priority": luck.choice((1, 0, 0, -1))}
        if kind in ("nap", "narrow", "sleep"):
            longest = 0.3
            if self._long and kind == "narrow":
                longest = 1.5  # so that the cap is often reached
            elif kind == "nap" and self._long and luck.random() < self._long:
                longest = LONG
            payload["seconds"] = round(luck.uniform(0, longest), 3)
        elif kind == "late":
            payload |= {"seconds": round(luck.uniform(0, 0.5), 3), "cleanup": round(luck.uniform(0, 0.1), 3)}
            body["timeout"] = round(luck.uniform(0.1, 0.3), 3)
        if luck.random() < 0.1:
            body["delay"] = round(luck.uniform(0.05, 2), 3)
        body["max_retry"] = luck.randint(0, 3)
        if keyed:
            body["idempotency_key"] = f"key-{ref}"
        return Create(ref, body)

    async def _client(self, batch: list[Create], clients: trio.Nursery) -> None:
        try:
            created = await self._create(batch)
        finally:
            self._clients.release()
        for create in created:
            chance = self._luck.random()
            if chance < 0.16:
                pause = 0.0 if chance < 0.05 else self._luck.uniform(0, 0.6)
                clients.start_soon(self._cancel, create, pause, chance < 0.04)
            elif chance < 0.22:
                clients.start_soon(self._retry, create, self._luck.uniform(0.5, 3))

    async def _create(self, batch: list[Create]) -> list[Create]:
        """Create until it is known what came of it; those that are known to exist."""
        single = len(batch) == 1
        path = "/api/v1/tasks" if single else "/api/v1/tasks/batch"
        body = batch[0].body if single else {"tasks": [create.body for create in batch]}
        while True:
            try:
                status, answer = await self._wire.request("POST", path, body)
            except NotSentError:
                await trio.sleep(RETRY_PAUSE)
                continue
            except LostError:
                if batch[0].key is None:
                    batch[0].given_up = True
                    return []
                for create in batch:
                    create.repeated += 1
                await trio.sleep(RETRY_PAUSE)
                continue
            if status not in (200, 201):
                self._ledger.surprises.append(f"create: {status} {answer}")
                return []
            data = answer["data"]
            for create, task_id in zip(batch, [data["task_id"]] if single else data["task_ids"], strict=True):
                create.answers.append(task_id)
            if batch[0].key is not None and self._luck.random() < 0.05:
                continue  # once more with the same keys: the same tasks
            return batch

    async def _cancel(self, create: Create, pause: float, and_retry: bool) -> None:
        await trio.sleep(pause)
        await self._ask(create, "cancel", self._ledger.cancels, (200, 202, 409))
        if and_retry:
            await self._retry(create, self._luck.uniform(0, 1))

    async def _retry(self, create: Create, pause: float) -> None:
        await trio.sleep(pause)
        await self._ask(create, "retry", self._ledger.retries, (200, 409))

    async def _ask(
        self, create: Create, verb: str, answers: dict[str, list[int | None]], expected: tuple[int, ...]
    ) -> None:
        """Ask once; the question is repeated only if nobody heard it."""
        assert create.task_id is not None
        known = answers.setdefault(create.task_id, [])
        while True:
            try:
                status, answer = await self._wire.request("POST", f"/api/v1/tasks/{create.task_id}/{verb}")
            except NotSentError:
                await trio.sleep(RETRY_PAUSE)
                continue
            except LostError:
                known.append(None)
                return
            known.append(status)
            if status not in expected:
                self._ledger.surprises.append(f"{verb} {create.task_id}: {status} {answer}")
            return
