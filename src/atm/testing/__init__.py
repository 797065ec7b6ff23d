"""For authors of executors: run one in a test, and cut it off wherever it can be cut off.

    from atm.testing import check_cancel_safety, run_executor

    async def test_it(autojump_clock):
        ended = await run_executor(MyExecutor(), {"seconds": 3600})
        assert ended.status == "SUCCESS"

    async def test_it_cleans_up():
        await check_cancel_safety(MyExecutor(), {"seconds": 0.01})

Plain async functions for any test runner that runs Trio; the two above are for pytest-trio.

**Which clock?** Under ``trio.testing.MockClock(autojump_threshold=0)``, which is pytest-trio's ``autojump_clock``,
hours pass at once: right for timeouts, pauses and cleanup budgets. It jumps whenever no Trio task has anything to
do, also while a thread computes, a command runs, or the other end of a socket is being waited for: their timeouts
come at once. Use the ordinary clock for code that has to do with the world outside, and small numbers of seconds;
or give a ``MockClock(autojump_threshold=0.1)`` that jumps only after a tenth of a second of silence.
"""

from atm.testing.attempts import Ended, run_executor
from atm.testing.cancel import check_cancel_safety

__all__ = ["Ended", "check_cancel_safety", "run_executor"]
