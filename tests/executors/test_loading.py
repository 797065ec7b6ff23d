"""Where executors come from: shipped, the entry point, the config; and that every error names its entry."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atm.config import ExecutorSpec
from atm.errors import ConfigError
from atm.executor import Executor, FunctionExecutor
from atm.executors import loading
from atm.executors.email import EmailExecutor
from atm.registry import Registry

SHIPPED = {"send_email", "http_request", "webhook", "echo", "sleep"}

FUNCTION = """
from atm import executes

@executes("resize", "crop")
async def resize(ctx, task):
    return None
"""

CLASS = """
from atm import Executor

class Letters(Executor):
    type = "letters"
    supported_task_types = ("send_letter",)

    def __init__(self, host, port=25):
        self.address = (host, port)

    async def execute(self, ctx, task):
        return None
"""

RAISING = """
from atm import Executor

class Raising(Executor):
    supported_task_types = ("x",)

    def __init__(self):
        raise {error}
"""

Write = Callable[[str, str], None]


@pytest.fixture(autouse=True)
def current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty one, from which modules can be imported only by what is tested here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", os.getcwd())])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def write(current_folder: Path) -> Write:
    """Puts a module into the current folder."""

    def to_file(name: str, text: str) -> None:
        (current_folder / f"{name}.py").write_text(text)

    return to_file


def load(*specs: str | dict[str, Any]) -> Registry:
    registry = Registry()
    loading.load_shipped(registry)
    loading.load_configured(registry, [s if isinstance(s, str) else ExecutorSpec(**s) for s in specs])
    return registry


def error_of(*specs: str | dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(*specs)
    assert "\n" not in str(caught.value)
    return caught.value


# what there is


def test_the_shipped_ones_need_no_config() -> None:
    assert set(load().by_type) == SHIPPED


def test_a_module_registers_all_that_it_decorates(write: Write) -> None:
    write("my_tasks", FUNCTION + "\n@executes('rotate')\nasync def rotate(ctx, task):\n    return 1\n")
    registry = load("my_tasks")
    assert {"resize", "crop", "rotate"} <= set(registry.by_type)
    assert isinstance(registry.by_type["resize"], FunctionExecutor)


def test_one_function_of_a_module_can_be_named(write: Write) -> None:
    write("my_tasks", FUNCTION + "\n@executes('rotate')\nasync def rotate(ctx, task):\n    return 1\n")
    assert "rotate" not in load("my_tasks:resize").by_type


def test_a_class_is_built_with_its_config(write: Write) -> None:
    write("my_tasks", CLASS)
    spec = {"use": "my_tasks:Letters", "config": {"host": "mail.test", "port": 2525}}
    letters = load(spec).by_type["send_letter"]
    assert vars(letters)["address"] == ("mail.test", 2525)


def test_a_shipped_class_can_be_built_anew(write: Write) -> None:
    spec = {"use": "atm.executors.email:EmailExecutor", "config": {"backend": "smtp", "host": "mail.test"}}
    registry = load(spec)
    assert isinstance(registry.by_type["send_email"], EmailExecutor)
    assert len(registry.executors()) == 4


def test_an_executor_made_by_its_module_can_be_named(write: Write) -> None:
    write("my_tasks", CLASS + "\nletters = Letters('mail.test')\n")
    assert "send_letter" in load("my_tasks:letters").by_type


def test_a_function_under_two_names_is_one(write: Write) -> None:
    write("my_tasks", FUNCTION + "\nshrink = resize\n")
    assert len(load("my_tasks").executors()) == 5


def test_a_function_that_another_module_uses_too_is_one(write: Write) -> None:
    write("my_tasks", FUNCTION)
    write(
        "more_tasks", "from my_tasks import resize\n" + FUNCTION.replace("resize", "zoom").replace("crop", "pan")
    )
    assert {"resize", "zoom"} <= set(load("my_tasks", "more_tasks").by_type)


def test_things_that_answer_to_every_name_are_no_executors(write: Write) -> None:
    odd = """
class Anything:
    def __getattr__(self, name):
        return self
    def __call__(self):
        return self
class Nothing:
    def __getattr__(self, name):
        raise RuntimeError("outside of a request")
