"""Kill crawl processes, workers and the master until enough kills counted.

``python -m tests.equivalence.campaign [--seed S] [--kills N] [--limit-s T]``

The spiders of the table run on a real cluster, over and over. Where each process
stands is told by the project's own components and by the site (both wait for the
answer), and by a proxy between workers and master that sees commits and answers pass.
A kill counts if its victim held a lease or an unanswered commit, by what the proxy saw:
the process itself, any process of the worker, for the master any process at all. Those
that would not count are not made. Every job has to succeed with exactly the items of
plain Scrapy. The seed, printed first, decides all choices; events decide their moment.
"""

import argparse
import contextlib
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import trio

from dscrapy.client import Client
from tests.e2e.cluster import DYING, Cluster, running_cluster
from tests.equivalence.cases import BURST, CASES, Case
from tests.equivalence.held_leases import HeldLeases
from tests.equivalence.kill_choice import STAGES, VICTIMS, Chooser, Stage, Victim
from tests.equivalence.ours import client_of, items_of, port_of, submission
from tests.equivalence.proxy import Proxy
from tests.equivalence.runs import Run, Site, plain_scrapy, running_site

KILLS = 200
LIMIT_S = 2400.0
WORKERS = 3
SLOTS = 2
# Fewer jobs than slots, so that a job may get a second and a third process.
JOBS_AT_A_TIME = 4
PLAIN_AT_A_TIME = 3
# Slow enough that most of a crawl is not its start.
MS = "60"
# A line is "STAGE PID RUN", far shorter.
LINE_BYTES_MAX = 4096
# A job takes seconds; one that takes this long, kills and all, hangs.
JOB_LIMIT_S = 300.0
# A campaign that shows this much has shown enough.
WRONG_MAX = 10


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@attrs.define
class Tally:
    """What the jobs gave."""

    jobs: int = 0
    items: int = 0
    lost: int = 0
    repeated: int = 0
    wrong: list[str] = attrs.Factory(list)

    def add(self, run: str, state: str, items: Counter[str], plain: Run) -> bool:
        """Compare a job with plain Scrapy's run; return whether it is right."""
        self.jobs += 1
        self.items += items.total()
        lost, more = plain.items - items, items - plain.items
        self.lost += lost.total()
        self.repeated += more.total()
        if state != "succeeded" or lost or more:
            lines = [*map("- {}".format, lost), *map("+ {}".format, more)][:5]
            self.wrong.append("\n".join([f"{run}: {state}", *lines]))
            say(f"WRONG {self.wrong[-1]}")
            return False
        return True


