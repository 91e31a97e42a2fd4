"""Commands about jobs: submit, watch and change them, and get their items and logs."""

import os
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import msgspec
import trio

from dscrapy.cli.connect import client_config, for_each, make_client, run_client
from dscrapy.cli.local.caller_options import NO_FEEDS, chosen_settings
from dscrapy.cli.local.forecast import forecast
from dscrapy.cli.output_files import (
    Feed,
    Fetched,
    check_outputs,
    check_places,
    copy_file,
    copy_items,
    fetch,
    parse_feeds,
    write_results,
)
from dscrapy.cli.parser import PROGRAM
from dscrapy.cli.serve import new_id, read_jobs
from dscrapy.cli.terminal.log_lines import LogLines
from dscrapy.cli.terminal.render import (
    dump,
    ended_line,
    job_json,
    jobs_table,
    plural,
    progress_line,
    result_line,
    short_project,
    shown_json,
    shown_text,
    written_text,
)
from dscrapy.cli.terminal.screen import (
    Bytes,
    Ticker,
    is_decorated,
    note,
    out_width,
    print_blocks,
    write_err,
    write_line,
)
from dscrapy.client import Client
from dscrapy.conf.config import Config, expanded, parse_duration
from dscrapy.conf.job_file import check_every, check_spec
from dscrapy.crawl.insides.versions import check_version
from dscrapy.errors import UsageError, UserError
from dscrapy.messages import ChangeJob, Shown
from dscrapy.model import FINAL_STATES, JobSpec, JobView, Submission
from dscrapy.projects import find_project
from dscrapy.text import clean_lines

# How often the progress line of a waiting command is renewed.
PROGRESS_S = 1.0


# ---- submitting ---------------------------------------------------------------


def submit(options: Namespace) -> int:
    """Submit one job, a schedule or a file of them; print the ids."""
    check_version()
    if options.file is not None:
        path = None if options.file == "-" else expanded(options.file)
        submissions = _with_variables(read_jobs(path))
        feeds: tuple[Feed, ...] = ()
    else:
        submissions = (_submission(options),)
        feeds = parse_feeds(options, options.spider)
    config = client_config(options)
    if feeds:
        spec = submissions[0].spec
        check_outputs(feeds, spec, _local_project(config, spec))
        check_places(feeds)
    ids = [submission.id for submission in submissions]

    async def converse() -> int:
        async with make_client(config, patient=options.wait) as client:
            await client.submit(submissions)
            for identity in ids:
                write_line(identity)
            specs = [submission.spec for submission in submissions]
            for line in await forecast(config, specs):
                note(f"{PROGRAM}: {line}")
            if not options.wait:
                return 0
            ended: list[str] = [
                submission.id for submission in submissions if not submission.every_s
            ]
            return await _wait(config, client, ended, note, tells_traces=True)

    with tempfile.TemporaryDirectory(prefix="dscrapy-") as folder:
        code = trio.run(converse)
        if feeds:
            (submission,) = submissions
            _write(config, submission, feeds, Path(folder), heeds_end=True)
        return code


def _submission(options: Namespace) -> Submission:
    project, project_dir, spider = place_of(options.spider, options.project)
    has_files = bool(options.append_to or options.overwrite)
    spec = JobSpec(
        project=project,
        project_dir=project_dir,
        spider=spider,
        urls=tuple(options.urls),
        args=dict(options.args),
        settings=dict(options.settings) | (NO_FEEDS if has_files else {}),
        priority=options.priority,
        retries=options.retries,
        parallelism=options.parallelism,
        name=options.name,
    )
    spec = msgspec.structs.replace(spec, **chosen_settings(os.environ))
    check_spec(spec)
    every_s = None
    if options.every is not None:
        every_s = parse_duration(options.every)
        check_every(every_s)
    return Submission(id=new_id(), spec=spec, every_s=every_s)


def _with_variables(submissions: Iterable[Submission]) -> tuple[Submission, ...]:
    """Let the caller's variables choose settings for jobs that name none."""
    chosen = chosen_settings(os.environ)
    replace = msgspec.structs.replace
    lines = []
    for submission in submissions:
        spec = submission.spec
        if not spec.scrapy_project and not spec.settings_module:
            submission = replace(submission, spec=replace(spec, **chosen))
            check_spec(submission.spec)
        lines.append(submission)
    return tuple(lines)


