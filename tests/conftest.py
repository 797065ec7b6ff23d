"""Shared by all tests; fixtures of one part stand in that part's own ``conftest.py``."""

from __future__ import annotations

from hypothesis import settings

# Loaded machines are slow now and then: no example may fail for its time.
settings.register_profile("atm", deadline=None, database=None)
settings.load_profile("atm")
