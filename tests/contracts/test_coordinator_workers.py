"""The coordinator's workers: taking, settling, leaving; types at their caps; the load-balance strategies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import trio
from trio.abc import Clock

from atm.coordinator import Hint, WorkerInfo
from atm.nursery.balance import ConsistentHash, LeastTask, RoundRobin
from contracts.hall import Hall, worker

# registry


async def test_registered_workers_are_listed_as_they_announced_themselves(hall: Hall, clock: Clock | None) -> None:
    assert await hall.workers() == []
    await hall.worker("w1", capacity=3)
    await hall.worker("w2", types=["x"], name="n", address="http://127.0.0.1:1", last_seen=5.0)
    found = {info.id: info for info in await hall.workers()}
    assert found == {
        "w1": worker("w1", capacity=3),
        "w2": worker("w2", types=["x"], name="n", address="http://127.0.0.1:1", last_seen=5.0),
    }


async def test_a_worker_that_registers_again_is_still_one(hall: Hall, clock: Clock | None) -> None:
    await hall.worker(load=1)
    await hall.worker(load=4, last_seen=9.0)
    assert await hall.workers() == [worker(load=4, last_seen=9.0)]


async def test_the_load_listed_is_the_one_last_told(hall: Hall, clock: Clock | None) -> None:
    await hall.worker()
    await hall.settle(load=3)
    assert [info.load for info in await hall.workers()] == [3]


async def test_a_worker_that_left_is_not_listed(hall: Hall, clock: Clock | None) -> None:
    await hall.worker()
    await hall.coordinator.unregister("w")
    await hall.coordinator.unregister("w")
    assert await hall.workers() == []


async def test_a_draining_worker_gets_nothing_more(hall: Hall, clock: Clock | None) -> None:
    await hall.worker(draining=True)
    await hall.push("a1")
    assert await hall.serve() == []
    assert [info.draining for info in await hall.workers()] == [True]
    await hall.worker()
    assert await hall.serve() == ["a1"]


async def test_words_of_a_worker_that_left_do_no_harm(hall: Hall, clock: Clock | None) -> None:
    await hall.settle("a1", worker_id="gone", load=1)
    await hall.block("a1", worker_id="gone")
    await hall.worker()
    await hall.push("a1")
    assert await hall.serve() == ["a1"]


# take


async def test_take_waits_until_there_is_something(hall: Hall, clock: Clock | None) -> None:
    taken: list[str] = []

    async def take() -> None:
        taken.extend(item.task_id for item in await hall.coordinator.take("w"))

    await hall.worker()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        assert taken == []
        await hall.push("a1", "b2")
        await hall.dispatch()
    assert taken == ["a1", "b2"]


async def test_take_gives_hints_as_they_were_pushed(hall: Hall, clock: Clock | None) -> None:
    await hall.worker()
    await hall.push("a1", priority=-1)
    await hall.dispatch()
    (item,) = await hall.coordinator.take("w")
    assert (item.task_id, item.task_type, item.priority) == ("a1", "a", -1)


async def test_take_gives_all_of_several_dispatches(hall: Hall, clock: Clock | None) -> None:
    await hall.worker()
    await hall.push("a1", "a2", "a3")
    for _ in range(3):
        assert await hall.dispatch(1) == 1
    assert await hall.take() == ["a1", "a2", "a3"]
    assert await hall.take() == []


# what comes back


async def test_what_was_handed_or_taken_goes_back_to_the_heads(hall: Hall, clock: Clock | None) -> None:
    await hall.worker(capacity=2)
    await hall.push("a1", "a2", "a3", "a4", "a5")
    assert await hall.serve() == ["a1", "a2"]
    await hall.settle("a1", load=0)
    assert await hall.dispatch() == 1
    await hall.coordinator.unregister("w")
    assert await hall.lengths() == [0, 4, 0]
    await hall.worker("next")
    assert await hall.serve("next") == ["a2", "a3", "a4", "a5"]


async def test_what_was_handed_goes_back_to_the_heads_across_types(hall: Hall, clock: Clock | None) -> None:
    await hall.worker(capacity=3)
    await hall.push("b1", "a2", "c3", "a4", "b5")
    await hall.push("c6", priority=1)
    assert await hall.serve() == ["c6", "b1", "a2"]
    await hall.coordinator.unregister("w")
    await hall.worker("next")
    assert await hall.serve("next") == ["c6", "b1", "a2", "c3", "a4", "b5"]


async def test_what_a_lost_worker_had_goes_to_another(hall: Hall, clock: Clock | None) -> None:
    await hall.worker("w1", capacity=2)
    await hall.push("a1", "a2")
    await hall.dispatch()
    await hall.worker("w2")
    await hall.coordinator.unregister("w1")
    assert await hall.serve("w2") == ["a1", "a2"]


# types at their caps


async def _blocked(hall: Hall, *names: str) -> None:
    """These wait, and the store has refused the first of them for its type's cap."""
    await hall.worker()
    await hall.push(names[0])
    assert await hall.serve() == [names[0]]
    await hall.push(*names[1:])
    await hall.block(names[0])


