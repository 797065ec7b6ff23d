"""The documentation is true: its examples run, its links lead somewhere, its tables hold what the code has."""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import httpx
import msgspec
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import async_task_manager
from atm import config as configuration
from atm.api import answer, health, tasks
from atm.cli import COMMANDS, checks, doctor, exits, main, nodes
from atm.config import Config
from atm.coordinators import redis_dispatch, redis_link, redis_workers
from atm.coordinators.local import LocalCoordinator
from atm.metrics import Metrics
from atm.nursery import election, heartbeat, signals, supervisor, watchdog, worker
from atm.stores.mysql import MySqlStore
from atm.task import Status, TaskType
from running import PATIENCE, free_ports, node

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]
API_PAGE = DOCS / "api.md"
OPERATIONS = (DOCS / "operations.md").read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# examples


class Block(NamedTuple):
    mark: str
    language: str
    text: str


def marked_blocks(page: Path) -> list[Block]:
    """Code blocks behind a line ``<!-- runs -->`` or ``<!-- answers -->``."""
    found = re.findall(
        r"^<!-- (runs|answers) -->\n```(\w+)\n(.*?)^```$",
        page.read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    return [Block(*parts) for parts in found]


STORIES = [page for page in PAGES if marked_blocks(page)]
START = re.compile(r"(?:\w+=\S+ )*\.venv/bin/python (?:-m atm|\w+\.py)\n")


class Reader:
    """Does what a page says, in an empty folder: saves its files, starts its nodes, runs its commands."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._api, self._metrics = free_ports(2)
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith("ATM_")} | {
            "ATM_SERVER__PORT": str(self._api),
            "ATM_METRICS__PORT": str(self._metrics),
            "no_proxy": "*",
            # Where the command is, as in an activated environment.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        self._node: subprocess.Popen[bytes] | None = None
        self._said = ""
        self._task_id = ""
        self._program = ""

    def follow(self, block: Block) -> None:
        if block.mark == "answers":
            assert_alike(json.loads(block.text), json.loads(self._said))
        elif block.language == "python" and not block.text.startswith("# "):
            self._program += block.text
        elif block.language != "bash":
            first = block.text.partition("\n")[0]
            (self._folder / first.removeprefix("# ")).write_text(block.text, encoding="utf-8")
        elif START.fullmatch(block.text):
            self.start(block.text)
        else:
            if self._node is None:
                self.start(".venv/bin/python -m atm")
            self._run(block.text)

    def start(self, command: str) -> None:
        self.stop()
        words = shlex.split(command.replace(".venv/bin/python", sys.executable))
        given = [word for word in words if re.match(r"ATM_\w+=", word)]
        environ = self._environ | dict(word.split("=", 1) for word in given)
        with (self._folder / "node.log").open("ab") as log:
            self._node = subprocess.Popen(
                words[len(given) :], cwd=self._folder, env=environ, stdout=log, stderr=log
            )
        deadline = time.monotonic() + PATIENCE
        while not self._is_ready():
            assert self._node.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{self._api}/readyz").status_code == 200
        return False

    def finish(self) -> None:
        """The examples of a page that are one program are run as such, at its end."""
        if self._program:
            if self._node is None:
                self.start(".venv/bin/python -m atm")
            program = self._program.replace("localhost:8080", f"127.0.0.1:{self._api}")
            (self._folder / "program.py").write_text(program, encoding="utf-8")
            self._run(".venv/bin/python program.py")
        self.stop()

    def stop(self) -> None:
        if self._node is not None:
            self._node.send_signal(signal.SIGTERM)
            assert self._node.wait(PATIENCE) == 0, self.log()
            self._node = None

    def kill(self) -> None:
        if self._node is not None:
            self._node.kill()
            self._node.wait()

    def log(self) -> str:
        return (self._folder / "node.log").read_text(encoding="utf-8", errors="replace")

    def _run(self, script: str) -> None:
        for documented, port in (("localhost:8080", self._api), ("localhost:9090", self._metrics)):
            script = script.replace(documented, f"127.0.0.1:{port}")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script.replace(".venv/bin", str(Path(sys.executable).parent))],
            cwd=self._folder,
            env=self._environ | {"TASK_ID": self._task_id},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self._said = done.stdout
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}\n{self.log()}"
        assert not re.search(r'"code":[45]\d{4}', done.stdout), done.stdout
        if found := re.search(r'"task_id":"([^"]+)"', done.stdout):
            self._task_id = found[1]


VOLATILE = {"task_id", "message_id", "worker_id", "created_at", "started_at", "completed_at"}


def assert_alike(shown: Any, real: Any, key: str = "") -> None:
    """The same, but for ids and times, which must be of one kind."""
    assert type(shown) is type(real), key
    if isinstance(shown, dict):
        assert shown.keys() == real.keys(), key
        for name in shown:
            assert_alike(shown[name], real[name], name)
    elif isinstance(shown, list):
        assert len(shown) == len(real), key
        for one, other in zip(shown, real, strict=True):
            assert_alike(one, other, key)
    elif key.endswith("_at") and shown is not None:
        assert len(shown) == len(real)
    elif key not in VOLATILE:
        assert shown == real, key


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    made = Reader(tmp_path)
    try:
        yield made
    finally:
        made.kill()


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples call curl")
@pytest.mark.parametrize("page", STORIES, ids=name_of)
def test_the_examples_of_a_page_work_in_their_order(page: Path, reader: Reader) -> None:
    for block in marked_blocks(page):
        reader.follow(block)
    reader.finish()
    assert "Traceback" not in reader.log()


def test_pages_with_examples_have_them_tried() -> None:
    named = {
        "README.md",
        "README.zh-CN.md",
        "docs/quickstart.md",
        "docs/python-sdk.md",
        "docs/extensibility.md",
        "docs/writing-executors.md",
        "docs/operations.md",
    }
    assert {name_of(page) for page in STORIES} >= named


def test_every_python_example_is_python() -> None:
    for page in PAGES:
        for text in re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
            compile(text, name_of(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_a_backup_made_as_told_is_a_whole_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("ATM_")]:
        monkeypatch.delenv(name)
    (backup,) = [block.text for block in marked_blocks(DOCS / "operations.md") if "VACUUM" in block.text]
    with node() as running:
        task_id = running.create("waits_for_ever", payload={"text": "你好"})
        script = backup.replace(".venv/bin/python", sys.executable)
        subprocess.run(["bash", "-euc", script], check=True, timeout=PATIENCE)
        later = running.create("waits_for_ever")
        running.process.kill()
    with node("--data", "backup.db") as restored:
        assert restored.task(task_id)["payload"] == {"text": "你好"}
        assert httpx.get(f"{restored.url}/api/v1/tasks/{later}").status_code == 404
        assert restored.end() == 0


# links


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_can_be_found_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(([^)#\s]+\.md)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert linked == {name_of(page) for page in PAGES} - {"README.md"}


def test_the_readmes_say_the_same_in_both_languages() -> None:
    english, chinese = (ROOT / name for name in ("README.md", "README.zh-CN.md"))

    def shape(page: Path) -> tuple[int, list[str], list[str]]:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"^```\w+\n(.*?)^```$", text, re.M | re.S)
        # What differs are comments and the texts in the examples, all of which have letters beyond ASCII.
        code = [re.sub(r'#.*$|".*?"', "", block, flags=re.MULTILINE).strip() for block in blocks]
        links = sorted(re.findall(r"\]\(((?!README)[^)]+)\)", text))
        return len(re.findall(r"^## ", text, re.MULTILINE)), code, links

    one, other = shape(english), shape(chinese)
    assert one[:2] == other[:2]
    assert set(one[2]) == set(other[2])


# tables against code


def table_names(text: str, heading: str) -> set[str]:
    """What stands in backticks in the first column of the tables under a heading."""
    section = re.split(r"^#+ ", text.partition(f" {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    cells = re.findall(r"^\| (.+?) \|", section, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def config_keys(kind: type[msgspec.Struct] = Config, prefix: str = "") -> Iterator[str]:
    for field in msgspec.structs.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from config_keys(field.type, f"{field.name}.")
        else:
            yield prefix + field.name


def test_every_setting_is_explained() -> None:
    assert table_names(OPERATIONS, "Settings") == set(config_keys())


def test_every_option_is_explained() -> None:
    options = {name for parameter in nodes.serve.params for name in parameter.opts}
    explained = {name.split()[0] for name in table_names(OPERATIONS, "Running it")}
    assert {name for name in explained if name.startswith("--")} == options


def options_of(command: click.Command) -> set[str]:
    """All its options, those of its own commands included, but for those that every command has."""
    found = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for inner in getattr(command, "commands", {}).values():
        found |= options_of(inner)
    common = {"--url", "--api-key-file", "--config", "--json"}
    return {name for name in found if name.startswith("-")} - common


def test_every_command_is_explained_with_its_options_and_codes() -> None:
    page = (DOCS / "command-line.md").read_text(encoding="utf-8")
    context = click.Context(main)
    assert {name for cell in table_names(page, "Command line") for name in cell.split()[1:2]} == set(COMMANDS)
    for heading, name in (("Submit", "submit"), ("Look", "ls"), ("Task types", "types")):
        command = main.get_command(context, name)
        assert command is not None
        assert {word for word in table_names(page, heading) if word.startswith("-")} == options_of(command)
    codes = {value for name, value in vars(exits).items() if name.startswith("EXIT_")}
    rows = re.findall(r"^\| (\d+) \|", page, re.MULTILINE)
    assert {int(code) for code in rows} == codes | {0}
    checked = set(re.findall(r'Finding\(\s*"(\w+)"', inspect.getsource(checks) + inspect.getsource(doctor)))
    assert table_names(page, "The doctor") == checked


def test_every_example_of_a_command_can_be_understood() -> None:
    """The more of them for which it would take too long to run them, too."""
    text = "".join(re.findall(r"^```bash\n(.*?)^```$", (DOCS / "command-line.md").read_text("utf-8"), re.M | re.S))
    found = re.findall(r"(?:^|\| |\(|if |=\S+ )atm (.*?)(?= > | \| |\)\"?|; then| +#|$)", text, re.MULTILINE)
    assert len(found) > 30
    context = click.Context(main)
    for line in found:
        # What another command prints stands for an id.
        words = shlex.split(re.sub(r'"\$.*', "an-id", line))
        _, command, rest = main.resolve_command(context, words)
        assert command is not None
        command.make_context("atm", rest)
    assert {line.split()[0] for line in found} >= set(COMMANDS) - {"serve", "migrate", "key"}


def test_every_exit_code_is_explained() -> None:
    codes = {
        0,
        2,
        exits.EXIT_UNAVAILABLE,
        exits.EXIT_DAMAGED,
        exits.EXIT_CONFIG,
        supervisor.STUCK_EXIT,
        watchdog.OUTLIVED_EXIT,
        signals.OVERTIME_EXIT,
        *(128 + number for number in signals.STOP_SIGNALS),
    }
    rows = re.findall(r"^\| ([\d, ]+) \|", OPERATIONS, re.MULTILINE)
    assert {int(code) for row in rows for code in row.split(",")} == codes


def test_every_reason_to_wait_is_explained() -> None:
    source = ast.parse(textwrap.dedent(inspect.getsource(tasks.TaskRoutes._pending_reason)))
    returned = [node.value for node in ast.walk(source) if isinstance(node, ast.Return) and node.value]
    values = [
        part
        for value in returned
        for part in ([value.body, value.orelse] if isinstance(value, ast.IfExp) else [value])
    ]
    assert all(isinstance(value, ast.Constant) for value in values)
    reasons = {value.value for value in values if isinstance(value, ast.Constant)}
    assert table_names(OPERATIONS, "What to do when") >= reasons


async def rendered_metrics() -> dict[str, set[str]]:
    """Every sample name that a node's page can have, with its labels."""
    metrics = Metrics()
    metrics.watch(LocalCoordinator(), "node")
    metrics.created("echo", 1)
    metrics.ended("echo", Status.SUCCESS, [1.0])
    found: dict[str, set[str]] = {"worker_load": {"worker_id"}, "atm_worker_slots": {"worker_id"}}
    for family in text_string_to_metric_families((await metrics.render()).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def family_of(sample: str) -> str:
    return re.sub(r"_(count|sum|bucket)$", "", sample)


async def test_every_metric_is_explained_with_its_labels() -> None:
    families: dict[str, set[str]] = {}
    for name, labels in (await rendered_metrics()).items():
        families.setdefault(family_of(name), set()).update(labels)
    rows = re.findall(r"^\| `(\w+)` \|([^|]*)\|", OPERATIONS.partition("## Metrics")[2], re.MULTILINE)
    explained = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows if name in families}
    assert explained == families


async def test_metrics_that_are_spoken_of_exist() -> None:
    known = {family_of(name) for name in await rendered_metrics()}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"\b(atm_\w+|task_\w+_(?:total|seconds)|queue_length|worker_load)\b", text):
            assert family_of(name) in known, f"{name_of(page)}: {name}"


