"""Commands about jobs: submitting, watching and changing them, and what they gave."""

import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import msgspec
import trio

from dscrapy.cli.caller import chosen_settings
from dscrapy.cli.connect import client_config, for_each, make_client, run_client
from dscrapy.cli.feeds import (
    Feed,
    Fetched,
    check_places,
    copy_file,
    fetch,
    parse_feeds,
    write_results,
)
from dscrapy.cli.forecast import forecast
from dscrapy.cli.parser import PROGRAM
from dscrapy.cli.render import (
    counts,
    dump,
    ended_line,
    job_json,
    jobs_table,
    plural,
    result_line,
    shown_json,
    shown_text,
)
from dscrapy.cli.screen import (
    Bytes,
    Ticker,
    clean,
    is_decorated,
    note,
    print_blocks,
    write_line,
)
from dscrapy.cli.serve import new_id, read_jobs
from dscrapy.client import Client
from dscrapy.config import Config, expanded, parse_duration
from dscrapy.errors import UsageError, UserError
from dscrapy.jobfile import check_every, check_spec
from dscrapy.messages import ChangeJob, Shown
from dscrapy.model import FINAL_STATES, JobSpec, JobView, Submission
from dscrapy.projects import find_project

# How often the progress line of a waiting command is renewed.
PROGRESS_S = 1.0


# ---- submitting ---------------------------------------------------------------


def submit(options: Namespace) -> int:
    """Submit one job, a schedule or a file of them; print the ids."""
    if options.file is not None:
        submissions = _with_variables(read_jobs(expanded(options.file)))
        feeds: tuple[Feed, ...] = ()
    else:
        submissions = (_submission(options),)
        feeds = parse_feeds(options, options.spider)
        check_places(feeds)
    config = client_config(options)
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
            return await _wait(config, client, ended, note)

    with tempfile.TemporaryDirectory(prefix="dscrapy-") as folder:
        code = trio.run(converse)
        if feeds:
            (submission,) = submissions
            _write(config, submission, feeds, Path(folder), heeds_end=True)
        return code


def _submission(options: Namespace) -> Submission:
    project, project_dir, spider = place_of(options.spider, options.project)
    spec = JobSpec(
        project=project,
        project_dir=project_dir,
        spider=spider,
        urls=tuple(options.urls),
        args=dict(options.args),
        settings=dict(options.settings),
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
    """Let our variables choose the settings of jobs that do not name theirs."""
    chosen = chosen_settings(os.environ)
    replace = msgspec.structs.replace
    told = []
    for submission in submissions:
        spec = submission.spec
        if not spec.scrapy_project and not spec.settings_module:
            submission = replace(submission, spec=replace(spec, **chosen))
            check_spec(submission.spec)
        told.append(submission)
    return tuple(told)


def place_of(spider: str, project: str | None) -> tuple[str, str, str]:
    """Return project name, project folder (one of them empty) and spider.

    Without ``--project`` a spider's file is at home in its own folder, and any
    other spider in the project around the current folder.
    """
    if project is not None:
        # What stands before a separator can only be a folder.
        if os.sep in project or Path(project).is_dir():
            return "", _absolute(project), spider
        return project, "", spider
    if spider.endswith(".py"):
        path = Path(_absolute(spider))
        if not path.is_file():
            raise UsageError(f"there is no file {spider}")
        return "", str(path.parent), path.name
    folder = find_project(Path.cwd())
    if folder is None and chosen_settings(os.environ)["settings_module"]:
        # The module of the settings says where the project's code is.
        folder = Path.cwd()
    if folder is None:
        raise UsageError(
            "there is no Scrapy project here (no scrapy.cfg in this folder or above, "
            "no SCRAPY_SETTINGS_MODULE): go to a project, or name a spider's .py file"
        )
    return "", str(folder), spider


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
    config: Config, client: Client, ids: list[str], tell: Callable[[str], None]
) -> int:
    """Wait for each job in turn and tell how it ended; return the exit code."""
    for identity in ids:
        # A slip in the last id must not come out hours later.
        if (await client.show(identity)).job is None:
            raise UserError(
                f"{identity} is a schedule, which does not end: wait for its runs, "
                "`dscrapy jobs` lists them"
            )
    code = 0
    async with trio.open_nursery() as nursery:
        waiting = list(ids)
        ticker = Ticker()
        if is_decorated(sys.stderr):
            nursery.start_soon(_tick, config, waiting, ticker)
        while waiting:
            job = (await client.wait(waiting[0])).job
            assert job is not None
            with ticker.aside():
                tell(ended_line(job))
            code = code if job.state == "succeeded" else 1
            waiting.pop(0)
        nursery.cancel_scope.cancel()
    ticker.clear()
    return code


