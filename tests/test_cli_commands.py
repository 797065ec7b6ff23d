"""The commands that ask a server: what they print for people and for programs, and the codes they exit with."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner, Result

from atm.api import keys
from atm.cli import main
from atm.cli.ask import RETRIES, Asker
from atm.client import ConnectionFailed
from atm.client.wire import Pause, Request, Session
from running import ATM, PATIENCE, free_ports, node
from sdk.rude import Rude, bytes_only, fine, refusal, whole

TASKS = """
from pathlib import Path

import trio
from atm import NonRetryable, executes

@executes("held")
async def held(ctx, task):
    await ctx.log("here")
    await ctx.progress(0.5, "half")
    while not Path(task.payload["until"]).exists():
        await trio.sleep(0.02)
    return {"let": "go"}

@executes("breaks")
async def breaks(ctx, task):
    raise NonRetryable("it broke\\x1b[31m")
"""
KEY, READ_KEY = keys.new_key(), keys.new_key()
CONFIG = {
    "server": {
        "port": 0,
        "api_keys": [
            {"name": "all", "hash": keys.hash_of(KEY), "scopes": ["admin"]},
            {"name": "eyes", "hash": keys.hash_of(READ_KEY), "scopes": ["read"]},
        ],
    },
    "metrics": {"port": 0},
    "executors": ["cli_tasks"],
}


class Site(NamedTuple):
    url: str
    folder: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A node that asks for keys, for all tests of this file."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "cli_tasks.py").write_text(TASKS)
    (folder / "config.yaml").write_text(json.dumps(CONFIG))
    with contextlib.ExitStack() as stack:
        with contextlib.chdir(folder):
            running = stack.enter_context(node(environ={}))
            url = running.url
        yield Site(url, folder)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    """An empty folder, and no settings from outside but the server and its key."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("ATM_") or name in ("NO_COLOR", "FORCE_COLOR")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATM_URL", site.url)
    monkeypatch.setenv("ATM_API_KEY", KEY)
    monkeypatch.setenv("no_proxy", "*")


def run(*arguments: str, stdin: str | None = None, code: int = 0) -> Result:
    told = CliRunner().invoke(main, list(arguments), prog_name="atm", input=stdin)
    assert told.exit_code == code, (told.stdout, told.stderr, told.exception)
    assert "Traceback" not in told.stderr
    return told


def document(*arguments: str, code: int = 0, stdin: str | None = None) -> Any:
    """What is said with --json: one line, and nothing else."""
    [found] = documents(*arguments, code=code, stdin=stdin)
    return found


def documents(*arguments: str, code: int = 0, stdin: str | None = None) -> list[Any]:
    return [json.loads(line) for line in run(*arguments, "--json", code=code, stdin=stdin).stdout.splitlines()]


def made(*arguments: str) -> str:
    return run("submit", *arguments).stdout.strip()


@pytest.fixture
def waiting() -> Iterator[str]:
    """A task that no worker runs."""
    task_id = made("nobody_runs_this")
    yield task_id
    CliRunner().invoke(main, ["cancel", task_id])


# submit


def test_submit_prints_the_id_and_get_shows_the_task() -> None:
    task_id = made("echo", "-p", '{"text": "你好", "n": 1.50}', "--priority", "high", "--max-retry", "7")
    assert re.fullmatch(r"[0-9a-f-]{36}", task_id)
    ended = document("submit", "echo", "-p", '{"n": 1}', "--wait")
    assert (ended["status"], ended["result"]) == ("SUCCESS", {"n": 1})
    task = document("get", task_id)
    assert task["payload"] == {"text": "你好", "n": 1.5}
    assert (task["priority"], task["max_retry"]) == (1, 7)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", task["created_at"])
    told = run("get", task_id).stdout
    assert re.search(r"^priority  high$", told, re.MULTILINE)
    assert '{"text": "你好", "n": 1.5}' in told


