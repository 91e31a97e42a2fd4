"""Carry out the rows and print one table.

``python -m tests.chaos [--seed S] [--minutes M] [--only ROW...]``
"""

import argparse
import secrets
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import trio

from tests.chaos.experiments import ROWS, Row
from tests.chaos.rig import end_on_signals, say
from tests.chaos.table import (
    End,
    Outcome,
    exit_code,
    first_line,
    reason_of,
    render,
    summary,
)

# Of random kills; the other rows have spans of their own.
MINUTES = 4.0


def carry_out(row: Row, folder: Path, seed: int, minutes: float) -> Outcome:
    """Run one row within its limit; its folder is kept when it failed."""
    say(f"\n== {row.name}: {row.what}")
    where = folder / row.name
    where.mkdir()
    begin = time.monotonic()

    async def bounded() -> str:
        with trio.fail_after(row.limit_s + minutes * 60):
            return await row.run(where, seed, minutes)

    end: End = "ran"
    try:
        text = trio.run(bounded)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other rows run
        text = reason_of(error)
        end = "skipped"
        if not text:
            end, text = "FAILED", f"{first_line(error)} (all of it: {where})"
            say("".join(traceback.format_exception(error)))
    if end != "FAILED":
        shutil.rmtree(where)
    say(f"== {row.name} {end}: {text}")
    return Outcome(row.name, end, text, time.monotonic() - begin)


def main() -> int:
    """Run what is asked for."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    options = parser.parse_args()
    end_on_signals()
    say(f"seed {options.seed}")
    folder = Path(tempfile.mkdtemp(prefix="dscrapy-chaos-"))
    outcomes = [
        carry_out(row, folder, options.seed, options.minutes)
        for row in ROWS
        if row.name in options.only
    ]
    say(f"\nseed {options.seed}\n\n{render(outcomes)}\n\n{summary(outcomes)}")
    if not any(folder.iterdir()):
        folder.rmdir()
    return exit_code(outcomes)


if __name__ == "__main__":
    sys.exit(main())
