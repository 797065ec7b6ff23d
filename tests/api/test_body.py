"""Creating tasks: what a body may hold, what it may not; what was accepted is stored as it was written."""

from __future__ import annotations

import json
import math
from typing import Any, TypeGuard

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.site import BATCH, JSON, TASKS, Site, assert_problem, assert_success, post

MAX_TASK = 1024 * 1024
MAX_BATCH = 16 * MAX_TASK
SPACE = b" " * MAX_TASK


def create(site: Site, body: object, **headers: str) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return site.http.post(TASKS, content=content, headers=JSON | headers)


def nested(levels: int, brackets: str = "{}") -> str:
    """A payload this deep, itself included."""
    if brackets == "{}":
        return '{"a":' * (levels - 1) + "{}" + "}" * (levels - 1)
    return '{"a":' + "[" * (levels - 1) + "]" * (levels - 1) + "}"


def with_payload(payload: str) -> bytes:
    return f'{{"task_type": "nobody", "payload": {payload}, "priority": 1}}'.encode()


def of_size(size: int, task_type: str = "nobody") -> bytes:
    """A task whose body is this long."""
    frame = b'{"task_type":"%s","payload":{"a":""}}' % task_type.encode()
    return frame.replace(b'""', b'"' + b"x" * (size - len(frame)) + b'"')


# the fields


def test_a_task_needs_no_more_than_a_type(site: Site) -> None:
    task = site.end_of(site.create("echo"))
    assert task["status"] == "SUCCESS"
    assert {name: task[name] for name in ("priority", "payload", "timeout", "max_retry", "scheduled_at")} == {
        "priority": 0,
        "payload": {},
        "timeout": 300,
        "max_retry": 3,
        "scheduled_at": None,
    }


def test_every_field_is_kept(site: Site) -> None:
    fields = {"priority": 1, "payload": {"to": "user@example.com"}, "timeout": 12.5, "max_retry": 7}
    task = site.get(site.create("nobody", **fields, scheduled_at="2026-01-31T10:00:00Z", idempotency_key="kept"))
    assert {name: task[name] for name in fields} == fields
    assert task["task_type"] == "nobody"
    assert task["scheduled_at"] == "2026-01-31T10:00:00.000Z"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task_type", "a"),
        ("task_type", "AZaz09_.:-" + "x" * 118),
        ("priority", 1),
        ("priority", 0),
        ("priority", -1),
        ("timeout", 5e-324),
        ("timeout", 1),
        ("timeout", 604_800),
        ("max_retry", 0),
        ("max_retry", 100),
        ("delay", 0),
        ("delay", -0.0),
        ("delay", 31_536_000),
        ("delay", 0.001),
        ("idempotency_key", "x" * 255),
        ("idempotency_key", "ж" * 127),
        ("idempotency_key", " "),
        ("payload", {}),
        ("payload", {"": None}),
    ],
)
def test_limits_are_inclusive(site: Site, field: str, value: object) -> None:
    answer = create(site, {"task_type": "nobody", "max_retry": 0} | {field: value})
    assert answer.status_code in (200, 201), answer.text