def place_of(spider: str, project: str | None) -> tuple[str, str, str]:
    """Return project name, project folder (one of them empty) and spider.

    Without ``--project`` a spider's file is at home in its own folder, and any
    other spider in the project around the current folder.
    """
    if project is not None:
        # What stands before a separator can only be a folder.
        if os.sep in project or Path(project).is_dir():
            folder = _absolute(project)
            if not os.path.isdir(folder):
                raise UsageError(
                    f"there is no folder {folder}: --project names one of this "
                    "machine, or just the name of a folder under the workers' "
                    "projects_root"
                )
            return "", folder, spider
        return project, "", spider
    if spider.endswith(".py"):
        path = Path(_absolute(spider))
        if not path.is_file():
            raise UsageError(f"there is no file {spider}")
        return "", str(path.parent), path.name
    found = find_project(Path.cwd())
    if found is None and chosen_settings(os.environ)["settings_module"]:
        # The module of the settings says where the project's code is.
        found = Path.cwd()
    if found is None:
        raise UsageError(
            "there is no Scrapy project here (no scrapy.cfg in this folder or above, "
            "no SCRAPY_SETTINGS_MODULE): go to a project, or name a spider's .py file"
        )
    return "", str(found), spider


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


# ---- waiting --------------------------------------------------------------------


def wait(options: Namespace) -> int:
    """Wait for jobs to end; 0 if all succeeded."""
    config = client_config(options)

    async def converse() -> int:
        async with make_client(config, patient=True) as client:
            return await _wait(config, client, options.jobs, write_line)

    return trio.run(converse)


async def _wait(
    config: Config,
    client: Client,
    ids: list[str],
    tell: Callable[[str], None],
    *,
    tells_traces: bool = False,
) -> int:
    """Wait for each job in turn and tell how it ended; return the exit code."""
    found = []
    for word in ids:
        # A wrong last id must show now and not hours later, and a name must stand
        # for the job that has it now.
        job = (await client.show(word)).job
        if job is None:
            raise UserError(
                f"{word} is a schedule, which does not end: wait for its runs, "
                "`dscrapy jobs` lists them"
            )
        found.append(job.id)
    code = 0
    async with trio.open_nursery() as nursery:
        waiting = found
        ticker = Ticker()
        if is_decorated(sys.stderr):
            nursery.start_soon(_tick, config, waiting, ticker)
        while waiting:
            shown = await client.wait(waiting[0])
            job = shown.job
            assert job is not None
            with ticker.aside():
                if tells_traces and shown.traceback:
                    write_err(clean_lines(shown.traceback.strip()) + "\n")
                tell(ended_line(job))
                prefix = f"{job.id} " if len(ids) > 1 else ""
                for feed in shown.feeds:
                    wrote = f"wrote {written_text(feed, names=True)}"
                    note(f"{PROGRAM}: {prefix}{wrote}")
            code = code if job.state == "succeeded" else 1
            waiting.pop(0)
        nursery.cancel_scope.cancel()
    ticker.clear()
    return code


async def _tick(config: Config, waiting: list[str], ticker: "Ticker") -> None:
    """Keep a line about the job that is waited for, through a client of its own."""
    async with make_client(config, patient=True, quiet=True) as client:
        while waiting:
            identity, others_count = waiting[0], len(waiting) - 1
            job = (await client.show(identity)).job
            if job is not None and job.state not in FINAL_STATES:
                suffix = (
                    f", and {plural(others_count, 'other job')}" if others_count else ""
                )
                head = f"waiting for {identity}{suffix}: "
                ticker.show(
                    head + progress_line(job, None, None, ticker.width - len(head))
                )
            await trio.sleep(PROGRESS_S)


# ---- looking ----------------------------------------------------------------------


def jobs(options: Namespace) -> int:
    """List the jobs: at a terminal the newest first, else as they were submitted."""
    newest_first = is_decorated(sys.stdout) and not options.json

    def is_wanted(job: JobView) -> bool:
        project = options.project
        projects = (job.project, short_project(job.project))
        return (project is None or project in projects) and (
            options.spider in (None, job.spider)
        )

    async def ask(client: Client) -> list[JobView]:
        # The last ones are the newest, whichever way they are listed.
        return await client.jobs(
            tuple(options.states), newest=True, limit=options.limit, wanted=is_wanted
        )

    found = run_client(options, ask)
    if not newest_first:
        found.reverse()
    if options.json:
        write_line(dump([job_json(job) for job in found]))
    elif found:
        print_blocks([jobs_table(found, time.time())])
    else:
        note("no jobs")
    return 0