def test_submit_passes_every_option_on(waiting: str) -> None:
    options = ["--timeout", "2m", "--delay", "1h", "--idempotency-key", f"k-{waiting}", "--priority", "-1"]
    task_id = made("later", *options)
    task = document("get", task_id)
    assert (task["timeout"], task["priority"], task["pending_reason"]) == (120, -1, "scheduled")
    assert document("submit", "later", "--idempotency-key", f"k-{waiting}") == {"task_id": task_id}
    at = document("get", made("later", "--at", "2126-01-31T10:00:00+08:00"))
    assert at["scheduled_at"] == "2126-01-31T02:00:00.000Z"
    run("cancel", task_id, at["task_id"])


def test_a_payload_may_come_from_a_file_or_from_stdin() -> None:
    Path("payload.json").write_text('{"from": "file"}')
    for arguments, stdin in ((["payload.json"], None), (["-"], '{"from": "stdin"}')):
        task = document("submit", "echo", "--payload-file", *arguments, "--wait", stdin=stdin)
        assert task["result"] == {"from": "stdin" if stdin else "file"}


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ("{", "is not JSON"),
        ("[1]", "must be an object"),
        ('{"a": 1, "a": 2}', "twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -1e400}', "-1e400 is too large"),
    ],
)
def test_a_payload_that_is_none_is_a_wrong_use(payload: str, reason: str) -> None:
    told = run("submit", "echo", "-p", payload, code=2)
    assert "--payload" in told.stderr
    assert reason in told.stderr
    assert told.stdout == ""


def test_what_the_server_refuses_is_told_field_by_field() -> None:
    told = run("submit", "echo", "--timeout", "30d", "--max-retry", "1000", code=5)
    assert len(told.stderr.splitlines()) == 1
    assert "timeout: " in told.stderr
    assert "max_retry: " in told.stderr


@pytest.mark.parametrize("arguments", [["echo", "-p", '{"a": "\\ud800"}'], ["echo\udcff"]])
def test_what_is_no_text_is_a_wrong_use(arguments: list[str]) -> None:
    told = run("submit", *arguments, code=2)
    assert (told.stdout, len(told.stderr.splitlines())) == ("", 1)


def test_an_address_with_a_path_that_the_server_does_not_know_is_refused(site: Site) -> None:
    assert "not found" in run("ls", "--url", f"{site.url}/elsewhere", code=5).stderr


def test_waiting_tells_by_its_code_how_the_task_ended() -> None:
    assert "SUCCESS" in run("submit", "echo", "--wait").stdout
    broken = run("submit", "breaks", "--wait", code=1).stdout
    assert "it broke\\x1b[31m" in broken
    assert document("submit", "breaks", "--wait", code=1)["status"] == "FAILED"
    unheard_of = run("submit", "unheard_of", "--timeout-wait", "100ms", code=124)
    assert "no_worker" in unheard_of.stdout
    run("cancel", *re.findall(r"^task +(\S+)", unheard_of.stdout))


# get, ls


def test_a_task_that_is_none_exits_with_3() -> None:
    for command in ("get", "cancel", "retry", "logs", "watch"):
        told = run(command, "01a20b25-6b4e-7000-a31e-c86c3dd184e1", code=3)
        assert told.stdout == ""
        assert told.stderr.startswith("atm: ")


def test_ls_filters_and_walks_through_the_pages(waiting: str) -> None:
    ours = [made("listed", "--priority", "low") for _ in range(4)]
    told = run("ls", "--type", "listed")
    assert told.stdout.splitlines()[0].split()[:3] == ["TASK", "TYPE", "STATUS"]
    assert [line.split()[0] for line in told.stdout.splitlines()[1:]] == ours[::-1]
    assert "more" in run("ls", "--type", "listed", "--limit", "3").stderr
    assert "more" not in told.stderr
    found = documents("ls", "--type", "listed", "--status", "pending", "--created-after", "10m", "--all")
    assert [task["task_id"] for task in found] == ours[::-1]
    assert documents("ls", "--type", "listed", "--created-before", "10m") == []
    assert documents("ls", "--type", "listed", "--worker", "other") == []
    assert run("ls", "--type", "listed", "--ids", "--limit", "2").stdout.split() == ours[:1:-1]
    cancelled = documents("cancel", "-", stdin="\n".join(ours))
    assert cancelled == [{"task_id": task_id, "cancelled": True} for task_id in ours]


