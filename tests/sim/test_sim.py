"""A share of the seeds in every run of the tests, more with ``make long``, any number
with ``make sim``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.parallel_seeds import report
from tests.sim.world import simulate

SEEDS = 100
CHUNKS = 10
# What every run of the tests has; the rest is long.
CHUNKS_ALWAYS = 2


@pytest.mark.parametrize(
    "chunk",
    [
        pytest.param(chunk, marks=() if chunk < CHUNKS_ALWAYS else pytest.mark.long)
        for chunk in range(CHUNKS)
    ],
)
def test_every_job_has_its_items_whatever_fails(chunk: int, tmp_path: Path) -> None:
    """Under each seed's faults no rule is broken, and all ends well afterwards."""
    for seed in range(chunk, SEEDS, CHUNKS):
        result = simulate(seed, tmp_path)
        assert result.violation is None, report(result, trace=False)


@pytest.mark.parametrize("seed", [3, 16, 84, 116])
def test_a_seed_decides_everything(seed: int, tmp_path: Path) -> None:
    """The same seed gives the same trace, whatever ran before it; others differ."""
    first = simulate(seed, tmp_path)
    other = simulate(seed + 1, tmp_path)
    again = simulate(seed, tmp_path)
    assert first.digest == again.digest
    assert first.counts == again.counts
    assert first.digest != other.digest


def test_hash_seeds_decide_nothing(tmp_path: Path) -> None:
    """Other processes, whose sets have other orders, give the same trace."""
    digest = simulate(16, tmp_path).digest[:16]
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "tests.sim", "--seed", "16"],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert digest in done.stdout
