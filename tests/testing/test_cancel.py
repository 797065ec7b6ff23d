"""``check_cancel_safety``: what is safe passes, and what is not is named with its line."""

from __future__ import annotations

import inspect
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from atm.context import Context
from atm.executor import Executor
from atm.registry import executes
from atm.task import Task
from atm.testing import check_cancel_safety, leftovers


def line_of(function: Callable[..., Any], text: str) -> str:
    """``file:line`` of the function's line that holds the text."""
    lines, first = inspect.getsourcelines(function)
    (number,) = [first + index for index, line in enumerate(lines) if text in line]
    return f"{__file__}:{number} in {function.__name__}"


@executes("polite")
async def polite(ctx: Context, task: Task) -> None:
    with tempfile.TemporaryFile() as file:
        ours, its = trio.socket.socketpair()
        with ours, its:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep, 0)
                await trio.to_thread.run_sync(file.write, b"a")
            await its.send(b"a")
            await ours.recv(1)
        try:
            await trio.run_process(["true"])
        finally:
            with ctx.cleanup():
                await ctx.log("tidied")


async def test_what_tidies_up_is_safe_at_each_of_its_checkpoints() -> None:
    assert await check_cancel_safety(polite) >= 8


async def test_virtual_time_makes_long_waits_short(autojump_clock: MockClock) -> None:
    @executes("slow")
    async def slow(ctx: Context, task: Task) -> None:
        try:
            await trio.sleep(100)
        finally:
            with ctx.cleanup():
                await trio.sleep(4)

    assert await check_cancel_safety(slow) == 2


