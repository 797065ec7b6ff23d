"""The life of the embedded store: what lasts, the lock, and files that it must not touch."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from atm.errors import StartError
from atm.store import TaskFilter
from atm.stores import sqlite_claims, sqlite_file, sqlite_writer
from atm.stores.sqlite import SqliteStore, system_clock
from atm.task import MAX_RECOVERIES, Status, TaskType
from contracts.bench import OpenBench, family_life, new_task, outcome

# what lasts


async def test_everything_is_there_after_a_new_start(serve: OpenBench) -> None:
    async with serve() as bench:
        await bench.configure("capped", max_concurrent=1)
        ended = await bench.ended(Status.FAILED, payload_json='{"a":1.50}', idempotency_key="k")
        waiting = await bench.get(await bench.create(task_type="capped", delay=5))
        logs = await bench.logs(ended.task_id)
    async with serve() as bench:
        assert await bench.get(ended.task_id) == ended
        assert await bench.get(waiting.task_id) == waiting
        assert await bench.logs(ended.task_id) == logs
        assert await bench.store.task_types() == {"capped": TaskType(task_type="capped", max_concurrent=1)}
        assert await bench.create(payload_json='{"a":1.50}', idempotency_key="k") == ended.task_id


async def test_caps_hold_across_a_new_start(serve: OpenBench) -> None:
    async with serve() as bench:
        await bench.configure("echo", max_concurrent=1)
        await bench.running()
    async with serve() as bench:
        assert await bench.claims([await bench.create()]) == ["blocked"]
        assert len(await bench.store.recover(10)) == 1
        assert await bench.claims([await bench.create()]) == ["claimed"]


async def test_what_ran_at_the_end_is_recovered_at_the_next_start(serve: OpenBench) -> None:
    async with serve() as bench:
        running, cancelled = await bench.running(), await bench.running()
        await bench.store.cancel([cancelled.task_id])
        waiting = await bench.create()
    async with serve() as bench:
        found = {recovered.task_id: recovered.status for recovered in await bench.store.recover(10)}
        assert found == {running.task_id: Status.PENDING, cancelled.task_id: Status.CANCELLED}
        assert (await bench.claim(running.task_id)).attempt == 2
        assert await bench.status(waiting) is Status.PENDING


async def test_a_task_that_takes_its_node_down_again_and_again_is_poison(serve: OpenBench) -> None:
    async with serve() as bench:
        task_id = await bench.create()
    for _ in range(MAX_RECOVERIES + 1):
        async with serve() as bench:
            await bench.store.recover(10)
            await bench.claim(task_id)
    async with serve() as bench:
        (recovered,) = await bench.store.recover(10)
        assert recovered.status is Status.FAILED
        assert (await bench.get(task_id)).recoveries == MAX_RECOVERIES + 1
        assert len(await bench.steps(task_id)) == 2 + 2 * MAX_RECOVERIES + 1


async def test_a_lease_ends_with_its_node(serve: OpenBench) -> None:
    async with serve() as bench:
        old = await bench.lease()
    async with serve() as bench:
        task_id = await bench.create()
        (verdict,) = await bench.store.claim(old, [task_id])
        assert getattr(verdict, "reason", None) == "no_lease"
        assert await bench.store.renew(old) == 0
        assert (await bench.lease()).epoch > old.epoch


async def test_the_registry_keeps_no_more_leases_than_are_of_use(serve: OpenBench) -> None:
    async with serve() as bench:
        running = await bench.running()
        for number in range(20):
            await bench.lose("worker-1")
            await bench.store.retire(await bench.lease(f"passer-by-{number}"))
        assert isinstance(bench.store, SqliteStore)
        await bench.lease("last")
        rows = bench.store._writer.db.execute("SELECT DISTINCT worker_id FROM worker_registry").fetchall()
        assert sorted(name for (name,) in rows) == ["last", "worker-1"]
        assert [item.task_id for item in await bench.store.recover(10)] == [running.task_id]


async def test_log_ids_grow_across_starts(serve: OpenBench) -> None:
    async with serve() as bench:
        task_id = await bench.create()
    for _ in range(3):
        async with serve() as bench:
            await bench.store.recover(10)
            await bench.claim(task_id)
            await bench.store.recover(10)
    async with serve() as bench:
        ids = [row.log_id for row in await bench.logs(task_id)]
        assert ids == sorted(set(ids))
        assert await bench.steps(task_id)


async def test_log_ids_grow_from_block_to_block(serve: OpenBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_writer, "LOG_ID_BLOCK", 3)
    async with serve() as bench:
        task = await bench.running()
        for _ in range(10):
            await bench.finish(task, Status.FAILED, retry_in=0)
            task = await bench.claim(task.task_id)
    async with serve() as bench:
        await bench.store.recover(1)
        ids = [row.log_id for row in await bench.logs(task.task_id)]
        assert ids == sorted(set(ids))
        assert len(await bench.steps(task.task_id)) == 2 + 10 * 3 + 1


async def test_a_task_made_after_the_newest_was_removed_has_a_log_of_its_own(serve: OpenBench) -> None:
    async with serve() as bench:
        kept = await bench.create()
        removed = await bench.ended(Status.SUCCESS)
        await bench.advance(100)
        assert await bench.store.purge(1, 10) == 1
    async with serve() as bench:
        task_id = await bench.create()
        assert await bench.steps(task_id) == await bench.steps(kept) == ["None PENDING"]
        assert await bench.store.get(removed.task_id) is None


async def test_every_commit_is_made_to_last(serve: OpenBench, path: Path) -> None:
    async with serve() as bench:
        assert isinstance(bench.store, SqliteStore)
        writer = bench.store._writer.db
        assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert writer.execute("PRAGMA synchronous").fetchone() == (2,), "FULL"
    assert sorted(os.listdir(path.parent)) == ["atm.db"]


async def test_the_owner_hears_how_long_each_commit_took(serve: OpenBench) -> None:
    seconds: list[float] = []
    async with serve(on_commit=seconds.append) as bench:
        await bench.create()
        await bench.create()
        await bench.store.ping()
    assert len(seconds) == 2
    assert min(seconds) > 0


def test_the_clock_never_goes_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([5_000_000, 7_999_999, 3_000_000, 7_000_000, 9_000_000])
    monkeypatch.setattr("time.time_ns", lambda: next(readings))
    now = system_clock()
    assert [now() for _ in range(5)] == [5, 7, 7, 7, 9]


async def test_a_store_without_a_clock_of_its_own_takes_the_systems(path: Path) -> None:
    store = SqliteStore(path, inline=True)
    assert not await store.is_early(0)
    assert await store.is_early(2**50)


WRITER = """
import sys
import trio
from atm.store import NewTask
from atm.stores.sqlite import SqliteStore
from atm.task import new_task_id

