"""Metrics: the names and labels of the quick start, quantiles that are right, no growth without bound."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from atm.coordinator import Hint, WorkerInfo
from atm.coordinators.local import LocalCoordinator
from atm.metrics import MAX_TYPES, QUANTILES, WINDOW, WINDOW_SIZE, DurationSummary, Metrics
from atm.task import Status

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(metrics: Metrics) -> Series:
    """Name and labels to value, as Prometheus reads them."""
    families = text_string_to_metric_families((await metrics.render()).decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def labels(**values: str) -> frozenset[tuple[str, str]]:
    return frozenset(values.items())


def worker(load: int, task_types: Sequence[str] = ("echo",)) -> WorkerInfo:
    return WorkerInfo(
        id="worker-001",
        name="one",
        address="",
        capacity=10,
        load=load,
        task_types=frozenset(task_types),
        last_seen=0.0,
    )


# the quick start's four


async def test_created_tasks_are_counted_by_type() -> None:
    metrics = Metrics()
    metrics.created("send_email", 2)
    metrics.created("send_email", 1)
    metrics.created("echo", 5)
    series = await scrape(metrics)
    assert series["task_created_total", labels(task_type="send_email")] == 3
    assert series["task_created_total", labels(task_type="echo")] == 5


async def test_durations_have_quantiles_by_type_and_status() -> None:
    metrics = Metrics()
    metrics.ended("send_email", Status.SUCCESS, [0.5])
    metrics.ended("send_email", Status.TIMEOUT, [2.5])
    series = await scrape(metrics)
    for quantile in ("0.5", "0.95", "0.99"):
        key = labels(task_type="send_email", status="success", quantile=quantile)
        assert series["task_duration_seconds", key] == 0.5
    failed = labels(task_type="send_email", status="timeout")
    assert series["task_duration_seconds_count", failed] == 1
    assert series["task_duration_seconds_sum", failed] == 2.5


async def test_load_and_queues_are_the_coordinators() -> None:
    metrics, coordinator = Metrics(), LocalCoordinator()
    metrics.watch(coordinator, "node")
    await coordinator.register(worker(load=5))
    await coordinator.push([Hint("a", "echo", 1), Hint("b", "unknown", 1), Hint("c", "echo", 0)])
    await coordinator.push([Hint("d", "echo", 0, delay=60)])
    series = await scrape(metrics)
    assert series["worker_load", labels(worker_id="worker-001")] == 5
    assert series["atm_worker_slots", labels(worker_id="worker-001")] == 10
    lengths = {name: series["queue_length", labels(queue=name)] for name in ("high", "normal", "low")}
    assert lengths == {"high": 2, "normal": 1, "low": 0}
    assert series["atm_queue_parked", labels(queue="high")] == 1
    assert series["atm_delayed_tasks", labels()] == 1


async def test_the_age_of_the_oldest_grows_while_it_waits(autojump_clock: object) -> None:
    metrics, coordinator = Metrics(), LocalCoordinator()
    metrics.watch(coordinator, "node")
    await coordinator.push([Hint("a", "echo", -1)])
    await trio.sleep(30)
    await coordinator.push([Hint("b", "echo", -1)])
    assert (await scrape(metrics))["atm_queue_oldest_seconds", labels(queue="low")] == pytest.approx(30)


async def test_the_leader_is_1_only_on_the_node_that_leads() -> None:
    mine, others, coordinator = Metrics(), Metrics(), LocalCoordinator()
    mine.watch(coordinator, "me")
    others.watch(coordinator, "somebody else")
    seen = []

    async def duties() -> None:
        seen.extend([(await scrape(metrics))["atm_leader", labels()] for metrics in (mine, others)])

    await coordinator.lead("me", duties)
    assert seen == [1, 0]
    assert (await scrape(mine))["atm_leader", labels()] == 0


async def test_metrics_go_on_without_the_coordinator() -> None:
    class Unreachable(LocalCoordinator):
        async def overview(self) -> None:  # type: ignore[override]
            await trio.lowlevel.checkpoint()

    metrics = Metrics()
    metrics.watch(Unreachable(), "node")
    metrics.created("echo", 1)
    series = await scrape(metrics)
    assert series["task_created_total", labels(task_type="echo")] == 1
    assert series["atm_leader", labels()] == 0
    assert not {name for name, _ in series} & {"queue_length", "atm_delayed_tasks", "worker_load"}


# the page


async def test_a_node_that_has_done_nothing_shows_its_counters_at_zero() -> None:
    series = await scrape(Metrics())
    for name in ("retries", "recoveries", "stale_results", "lease_losses"):
        assert series[f"atm_{name}_total", labels()] == 0
    for name in ("atm_task_wait_seconds", "atm_cancel_seconds", "atm_store_commit_seconds"):
        assert series[f"{name}_count", labels()] == 0
    assert series["atm_loop_lag_seconds", labels()] == 0


async def test_every_family_has_help_a_type_and_a_name_of_the_product() -> None:
    metrics = Metrics()
    metrics.watch(LocalCoordinator(), "node")
    quick_start = {"task_created", "task_duration_seconds", "worker_load", "queue_length"}
    for family in text_string_to_metric_families((await metrics.render()).decode()):
        assert family.name in quick_start or family.name.startswith("atm_")
        assert family.documentation
        assert family.type != "unknown"


async def test_the_time_a_counter_was_made_is_no_series_of_its_own() -> None:
    metrics = Metrics()
    metrics.created("echo", 1)
    page = await metrics.render()
    assert b"_created{" not in page
    assert not re.search(rb"^atm_\w+_created ", page, re.MULTILINE)


async def test_the_waits_are_a_histogram() -> None:
    metrics = Metrics()
    metrics.wait.observe([0.0, 0.001, 0.0011, 2.0, 1e6])
    metrics.wait.observe([])
    series = await scrape(metrics)
    bounds = {
        dict(key)["le"]: value for (name, key), value in series.items() if name == "atm_task_wait_seconds_bucket"
    }
    assert bounds["0.0005"] == 1
    assert bounds["0.001"] == 2
    assert bounds["0.0025"] == 3
    assert bounds["300"] == 4
    assert bounds["+Inf"] == 5
    assert series["atm_task_wait_seconds_count", labels()] == 5
    assert series["atm_task_wait_seconds_sum", labels()] == pytest.approx(1e6 + 2.0021)


async def test_two_nodes_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.created("echo", 1)
    assert ("task_created_total", labels(task_type="echo")) not in await scrape(other)


# quantiles


def summary(clock: list[float]) -> DurationSummary:
    return DurationSummary(clock=lambda: clock[0])


def read(durations: DurationSummary, **extra: str) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(durations)
    wanted = {"task_type": "t", "status": "success", **extra}
    found = {
        quantile: registry.get_sample_value("task_duration_seconds", {**wanted, "quantile": str(quantile)})
        for quantile in QUANTILES
    }
    return {str(quantile): value for quantile, value in found.items() if value is not None}


@given(st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=300))
def test_a_quantile_splits_the_sorted_list_where_it_should(seconds: list[float]) -> None:
    durations = summary([0.0])
    durations.observe("t", Status.SUCCESS, seconds)
    for quantile, value in read(durations).items():
        fraction = float(quantile)
        assert value in seconds
        at_most = sum(s <= value for s in seconds) / len(seconds)
        at_least = sum(s >= value for s in seconds) / len(seconds)
        assert at_most >= fraction - 1e-9
        assert at_least >= 1 - fraction - 1e-9


def test_quantiles_of_a_thousand_are_the_500th_950th_and_990th() -> None:
    durations = summary([0.0])
    durations.observe("t", Status.SUCCESS, reversed(range(1000)))
    assert read(durations) == {"0.5": 500, "0.95": 950, "0.99": 990}


def test_only_the_newest_observations_count() -> None:
    durations = summary([0.0])
    durations.observe("t", Status.SUCCESS, [1e9] * 50 + [1.0] * WINDOW_SIZE)
    assert set(read(durations).values()) == {1.0}


def test_an_observation_leaves_the_window_with_time_but_stays_counted() -> None:
    clock = [0.0]
    durations = summary(clock)
    durations.observe("t", Status.SUCCESS, [100.0])
    clock[0] = WINDOW / 2
    durations.observe("t", Status.SUCCESS, [1.0])
    assert read(durations)["0.99"] == 100.0
    clock[0] = WINDOW + 1
    assert set(read(durations).values()) == {1.0}
    clock[0] = 2 * WINDOW + 1
    assert all(math.isnan(value) for value in read(durations).values())
    registry = CollectorRegistry()
    registry.register(durations)
    whole = {"task_type": "t", "status": "success"}
    assert registry.get_sample_value("task_duration_seconds_count", whole) == 2
    assert registry.get_sample_value("task_duration_seconds_sum", whole) == 101.0


# labels


async def test_task_types_beyond_a_bound_are_counted_together() -> None:
    metrics = Metrics()
    for number in range(MAX_TYPES + 50):
        metrics.created(f"type-{number}", 1)
    metrics.created("type-0", 1)
    metrics.ended(f"type-{MAX_TYPES + 1}", Status.SUCCESS, [1.0])
    series = await scrape(metrics)
    created = {
        dict(key)["task_type"]: value for (name, key), value in series.items() if name == "task_created_total"
    }
    assert len(created) == MAX_TYPES + 1
    assert created["type-0"] == 2
    assert created["other"] == 50
    assert series["task_duration_seconds_count", labels(task_type="other", status="success")] == 1
