"""A look at a cluster's Redis, from outside."""

from __future__ import annotations

import time

import msgspec
import trio

from atm.coordinators.redis_wire import Away, Line, RedisSettings, Refused, check
from atm.errors import StartError

PATIENCE = 3.0
"""Seconds for one answer, and for the connection."""


class RedisSurvey(msgspec.Struct, frozen=True, kw_only=True):
    """``skew``: seconds that its clock is ahead of this host's; ``leader``: who leads, by its word."""

    skew: float
    leader: str | None


async def survey(settings: RedisSettings) -> RedisSurvey:
    """Raises ConfigError; StartError where a node cannot work with it: away, too old, evicting."""
    line = Line(settings, PATIENCE)
    try:
        with trio.fail_after(3 * PATIENCE):
            await check(settings, line)
            before = time.time()
            seconds, micros = await line.command("TIME")
            after = time.time()
            leader = await line.command("GET", f"{settings.prefix}scheduler:leader")
    except (Away, Refused, trio.TooSlowError) as error:
        raise StartError(f"Redis cannot be used: {error or 'it does not answer'}") from None
    finally:
        line.close()
    skew = int(seconds) + int(micros) / 1e6 - (before + after) / 2
    return RedisSurvey(skew=skew, leader=leader.decode() if leader else None)
