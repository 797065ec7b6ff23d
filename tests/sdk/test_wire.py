"""What is repeated, when, and how often; with no network, and a clock that the test moves."""

from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atm.client import bulk
from atm.client.errors import (
    ApiError,
    BadAnswer,
    ConnectionFailed,
    Forbidden,
    InvalidRequest,
    NotFound,
    RateLimited,
    RequestTimeout,
    ServerError,
    ServerUnavailable,
    Unauthorized,
)
from atm.client.wire import Answer, Pause, Request, Session, Steps, Success, read
from atm.errors import AtmError

GET = Request("GET", "/api/v1/queues")
RETRY = Request("POST", "/api/v1/tasks/x/retry", repeatable=False)
FINE = Answer(200, {}, b'{"code": 0, "message": "success", "data": 7}')

Reply = Answer | AtmError


def refusal(status: int, code: int | None = None, **headers: str) -> Answer:
    said = {"code": code or status * 100 + 1, "message": "no", "request_id": "r1", "errors": []}
    return Answer(
        status, {name.replace("_", "-"): value for name, value in headers.items()}, json.dumps(said).encode()
    )


class Network:
    """Carries steps out: replies as told, the last one for ever; each request takes ``takes`` seconds."""

    def __init__(self, *replies: Reply, takes: float = 0.0, retries: int = 6, retry_for: float = 30.0) -> None:
        self._replies = list(replies)
        self._takes = takes
        self.clock = 100.0
        self.requests = 0
        self.pauses: list[float] = []
        self.session = Session(retries, retry_for, lambda: self.clock)

    def ask(self, request: Request, until: float | None = None) -> Success:
        return self._run(self.session.ask(request, until))

    def _run(self, steps: Steps[Success]) -> Success:
        try:
            step = next(steps)
            while True:
                if isinstance(step, Pause):
                    self.pauses.append(step.seconds)
                    self.clock += step.seconds
                    step = steps.send(None)
                    continue
                self.requests += 1
                self.clock += self._takes
                reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
                step = steps.throw(reply) if isinstance(reply, AtmError) else steps.send(reply)
        except StopIteration as end:
            found: Success = end.value
            return found


BROKEN = ConnectionFailed("broken")
REFUSED = ConnectionFailed("refused", sent=False)
LATE = RequestTimeout("late")


@pytest.mark.parametrize(
    "failure", [BROKEN, REFUSED, LATE, refusal(502), refusal(503), refusal(504), refusal(429), refusal(408)]
)
def test_a_repeatable_request_is_sent_again_until_it_succeeds(failure: Reply) -> None:
    network = Network(failure, failure, FINE)
    assert network.ask(GET).data == 7
    assert network.requests == 3


@pytest.mark.parametrize("failure", [REFUSED, refusal(429), refusal(408)])
def test_a_request_that_must_not_be_doubled_is_sent_again_if_it_surely_was_not_carried_out(failure: Reply) -> None:
    network = Network(failure, FINE)
    assert network.ask(RETRY).data == 7
    assert network.requests == 2


@pytest.mark.parametrize("failure", [BROKEN, LATE, refusal(502), refusal(503), refusal(504)])
def test_a_request_that_must_not_be_doubled_is_not_sent_again_when_nobody_knows(failure: Reply) -> None:
    network = Network(failure, FINE)
    with pytest.raises(AtmError):
        network.ask(RETRY)
    assert network.requests == 1


@pytest.mark.parametrize(
    "failure",
    [*map(refusal, (400, 401, 403, 404, 409, 422, 500)), Answer(200, {}, b"<html>")],
)
def test_what_will_not_get_better_is_told_at_once(failure: Reply) -> None:
    network = Network(failure, FINE)
    with pytest.raises(AtmError):
        network.ask(GET)
    assert network.requests == 1


def test_pauses_grow_and_are_never_the_same_for_all() -> None:
    network = Network(BROKEN, retries=8, retry_for=1000)
    with pytest.raises(ConnectionFailed):
        network.ask(GET)
    assert network.requests == 9
    for pause, whole in zip(network.pauses, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5], strict=True):
        assert whole / 2 <= pause <= whole
    other = Network(BROKEN, retries=8, retry_for=1000)
    with pytest.raises(ConnectionFailed):
        other.ask(GET)
    assert other.pauses != network.pauses


def test_no_request_is_begun_when_the_time_is_over() -> None:
    network = Network(LATE, takes=10, retries=100, retry_for=30)
    with pytest.raises(RequestTimeout):
        network.ask(GET)
    assert network.requests == 3
    assert network.clock - 100 <= 30 + 10


def test_a_long_poll_has_the_same_patience_beyond_its_own_time() -> None:
    network = Network(BROKEN, FINE, takes=29)
    assert network.ask(Request("GET", "/", extra=30)).data == 7


def test_a_wait_with_an_end_is_not_prolonged_by_repetitions() -> None:
    network = Network(BROKEN, takes=1, retries=100, retry_for=1000)
    with pytest.raises(ConnectionFailed):
        network.ask(GET, until=105)
    assert network.clock <= 106