def test_every_setting_of_a_task_type_is_explained() -> None:
    explained = table_names((DOCS / "extensibility.md").read_text(encoding="utf-8"), "Task types")
    assert explained == {*TaskType.__struct_fields__} - {"task_type"}


def test_every_verb_and_every_error_of_the_sdk_is_explained() -> None:
    page = (DOCS / "python-sdk.md").read_text(encoding="utf-8")
    verbs = {name for name in dir(async_task_manager.Client) if not name.startswith("_")} - {"close"}
    assert {name.partition("(")[0] for name in table_names(page, "Verbs")} >= verbs
    assert table_names(page, "A client") >= set(inspect.signature(async_task_manager.Client).parameters)
    kinds = [getattr(async_task_manager, name) for name in async_task_manager.__all__]
    errors = {kind.__name__ for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception)}
    assert errors <= set(re.findall(r"\w+", page.partition("## Errors")[2].split("```")[1]))


def test_every_state_is_in_the_diagram_and_in_the_glossary() -> None:
    diagram = (DOCS / "protocol.md").read_text(encoding="utf-8").partition("## States")[2].split("```")[1]
    glossary = (DOCS / "glossary.md").read_text(encoding="utf-8")
    for status in Status:
        assert status in diagram
        assert status in glossary


def test_the_glossary_is_in_order() -> None:
    words = re.findall(r"^\| ([a-z][a-z ]*) \|", (DOCS / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)[
        1:
    ]
    assert len(words) > 40
    assert words == sorted(words)


def test_every_error_code_is_explained() -> None:
    explained = {int(code) for code in re.findall(r"\b[45]\d{4}\b", API_PAGE.read_text(encoding="utf-8"))}
    defined = {
        value
        for module in (answer, health)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, int) and 40_000 <= value < 60_000
    }
    assert defined <= explained


