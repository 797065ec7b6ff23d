"""What a node of a cluster stands on. Imported for one alone: an embedded node has no use for the drivers."""

from __future__ import annotations

from collections.abc import Callable

from atm.config import Database, Redis, Scheduler
from atm.coordinators.redis import RedisCoordinator, RedisSettings
from atm.stores.mysql import MySqlStore
from atm.stores.mysql_driver import Address

MYSQL_PORT = 3306


def store(
    database: Database, *, boot_id: str | None = None, on_commit: Callable[[float], None] | None = None
) -> MySqlStore:
    """The store that the settings name."""
    return MySqlStore(address_of(database), pool_size=database.pool_size, boot_id=boot_id, on_commit=on_commit)


def coordinator(redis: Redis, scheduler: Scheduler) -> RedisCoordinator:
    """The coordinator that the settings name."""
    return RedisCoordinator(
        redis_of(redis), leader_ttl=scheduler.leader_lock_ttl, renew_interval=scheduler.leader_renew_interval
    )


def address_of(database: Database) -> Address:
    """Where the cluster's database is."""
    return Address(
        host=database.host or "127.0.0.1",
        port=database.port or MYSQL_PORT,
        user=database.user or "root",
        password=database.password or "",
        database=database.database or "task_manager",
        socket=database.socket,
        tls=database.tls or database.tls_ca is not None,
        tls_ca=database.tls_ca,
    )


def redis_of(redis: Redis) -> RedisSettings:
    """Where the cluster's Redis is."""
    return RedisSettings(addr=redis.addr, password=redis.password or None, db=redis.db, url=redis.url)
