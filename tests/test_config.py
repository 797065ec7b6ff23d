"""Settings: what the file, the environment and the flags make of them, and how mistakes are told."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from atm import config as configuration
from atm.config import ApiKey, Config, Database, Duration, ExecutorSpec, is_loopback, masked
from atm.errors import ConfigError

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "config.yaml"

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a config.yaml of this text, from a folder of its own; the process's environment stays out."""
    monkeypatch.chdir(tmp_path)

    def load_(
        text: str | None = None,
        environ: Mapping[str, str] | None = None,
        flags: Mapping[str, object] | None = None,
    ) -> Config:
        if text is not None:
            (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
        return configuration.load(environ=environ or {}, flags=flags)

    return load_


def refusal(load: Load, *args: Any, **kwargs: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return caught.value


def keys(kind: type[msgspec.Struct] = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key there is."""
    for field in msgspec.structs.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from keys(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


# the shipped file


def test_the_shipped_file_holds_the_defaults() -> None:
    assert configuration.load(SHIPPED, environ={}) == Config(database=Database(driver="sqlite"))


def test_the_shipped_file_names_every_key() -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    # A key of the cluster is commented out; without its "# " it stands in the section like the others.
    shown = yaml.safe_load(re.sub(r"^  # (?=[a-z_]+: )", "  ", text, flags=re.MULTILINE))
    named = {
        f"{section}.{key}" if isinstance(values, dict) else section
        for section, values in shown.items()
        for key in (values if isinstance(values, dict) else [""])
    }
    assert named == set(keys())


def test_every_key_of_the_shipped_file_is_explained() -> None:
    lines = SHIPPED.read_text(encoding="utf-8").splitlines()
    bare = [
        line
        for before, line in zip(["", *lines], lines, strict=False)
        if re.match(r"  (# )?[a-z_]+: |[a-z]+: \S", line)
        and not re.search(r" # \S", line.replace("  # ", "", 1))
        and not before.startswith("#")
    ]
    assert bare == []


def test_the_clusters_keys_are_commented_out() -> None:
    shown = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    assert shown["database"].keys() == {"driver", "path", "pool_size"}
    assert shown["redis"].keys() == {"db"}


# where settings come from


def test_without_a_file_everything_has_its_default(load: Load) -> None:
    assert load() == Config()


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "server:\nexecutors:\n", "server:\n  # port: 1\n"])
def test_an_empty_file_or_section_is_the_defaults(load: Load, text: str) -> None:
    assert load(text) == Config()


def test_flags_win_over_the_environment_and_that_over_the_file(load: Load) -> None:
    text = "server: {port: 1}\nmetrics: {port: 2}\nworker: {capacity: 3}\n"
    environ = {"ATM_METRICS__PORT": "20", "ATM_WORKER__CAPACITY": "30"}
    found = load(text, environ, {"worker.capacity": 300})
    assert (found.server.port, found.metrics.port, found.worker.capacity) == (1, 20, 300)


def test_a_key_given_elsewhere_leaves_its_neighbours_alone(load: Load) -> None:
    found = load("server: {port: 1, allowed_hosts: [a.example]}", {"ATM_SERVER__PORT": "2"})
    assert (found.server.port, found.server.allowed_hosts) == (2, ["a.example"])


def test_the_path_beats_atm_config_and_that_the_current_folder(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("config.yaml", "second.yaml", "first.yaml"), 1):
        (tmp_path / name).write_text(f"server: {{port: {number}}}")
    named = {"ATM_CONFIG": "second.yaml"}
    assert load().server.port == 1
    assert load(None, named).server.port == 2
    assert configuration.load("first.yaml", environ=named).server.port == 3
    monkeypatch.setenv("ATM_CONFIG", "second.yaml")
    assert configuration.load().server.port == 2


def test_a_file_that_was_asked_for_must_be_there(load: Load) -> None:
    assert "nowhere.yaml" in str(refusal(load, None, {"ATM_CONFIG": "nowhere.yaml"}))


def test_a_file_that_cannot_be_read_is_told(load: Load, tmp_path: Path) -> None:
    assert str(tmp_path) in str(refusal(load, None, {"ATM_CONFIG": str(tmp_path)}))
    (tmp_path / "config.yaml").write_bytes(b"app: {name: \xff}")
    assert "config.yaml" in str(refusal(load))


# the environment


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("ATM_SERVER__PORT", "81", "server.port", 81),
        ("ATM_SERVER__ENABLED", "false", "server.enabled", False),
        ("ATM_DATABASE__PATH", "/var/lib/atm.db", "database.path", "/var/lib/atm.db"),
        ("ATM_WORKER__ID", "001", "worker.id", "001"),
        ("ATM_WORKER__HEARTBEAT_INTERVAL", "500ms", "worker.heartbeat_interval", 0.5),
        ("ATM_WORKER__SUPPORTED_TYPES", "a, b,", "worker.supported_types", ["a", "b"]),
        ("ATM_WORKER__SUPPORTED_TYPES", '["a", "b"]', "worker.supported_types", ["a", "b"]),
        ("ATM_SERVER__ALLOWED_HOSTS", "a.example", "server.allowed_hosts", ["a.example"]),
        ("ATM_LOG__FILE", "null", "log.file", None),
        ("ATM_RETENTION", "5d", "retention", 432_000),
        ("ATM_RETENTION", "null", "retention", None),
        ("ATM_EXECUTORS", "a, b:C", "executors", ["a", "b:C"]),
        ("ATM_EXECUTORS", "[a, {use: 'b:C'}]", "executors", ["a", ExecutorSpec(use="b:C")]),
    ],
)  # fmt: skip
def test_the_environment_sets_any_key(load: Load, name: str, text: str, key: str, value: object) -> None:
    found: Any = load(None, {name: text})
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize("secret", ["[abc", "{abc}", "[a, b]", "a: b", "true", "007"])
def test_a_secret_in_the_environment_is_taken_as_it_is(load: Load, secret: str) -> None:
    environ = {"ATM_DATABASE__DRIVER": "sqlite", "ATM_DATABASE__PASSWORD": secret}
    assert load(None, environ).database.password == secret


def test_variables_of_others_are_none_of_our_business(load: Load) -> None:
    others = {"ATM_URL": "http://h", "ATM_API_KEY": "k", "ATM_CONFIG": "", "ATMOSPHERE": "1", "PORT": "1"}
    assert load(None, others) == Config()


@pytest.mark.parametrize("name", ["ATM_SERVER_PORT", "ATM_PORT", "ATM_", "ATM__PORT"])
def test_a_variable_that_means_nothing_is_refused(load: Load, name: str) -> None:
    error = refusal(load, None, {name: "81"})
    assert error.key == name
    assert "ATM_SERVER__PORT" in error.reason


def test_a_list_in_the_environment_must_be_one(load: Load) -> None:
    assert refusal(load, None, {"ATM_EXECUTORS": "[a"}).key == "ATM_EXECUTORS"
    assert refusal(load, None, {"ATM_EXECUTORS": "[!!timestamp x]"}).key == "ATM_EXECUTORS"
    assert refusal(load, None, {"ATM_EXECUTORS": "[[a]]"}).key == "executors[0]"


# durations


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("100ms", 0.1), ("10s", 10), ("5m", 300), ("2h", 7200), ("30d", 2_592_000), ("1.5s", 1.5), ("10 s", 10),
        ("7", 7), ("0.25", 0.25), (7, 7), (0.25, 0.25), (0, 0), ("0s", 0),
    ],
)  # fmt: skip
def test_durations_are_numbers_of_seconds_or_have_a_unit(written: object, seconds: float) -> None:
    assert Duration.parse(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written",
    [
        "", "s", "10x", "10 parsecs", "-1s", "1e3s", "1s 2s", "10S", "inf", "99999999d",
        True, None, -1, float("inf"), float("nan"), [1],
    ],
)  # fmt: skip
def test_anything_else_is_no_duration(written: object) -> None:
    with pytest.raises(ValueError, match="100ms, 10s or 5m"):
        Duration.parse(written)


@given(st.integers(0, 10**6), st.sampled_from([("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600)]))
def test_a_unit_multiplies(number: int, unit: tuple[str, float]) -> None:
    assert Duration.parse(f"{number}{unit[0]}") == pytest.approx(number * unit[1])


# mistakes


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("sevrer: {port: 1}", "sevrer", "server"),
        ("server: {prot: 1}", "server.prot", "port"),
        ("worker: {capasity: 1}", "worker.capasity", "capacity"),
        ("database: {pasword: secret}", "database.pasword", "password"),
        ("executors: [{use: x, confg: {}}]", "executors[0].confg", "config"),
        ("retension: 1d", "retension", "retention"),
    ],
)
def test_an_unknown_key_is_refused_with_the_one_that_was_meant(load: Load, text: str, key: str, hint: str) -> None:
    error = refusal(load, text)
    assert error.key == key
    assert f"did you mean {hint}?" in error.reason


def test_an_unknown_key_like_no_other_gets_no_guess(load: Load) -> None:
    assert str(refusal(load, "xyzzy: 1")) == "xyzzy: unknown key"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("server: {port: 70000}", "server.port"),
        ("server: {port: -1}", "server.port"),
        ("server: {port: 80.5}", "server.port"),
        ("server: {port: null}", "server.port"),
        ("server: {enabled: perhaps}", "server.enabled"),
        ("server: 8080", "server"),
        ("server: {allowed_hosts: a}", "server.allowed_hosts"),
        ("app: {name: [a]}", "app.name"),
        ("database: {driver: postgres}", "database.driver"),
        ("database: {path: ''}", "database.path"),
        ("database: {path: null}", "database.path"),
        ("database: {pool_size: 0}", "database.pool_size"),
        ("redis: {db: -1}", "redis.db"),
        ("scheduler: {batch_size: 0}", "scheduler.batch_size"),
        ("scheduler: {batch_size: 1001}", "scheduler.batch_size"),
        ("scheduler: {scan_interval: soon}", "scheduler.scan_interval"),
        ("scheduler: {scan_interval: 0.1ms}", "scheduler.scan_interval"),
        ("worker: {id: a b}", "worker.id"),
        (f"worker: {{id: {'x' * 65}}}", "worker.id"),
        ("worker: {id: 5}", "worker.id"),
        ("worker: {capacity: 0}", "worker.capacity"),
        ("worker: {supported_types: [a, b c]}", "worker.supported_types[1]"),
        ("worker: {heartbeat_interval: 1ms}", "worker.heartbeat_interval"),
        ("worker: {cleanup_budget: -1}", "worker.cleanup_budget"),
        ("log: {level: loud}", "log.level"),
        ("log: {format: xml}", "log.format"),
        ("log: {file: 5}", "log.file"),
        ("executors: my_tasks", "executors"),
        ("executors: [{config: {}}]", "executors[0]"),
        ("executors: [a, 1]", "executors[1]"),
        ("retention: for ever", "retention"),
        ("retention: no", "retention"),
        ("server: {port: 9090}", "metrics.port"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(load: Load, text: str, key: str) -> None:
    error = refusal(load, text)
    assert error.key == key
    assert str(error).startswith(f"{key}: ")


@pytest.mark.parametrize(
    "text",
    [
        "[]", "5", "just words", "1: x", "server: {1: 2}", "? [a]\n: b", "? {a: b}\n: c", "[" * 3000,
        "retention: 2024-99-99", "a: !!int x", "a: !!timestamp x", "app: {name: \x01}",
        "a: !!python/name:os.system x",
    ],
)  # fmt: skip
def test_a_file_that_is_no_settings_is_refused_in_one_line(load: Load, text: str) -> None:
    assert str(refusal(load, text))


def test_a_syntax_error_is_told_by_its_line_without_the_text_of_it(load: Load) -> None:
    message = str(refusal(load, 'server:\n  port: 8080\ndatabase:\n  password: "hunter2\n'))
    assert "config.yaml" in message
    assert "line 4" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("text", "line"), [("server: {port: 1}\nserver: {host: x}", 2), ("server:\n  port: 1\n  port: 2", 3)]
)
def test_a_key_given_twice_is_refused_by_its_line(load: Load, text: str, line: int) -> None:
    message = str(refusal(load, text))
    assert "given twice" in message
    assert f"line {line}" in message


@pytest.mark.parametrize("key", ["server.host", "metrics.host"])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.com", "127.0.0.1.x.com", ""])  # noqa: S104
def test_only_loopback_is_bound_without_keys(load: Load, key: str, host: str) -> None:
    error = refusal(load, None, None, {key: host})
    assert error.key == key
    assert "loopback" in error.reason


@pytest.mark.parametrize("key", ["server.host", "metrics.host"])
def test_with_keys_any_address_may_be_bound_but_it_must_be_said(load: Load, key: str) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.1"):  # noqa: S104
        assert load(KEYS, None, {key: host}).server.api_keys[0].name == "ci"
    assert refusal(load, KEYS, None, {key: ""}).key == key


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_has_several_names(host: str) -> None:
    assert is_loopback(host)


def test_port_0_may_be_asked_for_twice(load: Load) -> None:
    assert load(None, None, {"server.port": 0, "metrics.port": 0}).metrics.port == 0


def test_equal_ports_do_not_matter_when_one_is_off(load: Load) -> None:
    assert load("server: {port: 9090}\nmetrics: {enabled: false}").server.port == 9090


# API keys

HASH = "sha256:" + "0123456789abcdef" * 4
OTHER_HASH = "sha256:" + "f" * 64
KEYS = f"server: {{api_keys: [{{name: ci, hash: '{HASH}', scopes: [read, submit]}}]}}"


def test_keys_may_stand_in_the_file_and_in_the_environment(load: Load) -> None:
    expected = [ApiKey(name="ci", hash=HASH, scopes=["read", "submit"])]
    assert load(KEYS).server.api_keys == expected
    environ = {"ATM_SERVER__API_KEYS": f"[{{name: ci, hash: '{HASH}', scopes: [read, submit]}}]"}
    assert load("", environ).server.api_keys == expected
    assert load(KEYS, {"ATM_SERVER__API_KEYS": "[]"}).server.api_keys == []


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        (f"{{hash: '{HASH}', scopes: [read]}}", "server.api_keys[0]"),
        ("{name: ci, scopes: [read]}", "server.api_keys[0]"),
        (f"{{name: ci, hash: '{HASH}'}}", "server.api_keys[0]"),
        (f"{{name: ci, hash: '{HASH}', scopes: []}}", "server.api_keys[0].scopes"),
        (f"{{name: ci, hash: '{HASH}', scopes: read}}", "server.api_keys[0].scopes"),
        (f"{{name: ci, hash: '{HASH}', scopes: [read, root]}}", "server.api_keys[0].scopes[1]"),
        (f"{{name: 'c i', hash: '{HASH}', scopes: [read]}}", "server.api_keys[0].name"),
        (f'{{name: "ci\\n", hash: "{HASH}", scopes: [read]}}', "server.api_keys[0].name"),
        (f"{{name: '', hash: '{HASH}', scopes: [read]}}", "server.api_keys[0].name"),
        (f"{{name: ci, hash: '{HASH.upper()}', scopes: [read]}}", "server.api_keys[0].hash"),
        (f"{{name: ci, hash: '{HASH[:-1]}', scopes: [read]}}", "server.api_keys[0].hash"),
        (f"{{name: ci, hash: '{HASH[7:]}', scopes: [read]}}", "server.api_keys[0].hash"),
        (f"{{name: ci, hash: '{HASH}', scopes: [read], scope: read}}", "server.api_keys[0]"),
        (
            f"{{name: ci, hash: '{HASH}', scopes: [read]}}, {{name: ci, hash: '{OTHER_HASH}', scopes: [read]}}",
            "server.api_keys[1].name",
        ),
        (
            f"{{name: ci, hash: '{HASH}', scopes: [read]}}, {{name: ops, hash: '{HASH}', scopes: [admin]}}",
            "server.api_keys[1].hash",
        ),
    ],
)
def test_a_wrong_key_is_refused_by_its_place(load: Load, entry: str, key: str) -> None:
    error = refusal(load, f"server: {{api_keys: [{entry}]}}")
    assert error.key == key
    assert HASH not in str(error)
    assert refusal(load, "", {"ATM_SERVER__API_KEYS": f"[{entry}]"}).key == key


# which store


@pytest.mark.parametrize(
    "text",
    [
        "database: {driver: mysql}", "database: {host: db.example}", "database: {port: 3306}",
        "database: {user: me}", "database: {password: secret}", "database: {database: tasks}",
        "database: {socket: /run/mysqld.sock}",
    ],
)  # fmt: skip
def test_whatever_is_said_of_a_server_selects_mysql_which_needs_redis(load: Load, text: str) -> None:
    error = refusal(load, text)
    assert error.key == "redis.addr"
    assert "secret" not in str(error)
    for redis in ("addr: 'localhost:6379'", "url: 'redis://localhost'"):
        assert load(f"{text}\nredis: {{{redis}}}").database.effective_driver == "mysql"


def test_a_store_that_nobody_knows_is_refused(load: Load) -> None:
    assert refusal(load, "database: {driver: oracle}").key == "database.driver"


def test_the_config_of_the_quick_start_for_a_cluster_selects_mysql(load: Load) -> None:
    text = """
app: {name: async-task-manager}
database: {host: 127.0.0.1, port: 3306, user: root, password: root, database: task_manager}
redis: {addr: "127.0.0.1:6379", password: "", db: 0}
scheduler: {enabled: true, scan_interval: 100ms}
worker: {enabled: true, id: worker-001, capacity: 10}
"""
    cluster = load(text)
    assert (cluster.database.effective_driver, cluster.worker_id, cluster.capacity) == ("mysql", "worker-001", 10)
    assert load(text, {"ATM_DATABASE__DRIVER": "sqlite"}).database.effective_driver == "sqlite"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("scheduler: {leader_lock_ttl: 299ms}", "scheduler.leader_lock_ttl"),
        ("scheduler: {leader_lock_ttl: 1s, leader_renew_interval: 501ms}", "scheduler.leader_renew_interval"),
        ("worker: {id: type}", "worker.id"),
    ],
)
def test_what_a_cluster_cannot_live_with_is_refused_and_nothing_to_the_embedded_node(
    load: Load, text: str, key: str
) -> None:
    assert refusal(load, f"{text}\ndatabase: {{driver: mysql}}\nredis: {{addr: 'localhost:6379'}}").key == key
    load(text)


def test_saying_sqlite_settles_it(load: Load) -> None:
    assert load("database: {driver: sqlite, host: db.example}").database.effective_driver == "sqlite"


# what follows from settings


def test_capacity_is_100_embedded_and_10_where_a_worker_is_named(load: Load) -> None:
    assert load("").capacity == 100
    assert load("worker: {id: w}").capacity == 10
    assert load("worker: {id: w, capacity: 7}").capacity == 7


def test_a_worker_without_an_id_gets_one_that_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "ein höchst eigenartiger name " * 4)
    made = Config().worker_id
    assert configuration.parse({"worker": {"id": made}}).worker_id == made


# secrets


def test_secrets_are_shown_as_stars_wherever_they_stand(load: Load) -> None:
    text = """
database: {driver: sqlite, password: hunter2}
redis: {password: hunter2, url: "redis://:hunter2@localhost"}
executors: [{use: "a:B", config: {password: hunter2, smtp: {password: hunter2}, api_keys: [hunter2], host: h}}]
"""
    shown = masked(load(text))
    assert "hunter2" not in repr(shown)
    assert shown["database"]["password"] == "***"
    assert shown["executors"][0]["config"]["host"] == "h"


def test_of_a_key_all_but_its_hash_is_shown(load: Load) -> None:
    assert masked(load(KEYS))["server"]["api_keys"] == [
        {"name": "ci", "hash": "***", "scopes": ["read", "submit"]}
    ]


def test_what_is_not_secret_is_shown_as_plain_values(load: Load) -> None:
    shown = masked(load("retention: 1d"))
    assert shown["retention"] == 86_400
    assert shown["server"]["port"] == 8080
    assert shown["database"]["password"] is None
    msgspec.json.encode(shown)


@pytest.mark.parametrize(
    "text",
    [
        "database: {password: [hunter2]}", "database: {pasword: hunter2}", "redis: {password: {hunter2: 1}}",
        "database: {password: hunter2, password: hunter2}", "database: {driver: mysql, password: hunter2}",
        "server: {api_keys: hunter2}", "server: {api_keys: [hunter2]}", "server: {api_keys: {hunter2: [read]}}",
        "server: {api_keys: [{hunter2: [read]}]}", "server: {api_keys: [{name: a, hash: hunter2, scopes: []}]}",
        "server: {api_keys: [{name: 'a b', hash: x, key: hunter2}]}", f"{KEYS[:-4]}, hunter2]}}]}}",
    ],
)  # fmt: skip
def test_no_error_tells_a_secret(load: Load, text: str) -> None:
    assert "hunter2" not in str(refusal(load, text))