def test_the_layers_drawn_are_those_that_are_checked() -> None:
    from test_house import LAYERS

    lines = re.findall(r"^([0-4])  (.{58})", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    drawn: dict[int, set[str]] = {}
    for number, rooms in lines:
        drawn.setdefault(int(number), set()).update(room.strip("/") for room in rooms.split())
    assert drawn == dict(enumerate(LAYERS))


# the cluster


def test_the_clusters_settings_are_those_of_the_quick_start_on_every_page() -> None:
    pages = [ROOT / "README.md", ROOT / "README.zh-CN.md", DOCS / "quickstart.md"]
    shown = {
        text
        for page in pages
        for text in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
        if "redis:" in text
    }
    [text] = shown
    config = configuration.parse(yaml.safe_load(text))
    configuration.check(config)
    assert config.database.effective_driver == "mysql"
    assert (config.worker_id, config.capacity) == ("worker-001", 10)


def test_every_key_and_channel_in_redis_is_explained() -> None:
    scripts = (ROOT / "src/atm/coordinators/lua").glob("*.lua")
    used = {
        name.rstrip(":")
        for script in scripts
        for name in re.findall(r"PREFIX \.\. '([a-z:]+)'", script.read_text(encoding="utf-8"))
    }
    protocol = (DOCS / "protocol.md").read_text(encoding="utf-8")
    explained = {name.partition(":{")[0] for name in table_names(protocol, "Keys")}
    assert used <= explained


def test_what_is_said_of_leases_and_terms_is_so() -> None:
    store = inspect.signature(MySqlStore).parameters
    assert (store["lease"].default, store["margin"].default, worker.LEASE_MARGIN) == (10, 5, 1)
    assert (watchdog.OVERTIME, heartbeat.BEATS_PER_LEASE) == (5, 4)
    assert (election.TERM, election.TERM_MARGIN, worker.POLL_INTERVAL) == (5, 1, 0.1)
    assert (redis_dispatch.HANDOVER_PATIENCE, redis_link.AWAY_AFTER) == (0.3, 1)
    assert redis_workers.REGISTRATION_TTL == 30
    protocol = (DOCS / "protocol.md").read_text(encoding="utf-8")
    said = (
        "L is 10 s",
        "*t* + L − 1 s",
        "D = 5 s",
        "L/4",
        "within 300 ms",
        "**Redis is away** for more than a second",
    )
    assert [text for text in said if text not in protocol] == []


# the dashboard

DASHBOARD = json.loads((ROOT / "grafana-dashboard.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in PANELS for target in panel["targets"]]


def metrics_in(expression: str) -> Iterator[tuple[str, set[str]]]:
    """The metrics of a PromQL expression, with the labels that are asked of them."""
    grouped = {name for group in re.findall(r"\bby \(([^)]*)\)", expression) for name in re.split(r",\s*", group)}
    for name, matchers in re.findall(r"([a-z_]\w*)\{([^}]*)\}", expression):
        yield name, grouped | set(re.findall(r"(\w+)(?:=~|=|!=|!~)", matchers))


async def test_the_dashboard_asks_for_metrics_and_labels_that_exist() -> None:
    known = await rendered_metrics()
    for expression in expressions():
        asked = list(metrics_in(expression))
        assert asked, expression
        for name, labels in asked:
            assert name in known, expression
            assert labels - {"instance"} <= known[name], expression
        rest = re.sub(r'\{[^}]*\}|\[[^\]]*\]|\bby \([^)]*\)|"[^"]*"', "", expression)
        words = set(re.findall(r"[a-z_]\w*", rest)) - {name for name, _ in asked}
        assert words <= {"sum", "max", "rate", "histogram_quantile"}, expression


async def test_the_dashboard_shows_every_metric() -> None:
    shown = {family_of(name) for expression in expressions() for name, _ in metrics_in(expression)}
    assert shown == {family_of(name) for name in await rendered_metrics()}


def test_the_dashboard_can_be_imported() -> None:
    assert DASHBOARD["id"] is None
    assert isinstance(DASHBOARD["schemaVersion"], int)
    assert DASHBOARD["uid"]
    assert DASHBOARD["title"]
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert variables["instance"]["datasource"] == source
    for panel in PANELS:
        assert panel["datasource"] == source
        assert all(target["datasource"] == source for target in panel["targets"])
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEF"[: len(panel["targets"])])
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]


def test_the_panels_have_ids_and_places_of_their_own() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
