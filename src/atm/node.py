"""The composition root: config → store, coordinator, executors, API → nursery. It alone knows everyone."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import trio

from atm import config as configuration
from atm import logs
from atm.api.app import Services, build_app
from atm.api.guard import AsgiApp
from atm.api.server import IN_FLIGHT_PATIENCE, Server, bind, metrics_app, url_of
from atm.api.waiters import Waiters
from atm.config import Config
from atm.coordinators.local import LocalCoordinator
from atm.errors import AtmError, leaf_of
from atm.executor import Executor, Registry
from atm.executors import loading
from atm.health import Health
from atm.metrics import Metrics
from atm.nursery import balance, supervisor
from atm.nursery.heartbeat import measure_lag
from atm.nursery.signals import stop_on_signals
from atm.nursery.supervisor import Parts, supervise
from atm.nursery.worker import Worker
from atm.stores.sqlite import SqliteStore

CANCEL_MARGIN = 2.0
"""Seconds beyond the cleanup budget that a cancel call waits for the executor to end."""

SWITCH_INTERVAL = 0.0005
"""Seconds; with Python's default of 5 ms the store's writer waits ten times as long beside a busy loop."""


class Node:
    """One process of the product: API, scheduler and worker, each as the config says.

        node = Node("config.yaml")
        node.register_executor(EmailExecutor("smtp.example.com", 587))
        trio.run(node.run)

    Args:
        config: a Config, or the path of a config.yaml; None reads ./config.yaml if it is there.
    Raises: ConfigError.
    """

    def __init__(self, config: Config | str | os.PathLike[str] | None = None) -> None:
        self.config = config if isinstance(config, Config) else configuration.load(config)
        self.urls: dict[str, str] = {}
        self.task_types: list[str] = []
        self._registry = Registry()
        self._stop: trio.Event | None = None
        loading.load_shipped(self._registry)

    def register_executor(self, executor: Executor | Callable[..., Any]) -> None:
        """Add an executor, or a function marked by ``executes``. Raises ConfigError."""
        self._registry.register(executor)

    def stop(self) -> None:
        """Drain and end, as SIGTERM does. To be called in the node's own Trio loop, once it runs."""
        if self._stop is not None:
            self._stop.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be a node until SIGTERM, SIGINT or ``stop``; started when ready to serve.

        Raises: ConfigError, StartError, StoreDamaged; each says in one line what is wrong.
        """
        self._stop = trio.Event()
        sys.setswitchinterval(SWITCH_INTERVAL)
        handlers = logs.set_up(self.config.log)
        try:
            with contextlib.ExitStack() as stack:
                await self._run(stack, self._stop, task_status)
        except BaseExceptionGroup as group:
            told = leaf_of(group, AtmError)
            if told is None:
                raise
            raise told from None
        finally:
            logs.tear_down(handlers)

    async def _run(
        self, stack: contextlib.ExitStack, stop: trio.Event, task_status: trio.TaskStatus[None]
    ) -> None:
        config = self.config
        registry = self._executors()
        self.task_types = sorted(registry.by_type)
        # Bound first of all: a busy port is told before anything is opened.
        api_socket = _bind(stack, config.server, "server.port")
        metrics_socket = _bind(stack, config.metrics, "metrics.port")
        parts = self._parts()
        if api_socket is not None:
            self.urls["api"] = url_of(api_socket)
            parts.servers.append(self._server(self._api(parts), api_socket))
        if metrics_socket is not None:
            self.urls["metrics"] = f"{url_of(metrics_socket)}/metrics"
            parts.servers.append(self._server(metrics_app(parts.metrics), metrics_socket))
        if config.worker.enabled:
            parts.executors = registry.executors()
            parts.worker = self._worker(parts, registry)
        with stop_on_signals(stop, _overtime(parts)) as parts.limit_dying:
            await supervise(parts, stop, task_status)

    def _parts(self) -> Parts:
        config = self.config
        metrics, coordinator = Metrics(), LocalCoordinator()
        metrics.watch(coordinator, config.worker_id)
        strategy = config.scheduler.load_balance_strategy
        return Parts(
            store=SqliteStore(config.database.path, on_commit=metrics.store_latency.observe),
            coordinator=coordinator,
            metrics=metrics,
            health=Health(),
            worker=None,
            balance=balance.load(strategy) if config.scheduler.enabled else None,
            leader_id=config.worker_id,
            scan_interval=config.scheduler.scan_interval,
            batch_size=config.scheduler.batch_size,
            heartbeat_interval=config.worker.heartbeat_interval,
            grace=config.worker.graceful_shutdown_timeout,
            closing_budget=config.worker.cleanup_budget,
            retention=config.retention,
            listeners=[lambda task_status: measure_lag(metrics, task_status)],
        )

    def _api(self, parts: Parts) -> AsgiApp:
        waiters = Waiters(parts.store, parts.coordinator, parts.health)
        parts.listeners.append(waiters.listen)
        patience = self.config.worker.cleanup_budget + CANCEL_MARGIN
        services = Services(parts.store, parts.coordinator, parts.metrics, parts.health, waiters, patience)
        return cast("AsgiApp", build_app(services))

    def _server(self, app: AsgiApp, sock: socket.socket) -> Server:
        hosts = [*self.config.server.allowed_hosts, self.config.server.host, self.config.metrics.host]
        return Server(app, sock, hosts)

    def _worker(self, parts: Parts, registry: Registry) -> Worker:
        config = self.config
        return Worker(
            parts.store,
            parts.coordinator,
            parts.metrics,
            registry.by_type,
            worker_id=config.worker_id,
            name=config.worker.name or config.worker_id,
            address=self.urls.get("api", ""),
            capacity=config.capacity,
            cleanup_budget=config.worker.cleanup_budget,
        )

    def _executors(self) -> Registry:
        loading.load_entry_points(self._registry)
        loading.load_configured(self._registry, self.config.executors)
        if self.config.worker.supported_types:
            self._registry.restrict(self.config.worker.supported_types)
        return self._registry

    def banner(self) -> str:
        """What the operator should know of a node that has started."""
        api = self.urls.get("api")
        lines = [
            f"{self.config.app.name} is ready",
            f"  API      {api or 'off'}",
            f"  metrics  {self.urls.get('metrics', 'off')}",
            f"  data     {Path(self.config.database.path).absolute()}",
        ]
        if self.config.worker.enabled:
            types = ", ".join(self.task_types)
            lines.append(f"  worker   {self.config.worker_id}, {self.config.capacity} slots, runs {types}")
        if self.config.log.file:
            lines.append(f"  log      {Path(self.config.log.file).absolute()}")
        if api:
            lines += [
                "Try:",
                f"  curl -X POST {api}/api/v1/tasks -H 'Content-Type: application/json' \\",
                """    -d '{"task_type": "echo", "payload": {"hello": "world"}}'""",
                f"  curl '{api}/api/v1/tasks?limit=5'",
                "Ctrl-C stops it; what runs may finish first.",
            ]
        return "\n".join(lines)


def _bind(
    stack: contextlib.ExitStack, section: configuration.Server | configuration.Metrics, key: str
) -> socket.socket | None:
    return stack.enter_context(bind(section.host, section.port, key)) if section.enabled else None


def _overtime(parts: Parts) -> float:
    """Seconds after which a node that is to stop has used up every patience there is."""
    return (
        parts.grace
        + 2 * parts.closing_budget
        + supervisor.STUCK_MARGIN
        + supervisor.RECORD_PATIENCE
        + 2 * IN_FLIGHT_PATIENCE
    )
