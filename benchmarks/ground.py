"""What a cluster is measured on: a MariaDB and a Redis of its own, and nodes over them.

Commits are durable and lie on a disk, not in memory; Redis keeps nothing, as the product needs it.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.nodes import ROOT, NodeProcess, cpu_seconds

sys.path.append(str(ROOT / "tests"))

from servers import MariaDb, RedisServer

MARIADB = ("--innodb-buffer-pool-size=1G", "--innodb-log-file-size=512M")
"""Sized as for work, not as for tests. innodb_flush_log_at_trx_commit is 1 there already."""

ROLES = {"server": "api", "scheduler": "scheduler", "worker": "worker"}
PARTS = ("nodes", "MariaDB", "Redis")
LEADER = "scheduler:leader"
HOLDER = "benchmark"


class Ground:
    """The two servers; each ``cluster`` on them begins with an empty database and an empty Redis."""

    def __init__(self) -> None:
        self.mariadb = MariaDb(*MARIADB, on_disk=True)
        self.redis = RedisServer()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.mariadb)
            stack.enter_context(self.redis)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def cluster(self, folder: str | None = None) -> Iterator[Cluster]:
        """A cluster without nodes; ``folder``: where those are to have theirs."""
        database = self.mariadb.create_database()
        self.redis.flushall()
        try:
            with tempfile.TemporaryDirectory(prefix="atm-bench-", dir=folder) as name:
                yield Cluster(self, database, Path(name))
        finally:
            self.mariadb.drop_database(database)


class Cluster:
    def __init__(self, ground: Ground, database: str, folder: Path) -> None:
        self.folder = folder
        self._ground = ground
        self._database = database

    def node(self, name: str, roles: str = "api scheduler worker", **worker: Any) -> NodeProcess:
        """A node, to be entered; ``name`` is its ``worker.id``, ``worker`` more settings of that section."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        mariadb, redis = self._ground.mariadb, self._ground.redis
        enabled = {section: {"enabled": role in roles.split()} for section, role in ROLES.items()}
        return NodeProcess(
            folder,
            server={"port": 0, **enabled["server"]},
            scheduler=enabled["scheduler"],
            worker={"id": name, **enabled["worker"], **worker},
            database={
                "host": mariadb.host,
                "port": mariadb.port,
                "user": mariadb.user,
                "password": mariadb.password,
                "database": self._database,
            },
            redis={"addr": f"{redis.host}:{redis.port}"},
        )

    def sql(self, statements: str) -> str:
        return str(self._ground.mariadb.sql(statements, self._database))

    def leader(self) -> str | None:
        """The name of the node that leads."""
        holder = self._ground.redis.call("GET", LEADER)
        return str(holder).partition(":")[0] if holder else None

    def hold_leadership(self) -> None:
        """Nothing is handed out until ``let_lead``: nobody leads, as the benchmark holds the right."""
        self._ground.redis.call("SET", LEADER, HOLDER, "PX", 600_000)

    def let_lead(self) -> None:
        """Resign, as a leader does."""
        self._ground.redis.call("DEL", LEADER)
        self._ground.redis.call("PUBLISH", "scheduler:resigned", HOLDER)

    def cpu(self, *nodes: NodeProcess) -> dict[str, float]:
        """Seconds used so far by these nodes, by MariaDB and by Redis: PARTS."""
        ours = sum(node.cpu_seconds() for node in nodes)
        servers = (self._ground.mariadb.pid, self._ground.redis.pid)
        return dict(zip(PARTS, (ours, *map(cpu_seconds, servers)), strict=True))
