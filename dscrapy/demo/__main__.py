"""A master and two workers share one crawl; one worker is killed in the middle.

The sites are of this machine, and plain Scrapy crawls them, too: the items have to be
the same. What the options name is crawled once, and nobody is killed.

Everything is done through the command line, as a person would; the state lives in a
temporary folder, the items end in ``demo-out/items.jsonl`` of the current folder.
"""

import os
import signal
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import trio
from rich.console import Console

from dscrapy.demo import plain, site
from dscrapy.demo.cluster import GRACE_S, WORKERS, Cluster, DemoError
from dscrapy.demo.narration import Screen

# Without links: a path from there to the items leads through its parents.
PROJECT = Path(__file__).resolve().parent / "project"
OUT = Path("demo-out") / "items.jsonl"
PLAIN_OUT = OUT.with_name("plain.jsonl")
# The job's name, by which commands find it.
NAME = "demo"
# Processes are started for hosts, so there are two of them.
HOSTS = ("127.0.0.1", "localhost")
# With the spider's DOWNLOAD_DELAY it makes some ten seconds of a crawl.
PAGES_MAX = 300
# Of a site that is not ours.
SITE_PAGES_MAX = 150
VICTIM = WORKERS[1]
# Pages after which its end is near; until all is asked and done they are about a third.
PAGES_BEFORE = PAGES_MAX // 4
# Its own pages before that.
OWN_PAGES_MIN = 20

# Generous for a machine that is busy with something else.
START_S_MAX = 60.0
# The crawls take seconds; after this something is wrong.
CRAWL_S_MAX = 600.0
# Each look is a command of its own, which costs a start of Python.
LOOK_S = 0.5
STOP_S_MAX = 30.0
# After a failure or Ctrl-C nobody waits for jobs to finish.
BREAK_OFF_S_MAX = 2.0
# The last comes of a terminal that is closed.
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FINAL = frozenset({"succeeded", "failed", "cancelled"})

View = dict[str, Any]
# Takes the job and the whole status.
OnLook = Callable[[View, View], Awaitable[None]]


