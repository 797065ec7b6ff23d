"""A task in the hands of who created it."""

from __future__ import annotations

from typing import Any

from atm.client import calls
from atm.client.models import Task, TaskLog
from atm.client.sides import Later, Now, Verb
from atm.client.wire import Answer, Session, Step, Steps


class HandleVerbs:
    """What can be done with one task."""

    task_id: str
    _session: Session

    @Verb
    def get(self) -> Steps[Task]:
        """The task as it is now."""
        return calls.get(self._session, self.task_id)

    @Verb
    def wait(self, timeout: float | None = None) -> Steps[Task]:
        """The task, once it has ended. Raises WaitTimeout after ``timeout`` seconds; None: never."""
        return calls.wait(self._session, self.task_id, timeout)

    @Verb
    def result(self, timeout: float | None = None) -> Steps[Any]:
        """What its executor returned, once it has ended.

        Raises TaskFailed, TaskTimedOut or TaskCancelled when it ended otherwise, WaitTimeout after ``timeout``
        seconds.
        """
        return calls.result(self._session, self.task_id, timeout)

    @Verb
    def cancel(self) -> Steps[bool]:
        """As ``cancel_task`` of the client."""
        return calls.cancel(self._session, self.task_id)

    @Verb
    def retry(self) -> Steps[Task]:
        """As ``retry_task`` of the client."""
        return calls.retry(self._session, self.task_id)

    @Verb
    def logs(self) -> Steps[list[TaskLog]]:
        """Its log, oldest first."""
        return calls.logs(self._session, self.task_id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.task_id}>"


class TaskHandle(HandleVerbs, Now):
    """A task that was created: ``task_id``, and what can be done with it."""

    def __init__(self, client: Now, session: Session, task_id: str) -> None:
        self.task_id = task_id
        self._client = client
        self._session = session

    def _do(self, step: Step) -> Answer | None:
        return self._client._do(step)


class AsyncTaskHandle(HandleVerbs, Later):
    """A task that was created: ``task_id``, and what can be done with it."""

    def __init__(self, client: Later, session: Session, task_id: str) -> None:
        self.task_id = task_id
        self._client = client
        self._session = session

    async def _do(self, step: Step) -> Answer | None:
        return await self._client._do(step)
