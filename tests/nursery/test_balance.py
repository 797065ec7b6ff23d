"""The load-balance strategies, and how one is found by its name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from atm.coordinator import Hint, WorkerInfo
from atm.errors import ConfigError
from atm.nursery.balance import ConsistentHash, LeastTask, RoundRobin, load


def _worker(worker_id: str, load: int = 0, capacity: int = 10) -> WorkerInfo:
    types = frozenset({"echo"})
    return WorkerInfo(
        id=worker_id, name="", address="", capacity=capacity, load=load, task_types=types, last_seen=0
    )


def _hint(number: int = 0, task_type: str = "echo") -> Hint:
    return Hint(f"task-{number}", task_type, 0)


# least_task


def test_least_task_takes_the_one_with_the_fewest_busy() -> None:
    workers = [_worker("w1", 5), _worker("w2", 2), _worker("w3", 3)]
    assert LeastTask().choose(_hint(), workers).id == "w2"


def test_least_task_counts_in_parts_of_the_capacity() -> None:
    workers = [_worker("small", 2, capacity=4), _worker("large", 40, capacity=100)]
    assert LeastTask().choose(_hint(), workers).id == "large"


def test_least_task_does_not_depend_on_the_order_of_equals() -> None:
    workers = [_worker("w2"), _worker("w1"), _worker("w3")]
    assert LeastTask().choose(_hint(), workers).id == "w1"
    assert LeastTask().choose(_hint(), workers[::-1]).id == "w1"


# round_robin


def test_round_robin_takes_each_in_turn() -> None:
    balance, workers = RoundRobin(), [_worker("w3"), _worker("w1"), _worker("w2")]
    assert [balance.choose(_hint(), workers).id for _ in range(7)] == ["w1", "w2", "w3"] * 2 + ["w1"]


def test_round_robin_goes_on_when_workers_come_and_go() -> None:
    balance = RoundRobin()
    w1, w2, w3, w4 = [_worker(f"w{number}") for number in range(1, 5)]
    assert balance.choose(_hint(), [w1, w2, w3]).id == "w1"
    assert balance.choose(_hint(), [w1, w3]).id == "w3", "w2 is full or gone"
    assert balance.choose(_hint(), [w1, w2, w3, w4]).id == "w4"
    assert balance.choose(_hint(), [w2]).id == "w2"
    assert balance.choose(_hint(), [w2]).id == "w2"


# consistent_hash


def _places(ids: list[str], tasks: int = 600) -> dict[int, str]:
    balance = ConsistentHash()
    workers = [_worker(worker_id) for worker_id in ids]
    return {number: balance.choose(_hint(number), workers).id for number in range(tasks)}


def test_consistent_hash_gives_the_same_task_to_the_same_worker() -> None:
    assert _places(["w1", "w2", "w3"]) == _places(["w3", "w1", "w2"])


def test_consistent_hash_uses_all_workers_about_alike() -> None:
    counts = Counter(_places(["w1", "w2", "w3"]).values())
    assert all(100 < counts[worker_id] < 300 for worker_id in ("w1", "w2", "w3"))


def test_consistent_hash_moves_only_the_tasks_of_a_worker_that_left() -> None:
    before, after = _places(["w1", "w2", "w3"]), _places(["w1", "w3"])
    assert {number for number in before if before[number] != after[number]} == {
        number for number in before if before[number] == "w2"
    }


def test_consistent_hash_tells_types_apart() -> None:
    balance, workers = ConsistentHash(), [_worker(f"w{number}") for number in range(3)]
    differ = [
        number
        for number in range(100)
        if balance.choose(_hint(number, "a"), workers) != balance.choose(_hint(number, "b"), workers)
    ]
    assert differ


# by name


@pytest.mark.parametrize(
    ("name", "kind"),
    [("least_task", LeastTask), ("round_robin", RoundRobin), ("consistent_hash", ConsistentHash)],
)
def test_shipped_strategies_go_by_their_names(name: str, kind: type) -> None:
    assert type(load(name)) is kind
    assert load(name) is not load(name), "each leader counts for itself"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with strategies of a user's own."""
    code = """
class First:
    def choose(self, hint, workers):
        return workers[0]

class Mute:
    pass

class Broken:
    def __init__(self):
        raise ValueError("no")
"""
    (tmp_path / "strategies_of_mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    return "strategies_of_mine"


def test_a_users_class_is_loaded_by_module_and_name(module: str) -> None:
    workers = [_worker("w2"), _worker("w1")]
    assert load(f"{module}:First").choose(_hint(), workers).id == "w2"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("least", "least is none of least_task, round_robin, consistent_hash, nor module:Class"),
        ("", "is none of"),
        ("module:", "is none of"),
        ("no_such_module_anywhere:First", "no module no_such_module_anywhere"),
        (":First", "Empty module name"),
        ("{module}:Missing", "cannot load strategies_of_mine:Missing: AttributeError"),
        ("{module}:Broken", "cannot load strategies_of_mine:Broken: ValueError: no"),
        ("{module}:Mute", "strategies_of_mine:Mute has no method choose"),
    ],
)
def test_what_is_no_strategy_is_refused_by_name(module: str, name: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(name.format(module=module))
    assert caught.value.key == "scheduler.load_balance_strategy"
    assert reason in caught.value.reason
    assert "\n" not in str(caught.value)