@attrs.define
class Demo:
    """The steps of the demonstration; ``folder`` is for temporary files."""

    folder: Path
    screen: Screen
    options: Namespace
    cluster: Cluster
    sites: list[trio.Process] = attrs.field(factory=list)

    async def run(self, nursery: trio.Nursery) -> None:
        """Crawl and report. Raises ``DemoError``, ``SiteError``."""
        words = self.options.words
        addresses = "" if words else await self.serve_sites(nursery)
        if pages := self.options.pages_max:
            self.screen.say(f"  {pages} pages at most, so that this is soon over")
        if words:
            await self.crawl(words, _look_on)
        else:
            await self.show_claims(addresses)

    async def show_claims(self, addresses: str) -> None:
        """Crawl our own sites, kill a worker in the middle, compare the items."""
        words = ["pydoc", "-a", f"limit={PAGES_MAX}", "-a", f"sites={addresses}"]
        submission = [*words, "--project", plain.short(PROJECT), "-p", "2"]
        cut = PowerCut(self.screen, self.cluster)
        await self.crawl(submission, cut.look)
        if not cut.is_done:
            raise DemoError(f"the crawl was over before {VICTIM} could be killed")
        environ = self.cluster.environ
        with _limit("plain Scrapy did not end", CRAWL_S_MAX):
            await plain.crawl(self.screen, PROJECT, words, PLAIN_OUT, environ)
        ours, expected = plain.read(OUT), plain.read(PLAIN_OUT)
        counts = f"{ours.total()} items by dscrapy, {expected.total()} by plain Scrapy"
        if difference := plain.difference(ours, expected):
            raise DemoError(f"{counts}: {difference}")
        self.screen.say(f"{counts}: the same", "bold green")

    async def serve_sites(self, nursery: trio.Nursery) -> str:
        """Serve this machine's own sites; return their addresses."""
        empty = self.folder / "site"
        empty.mkdir()
        addresses = []
        for number, host in enumerate(HOSTS):
            port = self.options.port and self.options.port + number
            process, address = await site.start(empty, host, port)
            self.sites.append(process)
            nursery.start_soon(site.drain, process)
            addresses.append(address)
        self.screen.say("two sites of this machine: Python's documentation, by pydoc")
        self.screen.say(f"  {' and '.join(addresses)}")
        return ",".join(addresses)

    async def crawl(self, words: Sequence[str], on_look: OnLook) -> None:
        """Run one job to its end and write its items to ``OUT``."""
        with _limit("the master did not come up", START_S_MAX):
            await self.cluster.start()
        job = await self.cluster.command("submit", *words, "--name", NAME)
        with _limit("the crawl did not end", CRAWL_S_MAX):
            view = await self.watch(job, on_look)
        if view["state"] != "succeeded":
            raise DemoError(f"the job {view['state']}: {view['reason']}")
        OUT.parent.mkdir(exist_ok=True)
        await self.cluster.command("items", NAME, "-O", str(OUT))
        count = OUT.read_bytes().count(b"\n")
        if not count or count != view["items"]:
            raise DemoError(f"{count} items came, the job tells of {view['items']}")
        self.screen.say(f"  {view['pages']} pages, {count} items")

    async def watch(self, job: str, on_look: OnLook) -> View:
        """Show progress until the job has ended; return its last view."""
        with self.screen.progress(NAME, self.options.pages_max) as bar:
            while True:
                status = await self.cluster.status()
                view: View = next(
                    found for found in status["jobs"] if found["id"] == job
                )
                is_over = view["state"] in FINAL
                where = (
                    f" on {' and '.join(view['workers'])}" if view["workers"] else ""
                )
                state = f"{view['state']}, {view['pages']} pages{where}"
                bar.show(state, view["pages"], is_last=is_over)
                await on_look(view, status)
                if is_over:
                    return view
                await trio.sleep(LOOK_S)

    async def close(self, grace_s: float) -> dict[str, int]:
        """End all processes; return as ``Cluster.close``."""
        bad = await self.cluster.close(grace_s)
        for process in self.sites:
            await site.end(process, site.STOP_S_MAX)
        return bad

    def kill(self) -> None:
        self.cluster.kill()
        for process in self.sites:
            process.kill()


@attrs.define
class PowerCut:
    """Kills a worker that has more pages to do, at about a third, when all have done
    some."""

    screen: Screen
    cluster: Cluster
    is_done: bool = False
    _is_end_reported: bool = False

    async def look(self, job: View, status: View) -> None:
        """Cut the power, or report its end, when it is time."""
        if self.is_done:
            self._report_end(job)
        elif job["pages"] >= PAGES_BEFORE:
            reports = await self._ask(status["workers"])
            part = reports.get(VICTIM)
            others = [report for name, report in reports.items() if name != VICTIM]
            is_shared = bool(others) and all(report["pages"] for report in others)
            if part and part["leased"] and part["pages"] >= OWN_PAGES_MIN and is_shared:
                await self._cut(reports)

    async def _ask(self, workers: Sequence[View]) -> dict[str, View]:
        """Return the job as each worker tells of it that has a part of it now."""
        reports: dict[str, View] = {}

        async def ask(worker: View) -> None:
            # Who does not answer is asked again at the next look.
            with suppress(DemoError):
                for job in (await self.cluster.status_at(worker))["jobs"]:
                    reports[worker["name"]] = job

        async with trio.open_nursery() as nursery:
            for worker in workers:
                nursery.start_soon(ask, worker)
        return reports

    async def _cut(self, reports: dict[str, View]) -> None:
        await self.cluster.cut_power(VICTIM)
        self.is_done = True
        parts = [
            f"{reports[name]['pages']} pages by {name}" for name in sorted(reports)
        ]
        self.screen.say(f"  so far {', '.join(parts)}")
        self.screen.say(
            f"  {VICTIM} is killed (SIGKILL) in the middle of its work", "bold red"
        )

    def _report_end(self, job: View) -> None:
        if not self._is_end_reported and VICTIM not in job["workers"]:
            self._is_end_reported = True
            self.screen.say(
                f"  the master gives {VICTIM} up after {GRACE_S:g} s: its pages are "
                f"{WORKERS[0]}'s now"
            )


