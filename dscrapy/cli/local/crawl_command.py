"""``crawl``: a master and a worker inside one command, for one job.

The parts are the same as everywhere: the command is a client of its own master on a
free port of this machine. What it keeps between runs is in ``crawl_state``.
"""

import os
import re
import signal
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import attrs
import trio
from msgspec import structs

from dscrapy.cli.job_commands import place_of
from dscrapy.cli.local import appends, crawl_keep
from dscrapy.cli.local.caller_options import (
    check_files,
    chosen_settings,
    command_of,
    forget_stdin,
    make_caller,
    other_settings,
    run_settings,
    shown,
    surroundings,
)
from dscrapy.cli.local.crawl_others import others_line
from dscrapy.cli.local.crawl_state import Crawl, How, Record, choose
from dscrapy.cli.output_files import (
    Feed,
    Fetched,
    check_outputs,
    check_places,
    copy_file,
    fetch,
    parse_feeds,
    write_results,
)
from dscrapy.cli.parser import PROGRAM
from dscrapy.cli.serve import new_id, set_up_logging
from dscrapy.cli.terminal.log_lines import HeadingsInUse
from dscrapy.cli.terminal.render import (
    counts,
    plural,
    progress_line,
    span,
    written_text,
)
from dscrapy.cli.terminal.screen import Bytes, Ticker, is_decorated, note, write_err
from dscrapy.client import Client, Target
from dscrapy.conf.config import Config, Endpoint, expanded, find_token, load, override
from dscrapy.conf.job_file import check_spec
from dscrapy.crawl.insides.versions import check_version
from dscrapy.errors import RefusedError
from dscrapy.lines import HEADING, LineCutter
from dscrapy.messages import ChangeJob, Shown
from dscrapy.model import FINAL_STATES, JobSpec, JobView, Submission
from dscrapy.net.cpus import usable_cpus
from dscrapy.text import clean_lines
from dscrapy.worker.caller_streams import Caller, kept_stdin

# How often progress is shown: on a terminal, and in a log.
TICK_S = 1.0
LINE_EVERY_S = 10.0
# Our own master answers at once; a machine that swaps may take a while.
_CONNECT_TIMEOUT_S = 30.0
# The rest of the log arrives right after the job's end.
_LOG_REST_S = 10.0
_WORKER_NAME = "crawl"
# Holds a traceback, which is bounded, and what a crawl logs at its end.
_LOG_TAIL_BYTES = 256 * 1024


@attrs.define(kw_only=True)
class _Run:
    """One run of the command."""

    config: Config
    crawl: Crawl
    record: Record
    how: How
    spec: JobSpec
    feeds: tuple[Feed, ...]
    folder: Path
    caller: Caller
    shows_all_log: bool
    is_quiet: bool
    slots: int
    keeps: bool = True
    ticker: Ticker = attrs.field(factory=Ticker)
    log_offset: int = 0
    # The last bytes of the log that were shown.
    log_tail: bytearray = attrs.field(factory=bytearray)
    job_known: bool = False
    stopping: trio.Event = attrs.field(factory=trio.Event)
    forced: bool = False
    is_over: bool = False
    shown: Shown | None = None
    fetched: Fetched | None = None


def crawl(options: Namespace) -> int:
    """Run a spider here, to its end; 0 if it succeeded."""
    started = time.monotonic()
    check_version()
    config = override(
        load(_path(options.conf), os.environ), "master", state=_path(options.state)
    )
    project, spec = _spec(options)
    feeds = parse_feeds(options, spec.spider)
    check_outputs(feeds, spec, Path.cwd())
    check_places(feeds)
    identity = Crawl.of(
        config.state,
        project,
        spec.spider,
        spec.args,
        spec.settings,
        surroundings(Path.cwd(), project, os.environ),
        called_in=shown(str(Path.cwd())),
        command=command_of(options),
    )
    check_files(options)
    # Only problems of the command's own master and worker are shown.
    set_up_logging(PROGRAM, "WARNING")
    if options.no_keep:
        identity = identity.once(new_id())
    try:
        return _crawl(options, config, identity, spec, feeds, started)
    finally:
        # Not while we have the lock: this crawl may be the one to remove.
        crawl_keep.prune(config.state, crawl_keep.limits_of(config))


