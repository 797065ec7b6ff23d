"""atm: durable asynchronous tasks on a Trio structured-concurrency runtime."""

from atm.errors import NonRetryable, RetryLater
from atm.executor import Context, Executor, TaskResult, executes
from atm.node import Node
from atm.task import Task

__all__ = ["Context", "Executor", "Node", "NonRetryable", "RetryLater", "Task", "TaskResult", "executes"]
