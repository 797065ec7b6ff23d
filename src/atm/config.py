"""Settings: config.yaml, then the environment, then flags, made into one frozen Config.

Every error names the key. Environment keys are the dotted key in capitals with ``__`` between the parts:
``ATM_DATABASE__PATH=/var/lib/atm.db``. Durations are numbers of seconds or texts like ``100ms``, ``10s``,
``5m``, ``2h``, ``30d``.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import msgspec
import yaml
from msgspec import Meta

from atm.errors import ConfigError

ENV_PREFIX = "ATM_"
ENV_OTHERS = frozenset({"ATM_CONFIG", "ATM_URL", "ATM_API_KEY"})
DEFAULT_FILE = "config.yaml"
MIN_LEADER_TTL = 0.3
"""Seconds; of a shorter term too little would be left once messages have gone back and forth."""

LIST_KEYS = frozenset({"executors", "worker.supported_types", "server.allowed_hosts", "server.api_keys"})
SECRET_KEYS = frozenset({"password", "api_keys", "url", "hash"})
SECRET_WORDS = re.compile(r"(?i:pass|secret|token|credential|auth|cookie|dsn|(^|[_-])key)|[a-z]Key")
"""In names of the executors' own settings; better too many stars than one too few."""

LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")
"""Of an address, whatever the setting is called."""

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Duration(float):
    """Seconds, written as ``100ms``, ``10s``, ``5m``, ``2h``, ``30d`` or a plain number of seconds."""

    @classmethod
    def parse(cls, value: object) -> Duration:
        seconds = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
        if isinstance(value, str):
            match = _DURATION.fullmatch(value.strip())
            if match:
                seconds = float(match[1]) * _UNITS[match[2]]
            elif re.fullmatch(r"\d+(\.\d+)?", value.strip()):
                seconds = float(value)
        if seconds is None or not 0 <= seconds < 1e10:
            raise ValueError(f"expected a duration such as 100ms, 10s or 5m, got {value!r}")
        return cls(seconds)


Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
WorkerId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")]
KeyScope = Literal["read", "submit", "cancel", "admin"]
TypeName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{1,128}\Z")]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the sections of config.yaml."""


class App(Section, frozen=True):
    name: str = "async-task-manager"


