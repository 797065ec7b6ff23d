"""The OpenAPI document, made of the operations that are served and the types of their answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from importlib.metadata import version
from itertools import groupby
from typing import Any, cast

import msgspec

from atm.api import answer, examples, keys, operations, type_fields, views
from atm.api.operations import Answer, Operation
from atm.api.query import Parameters

Json = dict[str, Any]

_REF = "#/components/schemas/{name}"

TAGS = {
    "tasks": "Create them, look at them, end them.",
    "overview": "Who works, what waits.",
    "task types": "How tasks of a type are run.",
    "health": "For probes.",
    "documents": "What you read.",
}

_DESCRIPTION = (
    "Durable asynchronous tasks. Answers are JSON in one envelope: `code` 0 is success, any other code is the "
    "HTTP status × 100 + n, with a `message`, a `request_id` and the `errors` of single fields. Query parameters "
    "and fields that a call does not know are refused, not ignored. `HEAD` does what `GET` does, without the "
    "body; any other method is answered by 405 with `Allow`, any other path by 404, both in the envelope. Times "
    "are RFC 3339 in UTC, ending in `Z`."
)

_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key: `Authorization: Bearer atm_…`."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key."},
}

_HEADERS: Json = {
    "Location": {"description": "Path of the task.", "required": True, "schema": {"type": "string"}},
    "Retry-After": {
        "description": "Seconds after which to try again.",
        "required": True,
        "schema": {"type": "integer", "minimum": 0},
    },
    "WWW-Authenticate": {"description": "Bearer.", "required": True, "schema": {"const": "Bearer"}},
}

_HEADERS_OF = {
    answer.NO_KEY: "WWW-Authenticate",
    answer.STORE_AWAY: "Retry-After",
    answer.COORDINATOR_AWAY: "Retry-After",
}

_ERROR: Json = {
    "type": "object",
    "title": "Error",
    "description": "What every error looks like.",
    "properties": {
        "code": {"type": "integer", "description": "The HTTP status × 100 + n."},
        "message": {"type": "string", "description": "One line for people."},
        "request_id": {"type": "string", "pattern": "^[0-9a-f]{32}$", "description": "Of this answer alone."},
        "errors": {
            "type": "array",
            "maxItems": answer.MAX_PROBLEMS,
            "description": "Every field that is wrong; in a batch by its place: tasks[3].timeout.",
            "items": {
                "type": "object",
                "properties": {"field": {"type": "string"}, "reason": {"type": "string"}},
                "required": ["field", "reason"],
            },
        },
    },
    "required": ["code", "message", "request_id", "errors"],
}


def document(has_keys: bool) -> Json:
    """The document of a node; ``has_keys``: one whose calls need an API key."""
    types = [
        said.data for operation in operations.ALL for said in operation.answers if said.enveloped and said.data
    ]
    made, components = _components(types)
    schemas = dict(zip(map(repr, types), made, strict=True))
    errors: set[tuple[int, ...]] = set()
    paths: dict[str, Json] = {}
    for operation in operations.ALL:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, schemas, has_keys)
        errors |= {tuple(codes) for _, codes in _by_status(_codes(operation, has_keys))}
    told: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "async task manager",
            "version": version("async-task-manager"),
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": {**operations.SCHEMAS, **components, "Error": _ERROR},
            "responses": {_name(codes): _error(codes) for codes in sorted(errors)},
            "headers": _HEADERS,
        },
    }
    if has_keys:
        told["components"]["securitySchemes"] = _SECURITY
    return told


def _components(types: list[Any]) -> tuple[list[Json], dict[str, Json]]:
    """Schemas of the types of answers, and of what these refer to: named without View, keys in their order."""
    made, components = msgspec.json.schema_components(types, ref_template=_REF)
    for name, schema in components.items():
        if "properties" in schema:
            order = [*getattr(views, name).__annotations__]
            schema["properties"] = dict(
                sorted(schema["properties"].items(), key=lambda item: order.index(item[0]))
            )
    text = re.sub(
        rb'"(#/components/schemas/)?([A-Z]\w+)View"', rb'"\1\2"', msgspec.json.encode((made, components))
    )
    return cast("tuple[list[Json], dict[str, Json]]", tuple(msgspec.json.decode(text)))


def _operation(operation: Operation, schemas: Mapping[str, Json], has_keys: bool) -> Json:
    told: Json = {"operationId": operation.id, "tags": [operation.tag], "summary": operation.summary}
    if operation.description:
        told["description"] = operation.description
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    parameters = [
        *_parameters("path", {name: operations.PATH_PARAMETERS[name] for name in names}, required=True),
        *_parameters("query", operation.query),
        *_parameters("header", operation.headers),
    ]
    if parameters:
        told["parameters"] = parameters
    if operation.body is not None:
        content = {"schema": operation.body.schema, "example": operation.body.example}
        told["requestBody"] = {
            "required": True,
            "description": f"At most {operation.body.limit:,} bytes of strict JSON: UTF-8, no key twice, no NaN, "
            "no lone surrogate.",
            "content": {operations.JSON: content},
        }
    told["responses"] = {
        **{str(said.status): _success(said, schemas) for said in operation.answers},
        **{
            str(status): {"$ref": f"#/components/responses/{_name(codes)}"}
            for status, codes in _by_status(_codes(operation, has_keys))
        },
    }
    if has_keys and (scope := keys.scope_for(operation.method, operation.path)) is not None:
        told["security"] = [{name: [scope]} for name in _SECURITY]
    return told


def _parameters(place: str, told: Parameters, *, required: bool = False) -> list[Json]:
    made = []
    for name, schema in told.items():
        known = dict(schema)
        parameter = {"name": name, "in": place, "required": required, "description": known.pop("description")}
        values = known.pop("examples", None)
        if values:
            parameter["example"] = values[0]
        made.append({**parameter, "schema": known})
    return made


def _codes(operation: Operation, has_keys: bool) -> Iterable[int]:
    """Codes of all errors that the call can have."""
    codes = {answer.UNAUTHORISED_HOST, answer.UNAUTHORISED_ORIGIN, answer.BAD_REQUEST, answer.HEAD_TOO_LARGE}
    codes |= {answer.INTERNAL, *operation.errors}
    if has_keys and keys.scope_for(operation.method, operation.path) is not None:
        codes |= {answer.NO_KEY, answer.NO_SCOPE}
    if operation.path.startswith(operations.PREFIX):
        codes.add(answer.INVALID)  # a query parameter that it does not know
    if "{" in operation.path:
        codes.add(answer.NO_ROUTE)  # what stands for the parameter may hold a slash
    if operation.body is not None:
        codes |= {answer.BAD_JSON, answer.BODY_TIMEOUT, answer.TOO_LARGE, answer.BAD_MEDIA_TYPE}
    return codes


def _by_status(codes: Iterable[int]) -> list[tuple[int, list[int]]]:
    return [(status, list(found)) for status, found in groupby(sorted(codes), lambda code: code // 100)]


def _name(codes: Iterable[int]) -> str:
    return "Error" + "_".join(map(str, codes))


def _error(codes: tuple[int, ...]) -> Json:
    """The answer with any of these codes, all of one status."""
    status = HTTPStatus(codes[0] // 100)
    said = [f"{code}: {answer.MEANINGS[code]}" for code in codes]
    told: Json = {"description": f"{status.phrase}. {'; '.join(said)}."}
    headers = {name for code in codes if (name := _HEADERS_OF.get(code))}
    if headers:
        told["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in sorted(headers)}
    schema = {"allOf": [{"$ref": _REF.format(name="Error")}, {"properties": {"code": {"enum": [*codes]}}}]}
    shown = {str(code): {"value": _example(code)} for code in codes}
    told["content"] = {operations.JSON: {"schema": schema, "examples": shown}}
    return told


def _example(code: int) -> Json:
    errors = []
    message = answer.MEANINGS[code]
    if code == answer.INVALID:
        reason = type_fields.FIELDS["default_timeout"].reason(0)
        errors = [{"field": "timeout", "reason": reason}]
        message = f"timeout: {reason}"
    return {"code": code, "message": message, "request_id": examples.REQUEST_ID, "errors": errors}


def _success(said: Answer, schemas: Mapping[str, Json]) -> Json:
    told: Json = {"description": said.description}
    if said.location:
        told["headers"] = {"Location": {"$ref": "#/components/headers/Location"}}
    if said.enveloped:
        told["content"] = {said.media: _envelope(said, schemas)}
    else:
        told["content"] = {said.media: {"schema": said.data}}
    if said.links:
        told["links"] = {name: _link(name) for name in said.links}
    return told


def _envelope(said: Answer, schemas: Mapping[str, Json]) -> Json:
    properties: Json = {"code": {"const": 0}, "message": {"const": said.message}}
    example: Json = {"code": 0, "message": said.message}
    if said.data is not None:
        properties["data"] = schemas[repr(said.data)]
        example["data"] = said.example
    schema = {"type": "object", "properties": properties, "required": [*properties]}
    return {"schema": schema, "example": example}


def _link(name: str) -> Json:
    return {"operationId": name, "parameters": {"task_id": "$response.body#/data/task_id"}}
