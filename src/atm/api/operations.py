"""What is served: every call with its parameters, body, answers and errors.

The routes are made of these, by ``serve``, and so is the OpenAPI document: a call that is served is told of.
What is said here of parameters and bodies are the tables that check them; answers are the types of ``views``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from atm.api import answer, body, examples, query, type_fields, views
from atm.api.query import Parameters
from atm.api.web import App, View

PREFIX = "/api/v1"

CANCELLED = "Task cancelled successfully"
CANCEL_REQUESTED = "Cancellation requested"
WILL_RUN_AGAIN = "Task will run again"

JSON, HTML = "application/json", "text/html"
_DOCUMENT = {"type": "object", "required": ["openapi", "info", "paths"]}


@dataclass(frozen=True)
class Body:
    """A JSON body: at most ``limit`` bytes. ``example`` is a whole one."""

    schema: Mapping[str, Any]
    limit: int
    example: Any


@dataclass(frozen=True)
class Answer:
    """A success. ``data`` is the type of the envelope's data, None for an envelope without.

    ``links`` are ids of operations that take the task's id from this answer. What is not ``enveloped`` has a
    schema in ``data``.
    """

    status: int
    description: str
    data: Any = None
    example: Any = None
    message: str = "success"
    location: bool = False
    links: Sequence[str] = ()
    media: str = JSON
    enveloped: bool = True


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A call. ``errors`` are the codes of its own, beside those that any call can have (``openapi.codes``)."""

    id: str
    method: str
    path: str
    tag: str
    summary: str
    description: str = ""
    query: Parameters = field(default_factory=dict)
    headers: Parameters = field(default_factory=dict)
    body: Body | None = None
    answers: Sequence[Answer]
    errors: Sequence[int] = ()


def serve(app: App, operation: Operation, view: View) -> None:
    """Have ``view`` answer the operation."""
    app.add(operation.method, operation.path, operation.id, view)


PATH_PARAMETERS: Parameters = {
    "task_id": {**query.TASK_ID, "description": "The task.", "examples": [examples.TASK_ID]},
    "task_type": {**body.TASK_TYPE.schema, "description": "The task type.", "examples": ["echo"]},
}

OF_TASK = ("getTask", "cancelTask", "retryTask", "getTaskLogs")
"""What can be asked of a task whose id is known."""

_KEY_HEADER: Parameters = {
    "Idempotency-Key": {
        "type": "string",
        "minLength": 1,
        "maxLength": body.MAX_KEY,
        "pattern": r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$",
        "description": "The field idempotency_key as a header (its bytes as they are, no quotes); in both only if "
        "they are equal.",
        "examples": ["order-4711"],
    }
}


def _object(fields: Mapping[str, body.Rule], **keywords: Any) -> dict[str, Any]:
    properties = {name: rule.schema for name, rule in fields.items()}
    return {"type": "object", "properties": properties, "additionalProperties": False, **keywords}


SCHEMAS: dict[str, dict[str, Any]] = {
    "NewTask": _object(body.FIELDS, required=[body.REQUIRED], **{"not": {"required": [*body.APART]}}),
    "NewTasks": {
        "type": "object",
        "properties": {
            "tasks": {
                "type": "array",
                "items": {"$ref": "#/components/schemas/NewTask"},
                "minItems": 1,
                "maxItems": body.MAX_BATCH_TASKS,
                "description": "All or none of them become tasks.",
            }
        },
        "required": ["tasks"],
        "additionalProperties": False,
    },
    "TaskTypeSettings": _object(type_fields.FIELDS),
}
"""What bodies have to be; those of answers are made of the types in ``views``."""


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


CREATE_TASK = Operation(
    id="createTask",
    method="POST",
    path=f"{PREFIX}/tasks",
    tag="tasks",
    summary="Create a task",
    description="When the answer comes the task is on the disk. With an idempotency key the call can be repeated "
    "safely, after a 503 or a broken connection too.",
    headers=_KEY_HEADER,
    body=Body(_ref("NewTask"), body.MAX_TASK, examples.NEW_TASK),
    answers=[
        Answer(201, "Created.", views.CreatedView, examples.CREATED, location=True, links=OF_TASK),
        Answer(
            200,
            "A replay: the idempotency key is known, and this is its task.",
            views.CreatedView,
            examples.CREATED,
            location=True,
            links=OF_TASK,
        ),
    ],
    errors=[answer.KEY_CONFLICT, answer.STORE_AWAY],
)

CREATE_TASKS = Operation(
    id="createTasks",
    method="POST",
    path=f"{PREFIX}/tasks/batch",
    tag="tasks",
    summary="Create many tasks",
    description=f"1 to {body.MAX_BATCH_TASKS:,} tasks in one transaction, all or none. A known idempotency key "
    "gives its task's id in place; a key twice is one task; a conflict fails the whole. The header "
    "Idempotency-Key is refused here.",
    body=Body(_ref("NewTasks"), body.MAX_BATCH, examples.NEW_TASKS),
    answers=[
        Answer(201, "Created, all or some of them.", views.CreatedBatch, examples.CREATED_MANY),
        Answer(200, "A replay: all of the keys are known.", views.CreatedBatch, examples.CREATED_MANY),
    ],
    errors=[answer.KEY_CONFLICT, answer.STORE_AWAY],
)

