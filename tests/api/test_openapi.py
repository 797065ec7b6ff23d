"""/openapi.json: valid, true in both directions, and nothing of it forgotten."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from api.site import TASKS, Site
from atm.api import answer, body, documents, openapi, operations, query, type_fields
from atm.api.keys import hash_of, new_key, scope_for
from atm.config import ApiKey

Json = dict[str, Any]

DOCUMENT = openapi.document(has_keys=False)
GUARDED = openapi.document(has_keys=True)
EVERY_ROUTE = [
    (method.upper(), path, operation)
    for path, item in GUARDED["paths"].items()
    for method, operation in item.items()
]


def closed(schema: Any) -> Any:
    """The schema, with no key allowed that it does not name."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items() if key not in ("example", "examples", "default")}
    if isinstance(made.get("properties"), dict) and "required" in made:
        made.setdefault("additionalProperties", False)
    return made


def validator(schema: Json, document: Json = DOCUMENT) -> Draft202012Validator:
    whole = {**schema, "components": document["components"]}
    Draft202012Validator.check_schema(whole)
    return Draft202012Validator(whole)


def told_of(operation_id: str, status: int, kind: str = operations.JSON, document: Json = DOCUMENT) -> Json:
    """The media type object of an answer."""
    (operation,) = [
        operation
        for item in document["paths"].values()
        for operation in item.values()
        if operation["operationId"] == operation_id
    ]
    response = operation["responses"][str(status)]
    if "$ref" in response:
        response = document["components"]["responses"][response["$ref"].rpartition("/")[2]]
    return dict(response["content"][kind])


def assert_as_told(operation_id: str, answered: httpx.Response) -> None:
    schema = closed(told_of(operation_id, answered.status_code)["schema"])
    whole = {**schema, "components": closed(DOCUMENT["components"])}
    Draft202012Validator(whole).validate(answered.json())


@pytest.mark.parametrize("document", [DOCUMENT, GUARDED], ids=["open", "guarded"])
def test_the_document_is_openapi_3_1(document: Json) -> None:
    assert document["openapi"].startswith("3.1.")
    validate(document)


def test_what_is_served_is_told_and_what_is_told_is_served(site: Site) -> None:
    served = {
        (method, re.sub(r"<(\w+)>", r"{\1}", rule.rule), rule.endpoint)
        for rule in site.rules
        for method in (rule.methods or set()) - {"HEAD"}
    }
    assert {(method, path, told["operationId"]) for method, path, told in EVERY_ROUTE} == served


def test_the_document_is_made_once_and_served_to_everybody(site: Site) -> None:
    answered = site.http.get("/openapi.json")
    assert answered.headers["Content-Type"] == "application/json"
    assert answered.json() == DOCUMENT
    assert documents.openapi_bytes(False) is documents.openapi_bytes(False)


def media_types() -> Iterator[tuple[str, Json]]:
    for method, path, operation in EVERY_ROUTE:
        if "requestBody" in operation:
            yield f"{method} {path}", operation["requestBody"]["content"][operations.JSON]
        for status, response in operation["responses"].items():
            if "$ref" not in response:
                yield from ((f"{method} {path} {status}", media) for media in response["content"].values())
    for name, response in GUARDED["components"]["responses"].items():
        yield name, response["content"][operations.JSON]


@pytest.mark.parametrize(
    ("name", "media"), [*media_types()], ids=lambda value: value if isinstance(value, str) else ""
)
def test_examples_are_what_their_schemas_say(name: str, media: Json) -> None:
    shown = (
        [media["example"]] if "example" in media else [one["value"] for one in media.get("examples", {}).values()]
    )
    assert shown or name.startswith(("GET /docs", "GET /openapi.json"))
    for value in shown:
        validator(media["schema"], GUARDED).validate(value)


def test_examples_of_fields_and_parameters_are_what_their_schemas_say() -> None:
    fields = [
        told
        for schema in operations.SCHEMAS.values()
        for told in schema["properties"].values()
        if "examples" in told
    ]
    assert len(fields) == len(body.FIELDS) + len(type_fields.FIELDS)
    for told in fields:
        for value in told["examples"]:
            validator(told).validate(value)
    for _, _, operation in EVERY_ROUTE:
        for parameter in operation.get("parameters", ()):
            assert parameter["description"]
            if "example" in parameter:
                validator(parameter["schema"]).validate(parameter["example"])


