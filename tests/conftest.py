"""Shared by all tests; fixtures of one part stand in that part's own ``conftest.py``."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from servers import Databases, GivenMySql, MariaDb, Missing, RedisServer

# Loaded machines are slow now and then: no example may fail for its time.
settings.register_profile("atm", deadline=None, database=None)
settings.load_profile("atm")


@pytest.fixture(scope="session")
def mariadb() -> Iterator[Databases]:
    """A server of this test run, or the one that ATM_TEST_MYSQL names.

    It is shared: who stops, kills or pauses servers starts one of their own.
    """
    if said := os.environ.get("ATM_TEST_MYSQL"):
        yield GivenMySql(said)
        return
    try:
        server = MariaDb()
    except Missing as missing:
        pytest.fail(str(missing), pytrace=False)
    with server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A server of this test run. It is shared: who stops, kills or pauses servers starts one of their own."""
    try:
        server = RedisServer()
    except Missing as missing:
        pytest.fail(str(missing), pytrace=False)
    with server:
        yield server


@pytest.fixture
def database(mariadb: Databases) -> Iterator[str]:
    """The name of a database, empty, of this test alone."""
    name = mariadb.create_database()
    yield name
    mariadb.drop_database(name)


@pytest.fixture
def redis_db(redis_server: RedisServer) -> RedisServer:
    """The shared server, empty."""
    redis_server.flushall()
    return redis_server
