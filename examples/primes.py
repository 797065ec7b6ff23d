"""Code that computes, in the process lane: another core does it, and a cancel kills it.

ATM_EXECUTORS=primes python -m atm
atm submit count_primes '{"below": 100000}'
"""

from __future__ import annotations

from atm import PlainContext, Task, executes


@executes("count_primes", lane="process")
def count_primes(ctx: PlainContext, task: Task) -> int:
    """At the top of its module, where another process can import it. It need not ask whether it is to end."""
    return sum(is_prime(number) for number in range(2, task.payload["below"]))


def is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, int(number**0.5) + 1))
