"""``shell``: a command a task. Off unless the config names it:

    executors:
      - use: atm.executors.shell:ShellExecutor
        config: {programs: [git, /usr/local/bin/report], cwd: /srv/work}

The payload is ``{"argv": [program, argument, …]}`` with, as needed, ``input``, ``cwd`` and ``env``; the result
``{"exit_code": 0, "stdout": …, "stderr": …}``. There is no shell that looks at the arguments. Whoever may create
tasks runs these programs as the node's user.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atm.context import Context
from atm.errors import ConfigError, NonRetryable, RetryLater
from atm.executor import Executor, TaskResult
from atm.task import Task

FIELDS = ("argv", "input", "cwd", "env")

MAX_OUTPUT = 64 * 1024
"""Bytes of each of the two streams. As JSON text they may grow sixfold, and a result has 1 MiB."""

TAIL = 2000
"""Characters of what the command wrote to stderr last that its failure tells."""

INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")
"""What a command gets of the node's environment, which may hold secrets of anybody's."""


FOR_GOOD = frozenset(
    {
        *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOEXEC),
        *(errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.E2BIG),
    }
)
"""Reasons why a program does not start that do not pass, as a lack of memory or of descriptors does."""


class ShellExecutor(Executor):
    """Runs a command a task.

    Args:
        programs: what ``argv[0]`` may be, word for word; None: any program.
        cwd: the folder in which commands start, which a payload may choose a folder in. None: the node's own,
            and a payload has no choice.
        env: variables that each command gets, beside the usual few of the node's.
        inherit: more of the node's variables to hand on.
        payload_env: variables that a payload may set.
        max_output: bytes that are kept of each of a command's two streams, from its beginning.
    Raises: ConfigError, naming the setting.
    """

    type = "shell"
    supported_task_types = ("shell",)

    def __init__(
        self,
        *,
        programs: Sequence[str] | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        inherit: Sequence[str] = (),
        payload_env: Sequence[str] = (),
        max_output: int = MAX_OUTPUT,
    ) -> None:
        if programs is not None and not (_are_texts(programs) and programs):
            raise ConfigError("programs", "must be a list of programs, or null for any")
        if cwd is not None and not (isinstance(cwd, str) and Path(cwd).is_dir()):
            raise ConfigError("cwd", "must be a folder that is there")
        if env is not None and not (isinstance(env, Mapping) and _are_texts(list(env.values()))):
            raise ConfigError("env", 'must be an object of texts, as in {"LANG": "C.UTF-8"}')
        for key, names in (("env", list(env or ())), ("inherit", inherit), ("payload_env", payload_env)):
            if not _are_texts(names) or not all(map(_is_variable, names)):
                raise ConfigError(key, "must name variables; those that begin with ATM_ are the node's own")
        if type(max_output) is not int or not 1 <= max_output <= MAX_OUTPUT:
            raise ConfigError("max_output", f"must be a number of bytes from 1 to {MAX_OUTPUT}")
        self._programs = None if programs is None else frozenset(programs)
        self._cwd = None if cwd is None else Path(cwd).resolve()
        taken = {name: os.environ[name] for name in (*INHERITED, *inherit) if name in os.environ}
        self._env = taken | dict(env or {})
        self._payload_env = frozenset(payload_env)
        self._max_output = max_output

    async def execute(self, ctx: Context, task: Task) -> TaskResult:
        payload = task.payload
        for name in payload:
            if name not in FIELDS:
                raise NonRetryable(f"payload.{name} is unknown; there are {', '.join(FIELDS)}")
        argv = self._argv(payload.get("argv"))
        given = _input(payload.get("input"))
        env = self._env | self._variables(payload.get("env", {}))
        try:
            done = await ctx.run_process(
                argv,
                input=given,
                env=env,
                cwd=self._folder(payload.get("cwd")),
                check=False,
                limit=self._max_output,
            )
        except OSError as error:
            reason = f"{argv[0]} cannot be started: {os.strerror(error.errno or 0).lower()}"
            if error.errno in FOR_GOOD:
                raise NonRetryable(f"payload.argv: {reason}") from None
            raise RetryLater(reason) from None
        told = done.stderr.decode(errors="replace")
        if done.returncode:
            how = "exited with code" if done.returncode > 0 else "was ended by signal"
            tail = told.strip()[-TAIL:]
            reason = f"{os.path.basename(argv[0])} {how} {abs(done.returncode)}{': ' if tail else ''}{tail}"
            return TaskResult(success=False, error=reason)
        data = {"exit_code": 0, "stdout": done.stdout.decode(errors="replace"), "stderr": told}
        return TaskResult(success=True, data=data | ({"truncated": True} if done.truncated else {}))

    def _argv(self, value: object) -> list[str]:
        if not isinstance(value, list) or not value or not _are_texts(value) or not value[0]:
            raise NonRetryable('payload.argv must be a list of texts, as in ["ls", "-l"]: there is no shell')
        if any("\0" in text for text in value):
            raise NonRetryable("payload.argv must not hold NUL characters")
        if self._programs is not None and value[0] not in self._programs:
            raise NonRetryable(f"payload.argv: the program may be one of {', '.join(sorted(self._programs))}")
        return value

    def _variables(self, value: object) -> dict[str, str]:
        if not isinstance(value, dict) or not _are_texts(list(value.values())):
            raise NonRetryable('payload.env must be an object of texts, as in {"LEVEL": "debug"}')
        for name, text in value.items():
            if name not in self._payload_env:
                raise NonRetryable(f"payload.env.{name} is none of the variables that `payload_env` allows")
            if "\0" in text:
                raise NonRetryable(f"payload.env.{name} must not hold NUL characters")
        return value

    def _folder(self, value: object) -> Path | None:
        if value is None:
            return self._cwd
        if self._cwd is None or not isinstance(value, str) or "\0" in value:
            raise NonRetryable(
                "payload.cwd must be a folder in that of the executor's config, which must have one"
            )
        found = (self._cwd / value).resolve()
        if not found.is_relative_to(self._cwd) or not found.is_dir():
            raise NonRetryable("payload.cwd must be a folder that is there, in that of the executor's config")
        return found


def _are_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value)


def _is_variable(name: str) -> bool:
    return bool(name) and not name.startswith("ATM_") and "=" not in name and "\0" not in name


def _input(value: Any) -> bytes | None:
    if value is not None and not isinstance(value, str):
        raise NonRetryable("payload.input must be a text")
    return None if value is None else value.encode()
