"""Run simulations: one seed again with its trace, or many with a summary.

    python -m tests.sim --seed 17 [--trace]
    python -m tests.sim --seeds 1000 [--first 0] [--jobs 2]

Exit code 1 when a rule was broken.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.sim.parallel_seeds import report, run_many, summary
from tests.sim.world import simulate


def _tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run as the command line asks."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    if asked.seed is not None:
        with tempfile.TemporaryDirectory() as folder:
            result = simulate(asked.seed, Path(folder))
        _tell(report(result, trace=asked.trace))
        return int(result.violation is not None)
    begun = time.monotonic()
    results = run_many(asked.first, asked.seeds, asked.jobs, _tell)
    _tell(summary(results, time.monotonic() - begun))
    return int(any(result.violation is not None for result in results))


if __name__ == "__main__":
    sys.exit(main())
