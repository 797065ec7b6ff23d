"""The composition root: config → store, coordinator, executors, API → nursery. It alone knows everyone."""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
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
from atm.context import Commands
from atm.coordinator import Coordinator
from atm.coordinators.local import LocalCoordinator
from atm.errors import AtmError, ConfigError, leaf_of
from atm.executor import Executor
from atm.executors import loading
from atm.executors.lanes import Lanes
from atm.health import Health
from atm.metrics import Metrics
from atm.nursery import balance, stuck, supervisor
from atm.nursery.signals import stop_on_signals
from atm.nursery.supervisor import Parts, supervise
from atm.nursery.watchdog import Watchdog
from atm.nursery.worker import Worker
from atm.registry import Registry
from atm.store import Store
from atm.stores.sqlite import SqliteStore

CANCEL_MARGIN = 2.0
"""Seconds beyond the cleanup budget that a cancel call waits for the executor to end."""

WILDCARDS = ("0.0.0.0", "[::]")  # noqa: S104 - to be shown as this host's name

SWITCH_INTERVAL = 0.0005
"""Seconds; with Python's default of 5 ms the store's writer waits ten times as long beside a busy loop."""


GC_THRESHOLD = 10_000
"""New objects between two collections: Python's default of 700, and to go through all that was imported again and
again, cost 8 µs a task and pauses of 40 ms."""


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
        configuration.check(self.config)
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

    async def migrate(self) -> int:
        """Bring the cluster's database to this version's schema; the version it had before, 0 for none.

        Raises: ConfigError where the store is the embedded one, which needs no such thing; StartError.
        """
        if not self._is_cluster:
            raise ConfigError("database.driver", "the embedded store needs no migration")
        from atm import cluster

        return await cluster.store(self.config.database).migrate()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be a node until SIGTERM, SIGINT or ``stop``; started when ready to serve.

        Raises: ConfigError, StartError, StoreDamaged; each says in one line what is wrong.
        """
        self._stop = trio.Event()
        sys.setswitchinterval(SWITCH_INTERVAL)
        gc.set_threshold(GC_THRESHOLD)
        gc.freeze()
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
        lanes = Lanes()
        executors = lanes.dressed(self._executors().by_type)
        self.task_types = sorted(executors)
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
            parts.executors = list({id(executor): executor for executor in executors.values()}.values())
            parts.worker = self._worker(parts, executors, lanes.commands)
            parts.metrics.watch_orphans(lanes.orphans)
        watchdog = Watchdog(parts.metrics, parts.worker, exit_when_stuck=parts.exit_when_stuck)
        parts.listeners += [watchdog.tick, watchdog.watch]
        with stop_on_signals(stop, _overtime(parts)) as parts.limit_dying:
            await supervise(parts, stop, task_status)

    def _parts(self) -> Parts:
        config = self.config
        metrics, coordinator = Metrics(), self._coordinator()
        boot_id = secrets.token_hex(8)
        leader_id = f"{config.worker_id}:{boot_id}"
        metrics.watch(coordinator, leader_id)
        strategy = config.scheduler.load_balance_strategy
        return Parts(
            store=self._store(metrics, boot_id),
            coordinator=coordinator,
            metrics=metrics,
            health=Health(),
            worker=None,
            balance=balance.load(strategy) if config.scheduler.enabled else None,
            leader_id=leader_id,
            scan_interval=config.scheduler.scan_interval,
            batch_size=config.scheduler.batch_size,
            heartbeat_interval=config.worker.heartbeat_interval,
            grace=config.worker.graceful_shutdown_timeout,
            closing_budget=config.worker.cleanup_budget,
            retention=config.retention,
            exit_when_stuck=config.worker.stuck == "exit",
        )

    @property
    def _is_cluster(self) -> bool:
        return self.config.database.effective_driver == "mysql"

    def _store(self, metrics: Metrics, boot_id: str) -> Store:
        database = self.config.database
        on_commit = metrics.store_latency.observe
        if not self._is_cluster:
            return SqliteStore(database.path, on_commit=on_commit)
        from atm import cluster

        return cluster.store(database, boot_id=boot_id, on_commit=on_commit)

    def _coordinator(self) -> Coordinator:
        if not self._is_cluster:
            return LocalCoordinator()
        from atm import cluster

        return cluster.coordinator(self.config.redis, self.config.scheduler)

    def _api(self, parts: Parts) -> AsgiApp:
        waiters = Waiters(parts.store, parts.coordinator, parts.health)
        parts.listeners.append(waiters.listen)
        patience = self.config.worker.cleanup_budget + CANCEL_MARGIN
        services = Services(
            parts.store,
            parts.coordinator,
            parts.metrics,
            parts.health,
            waiters,
            patience,
            has_keys=bool(self.config.server.api_keys),
        )
        return cast("AsgiApp", build_app(services))

    def _server(self, app: AsgiApp, sock: socket.socket) -> Server:
        settings = self.config.server
        hosts: list[str] | None = [*settings.allowed_hosts, settings.host, self.config.metrics.host]
        if settings.api_keys and not settings.allowed_hosts:
            hosts = None  # DNS rebinding brings no key; and what the node is called on a network it cannot know
        return Server(app, sock, hosts, settings.api_keys)

    def _worker(self, parts: Parts, executors: dict[str, Executor], commands: Commands) -> Worker:
        config = self.config
        return Worker(
            parts.store,
            parts.coordinator,
            parts.metrics,
            executors,
            worker_id=config.worker_id,
            name=config.worker.name or config.worker_id,
            address=self._reachable("api"),
            capacity=config.capacity,
            cleanup_budget=config.worker.cleanup_budget,
            commands=commands,
        )

    def _reachable(self, what: str) -> str:
        """The address of what is served, as others can use it."""
        url = self.urls.get(what, "")
        for wildcard in WILDCARDS:
            url = url.replace(f"//{wildcard}:", f"//{socket.gethostname()}:")
        return url

    def _executors(self) -> Registry:
        loading.load_entry_points(self._registry)
        loading.load_configured(self._registry, self.config.executors)
        if self.config.worker.supported_types:
            self._registry.restrict(self.config.worker.supported_types)
        return self._registry

    def _place_of_data(self) -> str:
        if not self._is_cluster:
            return str(Path(self.config.database.path).absolute())
        from atm import cluster

        return str(cluster.address_of(self.config.database))

    def banner(self) -> str:
        """What the operator should know of a node that has started."""
        api = self._reachable("api")
        key = """ -H "X-API-Key: $ATM_API_KEY\"""" if self.config.server.api_keys else ""
        lines = [
            f"{self.config.app.name} is ready",
            f"  API      {api or 'off'}",
            f"  metrics  {self._reachable('metrics') or 'off'}",
            f"  data     {self._place_of_data()}",
        ]
        if self.config.worker.enabled:
            types = ", ".join(self.task_types)
            lines.append(f"  worker   {self.config.worker_id}, {self.config.capacity} slots, runs {types}")
        if self.config.log.file:
            lines.append(f"  log      {Path(self.config.log.file).absolute()}")
        if api:
            lines += [
                "Try:",
                f"  curl -X POST {api}/api/v1/tasks{key} -H 'Content-Type: application/json' \\",
                """    -d '{"task_type": "echo", "payload": {"hello": "world"}}'""",
                f"  curl{key} '{api}/api/v1/tasks?limit=5'",
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
        + stuck.STUCK_MARGIN
        + supervisor.RECORD_PATIENCE
        + 2 * IN_FLIGHT_PATIENCE
    )
