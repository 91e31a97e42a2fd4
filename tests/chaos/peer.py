"""The same spider under dscrapy and under scrapy-redis, with the same kills.

``python -m tests.chaos.peer [--seed S] [--rounds N]``

A round is a seed: it draws the moments of the kills, counted from when the crawl is
well under way, and whom each one hits. Both sides get the same list, one after the
other, and make every kill good at once. The first round has no kills, to show that both
are complete then. The site's log tells which pages were fetched, and how often; the
items are compared with the tree itself. What is never fetched includes what stood
behind a lost page.
"""

import argparse
import os
import platform
import random
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import attrs
import trio

import dscrapy
from tests.chaos.compared_programs import (
    PROCESSES,
    Crawl,
    Ours,
    Side,
    Theirs,
    check_there,
)
from tests.chaos.rig import Rig, conf, end_on_signals, say
from tests.chaos.table import Skipped, Wrong
from tests.e2e.cluster import Cluster
from tests.equivalence.runs import Site, running_site

PAGES = 2000
MS = 400
ROUNDS = 3
# The moments of kills count from here: by then all processes of either side have
# work. At the root of the tree a single kill would decide everything.
BEGUN_PAGES = 200
# Kills of a round, and the seconds between two.
KILLS = 8
PAUSE_S = (1.0, 2.5)
# Of five kills three hit a crawl process, one a machine, one the server.
VICTIMS = ("process", "process", "process", "machine", "server")
LIMIT_S = 150.0
WHAT = """\
kills: SIGKILL of a crawl process, of a machine (a worker; of scrapy-redis a process),
of the server (the master; redis-server), each started again at once.
pages lost: pages of the site that were never fetched, with those behind them.
pages repeated: fetches of a page beyond the first.
items lost, items repeated: items of the tree that are missing, or there once too often.
"""

Name = Literal["dscrapy", "scrapy-redis", "scrapy-redis, fsync always"]


@attrs.frozen
class Kill:
    """Whom to kill, and how long after the one before; ``number`` says which."""

    pause_s: float
    victim: str
    number: int


@attrs.frozen
class Count:
    """What a run of one side gave."""

    kills: int
    pages_lost: int
    pages_repeated: int
    items_lost: int
    items_repeated: int
    note: str = ""


def schedule(seed: int) -> list[Kill]:
    """Return the kills of a round."""
    rng = random.Random(f"peer-{seed}")
    return [
        Kill(rng.uniform(*PAUSE_S), rng.choice(VICTIMS), rng.randrange(PROCESSES))
        for _ in range(KILLS)
    ]


def count(kills: int, paths: list[str], items: Counter[str], note: str) -> Count:
    """Compare what was fetched and found with the tree; items are JSON lines."""
    fetched = Counter(paths)
    pages = {f"/page/{number}" for number in range(PAGES)}
    assert set(fetched) <= pages, set(fetched) - pages
    lines = Counter(_item(number) for number in range(PAGES))
    return Count(
        kills=kills,
        pages_lost=len(pages - set(fetched)),
        pages_repeated=fetched.total() - len(fetched),
        items_lost=(lines - items).total(),
        items_repeated=(items - lines).total(),
        note=note,
    )


def _item(number: int) -> str:
    return f'{{"number": {number}, "title": "page {number}"}}'


async def one_run(name: Name, folder: Path, site: Site, kills: Sequence[Kill]) -> Count:
    """Run one side with these kills."""
    run = f"{name}-{folder.name}".replace(" ", "-").replace(",", "")
    crawl = Crawl(folder, site, run, PAGES, MS)
    side: Side
    if name == "dscrapy":
        rig = Rig(folder, site, Cluster(folder, conf()), random.Random(0))
        side = Ours(crawl, rig)
    else:
        side = Theirs(crawl, "always" if "always" in name else "everysec")
    try:
        with trio.fail_after(LIMIT_S):
            await side.start()
            made = await _strike(side, site, run, kills)
            items = await side.finish()
    finally:
        side.close()
    asked, _, _ = site.requests_of(run)
    return count(made, [path for _, _, path, _, _ in asked], items, side.note)


async def _strike(side: Side, site: Site, run: str, kills: Sequence[Kill]) -> int:
    while len(site.requests_of(run)[0]) < BEGUN_PAGES:  # noqa: ASYNC110 - no event tells it
        await trio.sleep(0.1)
    made = 0
    for kill in kills:
        await trio.sleep(kill.pause_s)
        made += await side.strike(kill.victim, kill.number)
    return made


