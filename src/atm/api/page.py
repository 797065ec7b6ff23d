"""The OpenAPI document as one page for people: no script, nothing from elsewhere; for phones and at night too."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from typing import Any

Json = Mapping[str, Any]

_STYLE = files("atm.api").joinpath("page.css").read_text(encoding="utf-8")
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Nothing but the page's own style may be loaded or run."""

SERVER = "http://localhost:8080"
"""Where the examples ask: the default."""


def render(document: Json) -> bytes:
    """The page, in UTF-8."""
    info, calls = document["info"], list(_calls(document))
    groups = "".join(_group(document, tag, calls) for tag in document["tags"])
    types = "".join(_type(name, schema) for name, schema in document["components"]["schemas"].items())
    title = f"{info['title']} {info['version']}: REST API"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f'<body><div class="all">{_contents(document, calls)}<main><h1>{escape(title)}</h1>'
        f"<p>{_prose(info['description'])}</p>"
        f'<p>For programs: <a href="/openapi.json">/openapi.json</a>, OpenAPI {escape(document["openapi"])}.</p>'
        f"{_keys(document)}{groups}<h2>Types</h2>{types}</main></div></body></html>\n"
    ).encode()


def _calls(document: Json) -> Iterable[tuple[str, str, Json]]:
    """Method, path and operation of every call."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def _contents(document: Json, calls: Iterable[tuple[str, str, Json]]) -> str:
    parts = []
    for tag in document["tags"]:
        links = [
            f'<li><a href="#{operation["operationId"]}">{escape(operation["summary"])}</a></li>'
            for _, _, operation in calls
            if tag["name"] in operation["tags"]
        ]
        parts.append(f"<h2>{escape(tag['name'])}</h2><ul>{''.join(links)}</ul>")
    names = document["components"]["schemas"]
    types = "".join(f'<li><a href="#type-{name}">{name}</a></li>' for name in names)
    return f'<nav aria-label="Contents">{"".join(parts)}<h2>Types</h2><ul>{types}</ul></nav>'


def _keys(document: Json) -> str:
    ways = document["components"].get("securitySchemes")
    if not ways:
        return "<p>This node asks for no API key.</p>"
    told = " or ".join(_shown_header(way) for way in ways.values())
    return f"<p>Calls need an API key with the scope named: the header {told}.</p>"


def _shown_header(way: Json) -> str:
    header = "Authorization: Bearer $ATM_API_KEY" if way["type"] == "http" else f"{way['name']}: $ATM_API_KEY"
    return f"<code>{escape(header)}</code>"


def _group(document: Json, tag: Json, calls: Iterable[tuple[str, str, Json]]) -> str:
    shown = [_call(document, *call) for call in calls if tag["name"] in call[2]["tags"]]
    return f"<section><h2>{escape(tag['name'])}</h2><p>{_prose(tag['description'])}</p>{''.join(shown)}</section>"


def _call(document: Json, method: str, path: str, operation: Json) -> str:
    scopes = [scope for way in operation.get("security", ()) for scope in next(iter(way.values()))]
    scope = f'<p class="soft">Scope of the key: <code>{escape(scopes[0])}</code></p>' if scopes else ""
    return (
        f'<article id="{operation["operationId"]}"><h3>{escape(operation["summary"])}</h3>'
        f'<p class="call"><b class="{method.lower()}">{method}</b> <code>{escape(path)}</code></p>'
        f"<p>{_prose(operation.get('description', ''))}</p>{scope}"
        f"{_parameters(operation)}{_body(document, operation)}"
        f"<h4>Example</h4><pre>{escape(curl(method, path, operation))}</pre>"
        f"<h4>Answers</h4>{''.join(_answers(document, operation))}</article>"
    )


def _parameters(operation: Json) -> str:
    rows = [
        _row(told["name"], {**told["schema"], "description": told["description"]}, told["required"], told["in"])
        for told in operation.get("parameters", ())
    ]
    return f"<h4>Parameters</h4>{_table(rows)}" if rows else ""


def _body(document: Json, operation: Json) -> str:
    if "requestBody" not in operation:
        return ""
    ((_, media),) = operation["requestBody"]["content"].items()
    schema = _resolved(document, media["schema"])
    return f"<h4>Body</h4><p>{_prose(operation['requestBody']['description'])}</p>{_fields(schema)}"


def _answers(document: Json, operation: Json) -> Iterable[str]:
    for status, response in operation["responses"].items():
        told = _resolved(document, response)
        ((_, media),) = told["content"].items()
        values = (
            [media["example"]] if "example" in media else [s["value"] for s in media.get("examples", {}).values()]
        )
        head = f"<b>{status}</b> {_prose(told['description'])}{_headers(told)}"
        shown = "".join(f"<pre>{escape(_json(value))}</pre>" for value in values)
        yield f"<details><summary>{head}</summary>{shown}</details>" if shown else f"<p>{head}</p>"


def _headers(response: Json) -> str:
    names = ", ".join(f"<code>{escape(name)}</code>" for name in response.get("headers", ()))
    return f' <span class="soft">with {names}</span>' if names else ""


def _type(name: str, schema: Json) -> str:
    values = "" if "properties" in schema else f"<p>{_value(schema)}</p>"
    return (
        f'<article id="type-{name}"><h3>{name}</h3><p>{_prose(schema.get("description", ""))}</p>'
        f"{values}{_fields(schema)}</article>"
    )


def _fields(schema: Json) -> str:
    required = schema.get("required", ())
    rows = [_row(name, told, name in required) for name, told in schema.get("properties", {}).items()]
    return _table(rows) if rows else ""


def _table(rows: Iterable[str]) -> str:
    head = "<tr><th>name</th><th>value</th><th>meaning</th></tr>"
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def _row(name: str, schema: Json, required: bool, place: str = "") -> str:
    where = f' <span class="soft">{place}</span>' if place else ""
    must = ' <span class="must">required</span>' if required else ""
    return (
        f"<tr><td><code>{escape(name)}</code>{where}{must}</td><td>{_value(schema)}</td>"
        f"<td>{_prose(schema.get('description', ''))}</td></tr>"
    )


def _value(schema: Json) -> str:
    """What JSON Schema says of a value, in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#type-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(map(_value, schema["anyOf"]))
    if "enum" in schema:
        words = " ".join(f"<code>{escape(json.dumps(value))}</code>" for value in schema["enum"])
    else:
        kinds = schema.get("type", "any value")
        words = escape(" or ".join([kinds] if isinstance(kinds, str) else kinds))
    if "items" in schema:
        words += f" of {_value(schema['items'])}"
    return words + "".join(f"<br>{told}" for told in _limits(schema))


