"""Whether this node is ready to serve, as /readyz tells it."""

from __future__ import annotations

import trio


class Health:
    """Attributes: ``draining`` is set at the first signal; ``stopping`` when the API is about to end."""

    def __init__(self) -> None:
        self.started = False
        self.draining = False
        self.stopping = trio.Event()