class ApiKey(Section, frozen=True):
    """An entry of ``server.api_keys``: the hash of a key, and what it is good for."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")]
    hash: Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
    scopes: Annotated[list[KeyScope], Meta(min_length=1)]


class Server(Section, frozen=True):
    enabled: bool = True
    host: str = "127.0.0.1"
    port: Port = 8080
    allowed_hosts: list[str] = []
    api_keys: list[ApiKey] = []


class Metrics(Section, frozen=True):
    enabled: bool = True
    host: str = "127.0.0.1"
    port: Port = 9090


class Database(Section, frozen=True):
    driver: str | None = None
    path: str = "atm.db"
    host: str | None = None
    port: Port | None = None
    user: str | None = None
    password: str | None = None
    database: str | None = None
    socket: str | None = None
    tls: bool = False
    tls_ca: str | None = None
    pool_size: Positive = 8

    @property
    def effective_driver(self) -> str:
        """sqlite or mysql: as said, else mysql when anything of a server is said, else sqlite."""
        named = (self.host, self.port, self.user, self.password, self.database, self.socket)
        return self.driver or ("sqlite" if all(value is None for value in named) else "mysql")


class Redis(Section, frozen=True):
    addr: str | None = None
    password: str | None = None
    db: Annotated[int, Meta(ge=0)] = 0
    url: str | None = None


class Scheduler(Section, frozen=True):
    enabled: bool = True
    scan_interval: Duration = Duration(0.1)
    batch_size: Annotated[int, Meta(ge=1, le=1000)] = 500
    leader_lock_ttl: Duration = Duration(0.6)
    leader_renew_interval: Duration = Duration(0.15)
    load_balance_strategy: str = "least_task"


class Worker(Section, frozen=True):
    enabled: bool = True
    id: WorkerId | None = None
    name: str | None = None
    capacity: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    supported_types: list[TypeName] = []
    heartbeat_interval: Duration = Duration(2.5)
    graceful_shutdown_timeout: Duration = Duration(30)
    cleanup_budget: Duration = Duration(5)
    stuck: str = "report"


class Log(Section, frozen=True):
    level: str = "info"
    file: str | None = "logs/worker.log"
    format: str = "auto"


class ExecutorSpec(Section, frozen=True):
    """An entry of ``executors``: what to use, and what to build it with."""

    use: str
    config: dict[str, Any] = {}


class Config(Section, frozen=True):
    """All settings, with their defaults."""

    app: App = App()
    server: Server = Server()
    metrics: Metrics = Metrics()
    database: Database = Database()
    redis: Redis = Redis()
    scheduler: Scheduler = Scheduler()
    worker: Worker = Worker()
    log: Log = Log()
    executors: list[str | ExecutorSpec] = []
    retention: Duration | None = Duration(30 * 86400)

    @property
    def worker_id(self) -> str:
        """``worker.id``, by default the host's name and this process's id."""
        host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:48] or "host"
        return self.worker.id or f"{host}-{os.getpid()}"

    @property
    def capacity(self) -> int:
        """``worker.capacity``; by default 10 where a config names a worker, 100 embedded."""
        named = self.worker.id is not None or self.database.effective_driver != "sqlite"
        return self.worker.capacity or (10 if named else 100)


def load(
    path: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Config:
    """Read the settings.

    Args:
        path: the file; None takes ATM_CONFIG, else ./config.yaml if it is there, else the defaults.
        environ: the environment; None takes the process's.
        flags: values by dotted key, which win.
    Raises: ConfigError, naming the key, or the file.
    """
    environ = os.environ if environ is None else environ
    named = path or environ.get("ATM_CONFIG") or None
    settings = _read(Path(named or DEFAULT_FILE), required=named is not None)
    for key, value in _from_environment(environ).items():
        _assign(settings, key, value)
    for key, value in (flags or {}).items():
        _assign(settings, key, value)
    config = parse(settings)
    check(config)
    return config


def parse(settings: Mapping[str, Any]) -> Config:
    """Make nested settings into a Config. Raises ConfigError."""
    try:
        return msgspec.convert(_without_empty_sections(settings), Config, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise _translate(error) from None


def masked(config: Config) -> dict[str, Any]:
    """The settings as plain values, secrets replaced by stars."""

    def mask(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: "***" if _is_secret(name) and item else mask(item) for name, item in value.items()}
        if isinstance(value, str):
            return LOGIN.sub("***", value)
        return [mask(item) for item in value] if isinstance(value, list) else value

    # float() of a Duration: the encoder knows no subclasses.
    plain = msgspec.to_builtins(config, enc_hook=float)
    shown = cast("dict[str, Any]", mask(plain))
    # Of the node's own keys all but the hash may be known.
    shown["server"]["api_keys"] = mask(plain["server"]["api_keys"])
    return shown


def _is_secret(name: str) -> bool:
    return name in SECRET_KEYS or SECRET_WORDS.search(name) is not None


def to_yaml(settings: Mapping[str, Any]) -> str:
    """Settings as they can stand in a config.yaml."""
    return yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True, default_flow_style=False)


def _read(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if required:
            raise ConfigError("", f"no config file {path}") from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("", f"cannot read {path}: {error}") from None
    try:
        loaded = _parse_yaml(text)
    except ValueError as error:
        raise ConfigError("", f"{path} is not valid YAML: {error}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError("", f"{path} must hold keys and values, as in 'server: {{port: 8080}}'")
    return loaded


def _parse_yaml(text: str) -> Any:
    """Raises ValueError that tells the place, but not the text: it may be a secret's."""
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        marks = [mark for mark in (error.context_mark, error.problem_mark) if mark is not None]
        where = " to ".join(dict.fromkeys(f"line {mark.line + 1}, column {mark.column + 1}" for mark in marks))
        raise ValueError(f"{error.problem or error.context} ({where})") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    # The loader lets slip what the constructors of odd tags and keys raise.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{type(error).__name__} while reading it") from None


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice: the first one would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key_node.start_mark)
            if key_node.value in seen:
                problem = f"key {key_node.value!r} is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, text in environ.items():
        if not name.startswith(ENV_PREFIX) or name in ENV_OTHERS:
            continue
        key = name[len(ENV_PREFIX) :].lower().replace("__", ".")
        if "." not in key and key not in Config.__struct_fields__:
            raise ConfigError(name, "unknown environment variable; keys look like ATM_SERVER__PORT")
        found[key] = _environment_value(name, key, text)
    return found


def _environment_value(name: str, key: str, text: str) -> object:
    if key in LIST_KEYS and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    if key in LIST_KEYS:
        try:
            return _parse_yaml(text)
        except ValueError as error:
            raise ConfigError(name, f"is not a list: {error}") from None
    return None if text == "null" and key.rpartition(".")[2] not in SECRET_KEYS else text