@pytest.mark.parametrize(("text", "whole"), [("3.0", 3), ("3e0", 3), ("1E2", 100), ("-0.0", 0)])
def test_a_whole_number_is_an_integer_however_it_is_written(site: Site, text: str, whole: int) -> None:
    """As JSON Schema has it, and programs that know one kind of number alone."""
    content = f'{{"task_type": "nobody", "max_retry": {text}}}'.encode()
    answer = site.http.post(TASKS, content=content, headers=JSON)
    kept = site.get(answer.json()["data"]["task_id"])["max_retry"]
    assert (kept, type(kept)) == (whole, int)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task_type", ""),
        ("task_type", "x" * 129),
        ("task_type", "with blank"),
        ("task_type", "a\n"),
        ("task_type", "ünïcode"),
        ("task_type", "a/b"),
        ("task_type", 5),
        ("task_type", None),
        ("task_type", ["a"]),
        ("priority", 2),
        ("priority", -2),
        ("priority", 0.5),
        ("priority", 2.0),
        ("priority", True),
        ("priority", "high"),
        ("priority", None),
        ("priority", 10**400),
        ("payload", []),
        ("payload", "text"),
        ("payload", None),
        ("payload", 1),
        ("timeout", 0),
        ("timeout", -0.0),
        ("timeout", -1),
        ("timeout", 604_800.001),
        ("timeout", 10**400),
        ("timeout", "300"),
        ("timeout", True),
        ("timeout", None),
        ("max_retry", -1),
        ("max_retry", 101),
        ("max_retry", 3.5),
        ("max_retry", False),
        ("max_retry", "3"),
        ("delay", -0.001),
        ("delay", 31_536_000.001),
        ("delay", 10**400),
        ("delay", "10s"),
        ("delay", True),
        ("idempotency_key", ""),
        ("idempotency_key", "x" * 256),
        ("idempotency_key", "ж" * 128),
        ("idempotency_key", "a\x00b"),
        ("idempotency_key", "a\nb"),
        ("idempotency_key", "a\x7fb"),
        ("idempotency_key", 5),
        ("idempotency_key", None),
        ("scheduled_at", None),
        ("scheduled_at", 1769853600),
        ("status", "PENDING"),
        ("task_id", "01890000-0000-7000-8000-000000000000"),
        ("Task_type", "echo"),
        ("", 1),
        ("a\x00", 1),
    ],
)
def test_what_is_out_of_bounds_is_named(site: Site, field: str, value: object) -> None:
    assert_problem(create(site, {"task_type": "nobody"} | {field: value}), 42201, field)


def test_all_that_is_wrong_is_named_at_once(site: Site) -> None:
    answer = create(site, {"priority": 9, "timeout": 0, "colour": "red"})
    body = assert_problem(answer, 42201, "priority", "timeout", "colour", "task_type")
    assert "(and 3 more)" in body["message"]


def test_an_answer_lists_a_hundred_problems_at_the_most_and_long_names_cut(site: Site) -> None:
    answer = create(site, {f"{n:05}{'x' * 1000}": 1 for n in range(900)})
    assert answer.status_code == 422
    errors = answer.json()["errors"]
    assert len(errors) == 100
    assert {len(error["field"]) for error in errors} == {200}
    assert len(answer.content) < 60_000


def test_delay_and_scheduled_at_exclude_each_other(site: Site) -> None:
    answer = create(site, {"task_type": "nobody", "delay": 1, "scheduled_at": "2026-01-31T10:00:00Z"})
    assert_problem(answer, 42201, "scheduled_at")


def test_a_delay_shows_as_the_time_it_means(site: Site) -> None:
    task = site.get(site.create("echo", delay=3600))
    assert task["pending_reason"] == "scheduled"
    assert task["scheduled_at"] > task["created_at"]


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("2026-01-31T10:00:00Z", "2026-01-31T10:00:00.000Z"),
        ("2026-01-31t10:00:00z", "2026-01-31T10:00:00.000Z"),
        ("2026-01-31 10:00:00Z", "2026-01-31T10:00:00.000Z"),
        ("2026-01-31T10:00:00.5Z", "2026-01-31T10:00:00.500Z"),
        ("2026-01-31T10:00:00.1239Z", "2026-01-31T10:00:00.123Z"),
        ("2026-01-31T10:00:00.123456789123Z", "2026-01-31T10:00:00.123Z"),
        ("2026-01-31T18:00:00+08:00", "2026-01-31T10:00:00.000Z"),
        ("2026-01-31T00:30:00-09:30", "2026-01-31T10:00:00.000Z"),
        ("2026-01-31T10:00:00-00:00", "2026-01-31T10:00:00.000Z"),
        ("2024-02-29T23:59:59Z", "2024-02-29T23:59:59.000Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000Z"),
        ("1969-12-31T23:59:59.999Z", "1969-12-31T23:59:59.999Z"),
        ("9999-12-31T23:59:59.9999Z", "9999-12-31T23:59:59.999Z"),
    ],
)
def test_scheduled_at_is_rfc_3339_with_any_zone_and_shown_in_utc(site: Site, written: str, shown: str) -> None:
    task_id = site.create("nobody", scheduled_at=written)
    assert site.get(task_id)["scheduled_at"] == shown
    assert shown in site.http.get(TASKS).text


