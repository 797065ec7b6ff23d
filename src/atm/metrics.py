"""Prometheus metrics: those of the quick start under their names, the product's own under ``atm_``.

One registry a node. What another part already knows is read when Prometheus asks, not kept twice.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from atm.coordinator import Coordinator, Overview, QueueInfo
from atm.task import Status

QUANTILES = (0.5, 0.95, 0.99)
WINDOW = 600.0
"""Seconds that an observation counts towards the quantiles."""

WINDOW_SIZE = 1000
"""Observations at the most that the quantiles are taken from, the newest ones."""

MAX_TYPES = 1000
"""Task types with series of their own; further ones are counted together as ``other``."""

LATENCY_BUCKETS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300
)  # fmt: skip


class _Durations:
    """Count, sum and a window of observations of one (task type, status)."""

    __slots__ = ("count", "sum", "window")

    def __init__(self) -> None:
        self.count = 0
        self.sum = 0.0
        self.window: deque[tuple[float, float]] = deque(maxlen=WINDOW_SIZE)

    def observe(self, seconds: float, now: float) -> None:
        self.count += 1
        self.sum += seconds
        self.window.append((now, seconds))

    def quantiles(self, now: float) -> dict[float, float]:
        while self.window and self.window[0][0] < now - WINDOW:
            self.window.popleft()
        ordered = sorted(seconds for _, seconds in self.window)
        if not ordered:
            return dict.fromkeys(QUANTILES, float("nan"))
        return {q: ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in QUANTILES}


class DurationSummary(Collector):
    """``task_duration_seconds`` with quantiles over the newest observations.

    The official client's Summary has no quantiles, and estimators that add them cost 20 µs an observation;
    this costs under one, and pays when it is read.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._by_labels: dict[tuple[str, Status], _Durations] = {}

    def observe(self, task_type: str, status: Status, seconds: Iterable[float]) -> None:
        durations = self._by_labels.get((task_type, status))
        if durations is None:
            durations = self._by_labels[task_type, status] = _Durations()
        now = self._clock()
        for value in seconds:
            durations.observe(value, now)

    def collect(self) -> Iterator[Metric]:
        name = "task_duration_seconds"
        metric = Metric(name, "How long executors ran, by how the attempt ended.", "summary")
        now = self._clock()
        for (task_type, status), durations in self._by_labels.items():
            labels = {"task_type": task_type, "status": status.lower()}
            for quantile, value in durations.quantiles(now).items():
                metric.add_sample(name, {**labels, "quantile": str(quantile)}, value)
            metric.add_sample(f"{name}_count", labels, durations.count)
            metric.add_sample(f"{name}_sum", labels, durations.sum)
        yield metric


