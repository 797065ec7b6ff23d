"""Where the embedded node spends its time: the functions with the most own time, per thread and kind of work.

    python -m benchmarks.profile_embedded
    python -m benchmarks.profile_embedded live --thread writer

The profiler makes all slower, small functions most; compare shares, not seconds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmarks.nodes import ROOT

MODES = ("backlog", "live", "batches", "singles")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modes", nargs="*", default=["backlog"], metavar="MODE", help=f"of {', '.join(MODES)}")
    parser.add_argument(
        "--thread", choices=["loop", "writer"], default="loop", help="Trio's, or the store's writer"
    )
    parser.add_argument("--tasks", type=int, default=20_000)
    chosen = parser.parse_args()
    for mode in chosen.modes:
        print(f"— {mode}, {chosen.thread} thread", flush=True)
        command = [sys.executable, "-m", "benchmarks.inside", mode, "--tasks", str(chosen.tasks)]
        subprocess.run([*command, "--profile", chosen.thread], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
