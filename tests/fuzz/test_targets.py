"""Every fuzz target runs for moments in the suite, so that none can rot.

A long run is ``make fuzz``. What it found stands in the tests of what was mended.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tests.fuzz import child, files
from tests.fuzz.catalogue import PLACES, Tally, Target, load, run_once
from tests.fuzz.child import FOUND, read_tally
from tests.fuzz.mutate import inputs
from tests.hang import HANG_S

ROOT = Path(__file__).parent.parent.parent
# Inputs of those whose input is a whole life of something, and of the others.
SLOW = {"master-port": 60, "machine": 40, "worker-port": 80, "dialler": 120}
INPUTS = 250
BYTES_TRIED_MAX = 400


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Targets that need files have a folder of the test's own."""
    files.folder.cache_clear()
    files._storage.cache_clear()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    files.folder.cache_clear()
    files._storage.cache_clear()


@pytest.mark.parametrize("name", PLACES)
def test_a_target_bears_its_seeds_and_what_is_near_them(name: str) -> None:
    """Seeds and mutations of them: nothing escapes but our own errors."""
    target, tally = load(name), Tally()
    seeds = target.seeds()
    assert seeds
    count = SLOW.get(name, INPUTS)
    # The first are the seeds themselves: not all, where they are many and slow.
    for data in islice(inputs(seeds[:count], Random(name), target.bytes_max), count):
        run_once(target, data, tally)
    assert tally.executions == count
    assert tally.bytes > 0


@pytest.mark.parametrize("name", sorted(set(PLACES) - set(SLOW)))
@settings(max_examples=25)
@given(data=st.binary(max_size=BYTES_TRIED_MAX))
def test_a_target_bears_any_bytes(name: str, data: bytes) -> None:
    """Bytes that are near nothing."""
    run_once(load(name), data, Tally())


def test_seeds_get_far() -> None:
    """Those of the machine reach decisions, those of the ports pass the handshake: or
    the targets would try doors that are shut."""
    for name, frames in (("machine", 200), ("master-port", 20), ("held", 25)):
        target, tally = load(name), Tally()
        for data in target.seeds()[:20]:
            run_once(target, data, tally)
        assert tally.frames >= frames, name


def test_a_finding_is_written_down_and_shown_again(tmp_path: Path) -> None:
    """The input is in a file, the exit code is 1, and a command repeats it."""
    planted = Target(run=_raise_at_a_quote, seeds=lambda: [b'{"a":1}'])
    path = tmp_path / "x.tally"
    path.write_bytes(bytes(child.COUNTERS.size))
    code = (
        "import mmap, pathlib\n"
        "from tests.fuzz import child, test_targets\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "file = (folder / 'x.tally').open('r+b')\n"
        "counters = mmap.mmap(file.fileno(), child.COUNTERS.size)\n"
        "target = test_targets.planted()\n"
        "runner = child.Runner('x', target, folder, counters)\n"
        "child._randomly(runner, 20, 1)\n"
    )
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=HANG_S)
    assert ended.returncode == FOUND, ended.stderr
    assert b"planted" in ended.stderr
    (found,) = tmp_path.glob("x-crash-*")
    with pytest.raises(ValueError, match="planted"):
        run_once(planted, found.read_bytes(), Tally())
    assert read_tally(tmp_path, "x").executions >= 1


def planted() -> Target:
    """Return a target with a bug."""
    return Target(run=_raise_at_a_quote, seeds=lambda: [b'{"a":1}'])


def _raise_at_a_quote(data: bytes, tally: Tally) -> None:
    if b'"":' in data or data.count(b'"') > 2:
        raise ValueError("planted")
