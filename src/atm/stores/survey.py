"""What can be seen in a store from outside, beside a node or without one: read only, in few short queries.

sqlite_survey.py and mysql_survey.py make these.
"""

from __future__ import annotations

import msgspec

MAX_LOOKED_AT = 10_000
"""Waiting tasks that are looked at, so that a survey of millions is as quick as one of none."""

SAMPLE = 5

SWEPT_WITHIN = 120_000
"""Milliseconds; a task that is due is to be swept within so long. By that the index finds the due ones."""


class LeaseSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's lease that counts as alive; ``left``: seconds until it is over, None where it cannot be lost."""

    worker_id: str
    epoch: int
    left: float | None
    task_types: frozenset[str]


class TypeSeen(msgspec.Struct, frozen=True, kw_only=True):
    """Due tasks of one type; ``oldest``: seconds since the first of them was due."""

    task_type: str
    waiting: int
    oldest: float
    enabled: bool


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """``server``: what stores, and its version. ``schema``: the version found, 0 for none; ``known``: ours.

    ``skew``: seconds that the store's clock is ahead of this host's, None where they are the same clock.
    ``processing``: how many tasks run, as the store sees it; ``orphans``: those of them that no lease holds.
    ``leader``: who leads by the store's word, as during an outage of the coordinator. ``in_use``: whether a node
    has the file, None where many may.
    """

    server: str
    schema: int
    known: int
    skew: float | None = None
    leases: list[LeaseSeen] = []
    waiting: list[TypeSeen] = []
    processing: int = 0
    orphans: int = 0
    orphan_ids: list[str] = []
    leader: str | None = None
    in_use: bool | None = None