def show(options: Namespace) -> int:
    """Show all that is known of a job or schedule."""
    shown = run_client(options, lambda client: client.show(options.job))
    if options.json:
        write_line(dump(shown_json(shown)))
    else:
        write_line(shown_text(shown, out_width()))
    return 0


def change(options: Namespace) -> int:
    """Cancel, pause, resume or retry jobs; print the state of each."""
    verb: Literal["cancel", "pause", "resume", "retry"] = options.command

    async def act(client: Client) -> int:
        async def change_job(identity: str) -> None:
            message = ChangeJob(call=0, verb=verb, job=identity, fresh=options.fresh)
            shown = await client.change(message)
            write_line(_stand(shown))
            is_stopping = verb == "cancel" and not _is_over(shown)
            if is_stopping:
                note(f"{PROGRAM}: {identity} finishes what it has begun, then ends")

        return await for_each(options.jobs, change_job)

    return run_client(options, act)


def _stand(shown: Shown) -> str:
    if shown.job is not None:
        return result_line(shown.job)
    assert shown.schedule is not None
    return f"{shown.schedule.id} {shown.schedule.state}"


def _is_over(shown: Shown) -> bool:
    return shown.job is None or shown.job.state in FINAL_STATES


# ---- what a job gave ----------------------------------------------------------------


def items(options: Namespace) -> int:
    """Write a job's items."""
    config = client_config(options)
    shown = run_client(options, lambda client: client.show(options.job))
    if shown.job is None:
        raise UserError(
            f"{options.job} is a schedule: `dscrapy jobs` lists its runs, which have "
            "the items"
        )
    job = shown.job.id
    feeds = parse_feeds(options, shown.job.spider)
    check_outputs(feeds, shown.spec, _local_project(config, shown.spec))
    check_places(feeds)
    if not _is_over(shown):
        note(f"{PROGRAM}: {job} is {shown.job.state}: items so far")
    if not feeds:
        out = Bytes(sys.stdout)
        run_client(options, lambda client: copy_items(client, job, out.write))
        return 0
    with tempfile.TemporaryDirectory(prefix="dscrapy-") as folder:
        submission = Submission(id=job, spec=shown.spec)
        _write(config, submission, feeds, Path(folder))
    return 0


def _write(
    config: Config,
    job: Submission,
    feeds: tuple[Feed, ...],
    folder: Path,
    *,
    heeds_end: bool = False,
) -> None:
    """Fetch a job's items and write them to files; with ``heeds_end`` beside them if
    the job did not do its work."""

    async def converse() -> tuple[Fetched, JobView | None]:
        async with make_client(config) as client:
            fetched = await fetch(client, job.id, folder, feeds)
            return fetched, (await client.show(job.id)).job

    fetched, view = trio.run(converse)
    undone = ""
    if heeds_end and view is not None and not view.came_to_end:
        undone = view.state
    home = _local_project(config, job.spec)
    for line in write_results(feeds, fetched, folder, job.spec, home, undone=undone):
        note(f"{PROGRAM}: {line}")


def _local_project(config: Config, spec: JobSpec) -> Path | None:
    """Return the folder of a job's project if it is on this machine."""
    project = Path(spec.project_dir or config.projects_root / spec.project)
    return project if project.is_dir() else None


def logs(options: Namespace) -> int:
    """Print a job's log."""
    lines = LogLines(Bytes(sys.stdout).write, level=options.level, tail=options.tail)

    async def read(client: Client) -> None:
        job = await id_of(client, options.job)
        offset = 0
        if options.tail is not None:
            # First the log so far is read for its last lines, then new lines are shown.
            offset = await copy_file(client, job, "log", lines.take)
            lines.release()
        await copy_file(
            client, job, "log", lines.take, offset=offset, follow=options.follow
        )
        lines.end()

    run_client(options, read, patient=options.follow)
    return 0


async def id_of(client: Client, word: str) -> str:
    """Return the id of the job that the word stands for now.

    Whoever asks for long asks by id: a name may stand for another job later.
    """
    shown = await client.show(word)
    if shown.job is None:
        raise UserError(
            f"{word} is a schedule: `dscrapy jobs` lists its runs, which have "
            "items and logs"
        )
    return shown.job.id