async def write(store, lease):
    while True:
        task = NewTask(task_id=new_task_id(), task_type="echo", payload_json="{}")
        await store.create([task])
        print("created", task.task_id, flush=True)
        await store.claim(lease, [task.task_id])
        print("claimed", task.task_id, flush=True)

async def main():
    store = SqliteStore(sys.argv[1])
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        lease = await store.register("worker-1", 10, ["echo"])
        for _ in range(4):
            nursery.start_soon(write, store, lease)

trio.run(main)
"""


def _write_until_killed(path: Path, lines: int) -> list[str]:
    """What a writer said until it was killed, some time after so many lines."""
    with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        said = [writer.stdout.readline() for _ in range(lines)]
        writer.send_signal(signal.SIGKILL)
        return said + [line for line in writer.stdout if line.endswith("\n")]


@pytest.mark.parametrize("lines", [1, 150])
async def test_what_was_answered_survives_kill_9(serve: OpenBench, path: Path, lines: int) -> None:
    said = _write_until_killed(path, lines)
    told = [line.split() for line in said]
    created = {task_id for word, task_id in told if word == "created"}
    claimed = {task_id for word, task_id in told if word == "claimed"}
    assert created
    async with serve() as bench:
        for task_id in created:
            task = await bench.get(task_id)
            assert await bench.steps(task_id)
            if task_id in claimed:
                assert (task.status, task.attempt) == (Status.PROCESSING, 1)
        recovered = await bench.store.recover(100_000)
        assert claimed <= {item.task_id for item in recovered}
        assert {item.status for item in recovered} <= {Status.PENDING}
        assert await bench.store.find(TaskFilter(status=Status.PROCESSING), None, 1) == []


# the lock


def _refusal(path: Path) -> str:
    """Why the store does not open; checked to be one line."""
    with pytest.raises(StartError) as caught:
        SqliteStore(path, inline=True).open()
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_a_second_store_on_the_file_is_refused(serve: OpenBench, path: Path) -> None:
    async with serve() as bench:
        task_id = await bench.create()
        assert _refusal(path) == f"{path} is in use by another node; a file serves one node at a time"
        assert await bench.status(task_id) is Status.PENDING
    async with serve() as bench:
        assert await bench.status(task_id) is Status.PENDING


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symlink", "hardlink"])
async def test_another_name_of_the_file_is_no_way_around_the_lock(
    serve: OpenBench, path: Path, link: Callable[[Path, Path], None]
) -> None:
    other = path.with_name("other.db")
    async with serve():
        link(path, other)
        assert "in use by another node" in _refusal(other)


HOLDER = """
import sys
from atm.stores.sqlite import SqliteStore
store = SqliteStore(sys.argv[1])
store.open()
print("open", flush=True)
sys.stdin.read()
"""


def test_another_process_holds_the_lock_until_it_is_gone(path: Path) -> None:
    argv = [sys.executable, "-c", HOLDER, path]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        assert "in use by another node" in _refusal(path)
        holder.kill()
    store = SqliteStore(path, inline=True)
    store.open()
    store.close()


def test_another_process_is_refused(path: Path) -> None:
    store = SqliteStore(path, inline=True)
    store.open()
    tried = subprocess.run(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    store.close()
    assert tried.returncode == 1
    assert tried.stderr.splitlines()[-1].endswith("is in use by another node; a file serves one node at a time")


def test_children_do_not_inherit_the_lock(path: Path) -> None:
    store = SqliteStore(path, inline=True)
    store.open()
    with subprocess.Popen(["sleep", "600"], close_fds=False) as child:
        store.close()
        store.open()
        store.close()
        child.kill()


def test_a_refused_start_leaves_no_descriptor_open(path: Path) -> None:
    store = SqliteStore(path, inline=True)
    store.open()
    before = os.listdir("/proc/self/fd")
    _refusal(path)
    assert len(os.listdir("/proc/self/fd")) == len(before)
    store.close()


# files that are not ours to touch


def _contents(folder: Path) -> dict[str, bytes]:
    """What the files hold; SQLite's index of a WAL, and an empty one, are nothing."""
    found = {name: (folder / name).read_bytes() for name in os.listdir(folder) if not name.endswith("-shm")}
    return {name: content for name, content in found.items() if content or not name.endswith("-wal")}