anything, nothing = Anything(), Nothing()
"""
    write("my_tasks", FUNCTION + odd)
    assert set(load("my_tasks").by_type) == SHIPPED | {"resize", "crop"}


def test_the_current_folder_stays_importable_for_later(write: Write) -> None:
    write("my_tasks", FUNCTION)
    write("late", "")
    load("my_tasks")
    __import__("late")


# what is wrong, told by its entry


@pytest.mark.parametrize(
    ("text", "spec", "told"),
    [
        (None, "my_tasks", "no module my_tasks (looked in "),
        (None, "", "module"),
        (None, ":Letters", "module"),
        (None, "..my_tasks", "module"),
        (None, "my_tasks.py", "my_tasks.py"),
        ("import not_there", "my_tasks", "No module named 'not_there'"),
        ("def broken(:", "my_tasks", "module my_tasks cannot be imported: SyntaxError"),
        ("1 / 0", "my_tasks", "module my_tasks cannot be imported: ZeroDivisionError"),
        ("import sys\nsys.exit(0)", "my_tasks", "module my_tasks cannot be imported: SystemExit"),
        ("raise ValueError('two\\nlines')", "my_tasks", "ValueError: two"),
        ("", "my_tasks", "module my_tasks has nothing marked by @executes"),
        (CLASS, "my_tasks", "module my_tasks has nothing marked by @executes"),
        (CLASS, "my_tasks:Nobody", "module my_tasks has no Nobody"),
        (CLASS, "my_tasks:", "module my_tasks has nothing marked by @executes"),
        ("async def f(ctx, task): ...", "my_tasks:f", "neither an Executor nor marked by @executes"),
        ("x = 7", "my_tasks:x", "neither an Executor nor marked by @executes"),
        (CLASS, "my_tasks:Executor", "supported_task_types of Executor: name the task types"),
        (CLASS, "my_tasks:Letters", "missing 1 required positional argument: 'host'"),
        (RAISING.format(error="ValueError('no good')"), "my_tasks:Raising", "Raising: ValueError: no good"),
        (RAISING.format(error="OSError('no such host')"), "my_tasks:Raising", "no such host"),
        (RAISING.format(error="KeyError('API_TOKEN')"), "my_tasks:Raising", "API_TOKEN"),
        (RAISING.format(error="RuntimeError('not today')"), "my_tasks:Raising", "not today"),
        ("from atm import executes\n@executes('x')\nclass F: ...", "my_tasks", "only functions"),
    ],
)
def test_a_bad_entry_is_told(write: Write, text: str | None, spec: str, told: str) -> None:
    if text is not None:
        write("my_tasks", text)
    error = error_of("atm.executors.trial:echo", spec)
    assert error.key.startswith("executors[1]")
    assert told in error.reason


@pytest.mark.parametrize(
    ("spec", "key", "told"),
    [
        ({"use": "my_tasks", "config": {"a": 1}}, "executors[0].config", "a module takes no config"),
        ({"use": "my_tasks:resize", "config": {"a": 1}}, "executors[0].config", "a function takes no config"),
        ({"use": "my_tasks:letters", "config": {"a": 1}}, "executors[0].config", "takes no config"),
        ({"use": "my_tasks:Letters", "config": {"host": "h", "prot": 1}}, "executors[0].config", "'prot'"),
        (
            {"use": "atm.executors.email:EmailExecutor", "config": {"backend": "pigeon"}},
            "executors[0].config.backend",
            "must be one of console, smtp, not 'pigeon'",
        ),
        (
            {"use": "atm.executors.email:EmailExecutor", "config": {"backend": "smtp", "security": "hope"}},
            "executors[0].config.security",
            "must be one of",
        ),
        (
            {"use": "atm.executors.http:HttpExecutor", "config": {"allow": ["10.0.0.0/8", "10.0.0.1/8"]}},
            "executors[0].config.allow",
            "'10.0.0.1/8': 10.0.0.1/8 has host bits set",
        ),
        (
            {"use": "atm.executors.http:HttpExecutor", "config": {"allowed": ["10.0.0.0/8"]}},
            "executors[0].config",
            "'allowed'",
        ),
    ],
)
def test_a_bad_config_is_told_by_its_key(write: Write, spec: dict[str, Any], key: str, told: str) -> None:
    write("my_tasks", FUNCTION + CLASS + "letters = Letters('mail.test')")
    error = error_of(spec)
    assert error.key == key
    assert told in error.reason


def test_two_entries_for_one_type_are_told_by_the_second(write: Write) -> None:
    write("my_tasks", FUNCTION)
    write("more_tasks", FUNCTION.replace("async def resize", "async def enlarge"))
    error = error_of("my_tasks", "more_tasks")
    assert error.key == "executors[1]"
    assert "task type 'resize' is claimed by resize and enlarge" in error.reason


def test_a_secret_of_the_config_is_not_told(write: Write) -> None:
    config = {"password": "hunter2", "backend": "pigeon"}
    error = error_of({"use": "atm.executors.email:EmailExecutor", "config": config})
    assert "hunter2" not in str(error)


# entry points


def _install(folder: Path, entry: str) -> None:
    """As pip would put a package beside its module."""
    info = folder / "letters-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: letters\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[atm.executors]\n{entry}\n")


def _from_entry_points() -> Registry:
    registry = Registry()
    loading.load_shipped(registry)
    loading.load_entry_points(registry)
    return registry


@pytest.mark.parametrize(
    ("entry", "task_type"),
    [("a = letters:Letters", "send_letter"), ("a = letters:resize", "crop"), ("a = letters", "crop")],
)
def test_installed_packages_offer_executors(
    write: Write, current_folder: Path, monkeypatch: pytest.MonkeyPatch, entry: str, task_type: str
) -> None:
    write("letters", FUNCTION + CLASS.replace("(self, host,", "(self, host='mail.test',"))
    _install(current_folder, entry)
    monkeypatch.syspath_prepend(current_folder)
    assert isinstance(_from_entry_points().by_type[task_type], Executor)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("a = letters:Letters", "missing 1 required positional argument"),
        ("a = not_there:Letters", "cannot be loaded: ModuleNotFoundError"),
        ("a = letters:Nobody", "cannot be loaded: AttributeError"),
        ("a = letters:os", "nothing marked by @executes"),
    ],
)
def test_a_bad_entry_point_is_told_by_its_name(
    write: Write, current_folder: Path, monkeypatch: pytest.MonkeyPatch, entry: str, told: str
) -> None:
    write("letters", "import os\n" + CLASS)
    _install(current_folder, entry)
    monkeypatch.syspath_prepend(current_folder)
    with pytest.raises(ConfigError) as caught:
        _from_entry_points()
    assert caught.value.key.startswith(f"entry point {entry}")
    assert told in caught.value.reason
