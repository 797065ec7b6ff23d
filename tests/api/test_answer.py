"""The envelope: what every answer looks like."""

from __future__ import annotations

import json

import pytest

from atm.api import answer, health
from atm.api.answer import ApiError, error_body, failure, invalid, success

CODES = {
    name: value
    for module in (answer, health)
    for name, value in vars(module).items()
    if name.isupper() and isinstance(value, int) and value >= 10_000
}


def test_codes_are_a_status_and_a_number_and_no_two_are_the_same() -> None:
    assert len(CODES) >= 17
    assert len(set(CODES.values())) == len(CODES)
    assert all(400 <= code // 100 < 600 and code % 100 for code in CODES.values())


def test_success_without_data_has_no_such_key() -> None:
    assert success(message="done").content == b'{"code":0,"message":"done"}\n'
    assert success([]).content == b'{"code":0,"message":"success","data":[]}\n'


def test_every_answer_is_one_line_that_ends() -> None:
    for answered in (success({"text": "a\nb"}), failure(ApiError(answer.INVALID, "a\nb"))):
        assert answered.content.splitlines(keepends=True) == [answered.content]
        assert answered.content.endswith(b"\n")


def test_an_answer_has_the_headers_of_its_content_and_its_own() -> None:
    headers = success({"task_id": "ü"}, headers={"Location": "/x"}).all_headers()
    length = len('{"code":0,"message":"success","data":{"task_id":"ü"}}\n'.encode())
    assert headers == [
        (b"content-type", b"application/json"),
        (b"content-length", str(length).encode()),
        (b"location", b"/x"),
    ]


def test_a_failure_carries_its_headers_and_fields() -> None:
    error = ApiError(answer.STORE_AWAY, "away", [("a", "b")], {"Retry-After": "1"})
    reply = failure(error)
    assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
    body = json.loads(reply.content)
    assert body | {"request_id": ""} == {
        "code": 50301,
        "message": "away",
        "request_id": "",
        "errors": [{"field": "a", "reason": "b"}],
    }


def test_each_answer_has_a_request_id_of_its_own() -> None:
    ids = {json.loads(error_body(answer.INVALID, "x"))["request_id"] for _ in range(100)}
    assert len(ids) == 100


@pytest.mark.parametrize(
    ("count", "message"), [(1, "f0: bad"), (2, "f0: bad (and 1 more)"), (150, "f0: bad (and 149 more)")]
)
def test_the_message_names_the_first_problem_and_counts_the_others(count: int, message: str) -> None:
    error = invalid(*((f"f{n}", "bad") for n in range(count)))
    assert str(error) == error.message == message
    assert len(error.errors) == min(count, answer.MAX_PROBLEMS)
    assert error.status == 422
