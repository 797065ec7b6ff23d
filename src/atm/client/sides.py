"""The two sides of a verb: the same generator of steps, carried out at once or awaited.

A class that derives from ``Now`` has verbs that return what the generator returns, one that derives from
``Later`` has coroutine functions; both have the generator's own parameters. Type checkers see the same.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeAlias, TypeVar, overload

from atm.client.models import Page, Task
from atm.client.wire import Answer, Step, Steps
from atm.errors import AtmError

P = ParamSpec("P")
T = TypeVar("T")

Pages: TypeAlias = Generator[Steps[Page], Page, None]


class Now:
    """Carries steps out, and blocks."""

    def _do(self, step: Step) -> Answer | None:
        raise NotImplementedError

    def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    answer = self._do(step)
                except AtmError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            steps.close()

    def _iterate(self, pages: Pages) -> Iterator[Task]:
        try:
            steps = next(pages)
            while True:
                page = self._run(steps)
                yield from page.tasks
                steps = pages.send(page)
        except StopIteration:
            return


class Later:
    """Carries steps out, awaiting."""

    async def _do(self, step: Step) -> Answer | None:
        raise NotImplementedError

    async def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    answer = await self._do(step)
                except AtmError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            steps.close()

    async def _iterate(self, pages: Pages) -> AsyncIterator[Task]:
        try:
            steps = next(pages)
            while True:
                page = await self._run(steps)
                for task in page.tasks:
                    yield task
                steps = pages.send(page)
        except StopIteration:
            return


class Verb(Generic[P, T]):
    """Makes a verb of a method that returns steps."""

    def __init__(self, steps: Callable[Concatenate[Any, P], Steps[T]]) -> None:
        def now(side: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
            value: T = side._run(steps(side, *args, **kwargs))
            return value

        async def later(side: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
            value: T = await side._run(steps(side, *args, **kwargs))
            return value

        self._now, self._later = _dressed(now, steps, "{}"), _dressed(later, steps, "{}")

    @overload
    def __get__(self, instance: Now, owner: type | None = None) -> Callable[P, T]: ...
    @overload
    def __get__(self, instance: Later, owner: type | None = None) -> Callable[P, Coroutine[Any, Any, T]]: ...
    @overload
    def __get__(self, instance: None, owner: type) -> Callable[..., Any]: ...
    def __get__(self, instance: Now | Later | None, owner: type | None = None) -> Callable[..., Any]:
        kind = type(instance) if instance is not None else owner
        function = self._later if kind is not None and issubclass(kind, Later) else self._now
        return function if instance is None else MethodType(function, instance)


class Walk(Generic[P]):
    """Makes an iterator over tasks of a method that returns the steps of page after page."""

    def __init__(self, pages: Callable[Concatenate[Any, P], Pages]) -> None:
        def now(side: Any, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[Task]:
            found: Iterator[Task] = side._iterate(pages(side, *args, **kwargs))
            return found

        def later(side: Any, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[Task]:
            found: AsyncIterator[Task] = side._iterate(pages(side, *args, **kwargs))
            return found

        self._now = _dressed(now, pages, "Iterator[Task]")
        self._later = _dressed(later, pages, "AsyncIterator[Task]")

    @overload
    def __get__(self, instance: Now, owner: type | None = None) -> Callable[P, Iterator[Task]]: ...
    @overload
    def __get__(self, instance: Later, owner: type | None = None) -> Callable[P, AsyncIterator[Task]]: ...
    @overload
    def __get__(self, instance: None, owner: type) -> Callable[..., Any]: ...
    def __get__(self, instance: Now | Later | None, owner: type | None = None) -> Callable[..., Any]:
        kind = type(instance) if instance is not None else owner
        function = self._later if kind is not None and issubclass(kind, Later) else self._now
        return function if instance is None else MethodType(function, instance)


def _dressed(function: Callable[..., Any], source: Callable[..., Any], returns: str) -> Callable[..., Any]:
    """``function`` with name, text and signature of ``source``; ``returns`` is what readers of ``help()`` see."""
    functools.update_wrapper(function, source)
    told = re.sub(r"^Steps\[(.*)\]$", r"\1", str(source.__annotations__.get("return", "")))
    function.__annotations__ = {**source.__annotations__, "return": returns.format(told)}
    signature = inspect.signature(source)
    function.__signature__ = signature.replace(return_annotation=returns.format(told))  # type: ignore[attr-defined]
    return function