def _crawl(
    options: Namespace,
    config: Config,
    identity: Crawl,
    spec: JobSpec,
    feeds: tuple[Feed, ...],
    started: float,
) -> int:
    with identity.locked(), tempfile.TemporaryDirectory(prefix="dscrapy-") as folder:
        record, how, note = choose(
            identity, new_id(), fresh=options.fresh, resume=options.resume
        )
        if note:
            _say(note)
        elif (
            how == "new"
            and not options.fresh
            and (line := others_line(identity, record))
        ):
            _say(line)
        caller, note = make_caller(options, identity)
        if note:
            _say(note)
        run = _Run(
            config=attrs.evolve(config, state=identity.folder),
            crawl=identity,
            record=record,
            how=how,
            spec=spec,
            feeds=feeds,
            folder=Path(folder),
            caller=caller,
            shows_all_log=options.loglevel is not None or not is_decorated(sys.stderr),
            is_quiet=options.nolog,
            slots=options.parallelism or usable_cpus(),
            keeps=not options.no_keep,
        )
        try:
            trio.run(_run, run)
            return _finish(run, started)
        finally:
            if not run.keeps:
                identity.discard()


def _spec(options: Namespace) -> tuple[Path, JobSpec]:
    _, project_dir, spider = place_of(options.spider, None)
    settings = other_settings(options)
    spec = JobSpec(
        project_dir=project_dir,
        spider=spider,
        args=dict(options.args),
        settings=settings,
        parallelism=options.parallelism,
    )
    spec = structs.replace(spec, **chosen_settings(os.environ))
    # Settings of this run alone are of the same form.
    check_spec(structs.replace(spec, settings=settings | run_settings(options)))
    return Path(project_dir), spec


# ---- the run --------------------------------------------------------------------


async def _run(run: _Run) -> None:
    """Serve, submit, wait and fetch the items; master and worker end with this."""
    from dscrapy.master.server import serve

    # The one job stays until its items are written.
    settings = attrs.evolve(
        run.config.master,
        host="127.0.0.1",
        port=0,
        keep_jobs=0,
        keep_days=0.0,
        keep_bytes=0,
    )
    config = attrs.evolve(run.config, master=settings)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            endpoint: Endpoint = await nursery.start(
                partial(serve, config, handle_signals=False)
            )
            client = _client(run, endpoint)
            nursery.start_soon(_watch_signals, run, signals, nursery.cancel_scope)
            async with client() as calls:
                if await _begin(run, calls):
                    await _until_ended(run, config, client, endpoint)
                run.is_over = run.shown is not None
                if run.shown is None:
                    # The job was stopped: its items so far are all there are.
                    run.shown = await calls.show(run.record.job)
                run.fetched = await fetch(calls, run.record.job, run.folder, run.feeds)
            nursery.cancel_scope.cancel()


def _client(run: _Run, endpoint: Endpoint) -> Callable[[], Client]:
    """Return what makes clients of our own master."""
    target = Target(
        host=endpoint.host,
        port=endpoint.port,
        token=find_token(run.config),
        token_from=f"it comes from {run.config.state}",
    )
    return partial(Client, lambda: target, connect_timeout_s=_CONNECT_TIMEOUT_S)


async def _begin(run: _Run, client: Client) -> bool:
    """Submit the job, or let the unfinished one go on.

    Returns whether there is anything to run: the job may have ended before.
    """
    shown = None if run.how == "new" else await _known_job(run.record.job, client)
    if shown is None:
        # Stopped before the job was durable, a resumed crawl is a new one.
        await client.submit([Submission(id=run.record.job, spec=run.spec)])
        run.crawl.save(run.record)
        run.job_known = True
        return True
    run.job_known = True
    job = shown.job
    assert job is not None
    is_own_cancelling = (
        run.how == "go on with changed code" and job.state == "cancelled"
    )
    # A run that was stopped between its own cancelling and going on goes on now.
    if job.state in FINAL_STATES and not is_own_cancelling:
        _say(f"the crawl itself had ended ({job.state}): writing its items")
        run.shown = shown
        return False
    _say(
        f"resuming: {plural(job.pages, 'page')} done, {job.pending + job.leased} "
        "pending; --fresh starts over"
    )
    run.log_offset = await copy_file(client, job.id, "log", len)
    if run.how == "go on with changed code":
        await _cancel(client, job.id)
    else:
        await _allow(client, job, run.spec.parallelism)
    return True


async def _allow(client: Client, job: JobView, parallelism: int) -> None:
    """Let the job have as many processes as this run's ``-p`` says, unless it ends."""
    if job.parallelism == parallelism:
        return
    change = ChangeJob(call=0, verb="parallelism", job=job.id, count=parallelism)
    try:
        await client.change(change)
    except RefusedError as error:
        if error.code != "bad_state":
            raise


