"""Many seeds at a time, and what people get to see of them."""

import multiprocessing
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.sim.world import Result, simulate

# Lines of the trace that a failure shows.
TRACE_LINES = 60


def _simulate(seed: int, folder: Path) -> Result:
    result = simulate(seed, folder)
    if result.violation is None:
        # What nobody reads need not travel between processes.
        result.trace.clear()
    return result


def report(result: Result, *, trace: bool) -> str:
    """Return what people need to see of one seed."""
    lines = [
        f"seed {result.seed}: {result.virtual_s:.1f} s, trace {result.digest[:16]}"
    ]
    if result.violation is not None:
        lines.append(f"  BROKEN {result.violation}")
        lines += result.trace[-TRACE_LINES:] if not trace else []
    if trace:
        lines += result.trace
    if result.violation is not None:
        lines.append(f"again: python -m tests.sim --seed {result.seed} --trace")
    return "\n".join(lines)


def summary(results: list[Result], seconds: float) -> str:
    """Return the figures of many seeds."""
    counts: Counter[str] = Counter()
    for result in results:
        counts.update(result.counts)
    hours = sum(result.virtual_s for result in results) / 3600
    failed = [result.seed for result in results if result.violation is not None]
    width = max(map(len, counts), default=0)
    return "\n".join(
        [
            f"seeds {len(results)} ({results[0].seed} to {results[-1].seed})",
            f"simulated hours {hours:.2f}, per minute {hours / seconds * 60:.2f} "
            f"({seconds:.0f} s)",
            *(f"  {what:{width}}  {counts[what]:,}" for what in sorted(counts)),
            f"rules broken {len(failed)}{f': seeds {failed}' if failed else ''}",
            *([] if failed else ["items lost 0, items repeated 0"]),
        ]
    )


def run_many(
    first: int, count: int, jobs: int, tell: Callable[[str], object]
) -> list[Result]:
    """Run seeds in so many processes; tell of each that breaks a rule."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        run = partial(_simulate, folder=Path(folder))
        seeds = range(first, first + count)
        with multiprocessing.get_context("spawn").Pool(jobs) as pool:
            for result in pool.imap(run, seeds, chunksize=8):
                results.append(result)
                if result.violation is not None:
                    tell(report(result, trace=False))
    return results
