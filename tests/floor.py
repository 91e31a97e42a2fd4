"""The floor under the pure layers: how much of each file tests/unit reaches by itself.

``python -m tests.floor`` runs these tests, and tells each file that is below. What is
reached is lines and branches, in per cent.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import coverage

ROOT = Path(__file__).parent.parent
# A file may leave that much to tests of the layers above: what only a bug of our own
# reaches, what people see of an error.
FLOOR = 94
# Files of which those test more; each number is a point below what is reached.
LOWER: dict[str, float] = {
    "dscrapy/control/decide/damage.py": 60,
    "dscrapy/control/machine.py": 82,
    "dscrapy/control/own_bugs.py": 87,
    "dscrapy/control/projections.py": 80,
    "dscrapy/control/state/ready_jobs.py": 88,
    "dscrapy/errors.py": 74,
    "dscrapy/frontier/frontier.py": 92,
    "dscrapy/lines.py": 87,
    "dscrapy/proto/framing.py": 85,
}


def below(percents: dict[str, float]) -> Iterator[str]:
    """Tell each file that is below its floor, and each floor that has no file."""
    for path, percent in sorted(percents.items()):
        floor = LOWER.get(path, FLOOR)
        if percent < floor:
            yield f"{path}: tests/unit reaches {percent:.1f} %, its floor is {floor} %"
    for path in sorted(LOWER.keys() - percents.keys()):
        yield f"{path} has a floor in tests/floor.py, and is not there"


def run() -> str:
    """Run the tests under ``coverage``; return what they print if they fail."""
    tests = ("-m", "pytest", "-q", "-m", "not long", "tests/unit")
    done = subprocess.run(
        [sys.executable, "-m", "coverage", "run", *tests],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout if done.returncode else ""


def reached() -> dict[str, float]:
    """Return what the last run reached of each file, as ``coverage`` counts it."""
    data = coverage.Coverage()
    data.load()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        data.json_report(outfile=str(report))
        files = json.loads(report.read_text())["files"]
    return {path: one["summary"]["percent_covered"] for path, one in files.items()}


def main() -> int:
    """Run, and tell what fails or is below; return 1 if something is."""
    failures = run()
    found = [failures] if failures else list(below(reached()))
    sys.stderr.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
