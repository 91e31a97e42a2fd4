"""A master and two workers crawl a site of this machine, or what the options say.

Everything is done through the command line, as a person would; the state lives in a
temporary folder, the items end in ``demo-out/items.jsonl`` of the current folder.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from dscrapy.demo import site

PROJECT = Path(__file__).parent / "project"
OUT = Path("demo-out") / "items.jsonl"
PARTS = ("1", "2")
WORKERS = ("worker-1", "worker-2")
FINAL = frozenset({"succeeded", "failed", "cancelled"})

# Generous for a machine that is busy with something else.
START_S_MAX = 60.0
# The crawl takes seconds; after this something is wrong.
CRAWL_S_MAX = 600.0
# Each look is a command of its own, which costs a start of Python.
LOOK_S = 1.0
STOP_S_MAX = 30.0
# After a failure or Ctrl-C nobody waits for jobs to finish.
BREAK_OFF_S_MAX = 2.0
LOG_LINES_SHOWN = 15


class DemoError(Exception):
    """The demonstration failed: one line that says at what."""


@attrs.define
class Demo:
    """The processes and the steps, in a temporary ``folder``."""

    folder: Path
    console: Console
    options: Namespace
    site: trio.Process | None = None
    services: dict[str, trio.Process] = attrs.field(factory=dict)

    async def run(self, nursery: trio.Nursery) -> None:
        """Crawl and report. Raises ``DemoError``, ``SiteError``."""
        address = "" if self.options.jobs else await self.serve_site(nursery)
        await self.start("master", "--port", "0")
        with _limit("the master did not come up", START_S_MAX):
            await self.wait_until_listening()
        for name in WORKERS:
            await self.start("worker", "--name", name, "--slots", "1")
        started_at = trio.current_time()
        jobs = [
            await self.submit(*words)
            for words in self.options.jobs or _jobs_on(address)
        ]
        with _limit("the crawl did not end", CRAWL_S_MAX):
            views = await self.watch(jobs)
        spent_s = trio.current_time() - started_at
        failed = [view for view in views if view["state"] != "succeeded"]
        if failed:
            reasons = ", ".join(f"{job['name']}: {job['reason']}" for job in failed)
            raise DemoError(f"not every job succeeded: {reasons}")
        count = await self.collect(jobs)
        self.summary(views, count, spent_s)

    async def serve_site(self, nursery: trio.Nursery) -> str:
        """Serve this machine's own site; return its address."""
        self.say("starting a site: the documentation of Python's standard library")
        empty = self.folder / "site"
        empty.mkdir()
        self.site, address = await site.start(empty)
        nursery.start_soon(site.drain, self.site)
        self.say(f"  it is at {address} until this ends")
        return address

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    async def start(self, role: str, *arguments: str) -> None:
        """Start a master or a worker; its log goes to a file of its own."""
        name = arguments[1] if role == "worker" else role
        command = self.command(role, *arguments)
        with (self.folder / f"{name}.log").open("wb") as log:
            self.services[name] = await trio.lowlevel.open_process(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self.environ(),
                start_new_session=True,
            )

    def command(self, *arguments: str) -> list[str]:
        self.say(f"$ dscrapy {' '.join(arguments)}")
        return [sys.executable, "-m", "dscrapy", *arguments]

    def environ(self) -> dict[str, str]:
        """Return an environment in which nobody's own settings count."""
        ours = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("DSCRAPY_")
        }
        conf = self.folder / "conf.toml"
        if not conf.exists():
            conf.write_text("[dscrapy]\n")
        state = self.folder / "state"
        return ours | {"DSCRAPY_CONF": str(conf), "DSCRAPY_STATE": str(state)}

    async def wait_until_listening(self) -> None:
        """Return once the master wrote down where it listens."""
        while not (self.folder / "state" / "endpoint.json").exists():
            self.check_services()
            await trio.sleep(0.05)

    def check_services(self) -> None:
        for name, process in self.services.items():
            if process.poll() is not None:
                raise DemoError(f"{name} ended with status {process.returncode}")

    async def call(self, command: Sequence[str]) -> bytes:
        """Run a client to its end; return its output."""
        done = await trio.run_process(
            list(command),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=self.folder,
            env=self.environ(),
            start_new_session=True,
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            what = " ".join(command[2:4])
            raise DemoError(f"{what} ended with status {done.returncode}: {said}")
        return done.stdout

    async def submit(self, *words: str) -> str:
        return (await self.call(self.command("submit", *words))).decode().strip()

    async def watch(self, jobs: Sequence[str]) -> list[dict[str, Any]]:
        """Show progress until these jobs have ended; return their last views."""
        with _progress(self.console) as bars:
            rows = {job: bars.add_task(job, total=None, state="") for job in jobs}
            while True:
                views = await self.look(jobs)
                for view in views:
                    ended = view["state"] in FINAL
                    state = f"{view['state']}, {view['pages']} pages"
                    bars.update(
                        rows[view["id"]],
                        description=view["name"] or view["spider"],
                        state=state,
                        # How many pages there will be is the spider's to find out.
                        total=1 if ended else None,
                        completed=ended,
                    )
                    if not self.console.is_terminal:
                        self.say(f"  {view['name'] or view['spider']}: {state}")
                bars.refresh()
                if all(view["state"] in FINAL for view in views):
                    return views
                await trio.sleep(LOOK_S)

    async def look(self, jobs: Sequence[str]) -> list[dict[str, Any]]:
        """Return these jobs as ``status`` tells of them."""
        self.check_services()
        command = [sys.executable, "-m", "dscrapy", "status", "--json"]
        status = json.loads(await self.call(command))
        by_id = {view["id"]: view for view in status["jobs"]}
        return [by_id[job] for job in jobs]

    async def collect(self, jobs: Sequence[str]) -> int:
        """Write the items of all jobs to ``OUT``; return how many there are."""
        lines = b""
        for job in jobs:
            lines += await self.call(self.command("items", job))
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_bytes(lines)
        return lines.count(b"\n")

    def summary(
        self, views: Sequence[dict[str, Any]], count: int, spent_s: float
    ) -> None:
        pages = sum(view["pages"] for view in views)
        if not count or count != sum(view["items"] for view in views):
            raise DemoError(f"the jobs tell of other items than the {count} they gave")
        self.say("")
        for view in views:
            name = view["name"] or view["spider"]
            where = f" on {', '.join(view['workers'])}" if view["workers"] else ""
            self.say(f"{name}: {view['pages']} pages, {view['items']} items{where}")
        self.say(f"{pages} pages and {count} items in {spent_s:.1f} s")
        self.say(f"items: {OUT.absolute()}")

    async def close(self, grace_s: float) -> bool:
        """End all processes; return whether each ended as it should.

        Workers first, so that they can log out.
        """
        statuses: dict[str, int] = {}

        async def end(name: str) -> None:
            process = self.services[name]
            statuses[name] = await site.end(process, grace_s)

        async with trio.open_nursery() as nursery:
            for name in self.services.keys() & set(WORKERS):
                nursery.start_soon(end, name)
        if "master" in self.services:
            await end("master")
        if self.site is not None:
            await site.end(self.site, site.STOP_S_MAX)
        for name, status in statuses.items():
            if status:
                self.say(f"{name} ended with status {status}")
        return not any(statuses.values())

    def kill(self) -> None:
        for process in (*self.services.values(), self.site):
            if process is not None:
                process.kill()

    def show_logs(self) -> None:
        """Show the ends of the logs: they are in a folder that goes away."""
        for name in self.services:
            text = (self.folder / f"{name}.log").read_text(errors="replace")
            for line in text.splitlines()[-LOG_LINES_SHOWN:]:
                self.say(f"  {name}: {line}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; return the exit code."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="dscrapy-demo-") as folder:
        return trio.run(_main, Demo(Path(folder), console, _options(argv)))


def _options(argv: Sequence[str] | None) -> Namespace:
    """Return the options; ``jobs`` are words of ``submit``, empty for our own site."""
    parser = ArgumentParser(prog="python -m dscrapy.demo", description=__doc__)
    parser.add_argument("--site", metavar="URL", help="crawl this site instead")
    parser.add_argument("--project", metavar="DIR", help="run a spider of this project")
    parser.add_argument("--spider", metavar="NAME", help="the spider, with --project")
    parser.add_argument(
        "-a", dest="arguments", metavar="K=V", action="append", default=[]
    )
    options = parser.parse_args(argv)
    if bool(options.project) != bool(options.spider) or (
        options.site and options.project
    ):
        parser.error("give --project and --spider together, or --site alone")
    words = [word for pair in options.arguments for word in ("-a", pair)]
    options.jobs = []
    if options.project:
        folder = str(Path(options.project).expanduser().absolute())
        options.jobs = [(options.spider, "--project", folder, *words)]
    elif options.site:
        site_words = ("-a", f"site={options.site}")
        options.jobs = [("links", "--project", str(PROJECT), *site_words, *words)]
    return options


def _jobs_on(address: str) -> list[tuple[str, ...]]:
    """Return a job for each half of our own site, as words of ``submit``."""
    return [
        (
            *("pydoc", "--project", str(PROJECT), "--name", f"pydoc-{part}"),
            *("-a", f"site={address}", "-a", f"part={part}"),
        )
        for part in PARTS
    ]


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
            good = await demo.close(grace_s)
        if scope.cancelled_caught:
            demo.say("stopped")
        if status == 0 and not good:
            status = 1
        if status == 1:
            demo.show_logs()
        nursery.cancel_scope.cancel()
    return status


async def _run(demo: Demo, nursery: trio.Nursery) -> int:
    try:
        await demo.run(nursery)
    except (DemoError, site.SiteError) as error:
        demo.say(f"the demonstration failed: {error}")
        return 1
    return 0


async def _stop_on_signals(
    scope: trio.CancelScope,
    demo: Demo,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The first Ctrl-C (or SIGTERM) ends the run, one more kills what is left."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            if scope.cancel_called:
                demo.kill()
            scope.cancel()


def _progress(console: Console) -> Progress:
    """Return bars that are drawn when told to, and only on a terminal."""
    return Progress(
        TextColumn("  {task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        console=console,
        auto_refresh=False,
        disable=not console.is_terminal,
    )


@contextmanager
def _limit(problem: str, seconds: float) -> Iterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise DemoError(f"{problem} in {seconds:.0f} s") from None


if __name__ == "__main__":
    sys.exit(main())