@pytest.mark.parametrize(
    "written",
    [
        "",
        "tomorrow",
        "2026-01-31",
        "2026-01-31T10:00:00",
        "2026-01-31T10:00Z",
        "20260131T100000Z",
        "2026-01-31T10:00:00 Z",
        "2026-01-31T10:00:00.Z",
        "2026-01-31T10:00:00,5Z",
        "2026-02-30T10:00:00Z",
        "2026-13-01T10:00:00Z",
        "2026-01-31T25:00:00Z",
        "2026-01-31T10:00:60Z",
        "2026-01-31T10:00:00+24:00",
        "2026-01-31T10:00:00+0800",
        "2026-01-31T10:00:00Z\n",
        "２０２６-01-31T10:00:00Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "10000-01-01T00:00:00Z",
        "x" * 100_000,
    ],
)
def test_a_time_that_is_none_is_refused(site: Site, written: str) -> None:
    answer = create(site, {"task_type": "nobody", "scheduled_at": written})
    assert_problem(answer, 42201, "scheduled_at")


# the payload


@pytest.mark.parametrize(
    "payload",
    [
        "{}",
        '{"a": 1.0, "b":1e0,"c":1E+2, "d":-0, "e":-0.0}',
        '{\n\t"spaces" : [ 1 ,2 ]\r\n}',
        '{"big":123456789012345678901234567890,"small":1e-400,"exact":0.1000000000000000055}',
        '{"escaped":"\\u00e9\\u0000\\ud83d\\ude00\\/", "plain":"é😀\u2028"}',
        '{"\\u0061":"written with an escape"}',
        '{"a":"\\\\ud800 is no escape"}',
        '{"":{"":[[],{},null,true,false]}}',
        '{"a":"\x7f"}',
        nested(64),
        nested(64, "[]"),
        '{"numbers":[' + ",".join(["1"] * 10_000) + "]}",
        '{"wide":[' + ",".join(['{"a":[]}'] * 1_000) + "]}",
        '{"digits":' + "9" * 4_300 + "}",
    ],
)
def test_a_payload_comes_back_as_it_was_written(site: Site, payload: str) -> None:
    task_id = assert_success(create(site, with_payload(payload)), 201)["task_id"]
    assert f'"payload":{payload},' in site.http.get(f"{TASKS}/{task_id}").text


def test_a_payload_under_an_escaped_name_is_found(site: Site) -> None:
    answer = create(site, b'{"t\\u0061sk_type":"nobody","p\\u0061yload":{"a":[1]}}')
    assert site.get(assert_success(answer, 201)["task_id"])["payload"] == {"a": [1]}


@pytest.mark.parametrize("brackets", ["{}", "[]"])
@pytest.mark.parametrize("levels", [65, 66, 500])
def test_a_payload_deeper_than_64_levels_is_refused(site: Site, levels: int, brackets: str) -> None:
    assert_problem(create(site, with_payload(nested(levels, brackets))), 42201, "payload")


@pytest.mark.parametrize("levels", [990, 1_000, 5_000, 100_000])
def test_a_body_too_deep_to_be_read_is_refused(site: Site, levels: int) -> None:
    answer = create(site, with_payload(nested(levels, "[]")))
    assert answer.status_code in (400, 422)
    assert "nested deeper than 64 levels" in answer.json()["message"]


