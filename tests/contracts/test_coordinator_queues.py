"""The coordinator's queues: what is served when, what waits, and what holds up nobody."""

from __future__ import annotations

import trio
from trio.abc import Clock

from contracts.hall import PATIENCE, Hall

# the order of service


async def test_high_goes_before_normal_before_low(hall: Hall, clock: Clock | None) -> None:
    await hall.worker()
    await hall.push("a-low", "b-low", priority=-1)
    await hall.push("a-normal")
    await hall.push("b-high", "a-high", priority=1)
    assert await hall.serve() == ["b-high", "a-high", "a-normal", "a-low", "b-low"]


async def test_a_high_one_that_comes_late_goes_first_all_the_same(hall: Hall, clock: Clock | None) -> None:
    await hall.worker(capacity=1)
    await hall.push("a1", "a2", "b3")
    assert await hall.serve() == ["a1"]
    await hall.push("c4", priority=1)
    await hall.settle("a1")
    assert await hall.serve_one_by_one() == ["c4", "a2", "b3"]


async def test_first_come_first_served_across_types(hall: Hall, clock: Clock | None) -> None:
    await hall.worker()
    names = ["a1", "b2", "a3", "a4", "c5", "b6", "b7", "a8"]
    await hall.push(*names[:3])
    await hall.push(*names[3:])
    assert await hall.serve() == names


async def test_first_come_first_served_also_from_dispatch_to_dispatch(hall: Hall, clock: Clock | None) -> None:
    await hall.worker(capacity=1)
    names = ["b1", "a2", "a3", "c4", "b5"]
    await hall.push(*names)
    assert await hall.serve_one_by_one() == names


async def test_a_dispatch_moves_no_more_than_its_limit(hall: Hall, clock: Clock | None) -> None:
    await hall.worker()
    await hall.push("a1", priority=1)
    await hall.push("a2", "a3", "b4", "b5")
    assert await hall.dispatch(3) == 3
    assert await hall.take() == ["a1", "a2", "a3"]
    assert await hall.dispatch(3) == 2
    assert await hall.take() == ["b4", "b5"]
    assert await hall.dispatch(3) == 0


# free slots


async def test_only_free_slots_get_work(hall: Hall, clock: Clock | None) -> None:
    await hall.worker(capacity=5, load=3)
    await hall.push("a1", "b2", "a3")
    assert await hall.serve() == ["a1", "b2"]
    assert await hall.lengths() == [0, 1, 0]


async def test_what_was_handed_or_taken_keeps_its_slot(hall: Hall, clock: Clock | None) -> None:
    await hall.worker(capacity=2)
    await hall.push("a1", "a2", "a3")
    assert await hall.dispatch() == 2
    assert await hall.dispatch() == 0, "handed"
    await hall.take()
    assert await hall.dispatch() == 0, "taken"
    await hall.settle("a1", "a2", load=2)
    assert await hall.dispatch() == 0, "running"
    await hall.settle(load=1)
    assert await hall.serve() == ["a3"]


async def test_a_worker_without_a_slot_gets_nothing(hall: Hall, clock: Clock | None) -> None:
    await hall.worker(capacity=2, load=3)
    await hall.push("a1")
    assert await hall.serve() == []
    assert await hall.lengths() == [0, 1, 0]


async def test_without_any_worker_all_waits(hall: Hall, clock: Clock | None) -> None:
    await hall.push("a1", "b2")
    assert await hall.dispatch() == 0
    assert (await hall.lengths(), await hall.parked()) == ([0, 2, 0], [0, 2, 0])


async def test_types_without_a_worker_hold_up_nobody(hall: Hall, clock: Clock | None) -> None:
    await hall.worker(types=["a"], capacity=4)
    await hall.push("x1", "y2", priority=1)
    await hall.push("x3", "a4", "y5", "a6")
    await hall.push("a7", "x8", priority=-1)
    assert await hall.serve() == ["a4", "a6", "a7"]
    assert await hall.parked() == await hall.lengths() == [2, 2, 1]


async def test_a_type_waits_for_its_worker(hall: Hall, clock: Clock | None) -> None:
    await hall.worker(types=["a"])
    await hall.push("x1", "x2")
    assert await hall.serve() == []
    await hall.worker("late", types=["x"])
    assert await hall.serve("late") == ["x1", "x2"]


# known hints


async def test_a_hint_that_is_dealt_with_may_come_again(hall: Hall, clock: Clock | None) -> None:
    await hall.worker()
    await hall.push("a1")
    assert await hall.serve() == ["a1"]
    await hall.settle("a1")
    await hall.push("a1")
    assert await hall.serve() == ["a1"]


