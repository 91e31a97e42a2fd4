"""What every row stands on: a site, a cluster, jobs, and plain Scrapy's items.

Rows start and kill processes as they like; jobs are submitted, awaited and compared
here. A job that does not end within its limit is wrong, like one with other items.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import attrs
import trio

from dscrapy.client import Client
from dscrapy.errors import RefusedError
from dscrapy.messages import Shown
from tests.chaos.table import Wrong
from tests.e2e.cluster import Cluster
from tests.equivalence.ours import client_of, items_of, port_of, submission
from tests.equivalence.runs import Run, Site, plain_scrapy, running_site

# Short spans, so that a row sees many of them; conf.toml takes them as they are.
DIE_AFTER_S = 4.0
GRACE_S = 1.0
MASTER_CONF = {
    "heartbeat_s": "0.2",
    "reconnect_grace_s": f"{GRACE_S}",
    "die_after_s": f"{DIE_AFTER_S}",
}
WORKER_CONF = {"reconnect_s_max": "1.0"}
# A job takes some seconds; one that takes this long, faults and all, hangs.
JOB_LIMIT_S = 240.0
# How often a fact is looked at that no event tells.
LOOK_S = 0.1
# Longer than any fact of a row takes on a busy machine.
FACT_LIMIT_S = 90.0


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def conf(
    master: dict[str, str] | None = None, worker: dict[str, str] | None = None
) -> str:
    """Return a conf file of short spans, changed by these keys."""
    tables = {
        "master": {**MASTER_CONF, **(master or {})},
        "worker": {**WORKER_CONF, **(worker or {})},
    }
    lines = []
    for name, keys in tables.items():
        lines.append(f"[dscrapy.{name}]")
        lines += [f"{key} = {value}" for key, value in keys.items()]
    return "\n".join([*lines, ""])


@attrs.frozen
class Work:
    """A spider, its arguments, and those of its runs under faults alone."""

    spider: str
    arguments: dict[str, str] = attrs.Factory(dict)
    # Plain Scrapy runs without these: they may slow pages or end processes.
    ours: dict[str, str] = attrs.Factory(dict)

    @property
    def key(self) -> str:
        """Return what tells one oracle from another."""
        return "-".join([self.spider, *(f"{k}{v}" for k, v in self.arguments.items())])


@attrs.define
class Rig:
    """The cluster and the site of one row, and what its jobs gave."""

    folder: Path
    site: Site
    cluster: Cluster
    rng: random.Random
    jobs: int = 0
    items: int = 0
    workers: dict[str, int] = attrs.Factory(dict)
    _plain: dict[str, Run] = attrs.Factory(dict)

    # ---- processes --------------------------------------------------------------

    async def start_master(self) -> None:
        """Start the master and wait until it listens."""
        await trio.to_thread.run_sync(self.cluster.start_master)

    def start_worker(
        self,
        name: str,
        *,
        slots: int = 2,
        master: str = "",
        within: tuple[str, ...] = (),
    ) -> int:
        """Start a worker; ``master`` is HOST:PORT if not that of the folder.

        Returns its process number.
        """
        words = ["--slots", str(slots)]
        if master:
            words += ["--master", master]
        process = self.cluster.start_worker(name, *words, within=within)
        self.workers[name] = process.pid
        return self.workers[name]

    async def kill_master(self) -> None:
        """SIGKILL the master and start it again."""
        assert self.cluster.master is not None
        self.cluster.kill(self.cluster.master)
        await self.start_master()

    def kill_worker(self, name: str) -> None:
        """SIGKILL a worker; its crawl processes end by themselves."""
        self.cluster.kill(self.popen(name))

    def popen(self, name: str) -> subprocess.Popen[bytes]:
        """Return a worker's process."""
        (found,) = (
            one for one in self.cluster.processes if one.pid == self.workers[name]
        )
        return found

    def crawl_pids(self, *names: str) -> list[int]:
        """Return the crawl processes of these workers, or of all."""
        found = []
        for name in names or tuple(self.workers):
            found += self.cluster.crawl_pids(self.popen(name))
        return found

    # ---- jobs -------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A client that waits for a master that is restarted."""
        async with client_of(self.cluster.state, port_of(self.cluster.state)) as client:
            yield client

    async def plain(self, work: Work) -> Run:
        """Return plain Scrapy's run, made once; ``items`` must not be empty."""
        if work.key not in self._plain:
            run = await trio.to_thread.run_sync(
                lambda: plain_scrapy(
                    self.site,
                    self.folder,
                    work.spider,
                    name=work.key,
                    arguments=work.arguments,
                )
            )
            assert run.items, work.key
            self._plain[work.key] = run
        return self._plain[work.key]

    async def submit(self, client: Client, work: Work, processes: int) -> str:
        """Submit a job; return its id."""
        self.jobs += 1
        what = submission(
            self.site,
            self.folder,
            work.spider,
            f"{work.spider}-{self.jobs}",
            processes=processes,
            arguments={**work.arguments, **work.ours},
        )
        while True:
            try:
                await client.submit([what])
            except RefusedError as error:
                # The row of the full disk makes room again.
                if error.code != "disk_full":
                    raise
                await trio.sleep(LOOK_S)
            else:
                return what.id

    async def check(
        self, client: Client, job: str, work: Work, *, state: str = "succeeded"
    ) -> Shown:
        """Wait for a job's end and compare; raises ``Wrong``."""
        plain = await self.plain(work)
        with trio.move_on_after(JOB_LIMIT_S) as limit:
            shown = await client.wait(job)
        if limit.cancelled_caught:
            shown = await client.show(job)
            raise Wrong(f"{work.key}: does not end in {JOB_LIMIT_S:g} s: {shown.job}")
        assert shown.job is not None
        if shown.job.state != state:
            raise Wrong(f"{work.key}: {shown.job}\n{shown.traceback}")
        self.compare(work.key, Counter(await items_of(client, job)), plain.items)
        return shown

    def compare(self, what: str, items: Counter[str], plain: Counter[str]) -> None:
        """Count a job's items; raises ``Wrong`` when they are not plain Scrapy's."""
        self.items += items.total()
        lost, more = plain - items, items - plain
        if lost or more:
            lines = [*map("- {}".format, lost), *map("+ {}".format, more)][:5]
            counts = f"items lost {lost.total()}, repeated {more.total()}"
            raise Wrong("\n".join([f"{what}: {counts}", *lines]))

    async def run(self, client: Client, work: Work, processes: int) -> Shown:
        """Run a job to its end and compare."""
        job = await self.submit(client, work, processes)
        return await self.check(client, job, work)

    async def feed(self, works: Iterator[Work], is_over: Callable[[], bool]) -> None:
        """Run one job after another, of one process and of three."""
        async with self.client() as client:
            while not is_over():
                await self.run(client, next(works), self.rng.choice((1, 3)))

    @property
    def counts(self) -> str:
        """Return what the jobs gave, for the table; nothing raised ``Wrong``."""
        return f"{self.jobs} jobs, {self.items} items, lost 0, repeated 0"


async def until(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait for a fact that no event tells; raises ``Wrong`` when it never comes."""
    with trio.move_on_after(FACT_LIMIT_S):
        while not await holds():  # noqa: ASYNC110 - no event tells it
            await trio.sleep(LOOK_S)
        return
    raise Wrong(f"within {FACT_LIMIT_S:g} s never came: {what}")


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@contextlib.asynccontextmanager
async def running_rig(
    folder: Path, rng: random.Random, conf_text: str = ""
) -> AsyncIterator[Rig]:
    """A site and a cluster without processes yet; all are ended at the end."""
    with running_site(folder / "site.jsonl") as site:
        cluster = Cluster(folder, conf_text or conf())
        try:
            yield Rig(folder, site, cluster, rng)
        finally:
            cluster.close()


def end_on_signals() -> None:
    """Let Ctrl-C and SIGTERM end the run with everything that it started.

    A shell that starts it in the background has it ignore Ctrl-C.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # To trio there is one way to be interrupted.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
