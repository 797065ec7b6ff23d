"""docs/api.md holds what the code has: every field, limit and reason in its tables."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from api.site import Site
from atm.api import app, body, query, tasks, type_fields

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    return re.split(r"^## ", PAGE.partition(f"\n## {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def first_cells(heading: str) -> set[str]:
    """What stands in backticks in the first column of the section's tables."""
    cells = re.findall(r"^\| (.+?) \|", section(heading), re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def assert_told(numbers: Iterable[float], heading: str) -> None:
    text = section(heading)
    for number in numbers:
        assert f"{number:,}" in text, number


def test_every_field_of_a_create_is_explained() -> None:
    assert first_cells("Create") == set(body.FIELDS)
    assert_told((body.MAX_TIMEOUT, body.MAX_RETRY, body.MAX_DELAY, body.MAX_KEY), "Create")


def test_every_field_of_a_task_and_every_reason_to_wait_is_explained(site: Site) -> None:
    source = Path(tasks.__file__).read_text(encoding="utf-8").partition("def _pending_reason")[2]
    returns = re.findall(r"^ +return (.+)", source.partition("async def find")[0], re.MULTILINE)
    reasons = {reason for line in returns for reason in re.findall(r'"(\w+)"', line)}
    assert len(reasons) == 7
    assert first_cells("Look and wait") == set(site.get(site.create("nobody"))) | reasons
    assert_told([query.MAX_WAIT], "Look and wait")


def test_every_parameter_of_a_list_is_explained() -> None:
    names = {"status", "task_type", "worker_id", "parent_id", "created_after", "created_before", "cursor", "limit"}
    assert first_cells("List") == names
    assert_told((query.MAX_PAGE, query.DEFAULT_PAGE), "List")


def test_every_setting_of_a_type_is_explained() -> None:
    assert first_cells("Task types") == set(type_fields.FIELDS)
    assert_told((body.MAX_TIMEOUT, body.MAX_RETRY, type_fields.MAX_CONCURRENT), "Task types")


@pytest.mark.parametrize(
    ("mib", "text"), [(body.MAX_TASK, "at most 1 MiB"), (body.MAX_BATCH, "that of a batch 16 MiB")]
)
def test_the_sizes_of_bodies_are_explained(mib: int, text: str) -> None:
    assert f"{mib // 1024 // 1024} MiB" in text
    assert text in section("Bodies")


def test_how_long_a_body_may_take_is_explained() -> None:
    assert f"within {app.BODY_PATIENCE} s" in section("Errors")
    assert f"{body.MAX_DEPTH} levels" in section("Bodies")


def test_every_path_is_explained(site: Site) -> None:
    served = {
        (method, re.sub(r"<\w+>", "{}", rule.rule))
        for rule in site.rules
        for method in (rule.methods or set()) - {"HEAD"}
    }
    calls = re.findall(r"`(GET|POST|PUT) (/[^`]*)`", section("Calls"))
    assert {(method, re.sub(r"\{\w+\}", "{}", path)) for method, path in calls} == served
