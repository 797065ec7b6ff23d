"""Faults: real nodes, killed again and again, and a checker that reads what is left."""

import sys
from pathlib import Path

# As pytest does: the servers of the tests lie one folder up.
_tests = str(Path(__file__).parents[1])
if _tests not in sys.path:
    sys.path.append(_tests)