# limits


def numbers_around(schema: Json) -> Iterator[tuple[float, bool]]:
    step = 1 if "integer" in schema["type"] else 0.001
    for key, low, high in (("minimum", False, True), ("exclusiveMinimum", False, False), ("maximum", True, True)):
        if key in schema:
            limit = schema[key]
            yield from ((limit - step, low), (limit, high), (limit + step, not low or key != "maximum"))


def values_around(schema: Json) -> Iterator[tuple[Any, bool]]:
    """Values at the limits that the schema names and just beyond them, and whether it allows them."""
    check = Draft202012Validator(schema).is_valid
    samples: list[Any] = [None, True, [], "", "a b", "é" * 200, 0.5, 7.0, {"a": 1}, {}, "2026-01-31T10:00:00Z"]
    samples += (
        [value for value, _ in numbers_around(schema)] if {"minimum", "exclusiveMinimum"} & {*schema} else []
    )
    samples += ["x" * length for length in (1, 128, 129, 255, 256)]
    samples += [*schema.get("enum", ()), "tab\there", 2, -2]
    yield from ((value, check(value)) for value in samples)


@pytest.mark.parametrize(
    ("name", "rule"),
    [*body.FIELDS.items(), *type_fields.FIELDS.items()],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_is_checked_is_what_is_told(name: str, rule: body.Rule) -> None:
    seen = set()
    for value, allowed in values_around(rule.schema):
        if isinstance(value, str) and name in ("scheduled_at", "idempotency_key") and len(value) >= 200:
            continue  # bytes are counted, which no schema can
        if name == "scheduled_at" and isinstance(value, str):
            allowed = value.endswith("Z")  # a format, which is said and not checked by schemas
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # as the decoder does
        assert (rule.reason(value) is None) == allowed, value
        seen.add(allowed)
    assert seen == {True, False}


def parameters() -> Iterator[tuple[str, str, Json]]:
    for _, path, operation in EVERY_ROUTE:
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "query":
                yield (
                    path.replace("{task_id}", "00000000-0000-7000-8000-000000000000"),
                    parameter["name"],
                    parameter,
                )


@pytest.mark.parametrize(("path", "name", "told"), [*parameters()], ids=lambda v: v if isinstance(v, str) else "")
def test_query_parameters_are_checked_as_told(site: Site, path: str, name: str, told: Json) -> None:
    schema = told["schema"]
    values: list[tuple[str, bool]] = [("~", False)]
    if "enum" in schema:
        values += [(value, True) for value in schema["enum"]] + [("NONE", False)]
    if "maximum" in schema:
        values += [(str(schema[key]), True) for key in ("minimum", "maximum")]
        values += [(str(schema["maximum"] + 1), False), (str(schema["minimum"] - 1), False)]
    if "example" in told:
        values.append((str(told["example"]), True))
    assert len(values) > 1 or name == "cursor"
    for value, allowed in values:
        answered = site.http.get(path, params={name: value})
        assert (answered.status_code != 422) == allowed, value


@pytest.mark.parametrize(
    ("method", "path", "operation"), EVERY_ROUTE, ids=lambda v: v if isinstance(v, str) else ""
)
def test_no_other_query_parameter_is_known(site: Site, method: str, path: str, operation: Json) -> None:
    path = path.replace("{task_id}", "00000000-0000-7000-8000-000000000000").replace("{task_type}", "echo")
    answered = site.http.request(method, path, params={"nobody_knows": 1}, json={})
    if "422" not in operation["responses"]:
        assert answered.status_code in (200, 503)
        return
    assert answered.status_code == 422
    ((field, reason),) = [tuple(error.values()) for error in answered.json()["errors"]]
    known = [told["name"] for told in operation.get("parameters", ()) if told["in"] == "query"]
    assert (field, reason.partition("known are ")[2]) == ("nobody_knows", ", ".join(known))


@pytest.mark.parametrize("path", DOCUMENT["paths"])
def test_no_other_method_is_served(site: Site, path: str) -> None:
    asked = path.replace("{task_id}", "00000000-0000-7000-8000-000000000000").replace("{task_type}", "echo")
    told = {method.upper() for method in DOCUMENT["paths"][path]}
    allowed = told | ({"HEAD"} if "GET" in told else set())
    if path == operations.CREATE_TASKS.path:
        allowed |= {"GET", "HEAD"}  # of a task whose id would be "batch"
    for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} - allowed:
        answered = site.http.request(method, asked)
        assert answered.status_code == 405, method
        assert {name.strip() for name in answered.headers["Allow"].split(",")} == allowed