@pytest.mark.parametrize(
    "arguments",
    [["--limit", "0"], ["--status", "DONE"], ["--created-after", "2026-01-01"], ["--created-after", "x"]],
)
def test_a_filter_that_makes_no_sense_is_a_wrong_use(arguments: list[str]) -> None:
    assert arguments[0] in run("ls", *arguments, code=2).stderr


def test_the_zone_that_a_time_lacks_is_told_by_a_time_that_is_one() -> None:
    told = run("ls", "--created-after", "2026-01-01", code=2).stderr
    assert "as in 2026-01-01T00:00:00Z" in told
    run("ls", "--created-after", "2026-01-01T00:00:00Z")


# cancel, retry


def test_cancel_and_retry_go_on_after_one_that_fails(waiting: str) -> None:
    ended = document("submit", "echo", "--wait")["task_id"]
    told = run("cancel", ended, "unknown", waiting, code=4)
    assert told.stdout == f"{waiting}  cancelled\n"
    assert [line.split()[1] for line in told.stderr.splitlines()] == [f"{ended}:", "unknown:"]
    again = documents("retry", waiting, ended, code=4)
    assert again[0] == {"task_id": waiting, "status": "PENDING"}
    assert again[1]["code"] == 40901
    assert "will run again" in run("retry", document("submit", "breaks", "--wait", code=1)["task_id"]).stdout


# logs, watch