_LIMITS = {
    "exclusiveMinimum": "more than {}",
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} of them",
    "maxItems": "at most {} of them",
}


def _limits(schema: Json) -> Iterable[str]:
    yield from (text.format(f"{schema[key]:,}") for key, text in _LIMITS.items() if key in schema)
    yield from (f"<code>{escape(schema[key])}</code>" for key in ("format", "pattern") if key in schema)
    if "default" in schema:
        yield f"default <code>{escape(json.dumps(schema['default']))}</code>"


def _resolved(document: Json, told: Json) -> Json:
    if "$ref" not in told:
        return told
    found: Any = document
    for name in told["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return dict(found)


def curl(method: str, path: str, operation: Json) -> str:
    """The call as a command, with the examples of the document."""
    shown = {told["name"]: told.get("example") for told in operation.get("parameters", ())}
    path = re.sub(r"\{(\w+)\}", lambda found: str(shown[found[1]]), path)
    words = ["curl", *(["-X", method] if method != "GET" else [])]
    lines = [" ".join([*words, shlex.quote(SERVER + path)])]
    if operation.get("security"):
        lines.append('-H "Authorization: Bearer $ATM_API_KEY"')
    if "requestBody" in operation:
        ((kind, media),) = operation["requestBody"]["content"].items()
        lines.append(f"-H 'Content-Type: {kind}'")
        lines.append(f"-d {shlex.quote(json.dumps(media['example'], ensure_ascii=False))}")
    return " \\\n  ".join(lines)


def _prose(text: str) -> str:
    """Text for people, whose only mark is `code`."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