# answers


def test_answers_hold_what_is_told_and_nothing_else(site: Site) -> None:
    http = site.http
    created = http.post(
        TASKS, json={"task_type": "reports", "payload": {"gate": "told"}, "idempotency_key": "told"}
    )
    assert_as_told("createTask", created)
    again = http.post(TASKS, json={"task_type": "reports", "payload": {"gate": "told"}, "idempotency_key": "told"})
    assert (created.status_code, again.status_code) == (201, 200)
    assert_as_told("createTask", again)
    site.gates.open("told")
    done = created.json()["data"]["task_id"]
    failed, waiting = site.create("fails", max_retry=0), site.create("nobody", delay=60)
    assert site.end_of(done)["progress"] == {"fraction": 0.25, "message": "a quarter"}
    assert site.end_of(failed)["error"]["message"] == "as ever"
    for task_id in (done, failed, waiting):
        assert_as_told("getTask", http.get(f"{TASKS}/{task_id}"))
        assert_as_told("getTaskLogs", http.get(f"{TASKS}/{task_id}/logs"))
    assert_as_told("createTasks", http.post(f"{TASKS}/batch", json={"tasks": [{"task_type": "echo"}] * 2}))
    assert_as_told("listTasks", http.get(TASKS, params={"limit": 2}))
    for status in (200, 200):
        cancelled = http.post(f"{TASKS}/{waiting}/cancel")
        assert cancelled.status_code == status
        assert_as_told("cancelTask", cancelled)
    assert_as_told("retryTask", http.post(f"{TASKS}/{waiting}/retry"))
    http.post(f"{TASKS}/{waiting}/cancel")
    for operation_id, path in (
        ("listWorkers", "workers"),
        ("listQueues", "queues"),
        ("listTaskTypes", "task-types"),
    ):
        assert_as_told(operation_id, http.get(f"/api/v1/{path}"))
    assert_as_told("putTaskType", http.put("/api/v1/task-types/told", json={"max_concurrent": None}))
    assert_as_told("livez", http.get("/livez"))
    assert_as_told("readyz", http.get("/readyz"))


def test_errors_hold_what_is_told_and_nothing_else(site: Site) -> None:
    nobody, http = f"{TASKS}/00000000-0000-7000-8000-000000000000", site.http
    site.create("echo", idempotency_key="told twice", payload={"n": 1})
    conflict = {"task_type": "echo", "idempotency_key": "told twice", "payload": {"n": 2}}
    large = b'{"task_type": "echo", "payload": {"x": "' + b"x" * body.MAX_TASK + b'"}}'
    kind = {"Content-Type": operations.JSON}
    for operation_id, status, answered in (
        ("createTask", 400, http.post(TASKS, content=b"{", headers=kind)),
        ("createTask", 403, http.post(TASKS, json={}, headers={"Host": "elsewhere"})),
        ("createTask", 403, http.post(TASKS, json={}, headers={"Origin": "http://elsewhere"})),
        ("createTask", 409, http.post(TASKS, json=conflict)),
        ("createTask", 413, http.post(TASKS, content=large, headers=kind)),
        ("createTask", 415, http.post(TASKS, content=b"{}")),
        ("createTask", 422, http.post(TASKS, json={"timeout": 0, "colour": 1})),
        ("createTasks", 409, http.post(f"{TASKS}/batch", json={"tasks": [conflict]})),
        ("getTask", 404, http.get(nobody)),
        ("getTask", 404, http.get(f"{TASKS}/a/b")),
        ("cancelTask", 404, http.post(f"{nobody}/cancel")),
        ("cancelTask", 409, http.post(f"{TASKS}/{site.end_of(site.create())['task_id']}/cancel")),
        ("retryTask", 409, http.post(f"{TASKS}/{site.end_of(site.create())['task_id']}/retry")),
        ("getTaskLogs", 404, http.get(f"{nobody}/logs")),
        ("listTasks", 422, http.get(TASKS, params={"limit": 0})),
        ("putTaskType", 422, http.put("/api/v1/task-types/echo", json={"enabled": None})),
    ):
        assert answered.status_code == status, answered.text
        assert_as_told(operation_id, answered)


