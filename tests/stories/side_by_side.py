"""Stories that mostly wait are told side by side, so that a run of all tests waits once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from servers import Databases

LIMIT = 120
"""Seconds that such a test may take: more than others, as many stories share the machine."""

Story = Callable[[Databases], None]


def side_by_side(story: Story) -> Callable[..., None]:
    """The test that tells this story.

    The first such test starts the stories of all that are in this run, each in a thread; each test then takes the
    outcome of its own.
    """

    def test(told: Mapping[Story, Future[None]]) -> None:
        told[story].result(LIMIT)

    test.__name__, test.__doc__, test.__module__ = story.__name__, story.__doc__, story.__module__
    test.__dict__["story"] = story
    marked: Callable[..., None] = pytest.mark.timeout(LIMIT)(test)
    return marked


@pytest.fixture(scope="session")
def told(request: pytest.FixtureRequest, mariadb: Databases) -> Iterator[Mapping[Story, Future[None]]]:
    functions: list[Any] = [getattr(item, "function", None) for item in request.session.items]
    stories = [function.story for function in functions if hasattr(function, "story")]
    with ThreadPoolExecutor(max_workers=len(stories)) as threads:
        yield {story: threads.submit(story, mariadb) for story in stories}
