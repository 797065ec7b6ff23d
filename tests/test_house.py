"""The layout of the code, as CONTRIBUTING.md draws it: imports go down only, each driver has one home."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import atm

SRC = Path(atm.__file__).parent

LAYERS = [
    # Words and facts.
    {"task", "errors", "config", "flag", "health", "imports", "logs", "serial", "lane"},
    # Contracts; the metrics, whose gauges are read through the coordinator's; what takes two; the SDK.
    {"executor", "context", "children", "registry", "store", "coordinator", "families", "metrics", "client"},
    # Each implements one contract; they do not know each other.
    {"executors", "stores", "coordinators"},
    # They use contracts, and know neither each other nor the implementations.
    {"api", "nursery"},
    # These may know everyone.
    {"__main__", "cli", "cluster", "node", "testing"},
]
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
IMPLEMENTATIONS, USERS = 2, 3

EVERYWHERE = {"trio", "msgspec"}
HOMES: dict[str, str | tuple[str, ...]] = {
    "anyio": ("client/http.py", "client/fake.py"),
    "click": "cli/",
    "cryptography": "stores/mysql_driver.py",
    "fcntl": ("stores/sqlite_file.py", "stores/sqlite_survey.py"),
    "h11": "api/server.py",
    "httpcore": "executors/http_transport.py",
    "httpx": ("executors/http", "client/http.py"),
    "hypercorn": "api/server.py",
    "outcome": "serial.py",
    "prometheus_client": "metrics.py",
    "quart": "api/",
    "quart_trio": "api/",
    "redis": "coordinators/redis_wire.py",
    "rich": ("cli/live.py", "cli/say.py"),
    "signal": ("nursery/signals.py", "executors/guarded.py", "executors/reaper.py"),
    "smtplib": "executors/email.py",
    "ssl": ("coordinators/redis_wire.py", "executors/email.py", "executors/http", "stores/mysql_driver.py"),
    "sqlite3": ("stores/sqlite_driver.py", "stores/sqlite_survey.py"),
    "trio_mysql": "stores/mysql_driver.py",
    "werkzeug": "api/app.py",
    "yaml": "config.py",
}
WITHOUT_TRIO = ["task.py", "errors.py", "config.py", "logs.py", "metrics.py", "stores/decide.py"]
SERVERLESS = {"atm.client", "atm.errors", "atm.task"}


@cache
def tree(path: str) -> ast.Module:
    return ast.parse((SRC / path).read_text(encoding="utf-8"))


@cache
def files() -> list[str]:
    return sorted(path.relative_to(SRC).as_posix() for path in SRC.rglob("*.py"))


def room(module: str) -> str:
    """The file or folder, directly below the root, that holds the module."""
    return module.split(".")[1] if "." in module else ""


def module_of(path: str) -> str:
    parts = ["atm", *Path(path).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> frozenset[str]:
    return frozenset({"atm"} | {module_of(path) for path in files()})


def is_module(name: str) -> bool:
    return name in modules()


def imports(path: str, *, at_runtime: bool = False) -> Iterator[str]:
    """Modules that the file imports, a name from a package told apart from a module in it."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree(path)):
        if at_runtime and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped |= set(ast.walk(node))
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            base = node.module or ""
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if base.startswith("atm") and is_module(inner) else base


def own_imports(path: str, *, at_runtime: bool = False) -> set[str]:
    found = imports(path, at_runtime=at_runtime)
    return {name for name in found if name == "atm" or name.startswith("atm.")}


def test_the_public_names_are_there_when_they_are_asked_for() -> None:
    for name in atm.__all__:
        assert getattr(atm, name).__name__ == name
        assert name in dir(atm)
    with pytest.raises(AttributeError, match="no attribute 'Nobody'"):
        atm.Nobody  # noqa: B018


def test_every_file_has_a_room() -> None:
    rooms = {room(module_of(path)) for path in files()} - {""}
    assert rooms == set(LAYER)


@pytest.mark.parametrize("path", [path for path in files() if path != "__init__.py"])
def test_imports_go_down_only(path: str) -> None:
    here = room(module_of(path))
    for name in own_imports(path):
        assert name != "atm", f"{path} imports the package root"
        there = room(name)
        if there == here:
            continue
        assert LAYER[there] <= LAYER[here], f"{path} imports {name}, which is above it"
        if LAYER[here] in (IMPLEMENTATIONS, USERS):
            assert LAYER[there] < LAYER[here], f"{path} knows its neighbour {name}"
        if LAYER[here] == USERS:
            assert LAYER[there] != IMPLEMENTATIONS, f"{path} knows {name}, not only its contract"


def test_no_module_needs_itself() -> None:
    needs = {module_of(path): own_imports(path, at_runtime=True) for path in files()}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"imports go round: {' → '.join((*way, module))}"
        if module not in done:
            for needed in needs.get(module, set()):
                visit(needed, (*way, module))
            done.add(module)

    for module in needs:
        visit(module, ())


@pytest.mark.parametrize("path", files())
def test_each_driver_has_one_home(path: str) -> None:
    for name in {name.partition(".")[0] for name in imports(path)}:
        if name in HOMES:
            assert path.startswith(HOMES[name]), f"{name} belongs into {HOMES[name]}, not into {path}"
        elif name != "atm":
            assert name in EVERYWHERE or name in sys.stdlib_module_names, f"{path}: {name} has no home yet"


@pytest.mark.parametrize("driver", HOMES)
def test_each_home_is_lived_in(driver: str) -> None:
    inside = [path for path in files() if path.startswith(HOMES[driver])]
    assert any(driver in {name.partition(".")[0] for name in imports(path)} for path in inside)


@pytest.mark.parametrize("path", WITHOUT_TRIO)
def test_what_is_pure_does_not_know_trio(path: str) -> None:
    assert "trio" not in set(imports(path))


@pytest.mark.parametrize("path", [path for path in files() if path.startswith("client/")])
def test_the_sdk_knows_nothing_of_the_server(path: str) -> None:
    assert {".".join(name.split(".")[:2]) for name in own_imports(path)} <= SERVERLESS


def calls(name: str) -> set[str]:
    """Files that call something of this name."""
    return {
        path
        for path in files()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and (getattr(node.func, "attr", None) == name or getattr(node.func, "id", None) == name)
    }


def test_long_lived_nurseries_are_opened_by_the_supervisor_alone() -> None:
    inside_services = {
        "api/server.py",
        "coordinators/redis.py",
        "coordinators/redis_link.py",
        "coordinators/redis_listener.py",
        "executors/command.py",
        "executors/email.py",
        "executors/process.py",
        "serial.py",
        "lane.py",
        "stores/mysql.py",
        "stores/sqlite.py",
        "testing/attempts.py",
    }
    assert calls("open_nursery") == {"nursery/supervisor.py"} | inside_services


def test_a_shield_has_an_address() -> None:
    shields = {
        path
        for path in files()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.keyword) and node.arg == "shield"
    }
    assert shields == {
        "context.py",
        "executors/guarded.py",
        "executors/command.py",
        "lane.py",
        "nursery/left_open.py",
    }


def test_exception_groups_are_split_where_an_attempt_ends_and_nowhere_else() -> None:
    looking = {
        path
        for path in files()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.TryStar) or (isinstance(node, ast.Name) and node.id.endswith("ExceptionGroup"))
    }
    # errors.py finds one error in a group, node.py asks it to.
    assert looking == {"nursery/run.py", "errors.py", "node.py"}
