"""The SDK: ``from async_task_manager import Client``."""

from atm.client import *  # noqa: F403
from atm.client import __all__ as __all__