@attrs.define
class Campaign:
    """A cluster, what is known of its processes, and who dies next."""

    cluster: Cluster
    site: Site
    folder: Path
    plain: dict[str, Run]
    rng: random.Random
    chooser: Chooser
    leases: HeldLeases = attrs.Factory(HeldLeases)
    tally: Tally = attrs.Factory(Tally)
    _port: int = 0
    _proxy_port: int = 0
    _runs: int = 0
    # Job of a run, and the other way round.
    _jobs: dict[str, str] = attrs.Factory(dict)
    _names: dict[str, str] = attrs.Factory(dict)
    _workers: dict[str, int] = attrs.Factory(dict)
    _pids: dict[int, str] = attrs.Factory(dict)
    # One kill at a time, and nothing looks at the leases while it goes on.
    _lock: trio.Lock = attrs.Factory(trio.Lock)

    async def run(self, socket_path: str) -> None:
        """Run jobs and kill until it is enough, then let the last jobs end."""
        await trio.to_thread.run_sync(self.cluster.start_master)
        self._port = port_of(self.cluster.state)
        async with trio.open_nursery() as around:
            proxy = Proxy(self._port, self.leases, self.moment, self.chooser.committed)
            self._proxy_port = await around.start(proxy.serve)
            await around.start(self._listen, socket_path)
            for number in range(WORKERS):
                self._start_worker(f"w{number}")
            async with trio.open_nursery() as jobs:
                cases = self._cases()
                for _ in range(JOBS_AT_A_TIME):
                    jobs.start_soon(self._feed, cases, socket_path)
            around.cancel_scope.cancel()

    # ---- jobs -------------------------------------------------------------------

    def _cases(self) -> Iterator[Case]:
        """Yield every case again and again, each round in another order."""
        cases = [case for case in (*CASES, BURST) if case.killed]
        # The only one that is idle more than once comes as often as five others.
        cases += [case for case in CASES if case.name == "idle"] * 4
        while True:
            self.rng.shuffle(cases)
            yield from cases

    async def _feed(self, cases: Iterator[Case], socket_path: str) -> None:
        """Run one job after another."""
        async with client_of(self.cluster.state, self._port) as client:
            while not self.chooser.is_done and len(self.tally.wrong) < WRONG_MAX:
                self._runs += 1
                await self._run_one(client, next(cases), socket_path)

    async def _run_one(self, client: Client, case: Case, socket_path: str) -> None:
        run = f"{case.name}-{self._runs}"
        what = submission(
            self.site,
            self.folder,
            case.name,
            run,
            processes=self.rng.choice((1, 3)),
            arguments={"ms": MS, "stages": socket_path},
        )
        self._jobs[run] = what.id
        self._names[what.id] = run
        plain = self.plain[case.name]
        state, text = "hangs", ""
        with trio.move_on_after(JOB_LIMIT_S):
            await client.submit([what])
            shown = await client.wait(what.id)
            assert shown.job is not None
            state, text = shown.job.state, f"{shown.job.reason}\n{shown.traceback}"
        items = Counter(await items_of(client, what.id)) if text else Counter[str]()
        if not self.tally.add(run, state, items, plain):
            say(f"job {what.id}: {text}")

    # ---- moments ----------------------------------------------------------------

    async def moment(self, stage: Stage, process: int) -> bool:
        """A process's commits stand at this stage; return whether a side is gone.

        Shielded: the connection that asks ends by the kill, and with it its tasks.
        """
        is_gone = False
        with trio.CancelScope(shield=True):
            is_gone = await self._committing(stage, process)
        return is_gone

    async def _committing(self, stage: Stage, process: int) -> bool:
        async with self._lock:
            held = self.leases.processes.get(process)
            if held is None:
                return False
            same = self.leases.find(held.job, held.worker)
            run = self._names.get(held.job, "")
            pids = [pid for pid, its in self._pids.items() if its == run]
            pids = [pid for pid in pids if self._worker_of(pid) == held.worker]
            # Which of several is meant nobody knows; then it is left alone.
            pid = pids[0] if len(pids) == 1 and same == [process] else 0
            victim = await self._act(stage, held.worker, same, pid)
            return victim in ("worker", "master")

    async def _told(self, stage: Stage, pid: int, run: str) -> None:
        """A process stands at this stage, and waits there."""
        with trio.CancelScope(shield=True):
            async with self._lock:
                await self._standing(stage, pid, run)

    async def _standing(self, stage: Stage, pid: int, run: str) -> None:
        self._pids[pid] = run
        worker = self._worker_of(pid)
        if worker and run in self._jobs:
            same = self.leases.find(self._jobs[run], worker)
            await self._act(stage, worker, same, pid)

    async def _act(
        self, stage: Stage, worker: str, processes: list[int], pid: int
    ) -> Victim | None:
        """Kill whom the chooser wants, if it counts."""
        match self.chooser.wants(stage):
            case "process" if pid and self.leases.holds(processes):
                self._kill_process(pid, processes)
                victim: Victim = "process"
            case "worker" if self.leases.any_holds(worker):
                self._kill_worker(worker)
                victim = "worker"
            case "master" if self.leases.any_holds():
                await self._kill_master()
                victim = "master"
            case _:
                return None
        self.chooser.killed(stage, victim)
        total = self.chooser.counted.total()
        say(f"{total:4} killed a {victim} at {stage}; {self.tally.jobs} jobs ended")
        return victim

    def _kill_process(self, pid: int, processes: list[int]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self._pids.pop(pid, None)
        if len(processes) == 1:
            del self.leases.processes[processes[0]]

    def _kill_worker(self, name: str) -> None:
        (process,) = (
            one for one in self.cluster.processes if one.pid == self._workers[name]
        )
        self.cluster.kill(process)
        self.leases.worker_died(name)
        self._start_worker(name)

    async def _kill_master(self) -> None:
        master = self.cluster.master
        assert master is not None
        self.cluster.kill(master)
        await trio.to_thread.run_sync(self.cluster.start_master)

    # ---- processes --------------------------------------------------------------

    def _start_worker(self, name: str) -> None:
        words = ("--slots", str(SLOTS), "--master", f"127.0.0.1:{self._proxy_port}")
        self._workers[name] = self.cluster.start_worker(name, *words).pid

    def _worker_of(self, pid: int) -> str:
        """Return the worker whose child this is, none for one that is gone."""
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            parent = int(stat[1])
            for name, worker in self._workers.items():
                if worker == parent and stat[0] != "Z":
                    return name
        return ""

    async def _listen(
        self, path: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        await sock.bind(path)
        sock.listen(1024)
        task_status.started()
        await trio.serve_listeners(self._hear, [trio.SocketListener(sock)])

    async def _hear(self, stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async with stream:
                while line := await stream.receive_some(LINE_BYTES_MAX):
                    # Who says a line waits for the answer, so it comes alone.
                    word, pid, run = line.decode().split()
                    (stage,) = (one for one in STAGES if one == word)
                    await self._told(stage, int(pid), run)
                    await stream.send_all(b".")


def oracles(site: Site, folder: Path) -> dict[str, Run]:
    """Run plain Scrapy once for each case; check that it gives what the table says."""
    cases = [case for case in (*CASES, BURST) if case.killed]
    with ThreadPoolExecutor(PLAIN_AT_A_TIME) as pool:
        runs = pool.map(lambda case: plain_scrapy(site, folder, case.name), cases)
        plain = {case.name: run for case, run in zip(cases, runs, strict=True)}
    for case in cases:
        assert plain[case.name].items.total() == case.items, case.name
    return plain


def report(chooser: Chooser, tally: Tally, *, in_time: bool) -> int:
    """Print the table; return the exit code."""
    widths = [max(len(stage), 5) for stage in STAGES]
    rows = [["", *STAGES, "all"]]
    for victim in VICTIMS:
        cells = [chooser.counted[victim, stage] for stage in STAGES]
        rows.append([victim, *map(str, cells), str(sum(cells))])
    columns = [chooser.at(stage) for stage in STAGES]
    rows.append(["all", *map(str, columns), str(sum(columns))])
    say("\nkills by victim and stage; all of them held a lease or a commit")
    for row in rows:
        cells_ = zip(row[1:], [*widths, 5], strict=True)
        say(" ".join([row[0].ljust(8), *(text.rjust(width) for text, width in cells_)]))
    say(
        f"\n{tally.jobs} jobs, {tally.items} items, lost {tally.lost}, "
        f"repeated {tally.repeated}, jobs that went wrong {len(tally.wrong)}"
    )
    if not in_time:
        say("stopped at the limit of time")
    if chooser.missing:
        say(f"no kill at: {', '.join(chooser.missing)}")
    good = in_time and chooser.is_done and not tally.wrong
    say("good" if good else "NOT GOOD")
    return 0 if good else 1


async def _bounded(campaign: Campaign, socket_path: str, limit_s: float) -> bool:
    with trio.move_on_after(limit_s) as scope:
        await campaign.run(socket_path)
    return not scope.cancelled_caught


def main() -> int:
    """Run a campaign; its folder is kept when something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--limit-s", type=float, default=LIMIT_S)
    options = parser.parse_args()
    say(f"seed {options.seed}")
    # A UNIX socket's path is short.
    folder = Path(tempfile.mkdtemp(prefix="dscrapy-kills-"))
    say(f"folder {folder}")
    socket_path = str(folder / "stages")
    tally = Tally()
    chooser = Chooser(random.Random(f"kills-{options.seed}"), options.kills)
    with running_site(folder / "site.jsonl", "--stages", socket_path) as site:
        plain = oracles(site, folder)
        say(f"{len(plain)} spiders under plain Scrapy: as the table says")
        with running_cluster(folder, DYING) as cluster:
            campaign = Campaign(
                cluster=cluster,
                site=site,
                folder=folder,
                plain=plain,
                rng=random.Random(f"jobs-{options.seed}"),
                chooser=chooser,
                tally=tally,
            )
            in_time = trio.run(_bounded, campaign, socket_path, options.limit_s)
    code = report(chooser, tally, in_time=in_time)
    if code == 0:
        shutil.rmtree(folder)
    else:
        say(f"everything is kept in {folder}")
    return code


if __name__ == "__main__":
    sys.exit(main())