async def test_a_blocked_type_waits_and_holds_up_nobody(hall: Hall, clock: Clock | None) -> None:
    await _blocked(hall, "a1", "a2", "b3")
    assert await hall.lengths() == [0, 3, 0]
    assert await hall.serve() == ["b3"]
    assert (await hall.lengths(), await hall.parked()) == ([0, 2, 0], [0, 2, 0])
    await hall.push("a4", "c5", priority=1)
    assert await hall.serve() == ["c5"], "blocked in every priority"
    assert await hall.parked() == [1, 2, 0]


async def test_an_unblocked_type_goes_on_where_it_stopped(hall: Hall, clock: Clock | None) -> None:
    await _blocked(hall, "a1", "a2", "b3")
    await hall.coordinator.unblock("a", None)
    assert await hall.parked() == [0, 0, 0]
    assert await hall.serve() == ["a1", "a2", "b3"]


async def test_room_for_so_many_lets_so_many_go(hall: Hall, clock: Clock | None) -> None:
    await _blocked(hall, "a1", "a2", "a3", "a4")
    await hall.coordinator.unblock("a", 2)
    assert await hall.serve() == ["a1", "a2"]
    assert await hall.serve() == []
    assert await hall.parked() == [0, 2, 0]
    await hall.coordinator.unblock("a", 1)
    await hall.coordinator.unblock("a", 1)
    assert await hall.serve() == ["a3", "a4"]


async def test_room_goes_to_the_highest_priority(hall: Hall, clock: Clock | None) -> None:
    await _blocked(hall, "a1", "a2")
    await hall.push("a3", priority=1)
    await hall.coordinator.unblock("a", 2)
    assert await hall.serve() == ["a3", "a1"]


async def test_room_of_one_type_is_no_room_of_another(hall: Hall, clock: Clock | None) -> None:
    await _blocked(hall, "a1")
    await hall.push("b2")
    assert await hall.serve() == ["b2"]
    await hall.block("b2")
    await hall.coordinator.unblock("b", 1)
    assert await hall.serve() == ["b2"]


async def test_room_of_a_type_that_is_not_blocked_limits_nothing(hall: Hall, clock: Clock | None) -> None:
    await hall.worker()
    await hall.coordinator.unblock("a", 1)
    await hall.push("a1", "a2", "a3")
    assert await hall.serve() == ["a1", "a2", "a3"]


async def test_room_made_during_the_claim_that_is_refused_counts(hall: Hall, clock: Clock | None) -> None:
    await hall.worker()
    await hall.push("a1", "a2", "a3")
    assert await hall.serve() == ["a1", "a2", "a3"]
    await hall.coordinator.unblock("a", 2)
    await hall.block("a1", "a2", "a3")
    assert await hall.serve() == ["a1", "a2"]


async def test_room_made_during_a_claim_counts_also_for_a_type_that_was_blocked_before(
    hall: Hall, clock: Clock | None
) -> None:
    await _blocked(hall, "a1")
    for _ in range(3):
        await hall.coordinator.unblock("a", 1)
        assert await hall.serve() == ["a1"]
        await hall.coordinator.unblock("a", 1)
        await hall.block("a1")
        assert await hall.serve() == ["a1"]
        await hall.block("a1")
        assert await hall.serve() == []


async def test_unblocking_for_all_forgets_old_room(hall: Hall, clock: Clock | None) -> None:
    await _blocked(hall, "a1", "a2")
    await hall.coordinator.unblock("a", None)
    assert await hall.serve() == ["a1", "a2"]
    await hall.coordinator.unblock("a", 1)
    await hall.coordinator.unblock("a", None)
    await hall.block("a1", "a2")
    assert await hall.serve() == []


async def test_what_was_blocked_comes_back_to_its_place(hall: Hall, clock: Clock | None) -> None:
    await hall.worker(capacity=3)
    await hall.push("a1", "b2", "a3", "a4", "b5")
    assert await hall.serve() == ["a1", "b2", "a3"]
    await hall.block("a1", "a3")
    await hall.settle("b2")
    await hall.coordinator.unblock("a", None)
    assert await hall.serve() == ["a1", "a3", "a4"]
    await hall.settle("a1", "a3", "a4")
    assert await hall.serve() == ["b5"]


async def test_blocking_frees_the_slot(hall: Hall, clock: Clock | None) -> None:
    await hall.worker(capacity=1)
    await hall.push("a1", "b2")
    assert await hall.serve() == ["a1"]
    await hall.block("a1")
    assert await hall.serve() == ["b2"]


async def test_block_after_unregister_does_not_double(hall: Hall, clock: Clock | None) -> None:
    await hall.worker()
    await hall.push("a1")
    await hall.serve()
    await hall.coordinator.unregister("w")
    await hall.block("a1")
    await hall.worker()
    await hall.coordinator.unblock("a", None)
    assert await hall.serve() == ["a1"]


# load balance