# JSON, strictly


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"}",
        b"{}{}",
        b"{} x",
        b"[]",
        b'"text"',
        b"5",
        b"null",
        b"nul",
        b"{'task_type':'echo'}",
        b'{"task_type":"echo",}',
        b'{"task_type" "echo"}',
        b'{"task_type":"echo"} // why',
        b'{task_type:"echo"}',
        b'{"task_type":"ec\nho"}',
        b'{"task_type":"ec\x00ho"}',
        b'{"task_type":"echo","payload":{"a":01}}',
        b'{"task_type":"echo","payload":{"a":+1}}',
        b'{"task_type":"echo","payload":{"a":.5}}',
        b'{"task_type":"echo","payload":{"a":"\\x41"}}',
        b'{"task_type":"echo","payload":{"a":"\\u12"}}',
        b'{"task_type":"echo","payload":{"a":NaN}}',
        b'{"task_type":"echo","payload":{"a":Infinity}}',
        b'{"task_type":"echo","payload":{"a":-Infinity}}',
        b'{"task_type":"echo","payload":{"a":1e999}}',
        b'{"task_type":"echo","payload":{"a":-1e999}}',
        b'{"task_type":"echo","payload":{"a":' + b"9" * 400 + b".0}}",
        b'{"task_type":"echo","payload":{"a":' + b"9" * 5_000 + b"}}",
        b'{"task_type":"echo","timeout":NaN}',
        b'{"task_type":"echo","task_type":"echo"}',
        b'{"task_type":"echo","t\\u0061sk_type":"echo"}',
        b'{"task_type":"echo","payload":{"a":1,"a":2}}',
        b'{"task_type":"echo","payload":{"a":[{"b":[{"c":1,"c":1}]}]}}',
        b'{"task_type":"echo","payload":{"\\ud83d\\ude00":1,"\xf0\x9f\x98\x80":1}}',
        b'{"task_type":"echo","payload":{"a":"\\ud800"}}',
        b'{"task_type":"echo","payload":{"a":"\\uD800"}}',
        b'{"task_type":"echo","payload":{"a":"\\uDfFf"}}',
        b'{"task_type":"echo","payload":{"a":"\\udc00\\ud800"}}',
        b'{"task_type":"echo","payload":{"a":"\\ud800\\\\udc00"}}',
        b'{"task_type":"echo","payload":{"\\ud800":1}}',
        b'{"task_type":"echo","payload":{"a":[["\\ud83dx\\ude00"]]}}',
        b'{"\\ud800":1}',
        b'{"task_type":"echo","payload":{"a":"\xed\xa0\x80"}}',
        b'{"task_type":"echo","payload":{"a":"\xff"}}',
        b'{"task_type":"echo","payload":{"a":"\xc0\xaf"}}',
        b'{"task_type":"echo","payload":{"a":"\xf0\x9f\x98"}}',
        b'\xef\xbb\xbf{"task_type":"echo"}',
        '{"task_type":"echo"}'.encode("utf-16"),
        '{"task_type":"echo"}'.encode("utf-16-le"),
        '{"task_type":"echo"}'.encode("utf-32"),
        '{"task_type":"é"}'.encode("latin-1"),
        b"\x00" * 100,
    ],
)
def test_what_is_no_strict_json_is_a_400(site: Site, body: bytes) -> None:
    assert_problem(create(site, body), 40001)


def test_a_key_given_twice_among_many_is_found_in_no_time(site: Site) -> None:
    names = ",".join(f'"k{n}":1' for n in range(90_000))
    told = assert_problem(create(site, with_payload("{" + names + ',"z":1,"z":2}')), 40001)
    assert "key 'z' is given twice" in told["message"]


def test_a_long_key_given_twice_is_told_cut(site: Site) -> None:
    body = b'{"%s":1,"%s":2}' % (b"k" * 10_000, b"k" * 10_000)
    assert len(assert_problem(create(site, body), 40001)["message"]) < 200


# media types


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "APPLICATION/JSON",
        "application/json;",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        'application/json; charset="utf8"',
        "application/json; profile=x",
    ],
)
def test_json_in_utf_8_is_welcome(site: Site, kind: str) -> None:
    answer = site.http.post(TASKS, content=b'{"task_type":"nobody"}', headers={"Content-Type": kind})
    assert answer.status_code == 201


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "application/json-patch+json",
        "application/problem+json",
        "text/json",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
        "application/json, text/plain",
        "json",
        "*/*",
    ],
)
def test_any_other_media_type_is_a_415(site: Site, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    for path in (TASKS, BATCH):
        assert_problem(site.http.post(path, content=b'{"task_type":"nobody"}', headers=headers), 41501)


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "identity, gzip"])
def test_a_compressed_body_is_a_415(site: Site, coding: str) -> None:
    headers = {"Content-Encoding": coding}
    assert_problem(create(site, b'{"task_type":"nobody"}', **headers), 41501)
    assert create(site, b'{"task_type":"nobody"}', **{"Content-Encoding": "Identity"}).status_code == 201


# sizes


