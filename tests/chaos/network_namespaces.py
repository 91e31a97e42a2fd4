"""Network namespaces: the link of a worker is cut and healed, both ways or one way.

The row runs itself again in a namespace of its own, where the master is; each worker
is in another, at the end of a pair of veth devices. Nothing of the machine's network is
touched. Every namespace has the same site on its loopback, on one port: answers follow
from requests alone, so it is one site that every worker can reach.

One way is lost by a permanent neighbour entry with an address that nobody has: the
frames leave and nobody takes them. That needs no kernel module, unlike netem.
"""

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import attrs
import trio

from tests.chaos.kills import WORKS, shuffled
from tests.chaos.rig import (
    DIE_AFTER_S,
    GRACE_S,
    Rig,
    end_on_signals,
    running_rig,
    say,
    until,
)
from tests.chaos.table import Skipped, Wrong, counted, first_line
from tests.equivalence.ours import port_of
from tests.equivalence.runs import ROOT, running_site

SECONDS = 60.0
LIMIT_S = 270.0
SPACES = (1, 2, 3)
JOBS_AT_A_TIME = 2
PAUSE_S = (0.5, 3.0)
SPANS_S = (GRACE_S / 2, (GRACE_S + DIE_AFTER_S) / 2, DIE_AFTER_S + 1.5)
FAULTS = (
    "link down at the master",
    "link down at the worker",
    "lost to the master",
    "lost to the worker",
)
# Locally administered, and nobody's.
NOBODY = "02:00:00:00:00:01"
# What the inner process exits with when namespaces cannot be made.
SKIPPED = 77