async def _look_on(job: View, status: View) -> None:
    """Do nothing: nobody is killed where the crawl is not ours."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; return the exit code."""
    options = _options(argv)
    screen = Screen(Console())
    # Nobody's own settings of dscrapy count; those that choose a project's do only
    # where it is not ours.
    choosing = () if options.words else ("SCRAPY_PROJECT", "SCRAPY_SETTINGS_MODULE")
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("DSCRAPY_") and name not in choosing
    }
    with tempfile.TemporaryDirectory(prefix="dscrapy-demo-") as name:
        folder = Path(name)
        cluster = Cluster(folder, screen, environ)
        return trio.run(_main, Demo(folder, screen, options, cluster))


def _options(argv: Sequence[str] | None) -> Namespace:
    """Return the options; ``words`` are those of ``submit``, none for our own sites.

    ``pages_max`` is the limit that is ours, None where the project or the caller has
    one.
    """
    parser = ArgumentParser(prog="python -m dscrapy.demo", description=__doc__)
    parser.add_argument("--site", metavar="URL", help="crawl this site instead")
    parser.add_argument("--project", metavar="DIR", help="run a spider of this project")
    parser.add_argument("--spider", metavar="NAME", help="the spider, with --project")
    parser.add_argument(
        "-a", dest="arguments", metavar="K=V", action="append", default=[]
    )
    parser.add_argument(
        "--port",
        metavar="N",
        type=int,
        default=0,
        help="port of our own first site, the second has the next (default: free ones)",
    )
    options = parser.parse_args(argv)
    if bool(options.project) != bool(options.spider) or (
        options.site and options.project
    ):
        parser.error("give --project and --spider together, or --site alone")
    if options.arguments and not options.site and not options.project:
        parser.error("-a is for --site and for --project")
    options.words, options.pages_max = _words(options)
    return options


def _words(options: Namespace) -> tuple[list[str], int | None]:
    words = [word for pair in options.arguments for word in ("-a", pair)]
    if options.project:
        folder = str(Path(options.project).expanduser().absolute())
        return [options.spider, *words, "--project", folder], None
    if not options.site:
        return [], PAGES_MAX
    limit = None
    if not any(pair.startswith("limit=") for pair in options.arguments):
        limit = SITE_PAGES_MAX
        words += ["-a", f"limit={limit}"]
    site_words = ["links", "-a", f"site={options.site}", *words]
    return [*site_words, "--project", plain.short(PROJECT)], limit


async def _main(demo: Demo) -> int:
    # Interrupted, unless one of the ends below is reached.
    status = 128 + signal.SIGINT
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        await nursery.start(_stop_on_signals, scope, demo)
        try:
            with scope:
                status = await _run(demo, nursery)
        finally:
            # Whatever happened above, no process stays behind.
            grace_s = STOP_S_MAX if status == 0 else BREAK_OFF_S_MAX
            bad = await demo.close(grace_s)
        if scope.cancelled_caught:
            demo.screen.say("stopped")
        if status == 0 and bad:
            status = 1
            for name, one in bad.items():
                demo.screen.say(f"{name} ended with status {one}")
        if status == 1:
            demo.cluster.show_logs()
        nursery.cancel_scope.cancel()
    return status


async def _run(demo: Demo, nursery: trio.Nursery) -> int:
    try:
        await demo.run(nursery)
    except (DemoError, site.SiteError) as error:
        demo.screen.say(f"the demonstration failed: {error}", "bold red")
        return 1
    return 0


async def _stop_on_signals(
    scope: trio.CancelScope,
    demo: Demo,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The first Ctrl-C (or SIGTERM) ends the run, one more kills what is left."""
    with trio.open_signal_receiver(*STOPS) as signals:
        task_status.started()
        async for _ in signals:
            if scope.cancel_called:
                demo.kill()
            scope.cancel()


@contextmanager
def _limit(problem: str, seconds: float) -> Iterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise DemoError(f"{problem} in {seconds:.0f} s") from None


if __name__ == "__main__":
    sys.exit(main())
