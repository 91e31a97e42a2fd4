"""``python -m tests.fuzz``: every target for some seconds, then a table.

What is found is written to a file, with the command that shows it again; the exit code
is 1 then.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

import attrs

from tests.fuzz.catalogue import PLACES, Tally, atheris_or_none, replay
from tests.fuzz.child import INPUT_S_MAX, read_tally

# 19 targets: with this the whole run takes less than a quarter of an hour.
SECONDS = 40
# Beyond its seconds a target has this long to import, end and be counted.
SPARE_S = 60


@attrs.frozen(kw_only=True)
class Result:
    """What became of one target."""

    name: str
    tally: Tally
    seconds: float
    findings: list[Path]
    status: int


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("names", nargs="*", help="targets; default: all")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="per target")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--folder", type=Path, default=Path("fuzz-out"))
    parser.add_argument("--random", action="store_true", help="without coverage")
    parser.add_argument("--replay", nargs=2, metavar=("NAME", "FILE"))
    args = parser.parse_args()
    if args.replay:
        name, path = args.replay
        replay(name, Path(path))
        _say(f"{name}: nothing is found with {path}")
        return 0
    unknown = [name for name in args.names if name not in PLACES]
    if unknown:
        parser.error(f"no target {unknown[0]}; there are: {', '.join(PLACES)}")
    is_random = args.random or atheris_or_none() is None
    args.folder.mkdir(parents=True, exist_ok=True)
    how = "guided by coverage (atheris)"
    if is_random:
        how = "random mutations of the seeds: there is no atheris here"
    _say(f"{how}; {args.seconds} s per target, --seed {args.seed}")
    results = [
        _run(name, args.folder, args.seconds, args.seed, is_random)
        for name in args.names or PLACES
    ]
    _table(results)
    return int(any(one.findings or one.status for one in results))


def _run(name: str, folder: Path, seconds: int, seed: int, is_random: bool) -> Result:
    passing = [folder / f"{name}-corpus", folder / f"{name}-scratch"]
    _remove(passing)
    known = set(folder.glob(f"{name}-*"))
    command = [sys.executable, "-m", "tests.fuzz.child", name, str(folder)]
    command += ["--seconds", str(seconds), "--seed", str(seed)]
    command += ["--random"] if is_random else []
    log = folder / f"{name}.log"
    began = time.monotonic()
    with log.open("wb") as output:
        try:
            status = subprocess.run(
                command,
                stdout=output,
                stderr=output,
                timeout=seconds + INPUT_S_MAX + SPARE_S,
            ).returncode
        except subprocess.TimeoutExpired:
            status = -1
    _remove(passing)
    findings = sorted(set(folder.glob(f"{name}-*")) - known)
    for path in findings:
        _say(f"{name}: FOUND; again with: python -m tests.fuzz --replay {name} {path}")
    if status and not findings:
        _say(f"{name}: ended with {status}; see {log}")
    return Result(
        name=name,
        tally=read_tally(folder, name),
        seconds=time.monotonic() - began,
        findings=findings,
        status=status,
    )


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _table(results: list[Result]) -> None:
    head = ("target", "executions", "frames", "KiB", "bits flipped", "s", "crashes")
    rows = [
        _row(one.name, one.tally, one.seconds, len(one.findings)) for one in results
    ]
    total = Tally()
    for one in results:
        total.executions += one.tally.executions
        total.bytes += one.tally.bytes
        total.frames += one.tally.frames
        total.flips += one.tally.flips
    seconds = sum(one.seconds for one in results)
    rows.append(_row("all", total, seconds, sum(len(one.findings) for one in results)))
    widths = [max(len(row[at]) for row in [head, *rows]) for at in range(len(head))]
    for row in [head, *rows]:
        first, *others = zip(row, widths, strict=True)
        cells = [
            first[0].ljust(first[1]),
            *(text.rjust(width) for text, width in others),
        ]
        _say("  ".join(cells))


def _say(text: str) -> None:
    # At once, also into a file: a run takes minutes.
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _row(name: str, tally: Tally, seconds: float, found: int) -> tuple[str, ...]:
    numbers = (tally.executions, tally.frames, tally.bytes // 1024, tally.flips)
    return (name, *(f"{one:,}" for one in numbers), f"{seconds:.0f}", str(found))


if __name__ == "__main__":
    sys.exit(main())