def _assign(settings: dict[str, Any], key: str, value: object) -> None:
    *parents, last = key.split(".")
    section = settings
    for parent in parents:
        inner = section.setdefault(parent, {})
        if inner is None:
            inner = section[parent] = {}
        if not isinstance(inner, dict):
            raise ConfigError(key, f"{parent} is not a section")
        section = inner
    section[last] = value


def _without_empty_sections(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A section whose keys are all commented out reads as None in YAML."""
    sections = {name for name, kind in Config.__annotations__.items() if name not in ("executors", "retention")}
    return {k: v for k, v in settings.items() if not (v is None and (k in sections or k == "executors"))}


def _decode(kind: type, value: object) -> object:
    if kind is Duration:
        return Duration.parse(value)
    raise NotImplementedError


def _translate(error: msgspec.ValidationError) -> ConfigError:
    """msgspec says ``Expected `int`, got `str` - at `$.server.port```; the operator reads keys."""
    text, _, where = str(error).partition(" - at `$")
    key = where.rstrip("`").lstrip(".")
    unknown = re.match(r"Object contains unknown field `(.*)`", text)
    if key.startswith("server.api_keys") and (unknown or text.startswith("Invalid enum value")):
        # What stands there is not told: it may be a key in the wrong place.
        known = get_args(KeyScope) if not unknown else ApiKey.__struct_fields__
        return ConfigError(key, f"unknown; known are {', '.join(known)}")
    if not unknown:
        return ConfigError(key, text[:1].lower() + text[1:].replace("`", ""))
    name = unknown[1]
    section = getattr(Config(), key) if key in Config.__struct_fields__ else Config if not key else ExecutorSpec
    close = difflib.get_close_matches(name, section.__struct_fields__, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return ConfigError(f"{key}.{name}".lstrip("."), f"unknown key{hint}")


def check(config: Config) -> None:
    """Look at what single keys cannot tell. Raises ConfigError."""
    if config.database.driver not in (None, "sqlite", "mysql"):
        raise ConfigError("database.driver", f"must be sqlite or mysql, not {config.database.driver}")
    if config.database.effective_driver == "mysql":
        _check_cluster(config)
    if not config.database.path:
        raise ConfigError("database.path", "must not be empty")
    if config.log.level.lower() not in ("debug", "info", "warning", "error"):
        raise ConfigError("log.level", f"must be debug, info, warning or error, not {config.log.level}")
    if config.log.format not in ("auto", "text", "json"):
        raise ConfigError("log.format", f"must be auto, text or json, not {config.log.format}")
    _check_keys(config.server.api_keys)
    for key, host in (("server.host", config.server.host), ("metrics.host", config.metrics.host)):
        if not is_loopback(host) and not config.server.api_keys:
            reason = "without API keys (server.api_keys) only loopback can be served"
            raise ConfigError(key, f"{host} is not loopback; {reason}")
        if not host:
            raise ConfigError(key, "must not be empty; 0.0.0.0 is every address")
    if config.server.enabled and config.metrics.enabled and config.server.port == config.metrics.port != 0:
        raise ConfigError("metrics.port", f"{config.metrics.port} is the port of the server already")
    if config.scheduler.scan_interval < 0.001:
        raise ConfigError("scheduler.scan_interval", "must be at least 1ms")
    if config.worker.heartbeat_interval < 0.1:
        raise ConfigError("worker.heartbeat_interval", "must be at least 100ms")
    if config.worker.stuck not in ("report", "exit"):
        raise ConfigError("worker.stuck", f"must be report or exit, not {config.worker.stuck}")


def _check_cluster(config: Config) -> None:
    if not (config.redis.addr or config.redis.url):
        raise ConfigError("redis.addr", "missing: nodes on mysql find each other through Redis")
    ttl, renewal = config.scheduler.leader_lock_ttl, config.scheduler.leader_renew_interval
    if ttl < MIN_LEADER_TTL:
        raise ConfigError("scheduler.leader_lock_ttl", "must be at least 300ms")
    if renewal > ttl / 2:
        raise ConfigError("scheduler.leader_renew_interval", "must be at most half of scheduler.leader_lock_ttl")
    if config.worker.id == "type":
        raise ConfigError("worker.id", "type is a part of the names of Redis keys; take another id")


def _check_keys(keys: list[ApiKey]) -> None:
    for index, key in enumerate(keys):
        where = f"server.api_keys[{index}]"
        if key.name in {other.name for other in keys[:index]}:
            raise ConfigError(f"{where}.name", f"{key.name} is given twice")
        if key.hash in {other.hash for other in keys[:index]}:
            raise ConfigError(f"{where}.hash", "is that of another key; each needs one of its own")


def is_loopback(host: str) -> bool:
    """Whether a bind to this host can be reached from this machine alone."""
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None