def test_a_body_of_1_mib_is_the_largest(site: Site) -> None:
    task_id = assert_success(create(site, of_size(MAX_TASK)), 201)["task_id"]
    assert len(site.get(task_id)["payload"]["a"]) == MAX_TASK - len(of_size(0))
    assert_problem(create(site, of_size(MAX_TASK + 1)), 41301)


def test_a_body_without_a_length_has_the_same_limit(site: Site) -> None:
    def chunks(size: int) -> Any:
        body = of_size(size)
        return (body[start : start + 65_536] for start in range(0, size, 65_536))

    answer = site.http.post(TASKS, content=chunks(MAX_TASK), headers=JSON)
    assert_success(answer, 201)
    assert "chunked" in answer.request.headers["transfer-encoding"]
    assert_problem(site.http.post(TASKS, content=chunks(MAX_TASK + 1), headers=JSON), 41301)
    assert_problem(site.http.post(TASKS, content=chunks(20 * MAX_TASK), headers=JSON), 41301)
    # The connection can be used on.
    assert_success(site.http.get("/livez"))


# idempotency keys


def test_a_replay_gets_the_same_task(site: Site) -> None:
    body = {"task_type": "echo", "payload": {"n": 1, "m": [2.5]}, "idempotency_key": "replay-1"}
    first = create(site, body)
    task_id = assert_success(first, 201)["task_id"]
    site.end_of(task_id)
    again = create(site, body | {"priority": 1, "timeout": 5})
    assert assert_success(again, 200) == {"task_id": task_id}
    assert again.headers["location"] == first.headers["location"] == f"{TASKS}/{task_id}"
    # The order of keys and the spaces between them do not make another payload.
    other = b'{ "idempotency_key":"replay-1", "payload":{"m":[2.5], "n":1}, "task_type":"echo" }'
    assert assert_success(create(site, other), 200) == {"task_id": task_id}


def test_the_same_key_for_something_else_is_a_409(site: Site) -> None:
    site.create("nobody", payload={"n": 1}, idempotency_key="conflict-1")
    for changed in ({"payload": {"n": 2}}, {"payload": {}}, {"task_type": "nobody_else"}):
        body = {"task_type": "nobody", "payload": {"n": 1}, "idempotency_key": "conflict-1"} | changed
        assert_problem(create(site, body), 40902, "idempotency_key")


def test_the_key_may_stand_in_the_header_or_in_the_body_or_in_both(site: Site) -> None:
    body = {"task_type": "nobody", "payload": {}}
    keyed = body | {"idempotency_key": "schlüssel 1"}
    first = assert_success(create(site, keyed), 201)
    header = {"Idempotency-Key": "schlüssel 1".encode()}
    for content in (body, keyed):
        answer = site.http.post(TASKS, json=content, headers=header)
        assert assert_success(answer, 200) == first


def test_two_different_keys_are_refused(site: Site) -> None:
    body = {"task_type": "nobody", "idempotency_key": "one"}
    assert_problem(create(site, body, **{"Idempotency-Key": "two"}), 42201, "idempotency_key")
    twice = post(b'{"task_type":"nobody"}', "Idempotency-Key: one", "Idempotency-Key: one")
    assert_problem(site.raw(twice), 42201, "Idempotency-Key")


@pytest.mark.parametrize("key", [b"", b"x" * 256, b"a\tb", b"\xff"])
def test_a_header_that_is_no_key_is_refused(site: Site, key: bytes) -> None:
    answer = site.raw(post(b'{"task_type":"nobody"}', f"Idempotency-Key: {key.decode('latin-1')}"))
    assert_problem(answer, 42201, "Idempotency-Key")


def test_keys_compare_as_bytes(site: Site) -> None:
    keys = ["case", "CASE", "case ", "ﬁ", "fi", "e\u0301", "é"]
    assert len({site.create("nobody", idempotency_key=f"bytes {key}") for key in keys}) == len(keys)


# batches


def batch(site: Site, body: object, **headers: str) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return site.http.post(BATCH, content=content, headers=JSON | headers)


