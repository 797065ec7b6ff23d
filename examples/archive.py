"""A library that blocks, in the thread lane: it asks between two files whether it is to end.

ATM_EXECUTORS=archive python -m atm
atm submit archive '{"texts": {"a.txt": "first", "b.txt": "second"}}'
"""

from __future__ import annotations

import time
import zipfile
from pathlib import Path
from typing import Any

from atm import PlainContext, Task, executes


@executes("archive")
def archive(ctx: PlainContext, task: Task) -> dict[str, Any]:
    texts, pause = task.payload["texts"], task.payload.get("pause", 0)
    part, whole = (Path(ctx.idempotency_key + ending) for ending in (".part", ".zip"))
    try:
        with zipfile.ZipFile(part, "w") as file:
            for number, (name, text) in enumerate(texts.items(), start=1):
                ctx.check_cancelled()  # raises when the run is to end; nothing else can stop a thread
                file.writestr(name, text)
                time.sleep(pause)
                ctx.progress(number / len(texts), name)  # raises then, too
        part.rename(whole)
    finally:
        part.unlink(missing_ok=True)
    return {"path": str(whole)}