class Watching:
    """A strategy that notes whom it could choose among, and chooses the last."""

    def __init__(self) -> None:
        self.seen: list[dict[str, int]] = []

    def choose(self, hint: Hint, workers: Sequence[WorkerInfo]) -> WorkerInfo:
        self.seen.append({info.id: info.load for info in workers})
        return sorted(workers, key=lambda info: info.id)[-1]


async def test_the_strategy_chooses_among_the_able_with_what_they_have_already(
    hall: Hall, clock: Clock | None
) -> None:
    hall.balance = watching = Watching()
    await hall.worker("w1", capacity=5, load=1)
    await hall.worker("w2", capacity=5)
    await hall.worker("w3", capacity=2)
    await hall.worker("w4", types=["x"])
    await hall.worker("w5", draining=True)
    await hall.worker("w6", capacity=1, load=1)
    await hall.push("a1", "a2", "a3")
    assert await hall.dispatch() == 3
    assert watching.seen == [{"w1": 1, "w2": 0, "w3": 0}, {"w1": 1, "w2": 0, "w3": 1}, {"w1": 1, "w2": 0}]
    assert await hall.take("w3") == ["a1", "a2"]
    assert await hall.take("w2") == ["a3"]
    assert await hall.take("w1") == []


async def test_each_type_goes_to_the_workers_that_support_it(hall: Hall, clock: Clock | None) -> None:
    await hall.worker("w1", types=["a"])
    await hall.worker("w2", types=["b"])
    await hall.push("a1", "b2", "b3", "a4")
    await hall.dispatch()
    assert await hall.take("w1") == ["a1", "a4"]
    assert await hall.take("w2") == ["b2", "b3"]


async def test_a_full_worker_leaves_the_rest_to_the_others(hall: Hall, clock: Clock | None) -> None:
    await hall.worker("w1", capacity=1, types=["a"])
    await hall.worker("w2", capacity=3, types=["a", "b"])
    await hall.push(*[f"a{number}" for number in range(6)], "b9")
    assert await hall.dispatch() == 4
    assert await hall.lengths() == [0, 3, 0]
    assert len(await hall.take("w1")) == 1
    assert len(await hall.take("w2")) == 3


async def test_least_task_fills_workers_evenly_by_their_capacity(hall: Hall, clock: Clock | None) -> None:
    hall.balance = LeastTask()
    await hall.worker("small", capacity=4)
    await hall.worker("large", capacity=8)
    await hall.push(*[f"{'ab'[number % 2]}{number}" for number in range(6)])
    await hall.dispatch()
    assert (len(await hall.take("small")), len(await hall.take("large"))) == (2, 4)


async def test_round_robin_gives_to_each_in_turn(hall: Hall, clock: Clock | None) -> None:
    hall.balance = RoundRobin()
    for worker_id in ("w1", "w2", "w3"):
        await hall.worker(worker_id)
    await hall.push(*[f"a{number}" for number in range(6)])
    await hall.dispatch()
    assert [await hall.take(f"w{n}") for n in (1, 2, 3)] == [["a0", "a3"], ["a1", "a4"], ["a2", "a5"]]


async def test_consistent_hash_gives_the_same_task_to_the_same_worker(hall: Hall, clock: Clock | None) -> None:
    hall.balance = ConsistentHash()
    names = [f"a{number}" for number in range(8)]
    places: list[dict[str, list[str]]] = []
    for worker_id in ("w1", "w2", "w3"):
        await hall.worker(worker_id, capacity=8)
    for _ in range(2):
        await hall.push(*names)
        await hall.dispatch()
        places.append({worker_id: await hall.take(worker_id) for worker_id in ("w1", "w2", "w3")})
        for worker_id, taken in places[-1].items():
            await hall.settle(*taken, worker_id=worker_id)
    assert places[0] == places[1]
    assert sorted(name for taken in places[0].values() for name in taken) == names


@pytest.mark.parametrize("capacity", [1, 3])
async def test_nothing_is_lost_or_doubled_whatever_workers_do(
    hall: Hall, clock: Clock | None, capacity: int
) -> None:
    served: Counter[str] = Counter()
    names = [f"{'abc'[number % 3]}{number}" for number in range(60)]
    for at, priority in ((0, -1), (20, 0), (40, 1)):
        await hall.push(*names[at : at + 20], priority=priority)
    for turn in range(200):
        worker_id = f"w{turn % 4}"
        await hall.worker(worker_id, capacity=capacity)
        await hall.dispatch()
        taken = await hall.take(worker_id)
        if turn % 7 == 3:
            await hall.coordinator.unregister(worker_id)
        elif turn % 5 == 2:
            await hall.block(*taken, worker_id=worker_id)
            for name in taken:
                await hall.coordinator.unblock(name[0], 1)
        else:
            served.update(taken)
            await hall.settle(*taken, worker_id=worker_id)
    for number in range(4):
        await hall.coordinator.unregister(f"w{number}")
    await hall.worker("last", capacity=100)
    for task_type in "abc":
        await hall.coordinator.unblock(task_type, None)
    served.update(await hall.serve("last"))
    assert served == Counter(names)
    assert await hall.lengths() == [0, 0, 0]