def test_a_batch_answers_with_ids_in_the_order_of_its_tasks(site: Site) -> None:
    tasks = [{"task_type": "nobody", "payload": {"n": n}, "priority": n % 3 - 1} for n in range(1_000)]
    ids = assert_success(batch(site, {"tasks": tasks}), 201)["task_ids"]
    assert len(set(ids)) == 1_000
    assert ids == sorted(ids)
    for n in (0, 1, 499, 999):
        assert site.get(ids[n])["payload"] == {"n": n}
        assert site.get(ids[n])["priority"] == n % 3 - 1


@pytest.mark.parametrize("count", [0, 1_001])
def test_a_batch_holds_1_to_1000_tasks(site: Site, count: int) -> None:
    tasks = [{"task_type": "nobody"}] * count
    assert_problem(batch(site, {"tasks": tasks}), 42201, "tasks")
    assert_problem(batch(site, json.dumps({"tasks": tasks}).encode() + b" " * MAX_TASK), 42201, "tasks")


def test_a_batch_of_one_runs(site: Site) -> None:
    (task_id,) = assert_success(batch(site, {"tasks": [{"task_type": "echo", "payload": {"a": 1}}]}), 201)[
        "task_ids"
    ]
    assert site.end_of(task_id)["result"] == {"a": 1}


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["tasks"]),
        ({"tasks": None}, ["tasks"]),
        ({"tasks": {}}, ["tasks"]),
        ({"tasks": "all"}, ["tasks"]),
        ({"tasks": [{"task_type": "nobody"}], "more": 1}, ["more"]),
        ({"tasks": [{"task_type": "nobody"}, 5]}, ["tasks[1]"]),
        ({"tasks": [[]]}, ["tasks[0]"]),
        ({"tasks": [{}]}, ["tasks[0].task_type"]),
        ({"tasks": [{"task_type": "a"}, {"task_type": "b", "priority": 7}]}, ["tasks[1].priority"]),
        (
            {"tasks": [{"task_type": ""}, {"task_type": "b", "colour": 1, "delay": -1}]},
            ["tasks[0].task_type", "tasks[1].colour", "tasks[1].delay"],
        ),
    ],
)
def test_a_batch_is_refused_by_the_name_of_the_field(site: Site, body: object, fields: list[str]) -> None:
    assert_problem(batch(site, body), 42201, *fields)


def test_a_batch_too_deep_is_refused(site: Site) -> None:
    body = b'{"tasks":[{"task_type":"nobody"},' + with_payload(nested(65)) + b"]}"
    for padding in (b"", SPACE):
        assert_problem(batch(site, body + padding), 42201, "tasks[1].payload")


@pytest.mark.parametrize("padding", [0, MAX_TASK])
def test_a_batch_is_all_or_nothing(site: Site, padding: int) -> None:
    kind = f"whole_{padding}"
    tasks: list[dict[str, Any]] = [{"task_type": kind} for _ in range(500)]
    tasks.append({"task_type": kind, "priority": 5})
    answer = batch(site, json.dumps({"tasks": tasks}).encode() + b" " * padding)
    assert_problem(answer, 42201, "tasks[500].priority")
    assert site.http.get(TASKS, params={"task_type": kind}).json()["data"]["tasks"] == []


def test_a_hundred_problems_of_a_batch_are_enough(site: Site) -> None:
    text = json.dumps({"tasks": [{"task_type": ""} for _ in range(150)]}).encode()
    for body in (text, text + b" " * MAX_TASK):
        answer = batch(site, body)
        assert answer.status_code == 422
        assert [error["field"] for error in answer.json()["errors"]] == [
            f"tasks[{n}].task_type" for n in range(100)
        ]


def test_keys_in_a_batch_stand_for_their_tasks(site: Site) -> None:
    known = site.create("nobody", payload={"n": 0}, idempotency_key="batch-known")
    tasks = [
        {"task_type": "nobody", "payload": {"n": 1}, "idempotency_key": "batch-new"},
        {"task_type": "nobody", "payload": {"n": 0}, "idempotency_key": "batch-known"},
        {"task_type": "nobody", "payload": {"n": 1}},
        {"task_type": "nobody", "payload": {"n": 1}, "idempotency_key": "batch-new"},
    ]
    ids = assert_success(batch(site, {"tasks": tasks}), 201)["task_ids"]
    assert ids[1] == known
    assert ids[0] == ids[3]
    assert len(set(ids)) == 3
    # Without the task that has no key nothing is new.
    again = assert_success(batch(site, {"tasks": [tasks[1], tasks[0]]}), 200)["task_ids"]
    assert again == [known, ids[0]]