async def test_what_has_no_checkpoint_cannot_be_cancelled() -> None:
    @executes("prompt")
    async def prompt(ctx: Context, task: Task) -> None:
        return None

    assert await check_cancel_safety(prompt) == 0


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left in these tests will not go away by itself."""
    monkeypatch.setattr(leftovers, "PATIENCE", 0.05)


@pytest.fixture
def kept(impatient: None) -> Iterator[list[Callable[[], object]]]:
    """How to get rid of what a bad executor has left, at last."""
    found: list[Callable[[], object]] = []
    yield found
    for end in found:
        end()


async def test_an_open_file_is_named_with_the_checkpoint_and_its_line(
    tmp_path: Path, kept: list[Callable[[], object]]
) -> None:
    path = tmp_path / "left.txt"

    @executes("careless")
    async def careless(ctx: Context, task: Task) -> None:
        await trio.lowlevel.checkpoint()
        file = path.open("w")
        kept.append(file.close)
        await trio.lowlevel.checkpoint()  # here
        file.close()

    with pytest.raises(AssertionError) as raised:
        await check_cancel_safety(careless)
    text = str(raised.value)
    assert "cancelled at checkpoint 2, " + line_of(careless, "# here") in text
    assert f"left behind: 1 open files ({path})" in text


async def test_a_socket_is_found(kept: list[Callable[[], object]]) -> None:
    @executes("careless")
    async def careless(ctx: Context, task: Task) -> None:
        ours, its = socket.socketpair()
        kept.extend([ours.close, its.close])
        await trio.lowlevel.checkpoint()
        ours.close()
        its.close()

    with pytest.raises(AssertionError, match=r"left behind: 2 open files \(socket:\[\d+\], socket:\[\d+\]\)"):
        await check_cancel_safety(careless)


async def test_a_thread_is_found(kept: list[Callable[[], object]]) -> None:
    @executes("careless")
    async def careless(ctx: Context, task: Task) -> None:
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait, name="the forgotten one")
        thread.start()
        kept.extend([stop.set, thread.join])
        await trio.lowlevel.checkpoint()
        stop.set()
        thread.join()

    with pytest.raises(AssertionError, match=r"left behind: 1 threads \(the forgotten one\)"):
        await check_cancel_safety(careless)


async def test_a_process_is_found(kept: list[Callable[[], object]]) -> None:
    @executes("careless")
    async def careless(ctx: Context, task: Task) -> None:
        process = subprocess.Popen(["sleep", "60"])  # noqa: ASYNC220
        kept.extend([process.kill, process.wait])
        await trio.lowlevel.checkpoint()
        process.kill()
        process.wait()

    with pytest.raises(AssertionError, match=r"left behind: 1 processes \(\d+ sleep 60\)"):
        await check_cancel_safety(careless)


async def test_a_task_in_somebody_elses_nursery_is_found(autojump_clock: MockClock, impatient: None) -> None:
    async with trio.open_nursery() as elsewhere:

        @executes("careless")
        async def careless(ctx: Context, task: Task) -> None:
            with trio.CancelScope() as scope:
                elsewhere.start_soon(forgotten, scope)
                await trio.lowlevel.checkpoint()
                scope.cancel()

        async def forgotten(scope: trio.CancelScope) -> None:
            while not scope.cancel_called:
                await trio.sleep(1)

        with pytest.raises(AssertionError, match=r"left behind: 1 Trio tasks \(.*forgotten\)"):
            await check_cancel_safety(careless)
        elsewhere.cancel_scope.cancel()


async def test_what_is_left_without_any_cancel_is_told_as_that(kept: list[Callable[[], object]]) -> None:
    @executes("careless")
    async def careless(ctx: Context, task: Task) -> None:
        kept.extend(map(_closer, os.pipe()))
        await trio.lowlevel.checkpoint()

    with pytest.raises(AssertionError, match=r"careless, not cancelled, left behind: 2 open files"):
        await check_cancel_safety(careless)


def _closer(descriptor: int) -> Callable[[], None]:
    return lambda: os.close(descriptor)


async def test_a_pool_that_stays_the_same_is_no_leak() -> None:
    class Pooled(Executor):
        supported_task_types = ("pooled",)

        def __init__(self) -> None:
            self.pool: list[int] = []

        async def __aexit__(self, *error: object) -> None:
            while self.pool:
                os.close(self.pool.pop())

        async def execute(self, ctx: Context, task: Task) -> None:
            pipe = self.pool or [*os.pipe()]
            self.pool = []
            try:
                await trio.lowlevel.checkpoint()
            finally:
                self.pool = pipe

    assert await check_cancel_safety(Pooled()) == 1


async def test_a_failure_instead_of_a_cancel_is_told() -> None:
    @executes("odd")
    async def odd(ctx: Context, task: Task) -> None:
        cut = False
        with trio.CancelScope() as own:
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled:
                cut = True
                own.cancel()
        if cut:
            raise RuntimeError("somebody has cancelled me")

    with pytest.raises(AssertionError, match=r"at checkpoint 1, .* ended as FAILED: .*somebody has cancelled me"):
        await check_cancel_safety(odd)


async def test_a_shield_beyond_the_budget_is_told(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    @executes("slow")
    async def slow(ctx: Context, task: Task) -> None:
        try:
            await trio.sleep(1)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(60)  # here

    with pytest.raises(AssertionError, match=r"at checkpoint 1, .* took 60.0 s to end; it has 5 s to clean up"):
        await check_cancel_safety(slow)
    assert f"does not end: cancelled 7 s ago, it is at {line_of(slow, '# here')}" in caplog.text


async def test_a_payload_that_does_not_work_tests_nothing(autojump_clock: MockClock) -> None:
    @executes("picky")
    async def picky(ctx: Context, task: Task) -> None:
        await trio.sleep(task.payload["seconds"])

    with pytest.raises(AssertionError, match=r"picky, not cancelled, ended as FAILED, not as SUCCESS: .*seconds"):
        await check_cancel_safety(picky)
    assert await check_cancel_safety(picky, ends_as="FAILED") == 0
    assert await check_cancel_safety(picky, {"seconds": 100}, timeout=10, ends_as="TIMEOUT") == 1


async def test_what_has_too_many_checkpoints_is_not_cut_at_all_of_them() -> None:
    @executes("busy")
    async def busy(ctx: Context, task: Task) -> None:
        for _ in range(20):
            await trio.lowlevel.checkpoint()

    with pytest.raises(AssertionError, match="busy has more than 10 checkpoints"):
        await check_cancel_safety(busy, most=10)