async def _tick(config: Config, waiting: list[str], ticker: "Ticker") -> None:
    """Keep a line about the job that is waited for, through a client of its own."""
    async with make_client(config, patient=True, quiet=True) as client:
        while waiting:
            identity, others = waiting[0], len(waiting) - 1
            job = (await client.show(identity)).job
            if job is not None and job.state not in FINAL_STATES:
                more = f", and {plural(others, 'other job')}" if others else ""
                ticker.show(f"waiting for {_progress(job)}{more}")
            await trio.sleep(PROGRESS_S)


def _progress(job: JobView) -> str:
    why = f" ({job.reason})" if job.reason else ""
    by = f", {plural(job.processes, 'process')}" if job.processes > 1 else ""
    return clean(f"{job.id} {job.spider}: {job.state}{why}, {counts(job)}{by}")


# ---- looking ----------------------------------------------------------------------


def jobs(options: Namespace) -> int:
    """List the jobs."""
    found = run_client(options, lambda client: client.jobs(tuple(options.states)))
    if options.json:
        write_line(dump([job_json(job) for job in found]))
    elif found:
        print_blocks([jobs_table(found)])
    else:
        note("no jobs")
    return 0


def show(options: Namespace) -> int:
    """Show all that is known of a job or schedule."""
    shown = run_client(options, lambda client: client.show(options.job))
    write_line(dump(shown_json(shown)) if options.json else shown_text(shown))
    return 0


def change(options: Namespace) -> int:
    """Cancel, pause, resume or retry jobs; print how each stands."""
    verb: Literal["cancel", "pause", "resume", "retry"] = options.command

    async def act(client: Client) -> int:
        async def change_one(identity: str) -> None:
            message = ChangeJob(call=0, verb=verb, job=identity, fresh=options.fresh)
            shown = await client.change(message)
            write_line(_stand(shown))
            is_stopping = verb == "cancel" and not _is_over(shown)
            if is_stopping:
                note(f"{PROGRAM}: {identity} finishes what it has begun, then ends")

        return await for_each(options.jobs, change_one)

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
    feeds = parse_feeds(options, shown.job.spider)
    check_places(feeds)
    if not _is_over(shown):
        note(f"{PROGRAM}: {options.job} is {shown.job.state}: items so far")
    if not feeds:
        out = Bytes(sys.stdout)
        run_client(
            options, lambda client: copy_file(client, options.job, "items", out.write)
        )
        return 0
    with tempfile.TemporaryDirectory(prefix="dscrapy-") as folder:
        submission = Submission(id=options.job, spec=shown.spec)
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
    project = Path(job.spec.project_dir or config.projects_root / job.spec.project)
    is_here = project.is_dir()
    home = project if is_here else None
    for line in write_results(feeds, fetched, folder, job.spec, home, undone=undone):
        note(f"{PROGRAM}: {line}")


def logs(options: Namespace) -> int:
    """Print a job's log."""
    out = Bytes(sys.stdout)
    run_client(
        options,
        lambda client: copy_file(
            client, options.job, "log", out.write, follow=options.follow
        ),
        patient=options.follow,
    )
    return 0
