"""Who gets what: the leader's decisions on what it saw."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from atm.coordinators.redis_plan import Plan
from atm.nursery.balance import LeastTask, RoundRobin
from contracts.hall import worker


def plan(*workers: object, room: dict[str, int] | None = None, lines: str = "", limit: int = 100) -> Plan:
    return Plan(RoundRobin(), workers, room or {}, set(lines.split()), limit)  # type: ignore[arg-type]


def test_slots_are_filled_from_the_head_and_what_is_behind_stays() -> None:
    made = plan(worker("w", capacity=3, load=1))
    made.serve_queue("queue:normal", 0, ["t1:a", "t2:b", "t3:a"])
    assert [(s.key, s.elements, s.places) for s in made.sources] == [("queue:normal", ["t1:a", "t2:b"], [1, 1])]
    assert (made.left, made.parks) == (0, False)


def test_no_more_than_the_limit_goes() -> None:
    made = plan(worker("w"), limit=1)
    made.serve_queue("queue:normal", 0, ["t1:a", "t2:a"])
    assert made.sources[0].elements == ["t1:a"]


def test_what_cannot_run_is_parked_and_holds_up_nobody() -> None:
    made = plan(worker("w1", types="a", capacity=1), worker("w2", types="b"), room={"c": 0, "b": 1})
    made.serve_queue("queue:normal", 0, ["t1:x", "t2:a", "t3:a", "t4:b", "t5:b", "t6:c"])
    assert made.sources[0].places == [0, 1, 0, 2, 0, 0]
    assert made.used_room == {"b": 1}
    assert made.parks


def test_behind_a_parked_line_its_type_waits_in_order() -> None:
    made = plan(worker("w"), lines="a:0 b:0")
    made.serve_lines(0, {"a:0": ["t1:a", "t2:a"]}, asked=2)
    made.serve_queue("queue:normal", 0, ["t3:a"])
    assert [(s.line, s.places) for s in made.sources] == [("a:0", [1, 1]), ("", [0])], "there may be more in it"


def test_a_line_that_is_served_to_its_end_holds_up_nothing() -> None:
    made = plan(worker("w"), lines="a:0")
    made.serve_lines(0, {"a:0": ["t1:a"]}, asked=10)
    made.serve_queue("queue:normal", 0, ["t3:a"])
    assert [s.places for s in made.sources] == [[1], [1]]


def test_parked_lines_take_turns_by_age() -> None:
    made = plan(worker("w", capacity=3), lines="a:0 b:0")
    made.serve_lines(0, {"a:0": ["1:a", "4:a"], "b:0": ["2:b", "3:b"]}, asked=3)
    assert {s.line: s.elements for s in made.sources} == {"a:0": ["1:a"], "b:0": ["2:b", "3:b"]}


elements = st.lists(st.sampled_from("abcx"), max_size=30).map(
    lambda types: [f"{number}:{task_type}" for number, task_type in enumerate(types)]
)
desks = st.lists(st.tuples(st.integers(1, 5), st.sets(st.sampled_from("abc"), min_size=1)), min_size=1, max_size=4)


@given(elements, desks, st.dictionaries(st.sampled_from("abc"), st.integers(0, 3)), st.integers(1, 40))
def test_nothing_is_handed_where_it_cannot_run(
    waiting: list[str], offers: list[tuple[int, set[str]]], room: dict[str, int], limit: int
) -> None:
    workers = [worker(f"w{at}", capacity=slots, types=types) for at, (slots, types) in enumerate(offers)]
    made = Plan(LeastTask(), workers, dict(room), set(), limit)
    made.serve_queue("queue:normal", 0, waiting)
    pairs = [pair for source in made.sources for pair in zip(source.elements, source.places, strict=True)]
    assert [element for element, _ in pairs] == waiting[: len(pairs)], "a beginning, in order"
    handed = [(element.partition(":")[2], workers[place - 1]) for element, place in pairs if place]
    assert all(task_type in info.task_types for task_type, info in handed)
    assert len(handed) <= limit
    per_worker = Counter(info.id for _, info in handed)
    assert all(per_worker[info.id] <= info.capacity for info in workers)
    per_type = Counter(task_type for task_type, _ in handed)
    assert all(per_type[task_type] <= left for task_type, left in room.items())
    if len(pairs) < len(waiting):
        assert made.left == 0, "it stopped for want of slots alone"