async def _known_job(job: str, client: Client) -> Shown | None:
    try:
        return await client.show(job)
    except RefusedError as error:
        if error.code != "no_such_job":
            raise
        return None


async def _cancel(client: Client, job: str) -> None:
    """Cancel the job, unless it has ended or is about to."""
    try:
        await client.change(ChangeJob(call=0, verb="cancel", job=job))
    except RefusedError as error:
        if error.code != "bad_state":
            raise


async def _until_ended(
    run: _Run, config: Config, client: Callable[[], Client], endpoint: Endpoint
) -> None:
    """Run the job on a worker of our own, with log and progress, until the job ends or
    the worker has left after Ctrl-C."""
    from dscrapy.worker.agent import serve

    settings = attrs.evolve(
        config.worker,
        master=str(endpoint),
        host="127.0.0.1",
        port=0,
        name=_WORKER_NAME,
        slots=run.slots,
    )
    log_writer = _LogWriter(run)
    async with trio.open_nursery() as nursery:

        async def work(task_status: trio.TaskStatus[Endpoint]) -> None:
            await serve(
                attrs.evolve(config, worker=settings),
                handle_signals=False,
                drain=run.stopping,
                # The lock of this crawl's state keeps every other one out.
                instance=_WORKER_NAME,
                caller=run.caller,
                task_status=task_status,
            )
            # All that was under way is committed: the rest is for the next run.
            nursery.cancel_scope.cancel()

        await nursery.start(work)
        log_is_copied = trio.Event()
        async with client() as waiting:
            if run.how == "go on with changed code":
                await _accept_changed_code(run, waiting)
            nursery.start_soon(_copy_log, run, client, log_writer, log_is_copied)
            if not run.is_quiet:
                nursery.start_soon(_show_progress, run, client)
            run.shown = await waiting.wait(run.record.job)
        with trio.move_on_after(_LOG_REST_S):
            await log_is_copied.wait()
        nursery.cancel_scope.cancel()
    async with client() as calls:
        await copy_file(calls, run.record.job, "log", log_writer, offset=run.log_offset)
    log_writer.end()
    run.ticker.clear()


async def _accept_changed_code(run: _Run, client: Client) -> None:
    """Retry the job, cancelled before: a retry takes the code as it is now.

    The worker is here already, so the master knows that the old process is not.
    """
    job = (await client.wait(run.record.job)).job
    assert job is not None
    # A crawl that has nothing yet loses nothing by beginning anew.
    has_nothing = job.pages == 0 and job.items == 0
    await client.change(ChangeJob(call=0, verb="retry", job=job.id, fresh=has_nothing))
    await _allow(client, job, run.spec.parallelism)
    # Only now: a run that stops before this has to do it again.
    run.crawl.save(run.record)


async def _watch_signals(
    run: _Run, signals: AsyncIterator[int], stop: trio.CancelScope
) -> None:
    """First Ctrl-C: let the spider finish what it has begun. Second: stop now."""
    async for _ in signals:
        if run.stopping.is_set() or not run.job_known:
            run.forced = True
            stop.cancel()
            return
        with run.ticker.aside():
            _say("stopping: pages under way are finished; Ctrl-C again stops at once")
        run.stopping.set()


async def _copy_log(
    run: _Run,
    client: Callable[[], Client],
    write: Callable[[bytes], None],
    copied: trio.Event,
) -> None:
    """Copy the job's log to stderr until the job has ended."""
    async with client() as calls:
        await copy_file(
            calls, run.record.job, "log", write, offset=run.log_offset, follow=True
        )
    copied.set()


class _LogWriter:
    """Writes the job's log to stderr: all of it, or what is a warning or worse."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._out = Bytes(sys.stderr)
        is_all = run.shows_all_log and not run.is_quiet
        self._all = HeadingsInUse() if is_all else None
        self._lines = _LineFilter(every=run.shows_all_log)

    def __call__(self, data: bytes) -> None:
        """Take the next bytes of the log."""
        self._run.log_offset += len(data)
        self._show(self._all.feed(data) if self._all else self._lines.feed(data))

    def end(self) -> None:
        """Write what is left, if need be without its end."""
        if self._all:
            self._show(self._all.end())

    def _show(self, data: bytes) -> None:
        if data:
            self._run.log_tail += data
            del self._run.log_tail[:-_LOG_TAIL_BYTES]
            with self._run.ticker.aside():
                self._out.write(data)


class _LineFilter:
    """Picks the lines of a Scrapy log that are warnings or worse, with what follows; or
    ``every`` line, but for the headings of processes.

    A line without a date belongs to the one before it (a traceback).
    """

    _HEAD = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ([A-Z]+): ")

    def __init__(self, *, every: bool) -> None:
        self._lines = LineCutter()
        self._every = self._wanted = every

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the log and return those to show."""
        shown = []
        for line in self._lines.feed(data):
            head = self._HEAD.match(line)
            if head is not None:
                is_bad = head[1] in (b"WARNING", b"ERROR", b"CRITICAL")
                self._wanted = self._every or is_bad
            elif HEADING.match(line):
                self._wanted = self._every
                continue
            if self._wanted:
                shown.append(line + b"\n")
        return b"".join(shown)


