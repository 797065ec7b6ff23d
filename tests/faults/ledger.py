"""What the clients know: what they asked for, and what they were told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Create:
    """One task that a client wants.

    ``ref`` is in its payload, so that the task is recognised whatever its id. ``answers`` are the ids that the
    node gave: more than one where a create was repeated with its idempotency key. ``given_up``: the answer was
    lost and the create has no key, so that it is unknown whether there is such a task.
    """

    ref: str
    body: dict[str, Any]
    answers: list[str] = field(default_factory=list)
    repeated: int = 0
    given_up: bool = False

    @property
    def key(self) -> str | None:
        key: str | None = self.body.get("idempotency_key")
        return key

    @property
    def task_id(self) -> str | None:
        return self.answers[0] if self.answers else None


@dataclass
class Ledger:
    """``cancels`` and ``retries``: the HTTP status of each answer by task, None for a lost one."""

    creates: list[Create] = field(default_factory=list)
    cancels: dict[str, list[int | None]] = field(default_factory=dict)
    retries: dict[str, list[int | None]] = field(default_factory=dict)
    surprises: list[str] = field(default_factory=list)
    """Answers that no client may get here: 5xx, or a refusal of a good request."""

    def acknowledged(self) -> list[Create]:
        return [create for create in self.creates if create.answers]
