"""null → PENDING: what a create writes, answers and refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from atm.errors import IdempotencyConflict
from atm.store import Created
from atm.task import Status, new_task_id
from contracts.bench import Bench, failure_of, new_task

TEXTS = {
    "empty": "{}",
    "blanks": '{ "a" :\t1 ,\n "b": [ ] }',
    "order of keys": '{"b":1,"a":2}',
    "trailing zero": '{"price":1.50}',
    "big integer": '{"n":123456789012345678901234567890}',
    "small and large floats": '{"a":1e-320,"b":1.7976931348623157e308,"c":-0.0,"d":0.1000000000000000055511}',
    "exponent": '{"n":1E+2}',
    "escaped nul": '{"text":"a\\u0000b","\\u0000":1}',
    "escapes": '{"text":"\\u00e9 \\ud83d\\ude00 \\/ \\" \\\\ \\n"}',
    "unicode": '{"text":"é 中文 😀 \u2028 \u200b \ufeff e\u0301"}',
    "delete and friends": '{"text":"\x7f\x80\x9f"}',
    "quotes of sql": '{"text":"\'; DROP TABLE task; --","%s":"?","$1":":a"}',
    "nested": '{"a":' * 40 + "[[]]" + "}" * 40,
    "long": '{"text":"' + "x" * 200_000 + '"}',
}


async def test_a_new_task_waits_with_all_its_fields_as_asked(bench: Bench) -> None:
    wanted = new_task("send.mail:v2", '{"to":"a"}', priority=1, timeout=12.5, max_retry=7)
    assert await bench.store.create([wanted]) == [Created(wanted.task_id, replayed=False, due_in=0.0)]
    task = await bench.get(wanted.task_id)
    assert (task.task_type, task.priority, task.payload_json) == ("send.mail:v2", 1, '{"to":"a"}')
    assert (task.timeout, task.max_retry) == (12.5, 7)
    assert (task.status, task.attempt, task.retry_count) == (Status.PENDING, 0, 0)
    assert (task.recoveries, task.releases) == (0, 0)
    assert task.created_ms == task.due_ms
    assert task.scheduled_ms is task.started_ms is task.completed_ms is task.cancel_requested_ms is None
    assert task.worker_id is task.result_json is task.error_json is task.progress_json is None


async def test_its_log_begins_with_its_creation(bench: Bench) -> None:
    task_id = await bench.create()
    (row,) = await bench.logs(task_id)
    assert (row.log_type, row.from_status, row.to_status) == ("STATE_CHANGE", None, Status.PENDING)
    assert (row.message, row.worker_id, row.attempt) == ("Task created", None, None)
    assert row.created_ms == (await bench.get(task_id)).created_ms


async def test_a_type_nobody_configured_gets_the_common_defaults(bench: Bench) -> None:
    task = await bench.get(await bench.create())
    assert (task.timeout, task.max_retry) == (300.0, 3)


async def test_the_types_settings_fill_in_what_a_create_leaves_open(bench: Bench) -> None:
    await bench.configure("slow", default_timeout=900, default_max_retry=9)
    task = await bench.get(await bench.create(task_type="slow"))
    assert (task.timeout, task.max_retry) == (900.0, 9)


async def test_what_a_create_asks_for_wins_over_the_types_settings(bench: Bench) -> None:
    await bench.configure("slow", default_timeout=900, default_max_retry=9)
    task = await bench.get(await bench.create(task_type="slow", timeout=0.5, max_retry=0))
    assert (task.timeout, task.max_retry) == (0.5, 0)


async def test_settings_put_later_leave_older_tasks_alone(bench: Bench) -> None:
    task_id = await bench.create(task_type="slow")
    await bench.configure("slow", default_timeout=900)
    assert (await bench.get(task_id)).timeout == 300.0


async def test_a_delay_counts_from_now_by_the_stores_clock(bench: Bench) -> None:
    wanted = new_task(delay=100.5)
    (created,) = await bench.store.create([wanted])
    assert 0 < created.due_in <= 100.5
    task = await bench.get(wanted.task_id)
    assert task.due_ms == task.scheduled_ms == task.created_ms + 100_500


@pytest.mark.parametrize("delay", [0, 0.0, None])
async def test_no_delay_means_at_once_and_shows_no_schedule(bench: Bench, delay: float | None) -> None:
    wanted = new_task(delay=delay)
    assert (await bench.store.create([wanted]))[0].due_in == 0
    task = await bench.get(wanted.task_id)
    assert (task.due_ms, task.scheduled_ms) == (task.created_ms, None)


async def test_a_scheduled_task_is_due_at_its_moment(bench: Bench) -> None:
    now = (await bench.get(await bench.create())).created_ms
    wanted = new_task(scheduled_ms=now + 50_000)
    (created,) = await bench.store.create([wanted])
    assert 0 < created.due_in <= 50
    task = await bench.get(wanted.task_id)
    assert task.due_ms == task.scheduled_ms == now + 50_000


async def test_a_moment_in_the_past_means_at_once_and_is_shown_as_asked(bench: Bench) -> None:
    wanted = new_task(scheduled_ms=1_000)
    assert (await bench.store.create([wanted]))[0].due_in == 0
    task = await bench.claim(wanted.task_id)
    assert (task.scheduled_ms, task.due_ms) == (1_000, task.created_ms)


async def test_a_large_batch_is_answered_in_the_order_asked(bench: Bench) -> None:
    tasks = [new_task(payload_json=f'{{"n":{n}}}', priority=n % 3 - 1) for n in range(1000)]
    tasks.reverse()
    created = await bench.store.create(tasks)
    assert [receipt.task_id for receipt in created] == [task.task_id for task in tasks]
    for task in (tasks[0], tasks[513], tasks[999]):
        assert (await bench.get(task.task_id)).payload_json == task.payload_json
        assert await bench.steps(task.task_id) == ["None PENDING"]


async def test_an_empty_batch_creates_nothing(bench: Bench) -> None:
    assert await bench.store.create([]) == []


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_json_text_comes_back_as_it_was_written(bench: Bench, text: str) -> None:
    task_id = await bench.create(payload_json=text)
    assert (await bench.get(task_id)).payload_json == text
    task = await bench.claim(task_id)
    assert task.payload_json == text
    ending = {"result_json": text, "error_json": text, "progress_json": text}
    assert await bench.finish(task, Status.FAILED, **ending) is Status.FAILED
    after = await bench.get(task_id)
    assert (after.payload_json, after.result_json, after.error_json, after.progress_json) == (text,) * 4


# keys


async def test_the_same_request_again_gets_the_same_task(bench: Bench) -> None:
    first = new_task(payload_json='{"a":1}', idempotency_key="k")
    again = new_task(payload_json='{"a":1}', idempotency_key="k")
    await bench.store.create([first])
    (receipt,) = await bench.store.create([again])
    assert (receipt.task_id, receipt.replayed) == (first.task_id, True)
    assert await bench.store.get(again.task_id) is None
    assert await bench.steps(first.task_id) == ["None PENDING"]


async def test_spelled_otherwise_it_is_still_the_same_request(bench: Bench) -> None:
    task_id = await bench.create(payload_json='{"a":1,"b":"é"}', idempotency_key="k")
    assert await bench.create(payload_json='{ "b" : "\\u00e9", "a" : 1 }', idempotency_key="k") == task_id
    assert (await bench.get(task_id)).payload_json == '{"a":1,"b":"é"}'


@pytest.mark.parametrize("status", [Status.SUCCESS, Status.FAILED, Status.TIMEOUT, Status.CANCELLED])
async def test_a_key_outlives_the_end_of_its_task(bench: Bench, status: Status) -> None:
    task = await bench.ended(status, idempotency_key="k")
    (receipt,) = await bench.store.create([new_task(idempotency_key="k")])
    assert (receipt.task_id, receipt.replayed) == (task.task_id, True)
    assert await bench.get(task.task_id) == task


async def test_a_key_is_free_again_once_its_task_is_removed(bench: Bench) -> None:
    task = await bench.ended(Status.SUCCESS, idempotency_key="k")
    await bench.advance(1000)
    assert await bench.store.purge(10, 5) == 1
    wanted = new_task("other", idempotency_key="k")
    assert await bench.store.create([wanted]) == [Created(wanted.task_id)]
    assert await bench.store.get(task.task_id) is None


OTHERS: dict[str, Callable[[], dict[str, str]]] = {
    "type": lambda: {"task_type": "other", "payload_json": '{"a":1}'},
    "payload": lambda: {"payload_json": '{"a":2}'},
    "number spelled as text": lambda: {"payload_json": '{"a":"1"}'},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
async def test_the_key_of_another_request_is_a_conflict(bench: Bench, other: Callable[[], dict[str, str]]) -> None:
    task_id = await bench.create(payload_json='{"a":1}', idempotency_key="k")
    with pytest.raises(IdempotencyConflict) as caught:
        await bench.store.create([new_task(), new_task(idempotency_key="k", **other())])
    assert (caught.value.index, caught.value.task_id) == (1, task_id)


async def test_a_conflict_fails_the_whole_call_and_inserts_nothing(bench: Bench) -> None:
    await bench.create(idempotency_key="taken")
    plain, keyed = new_task(), new_task(idempotency_key="fresh")
    with pytest.raises(IdempotencyConflict):
        await bench.store.create([plain, keyed, new_task("other", idempotency_key="taken")])
    assert await bench.store.get(plain.task_id) is await bench.store.get(keyed.task_id) is None
    assert await bench.store.logs(plain.task_id) is None
    wanted = new_task("other", idempotency_key="fresh")
    assert await bench.store.create([wanted]) == [Created(wanted.task_id)], "the key was not taken either"


async def test_a_known_key_in_a_batch_gets_its_id_in_place(bench: Bench) -> None:
    known = await bench.create(idempotency_key="k")
    before, after = new_task(), new_task(idempotency_key="other")
    created = await bench.store.create([before, new_task(idempotency_key="k"), after])
    assert created == [Created(before.task_id), Created(known, replayed=True), Created(after.task_id)]


async def test_a_key_twice_in_a_batch_is_one_task(bench: Bench) -> None:
    first, second = new_task(idempotency_key="k"), new_task(idempotency_key="k")
    created = await bench.store.create([first, second])
    assert created == [Created(first.task_id), Created(first.task_id, replayed=True)]
    assert await bench.store.get(second.task_id) is None
    assert await bench.steps(first.task_id) == ["None PENDING"]


async def test_a_key_twice_in_a_batch_for_different_requests_is_a_conflict(bench: Bench) -> None:
    first = new_task(idempotency_key="k")
    with pytest.raises(IdempotencyConflict) as caught:
        await bench.store.create([first, new_task("other", idempotency_key="k")])
    assert (caught.value.index, caught.value.task_id) == (1, first.task_id)
    assert await bench.store.get(first.task_id) is None


async def test_many_at_once_with_one_key_make_one_task(bench: Bench) -> None:
    receipts: list[Created] = []

    async def create() -> None:
        receipts.extend(await bench.store.create([new_task(idempotency_key="k")]))

    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(create)
    assert len({receipt.task_id for receipt in receipts}) == 1
    assert sorted(receipt.replayed for receipt in receipts) == [False] + [True] * 29


async def test_of_many_at_once_only_those_in_conflict_fail(bench: Bench) -> None:
    kinds = ["one", "other"] * 10
    ends: dict[str, list[bool]] = {"one": [], "other": []}

    async def create(task_type: str) -> None:
        error = await failure_of(bench.store.create([new_task(task_type, idempotency_key="k")]))
        assert error is None or isinstance(error, IdempotencyConflict)
        ends[task_type].append(error is None)

    async with trio.open_nursery() as nursery:
        for task_type in kinds:
            nursery.start_soon(create, task_type)
    assert {tuple(ends["one"]), tuple(ends["other"])} == {(True,) * 10, (False,) * 10}


# ids


async def test_an_id_that_exists_fails_its_call_and_changes_nothing(bench: Bench) -> None:
    known = new_task(payload_json='{"a":1}')
    await bench.store.create([known])
    other = new_task()
    error = await failure_of(bench.store.create([other, new_task(task_id=known.task_id)]))
    assert error is not None
    assert await bench.store.get(other.task_id) is None
    assert (await bench.get(known.task_id)).payload_json == '{"a":1}'
    assert await bench.steps(known.task_id) == ["None PENDING"]


PAIRS = [("a", "a "), ("a", "A"), ("é", "e\u0301"), ("ß", "ss"), ("a", "a\u200b"), ("1", "01"), ("a'b", 'a"b')]


@pytest.mark.parametrize(("one", "other"), PAIRS)
async def test_keys_compare_as_bytes(bench: Bench, one: str, other: str) -> None:
    tail = new_task_id()
    ids = [f"{tail}{one}", f"{tail}{other}"]
    await bench.configure(one, default_max_retry=1)
    await bench.configure(other, default_max_retry=2)
    tasks = [
        new_task(name, task_id=task_id, idempotency_key=name)
        for name, task_id in zip((one, other), ids, strict=True)
    ]
    assert await bench.store.create(tasks) == [Created(ids[0]), Created(ids[1])]
    assert [(await bench.get(task_id)).max_retry for task_id in ids] == [1, 2]
    assert (await bench.claim(ids[0], one)).task_type == one
    assert (await bench.get(ids[1])).status is Status.PENDING
    assert [held.task_id for held in await bench.store.held(await bench.lease(one))] == [ids[0]]
    assert await bench.store.held(await bench.lease(other)) == []


async def test_a_nul_in_a_key_is_part_of_the_key(bench: Bench) -> None:
    short, long = new_task(idempotency_key="k"), new_task(idempotency_key="k\0x")
    assert await bench.store.create([short, long]) == [Created(short.task_id), Created(long.task_id)]
    again = await bench.store.create([new_task(idempotency_key="k\0x")])
    assert again == [Created(long.task_id, replayed=True)]
