"""/api/v1/tasks: create, get, list, cancel, retry, logs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio
from quart import Request

from atm import families
from atm.api import body, operations, query, views
from atm.api.answer import BAD_STATE, KEY_CONFLICT, NO_TASK, ApiError, Reply, invalid, success
from atm.api.operations import PREFIX, serve
from atm.api.web import App
from atm.coordinator import CancelRequest, Hint, TaskEvent
from atm.errors import IdempotencyConflict
from atm.store import CancelState, CancelVerdict, Created, NewTask, TaskFilter
from atm.task import Status, Task, TaskType

if TYPE_CHECKING:
    from atm.api.app import Services

MAX_PAGE_BYTES = 8 * 1024 * 1024
"""Of payloads and results in a list, beyond which no further tasks are fetched for it."""

PAGE_STEP = query.DEFAULT_PAGE + 1
"""Tasks fetched at a time; payload and result may be 1 MiB each."""


def add_routes(app: App, services: Services) -> None:
    routes = TaskRoutes(services)
    serve(app, operations.CREATE_TASK, routes.create)
    serve(app, operations.CREATE_TASKS, routes.create_batch)
    serve(app, operations.LIST_TASKS, routes.find)
    serve(app, operations.GET_TASK, routes.get)
    serve(app, operations.CANCEL_TASK, routes.cancel)
    serve(app, operations.RETRY_TASK, routes.retry)
    serve(app, operations.GET_TASK_LOGS, routes.logs)


class TaskRoutes:
    def __init__(self, services: Services) -> None:
        self._store = services.store
        self._coordinator = services.coordinator
        self._metrics = services.metrics
        self._waiters = services.waiters
        self._cancel_patience = services.cancel_patience

    async def create(self, request: Request) -> Reply:
        query.arguments(request)
        content, fields = await body.read_json(request, body.MAX_TASK)
        task = body.new_task(content, fields, body.header_key(request))
        (created,) = await self._create([task], "")
        location = {"Location": f"{PREFIX}/tasks/{created.task_id}"}
        data: views.CreatedView = {"task_id": created.task_id}
        return success(data, status=200 if created.replayed else 201, headers=location)

    async def create_batch(self, request: Request) -> Reply:
        query.arguments(request)
        tasks = await body.read_batch(request)
        if "Idempotency-Key" in request.headers:
            raise invalid(("Idempotency-Key", "is for single tasks; give each task of a batch its own key"))
        created = await self._create(tasks, "tasks[{}].")
        status = 200 if all(receipt.replayed for receipt in created) else 201
        data: views.CreatedBatch = {"task_ids": [receipt.task_id for receipt in created]}
        return success(data, status=status)

    async def _create(self, tasks: Sequence[NewTask], where: str) -> list[Created]:
        try:
            created = await self._store.create(tasks)
        except IdempotencyConflict as conflict:
            field = where.format(conflict.index) + "idempotency_key"
            raise ApiError(KEY_CONFLICT, str(conflict), [(field, str(conflict))]) from None
        fresh = [(t, r) for t, r in zip(tasks, created, strict=True) if not r.replayed]
        for task_type, count in Counter(task.task_type for task, _ in fresh).items():
            self._metrics.created(task_type, count)
        await self._coordinator.publish([TaskEvent(r.task_id, Status.PENDING) for _, r in fresh])
        await self._coordinator.push([Hint(r.task_id, t.task_type, t.priority, r.due_in) for t, r in fresh])
        return created

    async def get(self, request: Request, task_id: str) -> Reply:
        wait = query.wait_seconds(query.arguments(request, query.WAIT).get("wait"))
        _check_id(task_id)
        if wait is None:
            task = await self._store.get(task_id)
        else:
            task = await self._waiters.ended(task_id, wait)
        if task is None:
            raise _no_task(task_id)
        view = views.task(task)
        if task.status is Status.PENDING:
            view["pending_reason"] = await self._pending_reason(task)
        return success(view)

    async def _pending_reason(self, task: Task) -> views.PendingReason:
        """Why it waits: the first of the reasons that holds."""
        if await self._store.is_early(task.due_ms):
            return "scheduled" if task.retry_count == 0 else "retry_delay"
        settings = (await self._store.task_types()).get(task.task_type) or TaskType(task_type=task.task_type)
        if not settings.enabled:
            return "type_disabled"
        overview = await self._coordinator.overview()
        if overview is None:
            return "queued"
        workers = [w for w in overview.workers if task.task_type in w.task_types]
        if not workers:
            return "no_worker"
        if settings.max_concurrent is not None:
            running = await self._store.running(task.task_type)
            if running >= settings.max_concurrent:
                return "type_at_cap"
        return "no_free_slot" if all(w.draining or w.load >= w.capacity for w in workers) else "queued"

    async def find(self, request: Request) -> Reply:
        found = query.arguments(request, query.LIST)
        limit = query.page_size(found.get("limit"))
        before = query.after_cursor(found.get("cursor"))
        page, more = await self._page(query.task_filter(found), before, limit)
        data: views.TaskPage = {
            "tasks": [views.task(task) for task in page],
            "next_cursor": query.cursor_of(page[-1].task_id) if more else None,
        }
        return success(data)

    async def _page(self, where: TaskFilter, before: str | None, limit: int) -> tuple[list[Task], bool]:
        """Up to ``limit`` tasks, fewer when they are large; and whether there may be more."""
        page: list[Task] = []
        size = 0
        while len(page) <= limit and size <= MAX_PAGE_BYTES:
            step = min(limit + 1 - len(page), PAGE_STEP)
            part = await self._store.find(where, before, step)
            page += part
            if len(part) < step:
                return page, False
            size += sum(len(task.payload_json) + len(task.result_json or "") for task in part)
            before = part[-1].task_id
        return page[:limit], True

    async def cancel(self, request: Request, task_id: str) -> Reply:
        query.arguments(request)
        _check_id(task_id)
        began = trio.current_time()
        (verdict,) = await self._store.cancel([task_id])
        if verdict.state is CancelState.UNKNOWN:
            raise _no_task(task_id)
        await families.withdraw(self._coordinator, {task_id: verdict})
        if verdict.state is CancelState.REQUESTED:
            await self._request_cancel(task_id, verdict)
            task = await self._waiters.ended(task_id, self._cancel_patience)
            if task is None:
                raise _no_task(task_id)
            if not task.is_terminal:
                return success(status=202, message=operations.CANCEL_REQUESTED)
            status: Status | None = task.status
            self._metrics.cancel_latency.observe(trio.current_time() - began)
        else:
            status = verdict.status
            if verdict.changed:
                await self._coordinator.publish([TaskEvent(task_id, Status.CANCELLED)])
        if status is not Status.CANCELLED:
            raise ApiError(BAD_STATE, f"the task is {status} and cannot be cancelled")
        return success(message=operations.CANCELLED)

    async def _request_cancel(self, task_id: str, verdict: CancelVerdict) -> None:
        """Tell the task's worker; and the workers of its children, before or after which it may end."""
        if verdict.worker_id is not None:
            request_ = CancelRequest(task_id, verdict.attempt)
            await self._coordinator.request_cancel(verdict.worker_id, request_)
        if verdict.children:
            await families.cancel_children(self._store, self._coordinator, [task_id])
        if verdict.worker_id is None:
            # Without living children it ends now; else when the leader sees that they have ended.
            (verdict,) = await self._store.cancel([task_id])
            if verdict.changed and verdict.state is CancelState.CANCELLED:
                await self._coordinator.publish([TaskEvent(task_id, Status.CANCELLED)])

    async def retry(self, request: Request, task_id: str) -> Reply:
        query.arguments(request)
        _check_id(task_id)
        (verdict,) = await self._store.reopen([task_id])
        task = verdict.task
        if task is None:
            raise _no_task(task_id)
        if not verdict.changed:
            reason = f"the task is {task.status}; only FAILED, TIMEOUT and CANCELLED ones can be retried"
            raise ApiError(BAD_STATE, reason)
        await self._coordinator.push([Hint(task.task_id, task.task_type, task.priority)])
        return success(views.task(task), message=operations.WILL_RUN_AGAIN)

    async def logs(self, request: Request, task_id: str) -> Reply:
        query.arguments(request)
        _check_id(task_id)
        rows = await self._store.logs(task_id)
        if rows is None:
            raise _no_task(task_id)
        return success([views.log_row(row) for row in rows])


def _check_id(task_id: str) -> None:
    if not query.is_task_id(task_id):
        raise _no_task(task_id)


def _no_task(task_id: str) -> ApiError:
    return ApiError(NO_TASK, f"no task {task_id[:64]}")
