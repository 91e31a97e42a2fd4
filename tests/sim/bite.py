"""Show that the simulation bites: plant one bug after the other, and find each.

    python -m tests.sim.bite [--bug NAME] [--seeds 200] [--jobs 2]

Each bug runs in a process of its own, over the seeds from 0 on until one finds it.
Exit code 1 when one is not found.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs

from tests.hang import HANG_S
from tests.sim.bugs import BUGS, Bug, bug_of
from tests.sim.planting import plant

SEEDS = 200
# One that makes a simulation run on without end is not found.
TIMEOUT_S = HANG_S


@attrs.frozen
class Found:
    """Which seed found a bug, None if none did, and by which rule."""

    bug: Bug
    seed: int | None
    rule: str
    detail: str = ""


def hunt(bug: Bug, first: int, count: int) -> Found:
    """Run seeds with the bug, in a process of its own, until one finds it."""
    command = [sys.executable, "-m", "tests.sim.bite", "--child", bug.name]
    command += ["--first", str(first), "--seeds", str(count)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True
        )
    except subprocess.TimeoutExpired:
        return Found(bug, None, f"not found within {TIMEOUT_S:g} s")
    except subprocess.CalledProcessError as error:
        last = error.stderr.strip().splitlines()[-1:]
        return Found(bug, None, f"cannot be planted: {' '.join(last)}")
    found = json.loads(done.stdout)
    return Found(bug, found["seed"], found["rule"], found["detail"])


def _hunt_here(bug: Bug, first: int, count: int) -> dict[str, Any]:
    plant(bug.edits)
    # Only now may anything of the product be imported.
    from tests.sim.world import simulate

    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first, first + count):
            violation = simulate(seed, Path(folder)).violation
            if violation is not None:
                rule, detail = violation.rule, violation.detail
                return {"seed": seed, "rule": rule, "detail": detail[:300]}
    return {"seed": None, "rule": "", "detail": ""}


def main() -> int:
    """Run as the command line asks."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.bite")
    parser.add_argument("--bug", choices=[bug.name for bug in BUGS])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    if asked.child is not None:
        found = _hunt_here(bug_of(asked.child), asked.first, asked.seeds)
        sys.stdout.write(json.dumps(found))
        return 0
    bugs = [bug_of(asked.bug)] if asked.bug else list(BUGS)
    missed = 0
    with ThreadPoolExecutor(asked.jobs) as pool:
        for one in pool.map(lambda bug: hunt(bug, asked.first, asked.seeds), bugs):
            seed = "-" if one.seed is None else str(one.seed)
            rule = one.rule or "NOT FOUND"
            sys.stdout.write(f"{one.bug.name:34} {seed:>5}  {rule}\n")
            if asked.bug:
                sys.stdout.write(f"{one.bug.what}\n{one.detail}\n")
            sys.stdout.flush()
            missed += one.seed is None
    sys.stdout.write(f"{len(bugs)} bugs planted, {len(bugs) - missed} found\n")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