# delayed hints


async def test_a_delayed_task_comes_when_it_is_due(hall: Hall, clock: Clock | None) -> None:
    await hall.worker()
    await hall.push("a1", delay=50)
    assert (await hall.lengths(), await hall.delayed()) == ([0, 0, 0], 1)
    assert await hall.serve() == []
    await hall.sleep(25)
    assert await hall.serve() == []
    await hall.sleep(26)
    assert await hall.serve() == ["a1"]
    assert await hall.delayed() == 0


async def test_delayed_tasks_come_in_the_order_in_which_they_are_due(hall: Hall, clock: Clock | None) -> None:
    await hall.worker()
    await hall.push("a1", "a2", delay=30)
    await hall.push("b3", delay=10)
    await hall.push("c4", delay=20, priority=-1)
    assert await hall.delayed() == 4
    await hall.sleep(40)
    assert await hall.serve() == ["b3", "a1", "a2", "c4"]


async def test_a_delayed_task_stands_behind_those_that_were_ready_before(hall: Hall, clock: Clock | None) -> None:
    await hall.push("a1", "c2", delay=10)
    await hall.sleep(5)
    await hall.push("a3", "b4")
    await hall.sleep(6)
    await hall.worker()
    assert await hall.serve() == ["a3", "b4", "a1", "c2"]


async def test_a_delayed_hint_pushed_as_due_now_runs_now(hall: Hall, clock: Clock | None) -> None:
    await hall.worker()
    await hall.push("a1", delay=40)
    await hall.push("a1")
    assert await hall.delayed() == 0
    assert await hall.serve() == ["a1"]
    await hall.settle("a1")
    await hall.sleep(50)
    assert await hall.serve() == [], "the old hint is no hint any more"


async def test_of_two_times_the_earlier_counts(hall: Hall, clock: Clock | None) -> None:
    await hall.worker()
    await hall.push("a1", delay=100)
    await hall.push("a1", delay=10)
    await hall.push("a1", delay=50)
    await hall.sleep(11)
    assert await hall.serve() == ["a1"]
    await hall.sleep(100)
    assert await hall.serve() == []


async def test_a_task_that_waits_is_not_put_off(hall: Hall, clock: Clock | None) -> None:
    await hall.worker()
    await hall.push("a1")
    await hall.push("a1", delay=100)
    assert await hall.serve() == ["a1"]


async def test_a_task_may_be_delayed_again_after_it_came(hall: Hall, clock: Clock | None) -> None:
    await hall.worker()
    for _ in range(3):
        await hall.push("a1", delay=10)
        assert await hall.serve() == []
        await hall.sleep(11)
        assert await hall.serve() == ["a1"]
        await hall.settle("a1")


# withdrawn hints


async def test_what_is_withdrawn_from_a_queue_is_gone_and_the_others_keep_their_places(
    hall: Hall, clock: Clock | None
) -> None:
    await hall.push("a1", "b2", "a3", "a4", "b5")
    await hall.push("a6", "a7", priority=1)
    await hall.withdraw("a3", "b5")
    await hall.withdraw("a6", priority=1)
    assert await hall.lengths() == [1, 3, 0]
    await hall.worker()
    assert await hall.serve() == ["a7", "a1", "b2", "a4"]


async def test_what_is_withdrawn_while_it_is_parked_is_gone(hall: Hall, clock: Clock | None) -> None:
    await hall.worker(types=["a"])
    await hall.push("x1", "y2", "x3", "x4")
    await hall.push("x5", priority=-1)
    assert await hall.serve() == []
    await hall.withdraw("x3", "y2")
    await hall.withdraw("x5", priority=-1)
    assert await hall.parked() == await hall.lengths() == [0, 2, 0]
    await hall.worker("late", types=["x", "y"])
    assert await hall.serve("late") == ["x1", "x4"]


async def test_a_queue_of_which_all_is_withdrawn_is_as_new(hall: Hall, clock: Clock | None) -> None:
    await hall.worker(types=["a"])
    await hall.push("x1", "x2")
    assert await hall.serve() == []
    await hall.push("b3")
    await hall.push("a4", delay=1000)
    await hall.withdraw("x2", "x1", "b3", "a4")
    assert [(queue.length, queue.parked, queue.oldest_age) for queue in await hall.queues()] == [(0, 0, 0)] * 3
    assert await hall.delayed() == 0
    await hall.push("a5")
    assert await hall.serve() == ["a5"]