def ip(*words: str) -> None:
    """Run ``ip``; raises ``CalledProcessError``."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)  # noqa: S607 - wherever the system has it


@attrs.frozen
class Space:
    """A namespace and its link: ``v`` is the master's end, ``e`` the worker's."""

    number: int

    @property
    def name(self) -> str:
        """Return the name that ``ip netns`` knows."""
        return f"dscrapy-chaos-{os.getpid()}-{self.number}"

    @property
    def within(self) -> tuple[str, ...]:
        """Return the words that start a program there."""
        return ("ip", "netns", "exec", self.name)

    def address(self, end: int) -> str:
        """Return the address of the master's end, 1, or the worker's, 2."""
        return f"10.213.{self.number}.{end}"

    def make(self) -> None:
        """Make it with its link up."""
        v, e = f"v{self.number}", f"e{self.number}"
        ip("netns", "add", self.name)
        ip("link", "add", v, "type", "veth", "peer", "name", e)
        ip("link", "set", e, "netns", self.name)
        ip("addr", "add", f"{self.address(1)}/24", "dev", v)
        ip("link", "set", v, "up")
        ip("-n", self.name, "addr", "add", f"{self.address(2)}/24", "dev", e)
        for device in ("lo", e):
            ip("-n", self.name, "link", "set", device, "up")

    def remove(self) -> None:
        """Remove it, and with it the link."""
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("netns", "del", self.name)

    def fault(self, what: str, *, begins: bool) -> None:
        """Begin or end a fault."""
        v, e = ("dev", f"v{self.number}"), ("dev", f"e{self.number}")
        there = ("-n", self.name)
        state = "down" if begins else "up"
        change = "replace" if begins else "del"
        nobody = ("lladdr", NOBODY, "nud", "permanent") if begins else ()
        match what:
            case "link down at the master":
                ip("link", "set", v[1], state)
            case "link down at the worker":
                ip(*there, "link", "set", e[1], state)
            case "lost to the master":
                ip(*there, "neigh", change, self.address(1), *nobody, *e)
            case "lost to the worker":
                ip("neigh", change, self.address(2), *nobody, *v)


@contextlib.contextmanager
def spaces() -> Iterator[list[Space]]:
    """Namespaces with links; raises ``Skipped`` where they cannot be made."""
    made = [Space(number) for number in SPACES]
    try:
        try:
            ip("link", "set", "lo", "up")
            for space in made:
                space.make()
        except subprocess.CalledProcessError as error:
            raise Skipped(f"{error.cmd}: {error.stderr.strip()}") from error
        yield made
    finally:
        for space in made:
            space.remove()


@attrs.define
class Cutter:
    """Draws a link, a fault and a span, again and again."""

    rig: Rig
    spaces: list[Space]
    around: trio.Nursery
    faults: Counter[str] = attrs.Factory(Counter)
    beyond: int = 0
    _busy: set[int] = attrs.Factory(set)

    async def run(self, seconds: float) -> None:
        """Cut and heal for so long; at the end every link is whole."""
        end = trio.current_time() + seconds
        rng = self.rig.rng
        while trio.current_time() < end:
            await trio.sleep(rng.uniform(*PAUSE_S))
            free = [one for one in self.spaces if one.number not in self._busy]
            if not free:
                continue
            fault, span_s = rng.choice(FAULTS), rng.choice(SPANS_S)
            chosen = free if rng.random() < 0.15 else [rng.choice(free)]
            for space in chosen:
                self._busy.add(space.number)
                self.around.start_soon(self._cut, space, fault, span_s)
            self.faults[fault] += len(chosen)
            names = [space.number for space in chosen]
            say(f"{self.faults.total():4} {fault} of {names}, {span_s:g} s")

    async def _cut(self, space: Space, fault: str, span_s: float) -> None:
        self.beyond += span_s > DIE_AFTER_S
        space.fault(fault, begins=True)
        await trio.sleep(span_s)
        space.fault(fault, begins=False)
        self._busy.discard(space.number)


async def experiment(folder: Path, seed: int) -> str:
    """Cut and heal links while jobs run; in a network namespace of its own."""
    rng = random.Random(f"namespaces-{seed}")
    with spaces() as made, contextlib.ExitStack() as sites:
        async with running_rig(folder, rng) as rig:
            for space in made:
                log = folder / f"site-{space.number}.jsonl"
                port = ("--port", str(rig.site.port))
                sites.enter_context(running_site(log, *port, within=space.within))
            await trio.to_thread.run_sync(
                rig.cluster.start_master,
                "--host",
                "0.0.0.0",  # noqa: S104 - nobody else is in here
            )
            for work in WORKS:
                await rig.plain(work)
            master = port_of(rig.cluster.state)
            for space in made:
                rig.start_worker(
                    f"w{space.number}",
                    master=f"{space.address(1)}:{master}",
                    within=space.within,
                )
            return await _cut_and_crawl(rig, made)


async def _cut_and_crawl(rig: Rig, made: list[Space]) -> str:
    works = shuffled(rig.rng, WORKS)
    end = trio.current_time() + SECONDS
    async with trio.open_nursery() as around:
        cutter = Cutter(rig, made, around)
        for _ in range(JOBS_AT_A_TIME):
            around.start_soon(rig.feed, works, lambda: trio.current_time() >= end)
        await cutter.run(SECONDS)
    async with rig.client() as client:

        async def are_back() -> bool:
            return len((await client.status()).workers) == len(made)

        await until(are_back, "all workers back after the links were healed")
    sessions = rig.cluster.log().count("registered at")
    if sessions <= len(made):
        raise Wrong("no worker ever lost its session")
    return (
        f"{cutter.faults.total()} cuts of {len(made)} veth links: "
        f"{counted(cutter.faults)}; {cutter.beyond} longer than die_after_s; "
        f"{sessions} sessions; {rig.counts}"
    )


async def cut_links(folder: Path, seed: int, minutes: float) -> str:
    """Run the experiment in a network namespace of its own, if that is allowed."""
    del minutes
    _check_allowed()
    words = ["unshare", "--net", sys.executable, "-m", "tests.chaos.network_namespaces"]
    words += ["--seed", str(seed), "--folder", str(folder)]
    done = await trio.run_process(words, check=False, cwd=ROOT)
    result = folder / "result.txt"
    text = result.read_text() if result.exists() else "it ended without a result"
    if done.returncode == SKIPPED:
        raise Skipped(text)
    if done.returncode:
        raise Wrong(text)
    return text


def _check_allowed() -> None:
    for program in ("ip", "unshare"):
        if shutil.which(program) is None:
            raise Skipped(f"no `{program}` (Debian: iproute2, util-linux)")
    words = ["unshare", "--net", "true"]
    tried = subprocess.run(words, check=False, capture_output=True, text=True)
    if tried.returncode:
        raise Skipped(f"network namespaces are not allowed: {tried.stderr.strip()}")


def main() -> int:
    """Be the inner process: leave the result in a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    end_on_signals()

    async def bounded() -> str:
        with trio.fail_after(LIMIT_S):
            return await experiment(options.folder, options.seed)

    result = options.folder / "result.txt"
    try:
        result.write_text(trio.run(bounded))
    except Skipped as error:
        result.write_text(str(error))
        return SKIPPED
    except Exception as error:
        result.write_text(first_line(error))
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