def test_every_code_has_a_meaning_and_a_place() -> None:
    codes = {value for name, value in vars(answer).items() if name.isupper() and isinstance(value, int)} - {
        answer.MAX_PROBLEMS,
        answer.MAX_FIELD,
    }
    assert set(answer.MEANINGS) == codes
    told = {int(code) for name in GUARDED["components"]["responses"] for code in re.findall(r"\d{5}", name)}
    assert codes - told == {answer.BAD_METHOD}, "what no call can have is another method's"


def test_every_code_that_a_file_raises_is_told_of_its_calls() -> None:
    """``answer.X`` of an operation and the name in the file that serves it."""
    folder = Path(operations.__file__).parent
    for file, prefix in (("tasks.py", "/api/v1/tasks"), ("overview.py", "/api/v1/"), ("health.py", "/readyz")):
        text = (folder / file).read_text(encoding="utf-8")
        raised = {getattr(answer, name) for name in re.findall(r"ApiError\(\s*([A-Z_]+)", text)}
        told = {code for one in operations.ALL if one.path.startswith(prefix) for code in one.errors}
        assert raised <= told | {answer.NOT_READY}, file


# keys


def test_a_node_with_keys_tells_who_may_ask(make_site: Callable[..., Site]) -> None:
    key = new_key()
    site = make_site(keys=[ApiKey(name="reader", hash=hash_of(key), scopes=["read"])])
    assert site.http.get("/openapi.json").json() == GUARDED
    for method, path, operation in EVERY_ROUTE:
        asked = path.replace("{task_id}", "00000000-0000-7000-8000-000000000000").replace("{task_type}", "echo")
        bare = site.http.request(method, asked)
        shown = site.http.request(method, asked, headers={"X-API-Key": key})
        scope = scope_for(method, path)
        if "security" not in operation:
            assert scope is None
            assert bare.status_code == 200
            assert not {"401"} & {*operation["responses"]}
            continue
        assert operation["security"] == [{"bearer": [scope]}, {"apiKey": [scope]}]
        assert bare.status_code == 401
        validator(told_of(operation["operationId"], 401, document=GUARDED)["schema"], GUARDED).validate(
            bare.json()
        )
        assert (shown.status_code == 403) == (scope != "read")


def test_links_lead_to_calls_that_want_what_they_bring() -> None:
    ids = {operation["operationId"]: operation for _, _, operation in EVERY_ROUTE}
    linked = {}
    for status in ("200", "201"):
        for name, link in ids["createTask"]["responses"][status]["links"].items():
            linked[name] = link["operationId"]
            wanted = {told["name"] for told in ids[link["operationId"]]["parameters"] if told["in"] == "path"}
            assert set(link["parameters"]) == wanted
    assert set(linked) == set(operations.OF_TASK)


def test_pages_are_named_by_cursors_of_the_documented_kind(site: Site) -> None:
    site.create(), site.create()
    found = site.http.get(TASKS, params={"limit": 1}).json()["data"]["next_cursor"]
    assert re.search(query.LIST["cursor"]["pattern"], found)
    pages = [found]
    for _ in range(2):
        data = site.http.get(TASKS, params={"limit": 1, "cursor": pages[-1]}).json()["data"]
        if data["next_cursor"] is None:
            break
        pages.append(data["next_cursor"])
    assert all(later < earlier for earlier, later in pairwise(pages))