def test_a_conflict_fails_the_whole_batch_and_tells_the_place(site: Site) -> None:
    site.create("nobody", payload={"n": 0}, idempotency_key="batch-taken")
    tasks = [
        {"task_type": "left_out"},
        {"task_type": "left_out", "payload": {"n": 1}, "idempotency_key": "batch-taken"},
    ]
    assert_problem(batch(site, {"tasks": tasks}), 40902, "tasks[1].idempotency_key")
    assert site.http.get(TASKS, params={"task_type": "left_out"}).json()["data"]["tasks"] == []


def test_a_batch_has_no_key_of_its_own(site: Site) -> None:
    answer = batch(site, {"tasks": [{"task_type": "nobody"}]}, **{"Idempotency-Key": "whole"})
    assert_problem(answer, 42201, "Idempotency-Key")


def test_a_task_of_a_batch_has_the_limit_of_a_task(site: Site) -> None:
    def body(size: int) -> bytes:
        return b'{"tasks":[{"task_type":"nobody"},' + of_size(size) + b"]}"

    ids = assert_success(batch(site, body(MAX_TASK)), 201)["task_ids"]
    assert len(site.get(ids[1])["payload"]["a"]) == MAX_TASK - len(of_size(0))
    assert "tasks[1]" in assert_problem(batch(site, body(MAX_TASK + 1)), 41301)["message"]


def test_a_batch_of_16_mib_is_the_largest(site: Site) -> None:
    texts = [of_size(1_000_000) for _ in range(16)]
    body = b' { "tasks" :\n[ ' + b" ,\t".join(texts) + b" ] } "
    body += b" " * (MAX_BATCH - len(body))
    assert len(assert_success(batch(site, body), 201)["task_ids"]) == 16
    assert_problem(batch(site, body + b" "), 41301)


def test_large_batches_are_taken_like_small_ones(site: Site) -> None:
    payloads = [f'{{"n":{n},  "text":"{"é" * 1_500}"}}' for n in range(500)]
    body = b'{"tasks":[' + b", ".join(map(with_payload, payloads)) + b"]}"
    assert len(body) > MAX_TASK
    ids = assert_success(batch(site, body), 201)["task_ids"]
    for n in (0, 250, 499):
        assert f'"payload":{payloads[n]},' in site.http.get(f"{TASKS}/{ids[n]}").text


@pytest.mark.parametrize(
    ("body", "code", "fields"),
    [
        (b'{"tasks":[{"task_type":"nobody"}],"more":1%s}', 40001, []),
        (b'{"more":1,"tasks":[{"task_type":"nobody"}]%s}', 40001, []),
        (b'{"tasks":[{"task_type":"nobody"}],"tasks":[{"task_type":"nobody"}]%s}', 40001, []),
        (b'{"tasks":[{"task_type":"first"}],"tasks":[{"task_type":"nobody"}]%s}', 40001, []),
        (b'{"tasks":[{"task_type":"nobody"},{"task_type":"a"}],"tasks":[{"task_type":"nobody"}]%s}', 40001, []),
        (b'{"tasks":[{"task_type":"nobody"}]%s', 40001, []),
        (b'{"tasks":[{"task_type":"nobody"},]%s}', 40001, []),
        (b'{"tasks":[{"task_type":"nobody"} {}]%s}', 40001, []),
        (b'{"tasks":[{"task_type":"nobody","task_type":"nobody"}]%s}', 40001, []),
        (b'{"tasks":[{"task_type":"nobody","payload":{"a":"\xff"}}]%s}', 40001, []),
        (b'{"tasks":[{"task_type":"nobody","payload":{"a":"\\ud800"}}]%s}', 40001, []),
        (b'{"tasks":[{"task_type":"nobody","payload":{"a":1e999}}]%s}', 40001, []),
        (b'{"tasks":[%s' + b"[" * 100_000 + b"]" * 100_000 + b"]}", 40001, []),
        (b"%s[]", 42201, ["tasks"]),
        (b"%s{}", 42201, ["tasks"]),
        (b'{"tasks":5%s}', 42201, ["tasks"]),
        (b'{"tasks":{}%s}', 42201, ["tasks"]),
        (b'{"tasks":[5,null,{}]%s}', 42201, ["tasks[0]", "tasks[1]", "tasks[2].task_type"]),
        (b'{"tasks":[%s' + b"{}," * 100_000 + b"{}]}", 42201, ["tasks"]),
    ],
)
def test_large_batches_are_refused_like_small_ones(site: Site, body: bytes, code: int, fields: list[str]) -> None:
    assert_problem(batch(site, body.replace(b"%s", SPACE)), code, *fields)