async def test_a_delayed_task_that_is_withdrawn_does_not_come(hall: Hall, clock: Clock | None) -> None:
    await hall.worker()
    await hall.push("a1", "a2", "a3", delay=20)
    await hall.push("a4", delay=20, priority=-1)
    await hall.withdraw("a2")
    await hall.withdraw("a4", priority=-1)
    assert await hall.delayed() == 2
    await hall.sleep(21)
    assert await hall.serve() == ["a1", "a3"]


async def test_to_withdraw_what_is_not_there_changes_nothing(hall: Hall, clock: Clock | None) -> None:
    await hall.worker(capacity=2, types=["a"])
    await hall.push("a1", "a2", "a3", "x4")
    await hall.push("a5", delay=1000)
    assert await hall.serve() == ["a1", "a2"]
    await hall.withdraw("a9", "b9", "x9", "a1")
    await hall.withdraw()
    assert (await hall.lengths(), await hall.delayed()) == ([0, 2, 0], 1)
    await hall.settle("a1", "a2")
    assert await hall.serve() == ["a3"]


async def test_a_hint_that_was_withdrawn_may_come_again(hall: Hall, clock: Clock | None) -> None:
    await hall.worker()
    for delay in (0, 10, 10):
        await hall.push("a1", delay=delay)
        await hall.withdraw("a1")
        await hall.push("a1", delay=delay)
        await hall.push("a2", delay=delay)
        await hall.sleep(delay + 1)
        assert await hall.serve() == ["a1", "a2"]
        await hall.settle("a1", "a2")
        assert await hall.delayed() == 0
        assert await hall.serve() == []


# wake-ups


async def test_a_new_task_is_news(hall: Hall, clock: Clock | None) -> None:
    await hall.settled_down()
    await hall.push("a1")
    assert await hall.has_changed()
    assert not await hall.has_changed()


async def test_a_due_time_is_news(hall: Hall, clock: Clock | None) -> None:
    before = hall.now()
    await hall.push("a1", delay=120)
    await hall.push("a2", delay=60)
    await hall.settled_down()
    await hall.coordinator.changed()
    assert 59 <= hall.now() - before < 120
    await hall.worker()
    assert await hall.serve() == ["a2"]
    await hall.settled_down()
    await hall.coordinator.changed()
    assert hall.now() - before >= 119


async def test_a_waiter_is_woken_by_each_kind_of_news(hall: Hall, clock: Clock | None) -> None:
    async def unblock() -> None:
        await hall.coordinator.unblock("a", None)

    async def unregister() -> None:
        await hall.coordinator.unregister("w")

    async def register() -> None:
        await hall.worker(types=["x"])

    await hall.push("a1")
    for news in (register, hall.settle, unblock, unregister):
        await hall.settled_down()
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hall.coordinator.changed)
                await trio.testing.wait_all_tasks_blocked()
                await news()


# figures


async def test_the_figures_of_empty_queues(hall: Hall, clock: Clock | None) -> None:
    queues = await hall.queues()
    assert [(queue.name, queue.length, queue.parked) for queue in queues] == [
        ("high", 0, 0),
        ("normal", 0, 0),
        ("low", 0, 0),
    ]
    assert [queue.oldest_age for queue in queues] == [0, 0, 0]


async def test_length_counts_what_is_ready_and_not_handed(hall: Hall, clock: Clock | None) -> None:
    await hall.worker(capacity=2, types=["a"])
    await hall.push("a1", "a2", "a3", "x4")
    await hall.push("a5", priority=1)
    await hall.push("a6", delay=10)
    assert await hall.lengths() == [1, 4, 0]
    await hall.serve()
    assert await hall.lengths() == [0, 3, 0]
    await hall.sleep(11)
    await hall.dispatch()
    assert (await hall.lengths(), await hall.delayed()) == ([0, 4, 0], 0)


async def test_what_is_queued_again_and_again_stays_once_and_in_its_place(hall: Hall, clock: Clock | None) -> None:
    await hall.worker(types=["a"], capacity=1)
    await hall.push("a1", "x2", "a3", "a4")
    assert await hall.serve() == ["a1"], "the type x has no worker, and no slot is free any more"
    for _ in range(3):
        assert await hall.requeue("a4", "x2", "a3") == 0
    assert await hall.requeue("a5", "x6", "a3") == 2
    assert sum(await hall.lengths()) == 5
    await hall.settle("a1")
    assert await hall.serve_one_by_one() == ["a3", "a4", "a5"]
    assert await hall.requeue("x2", "x6", "a7") == 1
    assert await hall.serve() == ["a7"]
    assert await hall.lengths() == [0, 2, 0]
