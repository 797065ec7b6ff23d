"""The registry of executors: what may be registered, and what is refused with which words."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from atm.context import Context
from atm.errors import ConfigError
from atm.executor import Executor, FunctionExecutor, TaskResult
from atm.registry import Registry, executes, marked_executor
from atm.task import Task


class Emails(Executor):
    type = "email"
    supported_task_types = ("send_email", "send_letter")

    async def execute(self, ctx: Context, task: Task) -> TaskResult:
        return TaskResult(success=True)


class OtherEmails(Emails):
    pass


@executes("resize", "crop")
async def resize(ctx: Context, task: Task) -> None:
    pass


def unmarked() -> Any:
    """A function of its own for each test: a mark stays."""

    async def function(ctx: Context, task: Task) -> None:
        pass

    return function


def with_types(task_types: Any) -> Executor:
    executor = Emails()
    executor.supported_task_types = task_types
    return executor


# @executes


def test_a_marked_function_stays_the_function_it_was() -> None:
    for mark in (executes("x"), executes("x", "y", lane="async")):
        function = unmarked()
        assert mark(function) is function


def test_a_marked_function_is_the_executor_of_all_its_types() -> None:
    executor = marked_executor(resize)
    assert isinstance(executor, FunctionExecutor)
    assert executor.supported_task_types == ("resize", "crop")
    assert executor.execute == resize


@pytest.mark.parametrize("value", [unmarked(), Emails(), Emails, None, "resize", 7])
def test_what_is_not_marked_is_no_function_executor(value: object) -> None:
    assert marked_executor(value) is None


def _plain(ctx: Context, task: Task) -> None:
    pass


async def _generator(ctx: Context, task: Task) -> AsyncIterator[int]:
    yield 1


class _Callable:
    async def __call__(self, ctx: Context, task: Task) -> None:
        pass


@pytest.mark.parametrize(
    "value",
    [Emails, _Callable(), functools.partial(_plain, 1), None],
    ids=["class", "instance", "partial", "None"],
)
def test_only_functions_can_be_marked(value: Any) -> None:
    with pytest.raises(ConfigError, match="only functions can be marked"):
        executes("x")(value)


def test_a_generator_cannot_be_marked() -> None:
    with pytest.raises(ConfigError, match="a generator cannot carry out a task"):
        executes("x")(_generator)


@pytest.mark.parametrize(
    ("function", "lane", "told"),
    [
        (unmarked(), "thread", "lane 'thread' takes a plain def"),
        (unmarked(), "process", "lane 'process' takes a plain def"),
        (unmarked(), "fast", "there is no lane 'fast': async, thread or process"),
        (_plain, "async", "lane 'async' takes an async def"),
    ],
)
def test_a_function_must_fit_its_lane(function: Any, lane: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"@executes on \S+: {told}"):
        executes("x", lane=lane)(function)


def test_a_plain_function_runs_in_a_thread_where_nothing_else_is_said() -> None:
    def plain(ctx: Any, task: Task) -> None:
        pass

    found = marked_executor(executes("x")(plain))
    assert found is not None
    assert found.lane == "thread"


def test_what_cannot_be_taken_to_another_process_is_told_at_the_registration() -> None:
    @executes("x", lane="process")
    def inner(ctx: Any, task: Task) -> None:
        pass

    with pytest.raises(ConfigError, match="lane 'process' cannot take it to another process"):
        Registry().register(inner)


@pytest.mark.parametrize(
    "task_types", [(), (7,), (None,), ("",), ("two words",), ("ü",), ("x" * 129,), ("x", "a/b")]
)
def test_the_types_must_be_names_that_a_task_can_have(task_types: tuple[Any, ...]) -> None:
    with pytest.raises(ConfigError, match=r"@executes: (name the task types|.* is no task type)"):
        executes(*task_types)


def test_executes_without_brackets_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"@executes: .*function.* is no task type"):
        executes(unmarked())


# the registry


def test_each_type_has_its_executor_and_each_executor_is_listed_once() -> None:
    registry = Registry()
    emails = Emails()
    registry.register(emails)
    registry.register(resize)
    assert set(registry.by_type) == {"send_email", "send_letter", "resize", "crop"}
    assert registry.by_type["send_email"] is registry.by_type["send_letter"] is emails
    assert len(registry.executors()) == 2


def test_a_users_executor_takes_the_place_of_a_shipped_one() -> None:
    registry = Registry()
    registry.register(Emails(), shipped=True)
    own = with_types(("send_email",))
    registry.register(own)
    assert registry.by_type["send_email"] is own
    assert registry.by_type["send_letter"] is not own


@pytest.mark.parametrize("second", [Emails(), OtherEmails(), with_types(("new", "send_letter"))])
def test_two_of_the_users_cannot_claim_one_type(second: Executor) -> None:
    registry = Registry()
    registry.register(Emails(), shipped=True)
    registry.register(Emails())
    with pytest.raises(ConfigError, match=r"task type 'send_\w+' is claimed by Emails and (Other)?Emails"):
        registry.register(second)


def test_two_functions_that_claim_one_type_are_told_by_their_names() -> None:
    @executes("crop")
    async def cut(ctx: Context, task: Task) -> None:
        pass

    registry = Registry()
    registry.register(resize)
    with pytest.raises(ConfigError, match=r"'crop' is claimed by resize and \S*cut"):
        registry.register(cut)


@pytest.mark.parametrize("value", [Emails, unmarked(), None, "module:Class", object()])
def test_only_executors_and_marked_functions_can_be_registered(value: Any) -> None:
    with pytest.raises(ConfigError, match="neither an Executor nor marked by @executes"):
        Registry().register(value)


@pytest.mark.parametrize("task_types", [(), [], ["send_email"], "send_email", None, {"send_email"}])
def test_the_types_of_an_executor_stand_in_a_tuple(task_types: Any) -> None:
    with pytest.raises(ConfigError, match="supported_task_types of Emails: name the task types, as in"):
        Registry().register(with_types(task_types))


@pytest.mark.parametrize("task_types", [(7,), ("",), ("two words",), ("x" * 129,)])
def test_the_types_of_an_executor_are_names_that_a_task_can_have(task_types: Any) -> None:
    with pytest.raises(ConfigError, match=r"supported_task_types of Emails: .* is no task type"):
        Registry().register(with_types(task_types))


def test_a_class_must_fit_its_lane() -> None:
    class Threaded(Emails):
        lane = "thread"

    with pytest.raises(ConfigError, match=r"Threaded: lane 'thread' takes a plain def"):
        Registry().register(Threaded())


def test_a_worker_may_support_a_part_of_the_types() -> None:
    registry = Registry()
    registry.register(Emails())
    registry.register(resize)
    registry.restrict(["crop", "send_email", "crop"])
    assert set(registry.by_type) == {"crop", "send_email"}
    assert len(registry.executors()) == 2


def test_a_supported_type_without_an_executor_is_told() -> None:
    registry = Registry()
    registry.register(resize)
    with pytest.raises(ConfigError) as caught:
        registry.restrict(["crop", "b", "a"])
    assert str(caught.value) == "worker.supported_types: no executor supports a, b"
