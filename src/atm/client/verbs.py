"""What a client can do, written once for all clients: each verb returns the steps that do it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sized
from datetime import datetime
from typing import Any, Generic, TypeVar

import msgspec

from atm.client import bulk, calls
from atm.client.errors import ApiError, BadAnswer, NotFound
from atm.client.models import Health, NewTask, Page, Progress, Queues, Task, TaskLog, TaskTypeSettings, Worker
from atm.client.sides import Pages, Verb, Walk
from atm.client.wire import Request, Session, Steps, model
from atm.task import RetryStrategy, Status

H = TypeVar("H")


class Created(msgspec.Struct):
    task_id: str


class CreatedMany(msgspec.Struct):
    task_ids: list[str]


class Verbs(Generic[H]):
    """The verbs of a client. All may raise ConnectionFailed, RequestTimeout, BadAnswer and ApiError."""

    _session: Session

    @abstractmethod
    def _handle(self, task_id: str) -> H: ...

    def handle(self, task_id: str) -> H:
        """A handle for a task that exists; nothing is asked."""
        return self._handle(calls.checked_id(task_id))

    @Verb
    def create_task(
        self,
        task_type: str,
        payload: Mapping[str, Any] | None = None,
        *,
        priority: int | None = None,
        timeout: float | None = None,
        max_retry: int | None = None,
        delay: float | None = None,
        scheduled_at: datetime | str | None = None,
        idempotency_key: str | None = None,
    ) -> Steps[H]:
        """Create a task. When this returns it is on the server's disk, once, however often it had to be sent.

        Args:
            task_type: says which executors can run it.
            payload: what they are given; any JSON.
            priority: 1 high, 0 normal, -1 low.
            timeout: seconds that one attempt may take; None: that of the type.
            max_retry: retries after failures; None: that of the type.
            delay: seconds until it may run.
            scheduled_at: instead of ``delay``: a time with its zone.
            idempotency_key: a second create with this key, type and payload gives the first task.
                None: a key that nobody else has.
        """
        body = bulk.encode_task(
            {
                "task_type": task_type,
                "payload": payload,
                "priority": priority,
                "timeout": timeout,
                "max_retry": max_retry,
                "delay": delay,
                "scheduled_at": scheduled_at,
                "idempotency_key": idempotency_key,
            }
        )
        answer = yield from self._session.ask(Request("POST", f"{calls.PREFIX}/tasks", body=body))
        return self._handle(model(answer.data, Created, answer.status).task_id)

    @Verb
    def create_tasks(
        self,
        tasks: Iterable[NewTask | Mapping[str, Any]],
        *,
        on_progress: Callable[[Progress], object] | None = None,
    ) -> Steps[list[H]]:
        """Create many tasks: any number, in requests of at most 1,000 tasks and 16 MiB. Handles in the same order.

        Each request is all or nothing, and not doubled, however often it was sent. When one is refused, those
        before it have been carried out, which ``on_progress`` was told after each.

        Args:
            tasks: mappings with the parameters of ``create_task``; may be a generator.
            on_progress: called after each request.
        """
        total = len(tasks) if isinstance(tasks, Sized) else None
        handles: list[H] = []
        for piece in bulk.pieces(tasks):
            try:
                answer = yield from self._session.ask(
                    Request("POST", f"{calls.PREFIX}/tasks/batch", body=piece.body)
                )
            except ApiError as error:
                raise bulk.moved(error, piece.start) from None
            task_ids = model(answer.data, CreatedMany, answer.status).task_ids
            if len(task_ids) != len(piece.tasks):
                raise BadAnswer(f"{len(piece.tasks)} tasks were sent, {len(task_ids)} came back", answer.status)
            handles += [self._handle(task_id) for task_id in task_ids]
            if on_progress is not None:
                on_progress(Progress(len(handles), total, task_ids))
        return handles

    @Verb
    def get_task(self, task_id: str) -> Steps[Task]:
        """The task as it is now. Raises NotFound."""
        return calls.get(self._session, task_id)

    @Verb
    def wait(self, task_id: str, timeout: float | None = None) -> Steps[Task]:
        """The task, once it has ended. Raises WaitTimeout after ``timeout`` seconds; None: never."""
        return calls.wait(self._session, task_id, timeout)

    @Verb
    def list_tasks(
        self,
        *,
        status: Status | str | None = None,
        task_type: str | None = None,
        worker_id: str | None = None,
        parent_id: str | None = None,
        created_after: datetime | str | None = None,
        created_before: datetime | str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Steps[Page]:
        """A page of tasks, newest first.

        Args:
            created_after: this moment included; with its zone.
            created_before: this moment excluded.
            limit: tasks on the page, 1 to 500; None: 50.
            cursor: the ``next_cursor`` of the page before.
        """
        query = calls.task_query(
            status, task_type, worker_id, parent_id, created_after, created_before, limit, cursor
        )
        return calls.page(self._session, query)

    @Walk
    def iter_tasks(
        self,
        *,
        status: Status | str | None = None,
        task_type: str | None = None,
        worker_id: str | None = None,
        parent_id: str | None = None,
        created_after: datetime | str | None = None,
        created_before: datetime | str | None = None,
        page_size: int | None = None,
    ) -> Pages:
        """All tasks, newest first, page after page as they are needed; ``page_size``: 1 to 500 at a time."""
        query = calls.task_query(
            status, task_type, worker_id, parent_id, created_after, created_before, page_size, None
        )
        while True:
            found = yield calls.page(self._session, query)
            if found.next_cursor is None:
                return
            query = {**query, "cursor": found.next_cursor}

    @Verb
    def cancel_task(self, task_id: str) -> Steps[bool]:
        """Cancel a task: True once it is CANCELLED, False while its executor is still about to end.

        Repeated: the same. Raises Conflict when it has ended otherwise, NotFound.
        """
        return calls.cancel(self._session, task_id)

    @Verb
    def retry_task(self, task_id: str) -> Steps[Task]:
        """Let a FAILED, TIMEOUT or CANCELLED task wait again, with all its retries. Raises Conflict, NotFound.

        Sent again only if it surely was not carried out.
        """
        return calls.retry(self._session, task_id)

    @Verb
    def get_task_logs(self, task_id: str) -> Steps[list[TaskLog]]:
        """Its log, oldest first. Raises NotFound."""
        return calls.logs(self._session, task_id)

    @Verb
    def list_workers(self) -> Steps[list[Worker]]:
        """Who works."""
        answer = yield from self._session.ask(Request("GET", f"{calls.PREFIX}/workers"))
        return model(answer.data, list[Worker], answer.status)

    @Verb
    def list_queues(self) -> Steps[Queues]:
        """What waits, by queue."""
        answer = yield from self._session.ask(Request("GET", f"{calls.PREFIX}/queues"))
        return model(answer.data, Queues, answer.status)

    @Verb
    def list_task_types(self) -> Steps[list[TaskTypeSettings]]:
        """The settings of the types that were configured, or that a worker supports."""
        return calls.task_types(self._session)

    @Verb
    def get_task_type(self, task_type: str) -> Steps[TaskTypeSettings]:
        """The settings of one type. Raises NotFound: nobody has configured it, and no worker supports it."""
        for settings in (yield from calls.task_types(self._session)):
            if settings.task_type == task_type:
                return settings
        raise NotFound(f"no task type {task_type[:128]}", 404)

    @Verb
    def put_task_type(
        self,
        task_type: str,
        *,
        default_timeout: float | msgspec.UnsetType = msgspec.UNSET,
        default_max_retry: int | msgspec.UnsetType = msgspec.UNSET,
        retry_strategy: RetryStrategy | str | msgspec.UnsetType = msgspec.UNSET,
        retry_delay: float | msgspec.UnsetType = msgspec.UNSET,
        backoff_rate: float | msgspec.UnsetType = msgspec.UNSET,
        max_concurrent: int | msgspec.UnsetType | None = msgspec.UNSET,
        enabled: bool | msgspec.UnsetType = msgspec.UNSET,
    ) -> Steps[TaskTypeSettings]:
        """Change what is given; ``max_concurrent`` None means no cap. The settings as they are now."""
        given = {
            "default_timeout": default_timeout,
            "default_max_retry": default_max_retry,
            "retry_strategy": retry_strategy,
            "retry_delay": retry_delay,
            "backoff_rate": backoff_rate,
            "max_concurrent": max_concurrent,
            "enabled": enabled,
        }
        body = bulk.dumps({name: value for name, value in given.items() if value is not msgspec.UNSET})
        path = f"{calls.PREFIX}/task-types/{calls.segment(task_type)}"
        answer = yield from self._session.ask(Request("PUT", path, body=body))
        return model(answer.data, TaskTypeSettings, answer.status)

    @Verb
    def livez(self) -> Steps[Health]:
        """Whether the server is alive; asked once. Who cannot be reached is not."""
        return calls.health(self._session, "/livez")

    @Verb
    def readyz(self) -> Steps[Health]:
        """Whether the server should get requests; asked once."""
        return calls.health(self._session, "/readyz")