LIST_TASKS = Operation(
    id="listTasks",
    method="GET",
    path=f"{PREFIX}/tasks",
    tag="tasks",
    summary="List tasks",
    description="Newest first. A page ends early when its tasks are large: only next_cursor null says that there "
    "is no more. Tasks created in between do not shift the pages.",
    query=query.LIST,
    answers=[Answer(200, "A page.", views.TaskPage, examples.PAGE)],
    errors=[answer.STORE_AWAY],
)

GET_TASK = Operation(
    id="getTask",
    method="GET",
    path=f"{PREFIX}/tasks/{{task_id}}",
    tag="tasks",
    summary="Look at a task, or wait for its end",
    description="With wait the answer is the task either way: look at its status.",
    query=query.WAIT,
    answers=[Answer(200, "The task.", views.TaskView, examples.TASK)],
    errors=[answer.NO_TASK, answer.STORE_AWAY],
)

CANCEL_TASK = Operation(
    id="cancelTask",
    method="POST",
    path=f"{PREFIX}/tasks/{{task_id}}/cancel",
    tag="tasks",
    summary="Cancel a task",
    description="Of a running task the answer waits until its executor has ended, 7 s by default. Repeated, the "
    "answer is the same.",
    answers=[
        Answer(200, "It is CANCELLED, and its executor has ended.", message=CANCELLED),
        Answer(
            202,
            "Its executor has not ended yet; the task becomes CANCELLED when it does.",
            message=CANCEL_REQUESTED,
        ),
    ],
    errors=[answer.NO_TASK, answer.BAD_STATE, answer.STORE_AWAY],
)

RETRY_TASK = Operation(
    id="retryTask",
    method="POST",
    path=f"{PREFIX}/tasks/{{task_id}}/retry",
    tag="tasks",
    summary="Run a task again",
    description="A FAILED, TIMEOUT or CANCELLED task waits again, at once and with all its retries; attempt goes "
    "on, result and error are cleared.",
    answers=[Answer(200, "The task, waiting.", views.TaskView, examples.TASK_AGAIN, WILL_RUN_AGAIN)],
    errors=[answer.NO_TASK, answer.BAD_STATE, answer.STORE_AWAY],
)

GET_TASK_LOGS = Operation(
    id="getTaskLogs",
    method="GET",
    path=f"{PREFIX}/tasks/{{task_id}}/logs",
    tag="tasks",
    summary="Read a task's log",
    description="Following from_status and to_status leads to the task's status.",
    answers=[Answer(200, "Its log, oldest row first.", list[views.LogView], examples.LOG)],
    errors=[answer.NO_TASK, answer.STORE_AWAY],
)

LIST_WORKERS = Operation(
    id="listWorkers",
    method="GET",
    path=f"{PREFIX}/workers",
    tag="overview",
    summary="See who works",
    answers=[Answer(200, "The workers.", list[views.WorkerView], examples.WORKERS)],
    errors=[answer.COORDINATOR_AWAY],
)

LIST_QUEUES = Operation(
    id="listQueues",
    method="GET",
    path=f"{PREFIX}/queues",
    tag="overview",
    summary="See what waits",
    answers=[Answer(200, "The queues.", views.QueuesView, examples.QUEUES)],
    errors=[answer.COORDINATOR_AWAY],
)

LIST_TASK_TYPES = Operation(
    id="listTaskTypes",
    method="GET",
    path=f"{PREFIX}/task-types",
    tag="task types",
    summary="List task types",
    description="Those that were configured, and with their defaults those that a worker supports.",
    answers=[Answer(200, "Their settings.", list[views.TaskTypeView], [examples.TASK_TYPE])],
    errors=[answer.STORE_AWAY],
)

PUT_TASK_TYPE = Operation(
    id="putTaskType",
    method="PUT",
    path=f"{PREFIX}/task-types/{{task_type}}",
    tag="task types",
    summary="Change a task type's settings",
    description="Changes what the body names, and leaves the rest.",
    body=Body(_ref("TaskTypeSettings"), type_fields.MAX_BODY, examples.SETTINGS),
    answers=[Answer(200, "The settings, changed.", views.TaskTypeView, examples.TASK_TYPE)],
    errors=[answer.STORE_AWAY],
)

LIVEZ = Operation(
    id="livez",
    method="GET",
    path="/livez",
    tag="health",
    summary="Ask if the node lives",
    answers=[Answer(200, "It does.", views.Alive, {"status": "alive"})],
)

READYZ = Operation(
    id="readyz",
    method="GET",
    path="/readyz",
    tag="health",
    summary="Ask if the node should get requests",
    description="No while it starts, from the first moment of a drain, and when the store is away.",
    answers=[Answer(200, "It should.", views.Ready, {"status": "ready"})],
    errors=[answer.NOT_READY],
)

OPENAPI = Operation(
    id="openapi",
    method="GET",
    path="/openapi.json",
    tag="documents",
    summary="This document",
    answers=[Answer(200, "OpenAPI 3.1.", _DOCUMENT, enveloped=False)],
)

DOCS = Operation(
    id="docs",
    method="GET",
    path="/docs",
    tag="documents",
    summary="This document as a page for people",
    answers=[Answer(200, "HTML, whole in itself.", {"type": "string"}, media=HTML, enveloped=False)],
)

ALL = (
    CREATE_TASK,
    CREATE_TASKS,
    LIST_TASKS,
    GET_TASK,
    CANCEL_TASK,
    RETRY_TASK,
    GET_TASK_LOGS,
    LIST_WORKERS,
    LIST_QUEUES,
    LIST_TASK_TYPES,
    PUT_TASK_TYPE,
    LIVEZ,
    READYZ,
    OPENAPI,
    DOCS,
)
