"""What commands show: answers of the master as text for people, JSON for scripts.

Pure: takes answers, gives blocks of text or JSON values. Instants are ISO 8601 in
UTC in JSON, and spans or local times for people.
"""

import math
import pprint
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec

from dscrapy.cli.terminal.screen import Block
from dscrapy.cli.terminal.tables import Table, progress
from dscrapy.messages import Shown, Status
from dscrapy.model import (
    FeedFiles,
    JobSpec,
    JobView,
    ScheduleView,
    Stats,
    WorkerView,
)
from dscrapy.text import clean, clean_lines

Rates = Mapping[str, float]

# One-line fields are cut here in tables, so that rows stay rows.
_CELL_CHARS_MAX = 200
# Workers of a job that a row names; ``show`` names all.
_NAMES_MAX = 2
_STATES = ("ready", "running", "paused", "succeeded", "failed", "cancelled")


# ---- JSON -------------------------------------------------------------------


def dump(value: object) -> str:
    """Return one line of JSON."""
    return msgspec.json.encode(value).decode()


def iso(instant: float | None) -> str | None:
    """Return ``2026-01-02T03:04:05Z``, None for no instant."""
    if instant is None:
        return None
    return datetime.fromtimestamp(instant, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _json(view: JobView | ScheduleView | WorkerView | Status) -> dict[str, Any]:
    fields = msgspec.to_builtins(view)
    for name, value in fields.items():
        if name.endswith("_at"):
            fields[name] = iso(value)
    assert isinstance(fields, dict)
    return fields


def job_json(job: JobView) -> dict[str, Any]:
    """Return a job object of ``status --json``."""
    return _json(job)


def worker_json(worker: WorkerView) -> dict[str, Any]:
    """Return a worker object of ``status --json``."""
    return _json(worker)


def status_json(status: Status, jobs: Iterable[JobView]) -> dict[str, Any]:
    """Return ``{"master": {...}, "workers": [...], "jobs": [...]}``.

    Asked at a worker's own port, the first key is ``worker``.
    """
    whole = _json(status)
    for name in ("type", "call", "running", "failed", "workers", "schedules"):
        del whole[name]
    whole["counts"] = whole.pop("jobs")
    whole["schedules"] = [_json(schedule) for schedule in status.schedules]
    return {
        whole.pop("role"): whole,
        "workers": [worker_json(worker) for worker in status.workers],
        "jobs": [job_json(job) for job in jobs],
    }


def shown_json(shown: Shown) -> dict[str, Any]:
    """Return a job (or schedule) object with all that is known of it."""
    view = shown.job or shown.schedule
    assert view is not None
    whole = _json(view)
    whole["kind"] = "job" if shown.job is not None else "schedule"
    whole["spec"] = _whole_json(shown.spec)
    if shown.job is not None:
        whole["digest"] = shown.digest
        whole["traceback"] = shown.traceback
        whole["poisoned_requests"] = msgspec.to_builtins(shown.poisoned)
        whole["feeds"] = [_whole_json(feed) for feed in shown.feeds]
        whole["stats"] = {
            key: iso(value.timestamp()) if isinstance(value, datetime) else value
            for key, value in stats_values(shown.stats).items()
        }
    return whole


def _whole_json(value: JobSpec | FeedFiles) -> dict[str, Any]:
    # ``to_builtins`` would leave out what is at its default.
    return {
        field: msgspec.to_builtins(getattr(value, field))
        for field in value.__struct_fields__
    }


# ---- text -------------------------------------------------------------------


def status_blocks(
    status: Status, rates: Rates, now: float, waiting: Sequence[JobView] = ()
) -> list[Block]:
    """Return what ``status`` shows; ``rates`` are pages a second by job id.

    ``now`` is the wall clock, for jobs that ``rates`` does not name. ``waiting`` are
    the first jobs that are ready or paused.
    """
    blocks: list[Block] = [_head(status)]
    if status.role == "master":
        blocks.append(
            workers_table(status.workers)
            if status.workers
            else "No workers: start one with `dscrapy worker`."
        )
        blocks.append(f"Jobs: {_counts(status.jobs)}.")
    elif status.workers:
        blocks.append(workers_table(status.workers))
    if status.running:
        blocks.append(_running_table(status.running, rates, now))
    hidden = status.jobs.get("running", 0) - len(status.running)
    if hidden > 0:
        blocks.append(f"... and {hidden} more running: `dscrapy jobs` lists them.")
    if waiting:
        blocks.append(_waiting_table(waiting))
        unlisted = status.jobs.get("ready", 0) + status.jobs.get("paused", 0)
        unlisted -= len(waiting)
        if unlisted > 0:
            blocks.append(
                f"... and {unlisted} more waiting: `dscrapy jobs` lists them."
            )
    if status.schedules:
        blocks.append(_schedules_table(status.schedules))
    if status.failed:
        blocks.append(_failed_table(status.failed))
    return blocks


def workers_table(workers: Iterable[WorkerView]) -> Table:
    """Return the table of workers."""
    return Table(
        ("WORKER", "ADDRESS", "BUSY", "SLOTS", "STATE", "HEARD", "NOTE"),
        tuple(
            (
                clean(worker.name),
                clean(_address(worker.host, worker.port)),
                str(worker.busy),
                str(worker.slots),
                worker.state,
                f"{span(worker.last_heartbeat_s)} ago",
                cell(worker.note),
            )
            for worker in workers
        ),
        frozenset({"BUSY", "SLOTS"}),
        free=frozenset({"NOTE"}),
    )


def jobs_table(jobs: Iterable[JobView], now: float) -> Table:
    """Return the table of jobs; ``now`` is the wall clock."""
    return Table(
        (
            *("ID", "STATE", "PROCS", "PAGES", "ITEMS", "ERRORS"),
            *("PROJECT", "SPIDER", "NAME", "STARTED", "TOOK", "REASON"),
        ),
        tuple(
            (
                job.id,
                job.state,
                _processes(job),
                str(job.pages),
                str(job.items),
                _errors(job),
                clean(short_project(job.project)),
                clean(job.spider),
                clean(job.name),
                _short_time(job.started_at, now),
                _took(job, now),
                cell(job.reason),
            )
            for job in jobs
        ),
        frozenset({"PROCS", "PAGES", "ITEMS", "ERRORS"}),
        free=frozenset({"REASON"}),
    )


def shown_text(shown: Shown, width: int | None = None) -> str:
    """Return all that is known of a job or schedule, one field a line.

    For a terminal of this ``width`` long texts go on below their beginning.
    """
    if shown.job is not None:
        pairs = _job_pairs(shown.job)
    else:
        assert shown.schedule is not None
        pairs = _schedule_pairs(shown.schedule)
    pairs += _spec_pairs(shown.spec)
    if shown.digest:
        pairs.append(("code", shown.digest))
    pairs += [("wrote", written_text(one, names=True)) for one in shown.feeds]
    wide = max(len(name) for name, _ in pairs) + 2
    lines = [
        _hanging(name.ljust(wide), clean(value), width)
        for name, value in pairs
        if value
    ]
    if shown.poisoned:
        lines.append("poisoned")
        lines += [f"  {clean(one.url)} ({clean(one.reason)})" for one in shown.poisoned]
    if shown.traceback:
        body = clean_lines(shown.traceback.rstrip("\n"))
        lines += ["traceback", textwrap.indent(body, "  ")]
    if shown.stats:
        text = pprint.pformat(stats_values(shown.stats))
        lines += ["stats", textwrap.indent(clean_lines(text), "  ")]
    return "\n".join(lines)


def _hanging(head: str, text: str, width: int | None) -> str:
    """Return the text after its head, broken between words; ids, paths and URLs are
    of use only whole, so that they can be copied."""
    if width is None or len(head) + len(text) <= width:
        return head + text
    return textwrap.fill(
        text,
        width,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )


def written_text(feed: FeedFiles, *, names: bool = False) -> str:
    """Return ``5 items to PATH``, what is written of a feed, to stand after "wrote".

    With ``names`` the workers are named whose machines have the files.
    """
    if not feed.files:
        text = f"nothing to {feed.last}"
    elif feed.files + feed.failed == 1:
        text = f"{plural(feed.items, 'item')} to {feed.last}"
    else:
        text = f"{plural(feed.items, 'item')} to {plural(feed.files, 'file')}, "
        text += f"from {feed.first} to {feed.last}"
    if names and feed.workers and feed.last.startswith("/"):
        text += f" on {_few(feed.workers)}"
    if not feed.failed:
        return text
    subject = "it" if feed.files + feed.failed == 1 else plural(feed.failed, "file")
    return f"{text}: {subject} could not be stored, see the log"


def result_line(job: JobView) -> str:
    """Return ``ID STATE REASON``, how a job stands."""
    return f"{job.id} {job.state} {clean(job.reason)}".rstrip()


def ended_line(job: JobView) -> str:
    """Return ``ID STATE REASON: COUNTS``, what ``wait`` prints of a job."""
    return f"{result_line(job)}: {counts(job)}"


def counts(job: JobView) -> str:
    """Return ``3 pages, 0 items, 40 errors``."""
    parts = [plural(job.pages, "page"), plural(job.items, "item")]
    if job.errors is not None:
        parts.append(plural(job.errors, "error"))
    return ", ".join(parts)


def progress_line(
    job: JobView, rate: float | None, elapsed_s: float | None, width: int | None
) -> str:
    """Return a line about a job that goes on: its numbers, then what it is.

    ``rate`` is pages a second. With a ``width`` the words are shortened, and the text
    is cut, to fit.
    """
    numbers = [(job.pages, "page", "pg"), (job.items, "item", "it")]
    if job.errors is not None:
        numbers.append((job.errors, "error", "err"))
    words = [plural(count, noun) for count, noun, _ in numbers]
    short = [f"{count} {noun}" for count, _, noun in numbers]
    rate_words = [] if rate is None else [f"{rate:.1f}/s"]
    pending = job.pending + job.leased
    times = [] if elapsed_s is None else [span(elapsed_s)]
    words += [*rate_words, f"{pending} pending", *times]
    short += [*rate_words, f"{pending} left", *times]
    if width is not None and len(", ".join(words)) > width:
        words = short
    if job.processes > 1:
        words.append(plural(job.processes, "process"))
    name = clean(job.spider)
    parts: list[str] = [] if job.state == "running" else [job.state]
    if job.reason:
        parts.append(f"({cell(job.reason)})")
    if width is None:
        return " ".join([f"{', '.join(words)}: {name}", *parts])
    return progress(words, name, " ".join(parts), width)


def stats_values(stats: Stats) -> dict[str, Any]:
    """Return stats as Scrapy has them: key to value, datetimes as such."""
    values: dict[str, Any] = {}
    for by_key in stats.values():
        for key, raw in by_key.items():
            values[key] = _untagged(msgspec.json.decode(raw))
    return dict(sorted(values.items()))


def _untagged(value: Any) -> Any:
    """Scrapy's own stats are numbers, texts and datetimes; the rest stays tagged."""
    if not isinstance(value, dict) or set(value) != {"$dt"}:
        return value
    try:
        written, fold, zone = value["$dt"]
        zone_info = None if zone is None else timezone(timedelta(microseconds=zone))
        return datetime.fromisoformat(written).replace(fold=fold, tzinfo=zone_info)
    except (TypeError, ValueError, OverflowError):
        # A named zone, or what a project made up.
        return value


def span(seconds: float) -> str:
    """Return a span for people: ``0.4 s``, ``12 s``, ``3 m 5 s``, ``2 h 10 m``."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    if seconds < 1:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for unit, name, part, part_name in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // part} {part_name}"
    return f"{whole} s"


def plural(count: int, noun: str) -> str:
    """Return ``1 page``, ``2 pages``, ``2 processes``."""
    if count == 1:
        return f"{count} {noun}"
    return f"{count} {noun}{'es' if noun.endswith('s') else 's'}"


def cell(text: str) -> str:
    """Return ``text`` on one line, cut where it is long."""
    text = clean(" ".join(text.split()))
    if len(text) <= _CELL_CHARS_MAX:
        return text
    return f"{text[: _CELL_CHARS_MAX - 3]}..."


def rate(job: JobView, rates: Rates, now: float) -> str:
    """Return pages a second: lately, or since the job started."""
    if job.id in rates:
        return f"{rates[job.id]:.1f}/s"
    if job.started_at is None or now <= job.started_at:
        return ""
    return f"{job.pages / (now - job.started_at):.1f}/s"


def _head(status: Status) -> str:
    versions = status.versions
    lines = [
        f"{status.role.capitalize()} {clean(_address(status.host, status.port))}, "
        f"up {span(status.uptime_s)}, dscrapy {clean(versions.dscrapy)}, "
        f"Scrapy {clean(versions.scrapy)}, Python {clean(versions.python)}"
    ]
    if status.note:
        lines.append(f"Note: {clean(status.note)}")
    return "\n".join(lines)


def _counts(counts: Mapping[str, int]) -> str:
    known = [name for name in _STATES if name in counts]
    others = [name for name in counts if name not in _STATES]
    parts = [f"{counts[name]} {clean(name)}" for name in known + others if counts[name]]
    return ", ".join(parts) or "none"


def _running_table(jobs: Iterable[JobView], rates: Rates, now: float) -> Table:
    return Table(
        (
            *("ID", "STATE", "PROCS", "PAGES", "ITEMS", "ERRORS"),
            *("RATE", "PENDING", "SPIDER", "NAME", "WORKERS"),
        ),
        tuple(
            (
                job.id,
                job.state,
                _processes(job),
                str(job.pages),
                str(job.items),
                _errors(job),
                rate(job, rates, now),
                str(job.pending + job.leased),
                clean(job.spider),
                clean(job.name),
                clean(_few(job.workers)),
            )
            for job in jobs
        ),
        frozenset({"PROCS", "PAGES", "ITEMS", "ERRORS", "RATE", "PENDING"}),
    )


def _failed_table(jobs: Iterable[JobView]) -> Table:
    return Table(
        ("FAILED LATELY", "SPIDER", "NAME", "REASON"),
        tuple(
            (job.id, clean(job.spider), clean(job.name), cell(job.reason))
            for job in jobs
        ),
        free=frozenset({"REASON"}),
    )


def _waiting_table(jobs: Iterable[JobView]) -> Table:
    return Table(
        ("ID", "STATE", "SPIDER", "NAME", "WHY IT WAITS"),
        tuple(
            (
                job.id,
                job.state,
                clean(job.spider),
                clean(job.name),
                cell(job.reason),
            )
            for job in jobs
        ),
        free=frozenset({"WHY IT WAITS"}),
    )


def _schedules_table(schedules: Iterable[ScheduleView]) -> Table:
    return Table(
        ("SCHEDULE", "STATE", "EVERY", "RUNS", "NEXT", "SPIDER", "NAME", "LATEST RUN"),
        tuple(
            (
                schedule.id,
                schedule.state,
                span(schedule.every_s),
                str(schedule.runs),
                _local(schedule.next_at),
                clean(schedule.spider),
                clean(schedule.name),
                schedule.job or "",
            )
            for schedule in schedules
        ),
        frozenset({"RUNS"}),
    )


def _job_pairs(job: JobView) -> list[tuple[str, str]]:
    return [
        ("job", job.id),
        ("name", job.name),
        ("state", job.state),
        ("reason", job.reason),
        ("project", job.project),
        ("spider", job.spider),
        ("pages", str(job.pages)),
        ("items", str(job.items)),
        ("errors", _errors(job)),
        (
            "requests",
            f"{job.pending} pending, {job.leased} leased, {job.poisoned} poisoned",
        ),
        ("processes", f"{job.processes} now, {job.runs} started so far"),
        ("retries left", str(job.retries_left)),
        ("workers", ", ".join(job.workers)),
        ("schedule", job.schedule or ""),
        ("submitted", _local(job.submitted_at)),
        ("started", _local(job.started_at)),
        ("finished", _local(job.finished_at)),
        ("took", _took(job)),
    ]


def _schedule_pairs(schedule: ScheduleView) -> list[tuple[str, str]]:
    return [
        ("schedule", schedule.id),
        ("name", schedule.name),
        ("state", schedule.state),
        ("project", schedule.project),
        ("spider", schedule.spider),
        ("every", span(schedule.every_s)),
        ("runs", str(schedule.runs)),
        ("latest run", schedule.job or ""),
        ("next run", _local(schedule.next_at)),
    ]


def _spec_pairs(spec: JobSpec) -> list[tuple[str, str]]:
    pairs = [
        ("priority", str(spec.priority)),
        ("retries", str(spec.retries)),
        ("parallelism", str(spec.parallelism) if spec.parallelism else "all slots"),
    ]
    pairs += [("argument", f"{name}={value}") for name, value in spec.args.items()]
    pairs += [("setting", f"{name}={value}") for name, value in spec.settings.items()]
    pairs += [("url", url) for url in spec.urls]
    if spec.scrapy_project:
        pairs.append(("SCRAPY_PROJECT", spec.scrapy_project))
    if spec.settings_module:
        pairs.append(("SCRAPY_SETTINGS_MODULE", spec.settings_module))
    return pairs


def _processes(job: JobView) -> str:
    return str(job.processes) if job.processes else ""


def _errors(job: JobView) -> str:
    return "" if job.errors is None else str(job.errors)


def _took(job: JobView, now: float | None = None) -> str:
    """Return how long the job took; with ``now`` so far, if it goes on."""
    ended_at = job.finished_at if job.finished_at is not None else now
    if job.started_at is None or ended_at is None:
        return ""
    return span(max(ended_at - job.started_at, 0.0))


def _short_time(instant: float | None, now: float) -> str:
    """Return the local time of today, else the day: tables have little room."""
    if instant is None:
        return ""
    local = datetime.fromtimestamp(instant, UTC).astimezone()
    today = datetime.fromtimestamp(now, UTC).astimezone().date()
    return local.strftime("%H:%M:%S" if local.date() == today else "%Y-%m-%d")


def _local(instant: float | None) -> str:
    if instant is None:
        return ""
    local = datetime.fromtimestamp(instant, UTC).astimezone()
    return local.strftime("%Y-%m-%d %H:%M:%S %z")


def _few(names: Sequence[str]) -> str:
    """Return names that are not cut, if need be the first ones."""
    unnamed = len(names) - _NAMES_MAX
    return ", ".join(names[:_NAMES_MAX]) + (
        f" and {unnamed} more" if unnamed > 0 else ""
    )


def short_project(project: str) -> str:
    """A folder is known by its last part; ``show`` gives it whole."""
    return project.rstrip("/").rpartition("/")[2] or project


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
