"""For the tests of those who use a client: ``from async_task_manager.testing import FakeClient``."""

from atm.client.fake import AsyncFakeClient, FakeClient
from atm.client.fake_server import FakeServer

__all__ = ["AsyncFakeClient", "FakeClient", "FakeServer"]