# anything at all

PIECES = [
    '{"task_type":"nobody"', ',"payload":', '"priority":', '"task_type":', '"delay":', '"x"', "{", "}", "[", "]",
    '"', ",", ":", " ", "-1", "1e5", "0.5", "-0", "true", "null", "NaN", "\\ud800", "\\u0041", "é", "\x00",
]  # fmt: skip


def test_random_bytes_are_refused_or_stored_never_a_5xx(site: Site) -> None:
    texts = st.lists(st.sampled_from(PIECES), max_size=20).map("".join)
    bodies = st.binary(max_size=200) | texts.map(str.encode)

    @settings(max_examples=100)
    @given(bodies, st.sampled_from([TASKS, BATCH]))
    def check(body: bytes, path: str) -> None:
        answer = site.http.post(path, content=body, headers=JSON)
        if answer.status_code == 201:
            assert_success(answer, 201)
        else:
            assert answer.status_code in (400, 422), (body, answer.text)
            assert_problem(answer, answer.json()["code"], *(e["field"] for e in answer.json()["errors"]))

    check()


NUMBERS = st.one_of(
    st.integers(-3, 110),
    st.sampled_from([604_800, 604_801, 31_536_000, 31_536_001, 10**30]),
    st.floats(allow_nan=False, allow_infinity=False),
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_integer(value: object) -> bool:
    """As JSON Schema has it: 3.0 is one."""
    return is_number(value) and value == int(value)


ORACLE: dict[str, Any] = {
    "task_type": lambda v: (
        isinstance(v, str)
        and 0 < len(v) <= 128
        and all(c in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:-" for c in v)
    ),
    "priority": lambda v: is_integer(v) and -1 <= v <= 1,
    "payload": lambda v: isinstance(v, dict),
    "timeout": lambda v: is_number(v) and 0 < v <= 604_800,
    "max_retry": lambda v: is_integer(v) and 0 <= v <= 100,
    "delay": lambda v: is_number(v) and 0 <= v <= 31_536_000,
}
GOOD = {
    "task_type": st.sampled_from(["nobody", "a.b:c-d_E"]),
    "priority": st.integers(-1, 1),
    "payload": st.dictionaries(TEXTS, VALUES, max_size=3),
    "timeout": st.floats(0.001, 604_800),
    "max_retry": st.integers(0, 100),
    "delay": st.floats(0, 31_536_000),
}


@st.composite
def tasks(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.sets(st.sampled_from([*ORACLE, "unknown"])))
    wild = draw(st.booleans())
    return {name: draw(VALUES if wild or name == "unknown" else GOOD[name] | VALUES) for name in sorted(names)}


def test_the_rules_are_those_of_the_reference_and_what_is_accepted_is_stored(site: Site) -> None:
    @settings(max_examples=100)
    @given(tasks(), st.booleans())
    def check(task: dict[str, Any], is_ascii: bool) -> None:
        wrong = {name for name, value in task.items() if name not in ORACLE or not ORACLE[name](value)}
        wrong |= {"task_type"} - task.keys()
        answer = create(site, json.dumps(task, ensure_ascii=is_ascii).encode())
        if wrong:
            assert_problem(answer, 42201, *wrong)
            return
        stored = site.get(assert_success(answer, 201)["task_id"])
        assert stored["payload"] == task.get("payload", {})
        assert stored["priority"] == task.get("priority", 0)
        assert math.isclose(stored["timeout"], task.get("timeout", 300))
        assert stored["max_retry"] == task.get("max_retry", 3)

    check()
