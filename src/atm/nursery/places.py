"""Where a run is: the line at which its code waits or computes.

Looked up on suspicion alone, so that runs pay nothing for it. Of a chain of frames the innermost one of the
user's code is told: not Trio's, nor a library's that was called.
"""

from __future__ import annotations

import linecache
import os
import sysconfig
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType

import trio

from atm.executor import Executor
from atm.nursery.run import Run

MAX_PLACES = 3
"""Places of one run that are told; a run with many tasks of its own may be at more."""

MAX_LINE = 120
"""Characters of a line's text."""

UNKNOWN = "an unknown place"

_TRIO = os.path.join(os.path.dirname(os.path.abspath(trio.__file__)), "")
_PACKAGES = tuple(sysconfig.get_path(name) for name in ("purelib", "platlib"))
_LIBRARIES = (
    os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), ""),
    _TRIO,
    *(os.path.join(path, "") for path in _PACKAGES),
    *(os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "platstdlib")),
)

Place = tuple[FrameType, int]
"""A frame and its line."""


def whereabouts(run: Run) -> str:
    """File, line, function and text of where the run is; of the lane that it is in, where that knows better."""
    if (tell := run.context.whereabouts) is not None:
        return tell()
    if run.trio_task is None:
        return "its beginning"
    home = home_of(run.executor)
    places = list(dict.fromkeys(_place_of_task(task, run.trio_task, home) for task in _waiting(run.trio_task)))
    more = f", and {len(places) - MAX_PLACES} more" if len(places) > MAX_PLACES else ""
    return "; ".join(places[:MAX_PLACES]) + more


def place_on_stack(frame: FrameType | None, executor: Executor | None) -> str:
    """File, line, function and text of what a thread executes, ``frame`` being its innermost one."""
    frames = [(each, each.f_lineno) for each in stack(frame)]
    if not frames:
        return UNKNOWN
    frames.reverse()
    return _told(_users(frames, home_of(executor)) or frames[-1], frames[-1])


def run_on_stack(frame: FrameType | None, runs: Iterable[Run]) -> Run | None:
    """The run that this stack is a step of, if any; its own task or one of its children."""
    steps = {id(each) for each in stack(frame)}
    for run in runs:
        for task in _family(run.trio_task):
            if id(getattr(task.coro, "cr_frame", None)) in steps:
                return run
    return None


def stack(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame and its callers, innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def home_of(executor: Executor | None) -> str:
    """The folder of the executor's code, or its file where that lies loose among installed packages."""
    code = getattr(getattr(executor, "execute", None), "__code__", None)
    if not isinstance(code, CodeType):
        return ""
    folder = os.path.dirname(code.co_filename)
    return code.co_filename if folder in _PACKAGES else os.path.join(folder, "")


def _users(frames: list[Place], home: str) -> Place | None:
    """The innermost frame of the user's code; ``frames`` are outermost first."""
    return next((place for place in reversed(frames) if _is_users(place[0].f_code.co_filename, home)), None)


def _is_users(name: str, home: str) -> bool:
    if name.startswith(_LIBRARIES):
        # Executors may be installed as a package, or be those of this one.
        return home.startswith(_LIBRARIES) and name.startswith(home)
    return not name.startswith("<")


def _told(users: Place, innermost: Place) -> str:
    told = _line(users)
    if users[0] is innermost[0] or innermost[0].f_code.co_filename.startswith(_TRIO):
        return told
    return f"{told} (in {_where(innermost)})"


def _where(place: Place) -> str:
    code = place[0].f_code
    return f"{code.co_filename}:{place[1]} in {code.co_name}"


def _line(place: Place) -> str:
    text = linecache.getline(place[0].f_code.co_filename, place[1]).strip()[:MAX_LINE]
    return f"{_where(place)}: {text}" if text else _where(place)


def _family(task: trio.lowlevel.Task | None) -> Iterator[trio.lowlevel.Task]:
    """The task and all those below it."""
    found = [] if task is None else [task]
    while found:
        task = found.pop()
        yield task
        for nursery in task.child_nurseries:
            found.extend(nursery.child_tasks)


def _waiting(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    """Those of the family that wait for something else than for their children."""
    for each in _family(task):
        if not any(nursery.child_tasks for nursery in each.child_nurseries):
            yield each


def _place_of_task(task: trio.lowlevel.Task, top: trio.lowlevel.Task, home: str) -> str:
    """Where the task waits; of one that is in a library all the way, where it was started."""
    current: trio.lowlevel.Task | None = task
    while current is not None:
        frames = list(current.iter_await_frames())
        users = _users(frames, home)
        if users is not None:
            return _told(users, frames[-1])
        if current is top:
            break
        current = current.parent_nursery.parent_task if current.parent_nursery is not None else None
    frames = list(task.iter_await_frames())
    return _line(frames[-1]) if frames else UNKNOWN
