"""The coordinator of many nodes: queues, registry, messages and leadership in Redis.

    redis.py            joins the parts                  lua/               what they do there, each in one step
    redis_queues.py     what the queues hold             redis_words.py     what is written there, and read
    redis_dispatch.py   the leader hands over            redis_link.py      ways to Redis, outages
    redis_plan.py       who gets what                    redis_listener.py  channels
    redis_workers.py    this node's workers take         redis_wire.py      connections
    redis_terms.py      who leads
    redis_bell.py       what wakes the leader
    redis_messages.py   cancels and events

A node may die between any two steps, and any message may be lost: what was handed over and is not taken goes
back, what is lost comes again by the leader's sweep of the store.
"""

from __future__ import annotations

import trio

from atm.coordinators.redis_bell import Bell
from atm.coordinators.redis_dispatch import Dispatcher
from atm.coordinators.redis_link import Link
from atm.coordinators.redis_messages import Messages
from atm.coordinators.redis_queues import Queues
from atm.coordinators.redis_terms import Terms
from atm.coordinators.redis_wire import RedisSettings
from atm.coordinators.redis_workers import Workers

__all__ = ["RedisCoordinator", "RedisSettings"]


class RedisCoordinator:
    """Implements ``atm.coordinator.Coordinator``.

    Args:
        leader_ttl: seconds until another node leads when the leader falls silent.
        renew_interval: seconds between two renewals.
    Raises: ConfigError for settings that cannot be read. ``run`` raises StartError when Redis cannot be used.
    """

    def __init__(self, settings: RedisSettings, *, leader_ttl: float = 0.6, renew_interval: float = 0.15) -> None:
        self._link = link = Link(settings, self._on_renewed)
        self._bell = bell = Bell(link, lambda: terms.leads())
        self._terms = terms = Terms(link, bell.ring, ttl=leader_ttl, renew_interval=renew_interval)
        self._workers = workers = Workers(link, bell)
        queues = Queues(link, terms, bell)
        dispatcher = Dispatcher(link, terms, bell, workers.wake)
        messages = Messages(link)

        # Each verb is a part's own: one that passes it on would cost a coroutine each time.
        self.away = link.away
        self.back = link.back
        self.lead = terms.lead
        self.has_forgotten = queues.has_forgotten
        self.begin_rebuild = queues.begin_rebuild
        self.end_rebuild = queues.end_rebuild
        self.push = queues.push
        self.requeue = queues.requeue
        self.withdraw = queues.withdraw
        self.overview = queues.overview
        self.changed = dispatcher.changed
        self.dispatch = dispatcher.dispatch
        self.register = workers.register
        self.unregister = workers.unregister
        self.take = workers.take
        self.settle = workers.settle
        self.block = workers.block
        self.unblock = workers.unblock
        self.request_cancel = messages.request_cancel
        self.listen_cancels = messages.listen_cancels
        self.publish = messages.publish
        self.listen_events = messages.listen_events

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await self._link.check()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._link.run)
            nursery.start_soon(self._terms.renew)
            self._link.listener.hear("scheduler:hello", lambda _: self._workers.announce(), self._workers.announce)
            task_status.started()

    def leader(self) -> str | None:
        return self._terms.leader

    def _on_renewed(self) -> None:
        self._workers.recover()
        self._bell.ring()
        self._terms.try_again()