def test_the_server_says_how_long_to_stay_away() -> None:
    network = Network(refusal(503, retry_after="7"), FINE)
    network.ask(GET)
    assert network.pauses == [7]


def test_the_server_may_name_a_moment() -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    network = Network(refusal(429, retry_after=at), FINE)
    network.ask(GET)
    assert 10 < network.pauses[0] <= 20


@pytest.mark.parametrize("said", ["soon", "-1", "", "1e9", "٣"])
def test_nonsense_in_retry_after_is_passed_over(said: str) -> None:
    network = Network(refusal(503, retry_after=said), FINE)
    network.ask(GET)
    assert network.pauses[0] <= 0.1


def test_who_is_to_stay_away_longer_than_he_would_try_is_told_so() -> None:
    network = Network(refusal(429, retry_after="3600"), FINE)
    with pytest.raises(RateLimited) as caught:
        network.ask(GET)
    assert caught.value.retry_after == 3600
    assert network.pauses == []


def test_a_probe_is_sent_once() -> None:
    network = Network(REFUSED, FINE)
    with pytest.raises(ConnectionFailed):
        network.ask(Request("GET", "/livez", retried=False))
    assert network.requests == 1


# answers


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest),
        (401, Unauthorized),
        (403, Forbidden),
        (404, NotFound),
        (413, InvalidRequest),
        (418, ApiError),
        (422, InvalidRequest),
        (429, RateLimited),
        (500, ServerError),
        (503, ServerUnavailable),
    ],
)
def test_each_status_has_its_error(status: int, kind: type[ApiError]) -> None:
    with pytest.raises(ApiError) as caught:
        read(refusal(status))
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.code, caught.value.request_id) == (status, status * 100 + 1, "r1")
    assert str(caught.value) == f"no (HTTP {status}, code {status}01, request r1)"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, Unauthorized),
        (403, Forbidden),
        (413, InvalidRequest),
        (429, RateLimited),
        (502, ServerUnavailable),
        (500, ServerError),
        (599, ServerError),
    ],
)
def test_a_proxy_speaks_in_its_own_way(status: int, kind: type[ApiError]) -> None:
    with pytest.raises(kind) as caught:
        read(Answer(status, {"content-type": "text/html", "retry-after": "2"}, b"<html>no</html>"))
    assert isinstance(caught.value, ApiError)
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (status, None, 2.0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"7",
        b"null",
        b'"x"',
        b"{}",
        b'{"code": 1}',
        b'{"code": "0"}',
        b"\xff",
        b"[" * 100_000,
        b'{"code": 40401, "message": 7}',
        b'{"code": 50001, "message": "no"}',
    ],
    ids=range(13),
)
def test_what_no_server_of_ours_says_is_a_bad_answer(body: bytes) -> None:
    for status in (200, 201, 204, 301, 302, 304, 404, 409, 422):
        with pytest.raises(BadAnswer) as caught:
            read(Answer(status, {"content-type": "text/html"}, body))
        assert caught.value.status == status


@given(st.integers(100, 999), st.binary() | st.text().map(str.encode))
def test_no_answer_is_a_traceback(status: int, body: bytes) -> None:
    with pytest.raises((BadAnswer, ApiError)):
        read(Answer(status, {}, body))


# many


def sizes(tasks: list[dict[str, Any]]) -> list[int]:
    return [len(piece.tasks) for piece in bulk.pieces(tasks)]


def test_many_tasks_are_cut_by_number_and_by_bytes() -> None:
    assert sizes([{"task_type": "a"}] * 2001) == [1000, 1000, 1]
    large = {"task_type": "a", "payload": {"x": "y" * 1_000_000}}
    cut = list(bulk.pieces([large] * 40))
    assert [len(piece.tasks) for piece in cut] == [16, 16, 8]
    assert all(len(piece.body) <= bulk.MAX_BYTES for piece in cut)
    assert [piece.start for piece in cut] == [0, 16, 32]


def test_no_more_tasks_are_taken_than_can_be_sent() -> None:
    taken = 0

    def endless() -> Any:
        nonlocal taken
        while True:
            taken += 1
            yield {"task_type": "a"}

    next(bulk.pieces(endless()))
    assert taken <= bulk.MAX_TASKS + 1


def test_each_task_has_a_key_of_its_own_that_stays() -> None:
    (piece,) = bulk.pieces([{"task_type": "a"}, {"task_type": "a"}, {"task_type": "a", "idempotency_key": "mine"}])
    assert piece.body == piece.body
    keys = [task["idempotency_key"] for task in json.loads(piece.body)["tasks"]]
    assert keys[2] == "mine"
    assert len(set(keys)) == 3


def test_errors_can_be_carried_from_process_to_process() -> None:
    for error in (BROKEN, LATE, BadAnswer("x", 200), ServerUnavailable("no", 503, 50301, "r1", (), 1.0)):
        back = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))