async def compare(folder: Path, seed: int, rounds: int) -> dict[Name, list[Count]]:
    """Run all rounds; the first has no kills."""
    found: dict[Name, list[Count]] = {}
    with running_site(folder / "site.jsonl") as site:
        for number in range(rounds + 1):
            kills = schedule(seed + number) if number else []
            names: list[Name] = ["dscrapy", "scrapy-redis"]
            if number == 1:
                # What Redis tells as durable is on disk: the kills are the same.
                names.append("scrapy-redis, fsync always")
            for name in names:
                where = folder / f"{number}-{names.index(name)}"
                where.mkdir()
                got = await one_run(name, where, site, kills)
                found.setdefault(name, []).append(got)
                say(f"   round {number}: {name}: {got}")
    return found


def tables(found: dict[Name, list[Count]]) -> tuple[str, str]:
    """Return the table without kills and the one with all kills, sums of rounds."""
    quiet = {name: [counts[0]] for name, counts in found.items() if "," not in name}
    struck = {
        name: counts if "," in name else counts[1:] for name, counts in found.items()
    }
    return _table(quiet), _table(struck)


def _table(found: dict[Name, list[Count]]) -> str:
    titles = ("", "runs", "kills", "pages lost", "pages repeated")
    first: tuple[str, ...] = (*titles, "items lost", "items repeated")
    lines = [first, ("---",) * 7]
    for name, counts in found.items():
        numbers = [
            (
                one.kills,
                one.pages_lost,
                one.pages_repeated,
                one.items_lost,
                one.items_repeated,
            )
            for one in counts
        ]
        sums = map(sum, zip(*numbers, strict=True))
        lines.append((name, str(len(counts)), *map(str, sums)))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(
    seed: int, rounds: int, versions: dict[str, str], found: dict[Name, list[Count]]
) -> None:
    """Print what was run where, and the tables."""
    quiet, struck = tables(found)
    others = ", ".join(f"{name} {version}" for name, version in versions.items())
    say(f"\ncommand: python -m tests.chaos.peer --seed {seed} --rounds {rounds}")
    say(f"machine: {os.cpu_count()} cores, {platform.system()} {platform.release()}")
    say(
        f"versions: dscrapy {dscrapy.__version__}, Python "
        f"{platform.python_version()}, {others}"
    )
    say(
        f"a tree of {PAGES} pages on eight hosts, {MS} ms each, an item each; "
        f"{PROCESSES} crawl processes; kills begin at page {BEGUN_PAGES}; sums of all "
        f"rounds\n\n{WHAT}"
    )
    say(f"without kills\n\n{quiet}\n\nwith the same kills\n\n{struck}\n")
    for name, counts in found.items():
        for number, one in enumerate(counts):
            if one.note:
                say(f"{name}, round {number}: {one.note}")


async def against_scrapy_redis(folder: Path, seed: int, minutes: float) -> str:
    """Run the comparison as a row: dscrapy's side must be without a fault."""
    del minutes
    versions = await trio.to_thread.run_sync(check_there)
    found = await compare(folder, seed, ROUNDS)
    report(seed, ROUNDS, versions, found)
    ours = found["dscrapy"]
    if any(one.pages_lost or one.items_lost or one.items_repeated for one in ours):
        raise Wrong(f"dscrapy: {ours}")
    theirs = found["scrapy-redis"][1:]
    return (
        f"{ROUNDS} rounds, {sum(one.kills for one in ours)} kills: pages lost 0, items "
        f"lost 0, repeated 0; scrapy-redis, {sum(one.kills for one in theirs)} kills: "
        f"pages lost {sum(one.pages_lost for one in theirs)}, items lost "
        f"{sum(one.items_lost for one in theirs)}, repeated "
        f"{sum(one.items_repeated for one in theirs)}; the tables are above"
    )


def main() -> int:
    """Run the comparison alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    end_on_signals()
    say(f"seed {options.seed}")
    try:
        versions = check_there()
    except Skipped as error:
        say(f"skipped: {error}")
        return 1
    with tempfile.TemporaryDirectory(prefix="dscrapy-peer-") as name:
        found = trio.run(compare, Path(name), options.seed, options.rounds)
    report(options.seed, options.rounds, versions, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