@contextlib.contextmanager
def following(*arguments: str) -> Iterator[Iterator[Any]]:
    """What a command that goes on says with --json, line after line as they come; it must end by itself."""
    with subprocess.Popen([*ATM, *arguments, "--json"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield map(json.loads, process.stdout)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def test_logs_follow_a_task_to_its_end(tmp_path: Path) -> None:
    release = tmp_path / "release"
    task_id = made("held", "-p", json.dumps({"until": str(release)}))
    with following("logs", "-f", task_id) as rows:
        seen = [next(rows) for _ in range(4)]
        release.touch()
        seen += rows
    assert [row["to_status"] for row in seen] == ["PENDING", "PROCESSING", None, None, "SUCCESS"]
    assert {(row["log_type"], row["message"]) for row in seen[2:4]} == {("INFO", "here"), ("INFO", "50%: half")}
    told = run("logs", task_id).stdout.splitlines()
    assert len(told) == len(seen)
    assert "new → PENDING  Task created" in told[0]


def test_watch_shows_a_task_until_it_has_ended(tmp_path: Path) -> None:
    release = tmp_path / "release"
    task_id = made("held", "-p", json.dumps({"until": str(release)}))
    with following("watch", task_id, "--interval", "100ms") as looks:
        for task in looks:
            if task["progress"]:
                release.touch()
    assert (task["status"], task["progress"]) == ("SUCCESS", {"fraction": 0.5, "message": "half"})
    assert "here" in run("watch", task_id).stdout


def test_watch_shows_queues_and_workers() -> None:
    looks = documents("watch", "-n", "2", "--interval", "100ms")
    assert [sorted(look) for look in looks] == [["at", "queues", "workers"]] * 2
    assert {"breaks", "held"} <= set(looks[0]["workers"][0]["supported_types"])
    told = run("watch", "-n", "1").stdout
    assert "QUEUE" in told
    assert "WORKER" in told


# workers, queues, types


def test_workers_and_queues_are_listed(waiting: str) -> None:
    [worker] = documents("workers")
    assert worker["capacity"] == 100
    assert worker["id"] in run("workers").stdout
    queues = document("queues")
    assert [queue["name"] for queue in queues["queues"]] == ["high", "normal", "low"]
    assert queues["queues"][1]["parked"] >= 1
    assert re.search(r"^normal +\d+ +\d+ +\S+ s$", run("queues").stdout, re.MULTILINE)


def test_types_are_listed_and_set() -> None:
    changed = document("types", "set", "shy", "--max-concurrent", "2", "--disable", "--retry-delay", "1m")
    assert (changed["max_concurrent"], changed["enabled"], changed["retry_delay"]) == (2, False, 60)
    assert re.search(r"^shy +no +2 ", run("types").stdout, re.MULTILINE)
    assert "shy" in run("types", "set", "shy", "--max-concurrent", "none", "--enable").stdout
    [shy] = [one for one in documents("types", "list") if one["task_type"] == "shy"]
    assert (shy["max_concurrent"], shy["enabled"], shy["retry_delay"]) == (None, True, 60)
    assert documents("types") == documents("types", "list")
    assert "nothing to change" in run("types", "set", "shy", code=2).stderr
    assert "--backoff-rate" in run("types", "set", "shy", "--backoff-rate", "nan", code=2).stderr
    assert "backoff_rate" in run("types", "set", "shy", "--backoff-rate", "0", code=5).stderr


def test_what_stands_before_the_command_of_a_group_counts_for_it(site: Site) -> None:
    [port] = free_ports(1)
    away = f"http://127.0.0.1:{port}"
    told = run("types", "--url", away, "set", "shy", "--max-concurrent", "1", code=69)
    assert away in told.stderr
    told = run("types", "--url", away, "--json", "set", "shy", "--url", site.url, "--max-concurrent", "3")
    assert json.loads(told.stdout)["max_concurrent"] == 3


# bench


def test_bench_reports_rates_and_latency() -> None:
    report = document("bench", "-n", "20")
    assert (report["tasks"], report["succeeded"]) == (20, 20)
    assert report["created_per_second"] > 0
    assert 0 <= report["pick_up_ms"]["p50"] <= report["pick_up_ms"]["p99"]
    assert re.search(r"^tasks +5, 5 of them SUCCESS$", run("bench", "-n", "5").stdout, re.MULTILINE)


def test_bench_of_a_type_that_nobody_runs_comes_to_an_end() -> None:
    told = run("bench", "--type", "nobody_benches", "--patience", "100ms", code=1)
    assert "is still PENDING" in told.stderr
    run("cancel", *run("ls", "--type", "nobody_benches", "--ids").stdout.split())


# which server, which key


def test_the_key_comes_from_a_file_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATM_API_KEY")
    assert re.search("40101.*ATM_API_KEY.*--api-key-file", run("ls", code=5).stderr)
    Path("key").write_text(READ_KEY + "\n")
    run("ls", "--api-key-file", "key")
    assert "scope submit" in run("submit", "echo", "--api-key-file", "key", code=5).stderr
    assert "--api-key-file" in run("ls", "--api-key-file", "missing", code=78).stderr
    monkeypatch.setenv("ATM_API_KEY", "two words")
    told = run("ls", code=78)
    assert "ATM_API_KEY" in told.stderr
    assert "two words" not in told.stderr


def test_the_address_comes_from_a_flag_the_environment_or_the_config(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    [port] = free_ports(1)
    monkeypatch.setenv("ATM_URL", f"http://127.0.0.1:{port}")
    told = run("ls", code=69)
    assert f"127.0.0.1:{port}" in told.stderr
    assert "is a node running there?" in told.stderr
    run("ls", "--url", site.url)
    monkeypatch.delenv("ATM_URL")
    entry = {**CONFIG["server"], "host": "0.0.0.0", "port": int(site.url.rpartition(":")[2])}  # noqa: S104
    Path("here.yaml").write_text(json.dumps({"server": entry}))
    run("ls", "--config", "here.yaml")
    Path("config.yaml").write_text("server: {port: 0}")
    assert "server.port" in run("ls", code=78).stderr
    Path("config.yaml").write_text("server: {prot: 1}")
    assert "server.prot" in run("ls", code=78).stderr


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host",
        "localhost:8080",
        "http://",
        "http://user:secret@host",
        "http://@host",
        "http://h:x",
        "http://h:0",
        "http://a..b",
        "http://xn--",
        "http://h\n",
    ],
)
def test_an_address_that_is_none_is_a_wrong_use(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = run("ls", "--url", url, code=2)
    assert "--url" in told.stderr
    assert "secret" not in told.stderr
    monkeypatch.setenv("ATM_URL", url)
    assert "ATM_URL" in run("ls", code=78).stderr


# a server that goes, or was never there


FOLLOWERS = [["submit", "echo", "--wait"], ["logs", "-f", "x"], ["watch", "x"], ["watch"]]
TASK = {"task_id": "t1", "task_type": "echo", "created_at": "2026-01-31T10:00:00Z"}


@pytest.mark.parametrize("arguments", FOLLOWERS, ids=" ".join)
def test_that_nobody_is_there_is_told_soon_also_to_who_would_wait(arguments: list[str]) -> None:
    with Rude(bytes_only(b"")) as server:
        run(*arguments, "--url", server.url, code=69)
        assert len(server.requests) == RETRIES + 1


@pytest.mark.parametrize("waiting", [["--wait"], ["--timeout-wait", "1m"]])
def test_a_wait_outlasts_a_restart(waiting: list[str]) -> None:
    away = [refusal("503 Service Unavailable")] * (RETRIES + 1)
    with Rude(fine({"task_id": "t1"}), *away, fine({**TASK, "status": "SUCCESS"})) as server:
        run("submit", "echo", *waiting, "--url", server.url)


@pytest.mark.parametrize(("patient", "least", "most"), [(False, 0.3, 2), (True, 20, 31)])
def test_who_follows_is_patient_for_half_a_minute(patient: bool, least: float, most: float) -> None:
    clock = 0.0

    def ask_in_vain(session: Session) -> None:
        nonlocal clock
        session.now = lambda: clock
        steps = session.ask(Request("GET", "/"))
        step = next(steps)
        while True:
            if isinstance(step, Pause):
                clock += step.seconds
                step = steps.send(None)
            else:
                step = steps.throw(ConnectionFailed("refused", sent=False))

    with Asker("http://127.0.0.1:1", None, None).client(patient=patient) as client:
        with pytest.raises(ConnectionFailed):
            ask_in_vain(client._session)
        assert least < clock < most


# as a process


def test_ctrl_c_ends_what_follows_with_130() -> None:
    task_id = made("sleep", "-p", '{"seconds": 60}')
    with subprocess.Popen(
        [*ATM, "logs", "-f", task_id], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"Task created" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stderr.read() == b""
    run("cancel", task_id)


def test_a_reader_that_leaves_is_no_error() -> None:
    script = f"set -o pipefail; {sys.executable} -m atm watch --interval 100ms | head -1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 141
    assert done.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["workers"], ["workers", "--json"], ["--help"], ["get", "--help"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_told(arguments: list[str], unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*ATM, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 74
    assert done.stderr == "atm: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_closed_stream_is_one_that_nobody_wants(closed: str) -> None:
    script = f"{sys.executable} -m atm workers --json {closed}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.parametrize("environ", [{}, {"NO_COLOR": "1"}])
def test_there_are_colours_on_a_terminal_unless_they_are_unwanted(environ: dict[str, str]) -> None:
    task_id = document("submit", "echo", "--wait")["task_id"]
    master, slave = pty.openpty()
    try:
        environ = {**os.environ, "TERM": "xterm", **environ}
        process = subprocess.Popen([*ATM, "get", task_id], stdout=slave, stderr=slave, env=environ)
        assert process.wait(PATIENCE) == 0
        told = os.read(master, 65536).decode()
    finally:
        os.close(master)
        os.close(slave)
    assert "SUCCESS" in told
    assert ("\x1b[32m" in told) == ("NO_COLOR" not in environ)


@pytest.mark.parametrize(("columns", "shown"), [(60, "TASK TYPE STATUS TOOK"), (200, "WORKER CREATED TOOK")])
def test_a_narrow_terminal_is_shown_fewer_columns_and_whole_words(columns: int, shown: str) -> None:
    task_id = document("submit", "echo", "--wait")["task_id"]
    master, slave = pty.openpty()
    try:
        environ = {**os.environ, "TERM": "xterm", "NO_COLOR": "1", "COLUMNS": str(columns)}
        process = subprocess.Popen([*ATM, "ls", "--limit", "1"], stdout=slave, stderr=slave, env=environ)
        assert process.wait(PATIENCE) == 0
        told = re.sub(r"\x1b\[[0-9;]*m", "", os.read(master, 65536).decode())
    finally:
        os.close(master)
        os.close(slave)
    headings, row, *_ = told.splitlines()
    assert shown in " ".join(headings.split())
    assert row.split()[:3] == [task_id, "echo", "SUCCESS"]


def test_a_bar_shows_how_far_a_task_has_come(tmp_path: Path) -> None:
    release = tmp_path / "release"
    command = [*ATM, "submit", "held", "-p", json.dumps({"until": str(release)}), "--wait", "--json"]
    master, slave = pty.openpty()
    seen = b""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=slave, env={**os.environ, "TERM": "xterm"}
    ) as process:
        os.close(slave)
        try:
            with contextlib.suppress(OSError):  # the other side is closed: the end
                while data := os.read(master, 65536):
                    seen += data
                    if b"half" in seen:
                        release.touch()
            assert process.stdout is not None
            told = json.loads(process.stdout.read())
        finally:
            os.close(master)
            process.kill()
    assert told["status"] == "SUCCESS"
    assert b"PROCESSING" in seen
    assert b"50%" in seen


# doctor, beside the node


def test_the_doctor_finds_a_running_node_well(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site.folder)
    report = document("doctor")
    levels = {finding["check"]: finding["level"] for finding in report["findings"]}
    assert report["ok"], report
    names = {"config", "server", "workers", "queues", "store", "orphans", "waiting", "disk", "leader"}
    assert set(levels) == names
    assert [levels[name] for name in ("config", "server", "store", "leader")] == ["ok"] * 4


def test_the_doctor_finds_types_that_nobody_runs(
    waiting: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (site.folder, Path.cwd()):
        # Where the config is by the store, elsewhere by the API alone.
        monkeypatch.chdir(folder)
        told = run("doctor").stdout
        assert re.search(r"^warning +waiting +.*nobody_runs_this.*\n +→ .*executors", told, re.MULTILINE)


def test_the_doctor_finds_a_disabled_type(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(site.folder)
    run("types", "set", "asleep", "--disable")
    task_id = made("asleep")
    assert "`atm types set asleep --enable`" in run("doctor").stdout
    run("cancel", task_id)


def test_the_doctor_tells_that_the_key_is_not_known(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATM_API_KEY", "wrong")
    for folder in (site.folder, Path.cwd()):
        monkeypatch.chdir(folder)
        told = run("doctor", code=1).stdout
        assert re.search(r"^error +server +the API key is not known.*\n +→ .*ATM_API_KEY", told, re.MULTILINE)
        assert "no node answers" not in told, "who refuses answers"


def test_the_doctor_tells_that_the_server_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    [port] = free_ports(1)
    report = document("doctor", "--url", f"http://127.0.0.1:{port}", code=1)
    [away] = [finding for finding in report["findings"] if finding["level"] == "error"]
    assert away["check"] == "server"
    assert "no node answers" in away["message"]
    assert away["advice"]


def test_the_doctor_tells_that_the_server_is_no_atm() -> None:
    with Rude(whole("404 Not Found", b"<html>")) as server:
        report = document("doctor", "--url", server.url, code=1)
    [other] = [finding for finding in report["findings"] if finding["level"] == "error"]
    assert other["check"] == "server"
    assert "no atm server" in other["message"]


def test_the_doctor_sees_what_a_killed_node_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATM_URL")
    monkeypatch.delenv("ATM_API_KEY")
    Path("config.yaml").write_text(json.dumps({"server": {"port": free_ports(1)[0]}, "metrics": {"port": 0}}))
    with node(environ={}) as running:
        running.wait_until_running(running.create("sleep", payload={"seconds": 60}))
        running.process.kill()
        running.process.wait()
    before = sorted(path.name for path in Path.cwd().iterdir())
    told = run("doctor", code=1).stdout
    assert "1 task ran when the node ended" in told
    assert "no node has it" in told
    assert sorted(path.name for path in Path.cwd().iterdir()) == before
    Path("atm.db").write_bytes(b"not a database" * 100)
    assert re.search(r"^error +store ", run("doctor", code=1).stdout, re.MULTILINE)
