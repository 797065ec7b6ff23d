"""One suite a contract, run over every implementation. A new one is named in ``conftest.py``, no more."""
