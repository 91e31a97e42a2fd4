"""What do the commands that scripts repeat cost, from start to exit?

``wait`` waits for a job that has ended. An interpreter that does nothing takes turns
with them. What each imports is read inside one that ran the command.
"""

import argparse
import json
import statistics
import sys

import attrs
import trio

from benchmarks.fleet import Done, Fleet, begin, running_fleet
from benchmarks.report import header, say, spread, table
from tests.e2e.crawl_harness import PROJECT, running_site

# Prints the command's output, then what was imported, as the last line.
_IMPORTS = """
import json, sys
before = set(sys.modules)
from dscrapy.cli import main
code = main(sys.argv[1:])
names = sorted(set(sys.modules) - before)
print(json.dumps(names))
sys.exit(code)
"""
HEAVY = ("scrapy", "twisted", "lxml", "cryptography")


@attrs.frozen(kw_only=True)
class Imports:
    """How many modules a command imported, and which heavy packages."""

    count: int
    tops: tuple[str, ...]


def imports_of(fleet: Fleet, arguments: tuple[str, ...]) -> Imports:
    """Return what a command imports."""
    start = [sys.executable, "-P", "-c", _IMPORTS]
    # The words behind "-m dscrapy".
    words = fleet.words(*arguments)[4:]
    done = begin([*start, *words], fleet.folder, fleet.log).finish()
    names: list[str] = json.loads(done.output.splitlines()[-1])
    tops = {name.partition(".")[0] for name in names}
    outside = tops - sys.stdlib_module_names
    return Imports(
        count=len(names),
        tops=tuple(sorted(name for name in outside if not name.startswith("_"))),
    )


async def measure(rounds: int) -> None:
    """Take turns and print."""
    with running_fleet() as fleet, running_site() as address:
        await fleet.start_master()
        worker = await fleet.start_worker("w", 1)
        words = ("--project", str(PROJECT), "-a", f"site={address}", "-a", "count=1")
        job = fleet.begin("submit", "pages", *words).finish().output.strip()
        fleet.begin("wait", job).finish()
        # Without a worker nothing runs beside the commands.
        worker.terminate()
        worker.wait()
        commands: dict[str, tuple[str, ...]] = {
            "status": ("status",),
            "status --json": ("status", "--json"),
            "submit": ("submit", "pages", *words),
            "wait": ("wait", job),
        }
        found: dict[str, list[Done]] = {name: [] for name in commands}
        nothing: list[Done] = []
        imports = {name: imports_of(fleet, one) for name, one in commands.items()}
        for _ in range(rounds):
            for name, arguments in commands.items():
                found[name].append(fleet.begin(*arguments).finish())
            empty = [sys.executable, "-P", "-c", "print()"]
            nothing.append(begin(empty, fleet.folder, fleet.log).finish())
    rows = [
        [f"`{name}`", *_row(runs), str(imports[name].count)]
        for name, runs in found.items()
    ]
    rows.append(["`python -c 'print()'`", *_row(nothing), "-"])
    table(["command", "CPU", "wall", "modules imported"], rows)
    for name, one in imports.items():
        heavy = [top for top in one.tops if top in HEAVY]
        say(f"`{name}` imports {', '.join(one.tops)}; of {', '.join(HEAVY)}: {heavy}")
    worst = max(statistics.median([d.cpu_s for d in runs]) for runs in found.values())
    say(f"worst median CPU: {worst * 1000:.0f} ms; n = {rounds}, median (min-max)")
    say()


def _row(runs: list[Done]) -> tuple[str, str]:
    cpu = spread([one.cpu_s for one in runs], "ms", 0)
    return cpu, spread([one.wall_s for one in runs], "ms", 0)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    header("commands", sys.argv[1:])
    trio.run(measure, rounds)


if __name__ == "__main__":
    main()