class BatchedHistogram(Collector):
    """A histogram without labels, for the hot path: a quarter of the cost of the client's own."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, values: Iterable[float]) -> None:
        for value in values:
            self._counts[bisect_left(self._bounds, value)] += 1
            self._sum += value

    def collect(self) -> Iterator[Metric]:
        totals = list(accumulate(self._counts))
        names = [*map(str, self._bounds), "+Inf"]
        yield HistogramMetricFamily(
            self._name, self._text, buckets=list(zip(names, totals, strict=True)), sum_value=self._sum
        )


class _CoordinatorGauges(Collector):
    """Queue lengths, worker load, leadership: the coordinator knows them."""

    def __init__(self, coordinator: Coordinator, node_id: str) -> None:
        self._coordinator = coordinator
        self._node_id = node_id
        self._overview: Overview | None = None

    async def look(self) -> None:
        """Learn what ``collect`` tells then."""
        self._overview = await self._coordinator.overview()

    def collect(self) -> Iterable[Metric]:
        leads = self._coordinator.leader() == self._node_id
        yield GaugeMetricFamily("atm_leader", "1 where this node leads.", value=float(leads))
        if self._overview is None:
            return
        queues = self._overview.queues
        yield _by_queue("queue_length", "Tasks ready to run.", queues, lambda q: q.length)
        yield _by_queue(
            "atm_queue_parked", "Tasks ready to run that no worker can run now.", queues, lambda q: q.parked
        )
        yield _by_queue(
            "atm_queue_oldest_seconds",
            "How long the oldest ready task has waited.",
            queues,
            lambda q: q.oldest_age,
        )
        yield GaugeMetricFamily(
            "atm_delayed_tasks", "Tasks that wait for their time.", value=self._overview.delayed
        )
        load = GaugeMetricFamily("worker_load", "Busy slots.", labels=["worker_id"])
        slots = GaugeMetricFamily("atm_worker_slots", "Slots in all.", labels=["worker_id"])
        for worker in self._overview.workers:
            load.add_metric([worker.id], worker.load)
            slots.add_metric([worker.id], worker.capacity)
        yield load
        yield slots


def _by_queue(
    name: str, text: str, queues: list[QueueInfo], value: Callable[[QueueInfo], float]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=["queue"])
    for queue in queues:
        family.add_metric([queue.name], value(queue))
    return family


class Metrics:
    """What this node counts. On the node's loop only."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a time of creation beside each counter doubles the page
        self.registry = CollectorRegistry()
        self.durations = DurationSummary()
        self.registry.register(self.durations)
        self._types: set[str] = set()
        self._gauges: _CoordinatorGauges | None = None
        self._look_for_orphans: Callable[[], Awaitable[int]] | None = None
        self._orphans = Gauge(
            "atm_orphans", "Processes that live of runs that have ended; looked for now.", registry=self.registry
        )
        self._created = Counter("task_created", "Tasks created.", ["task_type"], registry=self.registry)
        self.wait = BatchedHistogram("atm_task_wait_seconds", "From due to claimed.", LATENCY_BUCKETS)
        self.registry.register(self.wait)
        self.retries = self._counter("atm_retries", "Attempts that failed or timed out and will be repeated.")
        self.recoveries = self._counter("atm_recoveries", "Tasks taken from lost workers.")
        self.stale_results = self._counter("atm_stale_results", "Outcomes refused because the attempt was over.")
        self.lease_losses = self._counter("atm_lease_losses", "Leases that this node's worker lost.")
        self.cancel_latency = Histogram(
            "atm_cancel_seconds",
            "From the cancel call to CANCELLED, for running tasks.",
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.store_latency = Histogram(
            "atm_store_commit_seconds",
            "How long one transaction of the store took.",
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.loop_lag = Gauge(
            "atm_loop_lag_seconds", "How late the node's loop was at the last look.", registry=self.registry
        )

        self.stuck_runs = Gauge(
            "atm_stuck_runs", "Runs that were cancelled and do not end.", registry=self.registry
        )
        self.loop_blocks = self._counter(
            "atm_loop_blocks", "Times that something held the loop for over a second."
        )

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self.registry)

    def watch(self, coordinator: Coordinator, node_id: str) -> None:
        """Read the gauges from this coordinator."""
        self._gauges = _CoordinatorGauges(coordinator, node_id)
        self.registry.register(self._gauges)

    def watch_orphans(self, look: Callable[[], Awaitable[int]]) -> None:
        """Count what lives of runs that have ended, each time that Prometheus asks."""
        self._look_for_orphans = look

    def created(self, task_type: str, count: int) -> None:
        self._created.labels(self._label(task_type)).inc(count)

    def ended(self, task_type: str, status: Status, seconds: Iterable[float]) -> None:
        """Attempts ended this way after so many seconds each."""
        self.durations.observe(self._label(task_type), status, seconds)

    def _label(self, task_type: str) -> str:
        """Task types come from callers; their number must not grow the memory without bound."""
        if task_type in self._types:
            return task_type
        if len(self._types) >= MAX_TYPES:
            return "other"
        self._types.add(task_type)
        return task_type

    async def render(self) -> bytes:
        """The text exposition format, version 0.0.4."""
        if self._gauges is not None:
            await self._gauges.look()
        if self._look_for_orphans is not None:
            self._orphans.set(await self._look_for_orphans())
        return generate_latest(self.registry)
