"""One target in a process of its own: ``python -m tests.fuzz.child NAME ...``.

What it has done stands in a file that it maps, so that it is known however it ends.
"""

import argparse
import hashlib
import importlib
import logging
import mmap
import os
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import attrs

from tests.fuzz.catalogue import PLACES, Tally, Target, atheris_or_none, load, run_once
from tests.fuzz.mutate import inputs

COUNTERS = struct.Struct("4Q")
# One input may take this long; the longest takes some milliseconds.
INPUT_S_MAX = 10
# The whole process may hold this much.
MEMORY_MIB_MAX = 1024
FOUND = 77


def tally_path(folder: Path, name: str) -> Path:
    """Return the file of a target's tally."""
    return folder / f"{name}.tally"


def read_tally(folder: Path, name: str) -> Tally:
    """Return what a target has done so far."""
    data = tally_path(folder, name).read_bytes()
    executions, count, frames, flips = COUNTERS.unpack(data)
    return Tally(executions=executions, bytes=count, frames=frames, flips=flips)


@attrs.define
class Runner:
    """Runs inputs; the first finding is written down and ends the process."""

    name: str
    target: Target
    folder: Path
    counters: mmap.mmap
    tally: Tally = attrs.field(factory=Tally)

    def __call__(self, data: bytes) -> None:
        """Run one input."""
        tally = self.tally
        try:
            run_once(self.target, data, tally)
        except BaseException:  # noqa: BLE001 - whatever it is, it is the finding
            self.found(data)
        COUNTERS.pack_into(
            self.counters, 0, tally.executions, tally.bytes, tally.frames, tally.flips
        )

    def found(self, data: bytes) -> None:
        """Write the input down, print what was raised, and end."""
        traceback.print_exc()
        digest = hashlib.sha256(data).hexdigest()[:16]
        path = self.folder / f"{self.name}-crash-{digest}"
        path.write_bytes(data)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(FOUND)


def main() -> None:
    """Fuzz one target for some seconds."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.child")
    parser.add_argument("name", choices=PLACES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--random", action="store_true")
    args = parser.parse_args()
    # The master logs a warning for most inputs; nobody reads them.
    logging.getLogger("dscrapy").setLevel(logging.CRITICAL)
    # The caller removes it, however this process ends.
    scratch = args.folder / f"{args.name}-scratch"
    scratch.mkdir(exist_ok=True)
    tempfile.tempdir = str(scratch)
    atheris = None if args.random else atheris_or_none()
    if atheris is None:
        target = load(args.name)
    else:
        guides = list(PLACES[args.name].guides)
        with atheris.instrument_imports(include=guides, enable_loader_override=False):
            target = load(args.name)
    path = tally_path(args.folder, args.name)
    path.write_bytes(bytes(COUNTERS.size))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), COUNTERS.size) as counters:
        runner = Runner(args.name, target, args.folder, counters)
        if atheris is None:
            _randomly(runner, args.seconds, args.seed)
        else:
            _guided(atheris, runner, args.seconds, args.seed)


def _guided(atheris: Any, runner: Runner, seconds: int, seed: int) -> None:
    corpus = runner.folder / f"{runner.name}-corpus"
    corpus.mkdir(exist_ok=True)
    for number, data in enumerate(runner.target.seeds()):
        (corpus / f"seed-{number}").write_bytes(data)
    options = [
        f"-max_total_time={seconds}",
        # 0 would mean another one each time.
        f"-seed={seed + 1}",
        f"-timeout={INPUT_S_MAX}",
        f"-rss_limit_mb={MEMORY_MIB_MAX}",
        f"-max_len={runner.target.bytes_max}",
        f"-artifact_prefix={runner.folder / runner.name}-",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], runner)
    atheris.Fuzz()


def _randomly(runner: Runner, seconds: int, seed: int) -> None:
    limit = MEMORY_MIB_MAX * 1024 * 1024
    # Address space, of which a process has more than memory: a coarse net.
    resource.setrlimit(resource.RLIMIT_AS, (4 * limit, 4 * limit))
    signal.signal(signal.SIGALRM, _too_long)
    ends_at = time.monotonic() + seconds
    target = runner.target
    for data in inputs(target.seeds(), Random(seed), target.bytes_max):
        signal.alarm(INPUT_S_MAX)
        runner(data)
        if time.monotonic() > ends_at:
            break
    signal.alarm(0)


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"one input took more than {INPUT_S_MAX} s")


if __name__ == "__main__":
    # Its classes must be those that targets import.
    importlib.import_module("tests.fuzz.child").main()