async def test_a_file_of_the_first_version_is_brought_up_to_date(path: Path, serve: OpenBench) -> None:
    async with serve() as bench:
        task_id = await bench.create(idempotency_key="k")
    with sqlite3.connect(path) as connection:
        for column in ("parent_id", "expires_at", "children"):
            connection.execute(f"ALTER TABLE task DROP COLUMN {column}")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    for _ in range(2):
        async with serve() as bench:
            task = await bench.get(task_id)
            assert (task.status, task.parent_id, task.children) == (Status.PENDING, None, 0)
    async with serve() as bench:
        await family_life(bench)


def _ours(path: Path) -> sqlite3.Connection:
    store = SqliteStore(path, inline=True)
    store.open()
    store.close()
    return sqlite3.connect(path)


def _another_programs(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE task (task_id TEXT)")
    connection.close()


def _newer(path: Path) -> None:
    connection = _ours(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def _damaged_header(path: Path) -> None:
    _ours(path).close()
    content = bytearray(path.read_bytes())
    content[:100] = b"\xff" * 100
    path.write_bytes(content)


def _damaged_page(path: Path) -> None:
    _ours(path).close()
    content = bytearray(path.read_bytes())
    content[4096:8192] = b"\xff" * 4096
    path.write_bytes(content)


def _cut_short(path: Path) -> None:
    _ours(path).close()
    path.write_bytes(path.read_bytes()[:10_000])


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (Path.touch, "is empty, not a database"),
    "text": (lambda path: path.write_text("hello\n" * 100), "not a database"),
    "another program's": (_another_programs, "is a database of another program"),
    "newer": (_newer, "has schema version 99; this program knows 2"),
    "damaged header": (_damaged_header, "restore it from a backup"),
    "damaged page": (_damaged_page, "is damaged"),
    "cut short": (_cut_short, "restore it from a backup"),
}


@pytest.mark.parametrize(("make", "reason"), FILES.values(), ids=FILES)
def test_a_file_that_is_none_of_ours_is_refused_and_left_alone(
    path: Path, make: Callable[[Path], object], reason: str
) -> None:
    make(path)
    before = _contents(path.parent)
    assert reason in (refusal := _refusal(path))
    assert str(path) in refusal
    assert _contents(path.parent) == before


async def test_a_refusal_comes_out_of_run(path: Path) -> None:
    for inline in (True, False):
        with pytest.raises(StartError):
            await SqliteStore(path / "missing" / "atm.db", inline=inline).run()


def _after_kill_9(path: Path) -> int:
    """Leave a file and a WAL as a killed node does; how many bytes are in the WAL."""
    script = (
        "import os, signal, sys; from atm.stores.sqlite import SqliteStore; "
        "SqliteStore(sys.argv[1]).open(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, path], check=False)
    return path.with_name("atm.db-wal").stat().st_size


def test_a_refused_empty_file_leaves_its_wal_alone(path: Path) -> None:
    size = _after_kill_9(path)
    assert size > 0
    path.write_bytes(b"")
    assert "is empty" in _refusal(path)
    assert path.with_name("atm.db-wal").stat().st_size == size


def test_a_wal_left_without_its_file_is_refused_and_kept(path: Path) -> None:
    size = _after_kill_9(path)
    path.unlink()
    assert "atm.db-wal is left without atm.db" in _refusal(path)
    assert path.with_name("atm.db-wal").stat().st_size == size
    assert not path.exists()


def test_a_missing_folder_is_named_and_not_made(path: Path) -> None:
    refusal = _refusal(path.parent / "missing" / "atm.db")
    assert refusal.endswith(f"no folder {path.parent / 'missing'}")
    assert os.listdir(path.parent) == []


def test_a_folder_is_no_file(path: Path) -> None:
    path.mkdir()
    assert _refusal(path) == f"cannot open {path}: is a directory"
    assert os.listdir(path) == []


def test_a_link_to_nowhere_is_refused(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere.db"))
    assert _refusal(path) == f"cannot open {path}: no such file or directory"
    assert os.listdir(path.parent) == ["atm.db"]


def test_a_path_may_be_relative(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    store = SqliteStore("atm.db", inline=True)
    store.open()
    monkeypatch.chdir("/")
    store.close()
    assert os.listdir(path.parent) == ["atm.db"]


def test_an_old_sqlite_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 37, 2))
    assert "is too old: 3.38.0 or newer is needed" in _refusal(path)
    assert os.listdir(path.parent) == []


def test_of_two_that_make_the_file_at_once_the_first_makes_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = path.with_name("other.db")
    connection = _ours(other)
    connection.execute("INSERT INTO task_config VALUES ('theirs', '{\"task_type\":\"theirs\"}')")
    connection.commit()
    connection.close()
    link = os.link

    def link_too_late(source: Path, target: Path) -> None:
        shutil.copy(other, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_too_late)
    store = SqliteStore(path, inline=True)
    store.open()
    assert list(store._writer.types) == ["theirs"]
    store.close()
    assert sorted(os.listdir(path.parent)) == ["atm.db", "other.db"]


@pytest.mark.parametrize("content", ["a store", "half a store"])
def test_a_draft_left_by_a_crashed_start_does_not_hinder(path: Path, content: str) -> None:
    draft = path.with_name(f"atm.db.new-{os.getpid()}")
    if content == "a store":
        _ours(draft).close()
    else:
        draft.write_bytes(b"half" * 100)
    store = SqliteStore(path, inline=True)
    store.open()
    store.close()
    assert os.listdir(path.parent) == ["atm.db"]


async def test_a_file_too_large_to_check_whole_opens_unchecked(
    serve: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve() as bench:
        task_id = await bench.create()
    monkeypatch.setattr(sqlite_file, "CHECKED_SIZE", 100)
    async with serve() as bench:
        assert await bench.status(task_id) is Status.PENDING


async def test_large_payloads_are_claimed_in_slices(serve: OpenBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_claims, "READ_SLICE", 3)
    async with serve() as bench:
        task_ids = await bench.create_many(10)
        assert await bench.claims([*task_ids, task_ids[0]]) == ["claimed"] * 10 + ["gone"]
        lease = await bench.lease()
        tasks = [await bench.get(task_id) for task_id in task_ids]
        verdicts = await bench.store.finish(lease, [outcome(task, Status.SUCCESS) for task in tasks])
        assert [verdict.status for verdict in verdicts] == [Status.SUCCESS] * 10
        assert await bench.store.create([new_task(task_id=f"a{n}") for n in range(5)])