async def _show_progress(run: _Run, client: Callable[[], Client]) -> None:
    """Show how the job goes: a line redrawn, or one now and then."""
    is_drawn = is_decorated(sys.stderr)
    pause = TICK_S if is_drawn else LINE_EVERY_S
    began = trio.current_time()
    async with client() as calls:
        job = (await calls.show(run.record.job)).job
        assert job is not None
        seen = (began, job.pages)
        while True:
            await trio.sleep(pause)
            job = (await calls.show(run.record.job)).job
            assert job is not None
            now = trio.current_time()
            rate = (job.pages - seen[1]) / max(now - seen[0], 1e-9)
            seen = (now, job.pages)
            width = run.ticker.width if is_drawn else None
            line = progress_line(job, rate, now - began, width)
            if is_drawn:
                run.ticker.show(line)
            else:
                _say(line)


# ---- afterwards -----------------------------------------------------------------


def _finish(run: _Run, started: float) -> int:
    """Write the files, sum up and return the exit code."""
    if run.forced or run.shown is None or run.shown.job is None or not run.fetched:
        hint = "run the same command again to go on"
        _say(f"stopped at once: {hint if run.keeps else 'nothing of it is kept'}")
        return 1
    job = run.shown.job
    trace = run.shown.traceback.strip()
    if trace and trace.encode(errors="replace") not in run.log_tail:
        # The log does not have it, or has it in part.
        write_err(clean_lines(trace) + "\n")
    # A stopped job has done its work so far, and goes on later.
    undone = job.state if run.is_over and not job.came_to_end else ""
    stdin = kept_stdin(run.crawl.folder) or run.fetched.stdin
    fetched = attrs.evolve(run.fetched, stdin=stdin)
    written = _write(run, fetched, run.shown.spec, undone)
    run.record.done = run.is_over
    if run.is_over:
        run.record.ended_at = time.time()
        run.record.state = job.state
        run.record.pages, run.record.items = job.pages, job.items
    run.crawl.save(run.record)
    if run.is_over:
        forget_stdin(run.crawl)
        run.crawl.finish(run.record)
        if run.is_quiet and job.state == "succeeded":
            return 0
    _say(_summary(run, job, time.monotonic() - started))
    for line in written:
        _say(line)
    for feed in run.shown.feeds:
        _say(f"wrote {written_text(feed)}")
    if not run.feeds and not run.shown.feeds and job.items:
        where = run.config.state / "jobs" / job.id / "items.jsonl"
        kept = f"the items are in {where} until newer crawls push it out"
        _say(f"no -o FILE was given: {kept if run.keeps else 'nothing is kept'}")
    return 0 if run.is_over and job.state == "succeeded" else 1


def _write(run: _Run, fetched: Fetched, spec: JobSpec, undone: str) -> list[str]:
    """Write the files; return a line about each. The next run repeats what fails."""
    feeds = run.feeds
    if not undone:
        feeds = appends.prepare(run.record, feeds)
        run.crawl.save(run.record)
    # Where the processes ran: relative paths in the settings begin there.
    home = run.caller.folder
    try:
        return write_results(feeds, fetched, run.folder, spec, home, undone=undone)
    finally:
        appends.note(run.record, feeds)
        run.crawl.save(run.record)


def _summary(run: _Run, job: JobView, elapsed_s: float) -> str:
    reason = f" ({job.reason})" if job.reason and job.reason != job.state else ""
    text = (
        f"{job.spider} {f'{job.state}{reason}' if run.is_over else 'stopped'}: "
        f"{counts(job)} in {span(elapsed_s)}"
    )
    if not run.is_over:
        text += f"; {job.pending + job.leased} pending"
        text += ", run the same command to go on" if run.keeps else ", nothing is kept"
    return text


def _say(text: str) -> None:
    note(f"{PROGRAM}: {text}")


def _path(text: str | None) -> Path | None:
    return None if text is None else expanded(text)
