"""What people and scripts see: escaped text, exact JSON, tables that stay tables."""

import io
import json
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dscrapy import messages as m
from dscrapy.cli.fleet import RateMeter
from dscrapy.cli.terminal import render
from dscrapy.cli.terminal.screen import Block, decorated, plain
from dscrapy.model import (
    FeedFiles,
    JobSpec,
    JobView,
    ScheduleView,
    Stats,
    Versions,
    WorkerView,
)
from dscrapy.text import clean

JOB = JobView(
    id="00000000000000aa",
    name="nightly",
    project="/srv/shop",
    spider="prices",
    state="running",
    reason="",
    priority=3,
    parallelism=1,
    pages=10,
    items=7,
    errors=4,
    pending=80,
    leased=5,
    poisoned=0,
    processes=3,
    retries_left=0,
    runs=1,
    workers=("w1",),
    schedule=None,
    submitted_at=1767323045.25,
    started_at=1767323046.0,
    finished_at=None,
)
NOW = 1767323106.0
EVIL = "bad\x1b[2J\x07 \u202egnp\nnext\x9b\udc80"
# A job object has at least these, see the contract of the command line.
JOB_FIELDS = [
    "id",
    "name",
    "project",
    "spider",
    "state",
    "reason",
    "priority",
    "parallelism",
    "pages",
    "items",
    "errors",
    "pending",
    "leased",
    "poisoned",
    "submitted_at",
    "started_at",
    "finished_at",
]
WORKER_FIELDS = ["name", "host", "port", "slots", "busy", "state", "last_heartbeat_s"]


def job(**changes: object) -> JobView:
    """Return a job with other fields."""
    return msgspec.structs.replace(JOB, **changes)


def status(**changes: object) -> m.Status:
    """Return a master's status."""
    base = m.Status(
        call=1,
        role="master",
        host="127.0.0.1",
        port=7411,
        uptime_s=75.0,
        epoch=2,
        versions=Versions(dscrapy="0.1.0", scrapy="2.19.0", python="3.11.7"),
        note="",
        jobs={"running": 1, "failed": 2},
        running=(JOB,),
        failed=(job(state="failed", reason="line one\nline two"),),
        schedules=(
            ScheduleView(
                id="00000000000000bb",
                name="n",
                project="p",
                spider="s",
                every_s=600.0,
                state="active",
                runs=2,
                job=None,
                next_at=1767323045.0,
            ),
        ),
        workers=(
            WorkerView(
                name="w1",
                host="::1",
                port=7412,
                slots=2,
                busy=1,
                state="live",
                last_heartbeat_s=0.5,
                versions={},
                note="",
            ),
        ),
    )
    return msgspec.structs.replace(base, **changes)


def shown(**changes: object) -> m.Shown:
    """Return all that is known of the job."""
    base = m.Shown(
        call=1, job=JOB, schedule=None, spec=JobSpec(project_dir="/p", spider="prices")
    )
    return msgspec.structs.replace(base, **changes)


def test_status_json_is_the_contract() -> None:
    """The three keys and the fields that scripts rely on are there, times in UTC."""
    whole = json.loads(render.dump(render.status_json(status(), [JOB, job(id="b")])))
    assert list(whole) == ["master", "workers", "jobs"]
    assert [one["id"] for one in whole["jobs"]] == [JOB.id, "b"]
    assert set(JOB_FIELDS) <= set(whole["jobs"][0])
    assert set(WORKER_FIELDS) <= set(whole["workers"][0])
    assert whole["jobs"][0]["submitted_at"] == "2026-01-02T03:04:05Z"
    assert whole["jobs"][0]["finished_at"] is None
    assert whole["workers"][0]["last_heartbeat_s"] == 0.5
    assert whole["master"]["counts"] == {"running": 1, "failed": 2}
    assert whole["master"]["schedules"][0]["next_at"] == "2026-01-02T03:04:05Z"


def test_show_json_has_everything() -> None:
    """Specification (defaults too), stats and traceback stand beside the job."""
    stats: Stats = {
        "sum": {"pages": msgspec.Raw(b"3")},
        "min": {"start_time": msgspec.Raw(b'{"$dt":["2026-01-02T03:04:05",0,0]}')},
    }
    whole = json.loads(
        render.dump(render.shown_json(shown(stats=stats, traceback="Trace")))
    )
    assert whole["id"] == JOB.id
    assert whole["kind"] == "job"
    assert whole["spec"]["parallelism"] == 1
    assert whole["spec"]["urls"] == []
    assert whole["stats"] == {"pages": 3, "start_time": "2026-01-02T03:04:05Z"}
    assert whole["traceback"] == "Trace"


def test_stats_as_scrapy_has_them() -> None:
    """Values come back with their types, in order of their keys, whatever is odd."""
    stats: Stats = {
        "last": {
            "b": msgspec.Raw(b'{"$dt":["2026-01-02T03:04:05.000006",1,3600000000]}'),
            "a": msgspec.Raw(b'{"$dt":["2026-01-02T03:04:05",0,null]}'),
            "d": msgspec.Raw(b'{"$dt":["never",0,null]}'),
            "e": msgspec.Raw(b'{"$dt":5}'),
        },
        "sum": {"c": msgspec.Raw(b"1.5")},
    }
    zone = timezone(timedelta(hours=1))
    assert list(render.stats_values(stats).items()) == [
        ("a", datetime(2026, 1, 2, 3, 4, 5)),  # noqa: DTZ001 - naive, as it was written
        ("b", datetime(2026, 1, 2, 3, 4, 5, 6, zone, fold=1)),
        ("c", 1.5),
        ("d", {"$dt": ["never", 0, None]}),
        ("e", {"$dt": 5}),
    ]


@given(st.text())
def test_nothing_that_a_terminal_obeys_gets_through(text: str) -> None:
    """Escaped text prints as itself, and text without such characters is kept."""
    assert clean(text).isprintable()
    if text.isprintable():
        assert clean(text) == text


@given(st.text(max_size=300))
def test_a_cell_is_one_line(text: str) -> None:
    """Whatever a job says stays on its row and within bounds."""
    shown_text = render.cell(text)
    assert shown_text.isprintable()
    assert len(shown_text) <= 200


def test_text_of_jobs_is_escaped_everywhere() -> None:
    """No view lets a control character of a job through, but for line ends."""
    evil = job(
        name=EVIL,
        project=EVIL,
        spider=EVIL,
        reason=EVIL,
        workers=(EVIL,),
        state="failed",
    )
    spec = JobSpec(spider=EVIL, urls=(EVIL,), args={EVIL: EVIL}, settings={EVIL: EVIL})
    stats: Stats = {"last": {EVIL: msgspec.Raw(b'"\\u009b"')}}
    worker = status().workers[0]
    worker = msgspec.structs.replace(worker, name=EVIL, host=EVIL, note=EVIL)
    schedule = msgspec.structs.replace(status().schedules[0], name=EVIL, spider=EVIL)
    everything = status(
        running=(evil,),
        failed=(evil,),
        workers=(worker,),
        schedules=(schedule,),
        note=EVIL,
        host=EVIL,
        jobs={EVIL: 3},
    )
    texts = [
        plain(render.status_blocks(everything, {}, 0.0)),
        plain([render.jobs_table([evil], NOW)]),
        render.shown_text(shown(job=evil, spec=spec, stats=stats, traceback=EVIL)),
        render.result_line(evil),
        render.ended_line(evil),
    ]
    for text in texts:
        assert "bad\\x1b[2J" in text
        assert all(line.isprintable() for line in text.split("\n"))


def test_status_for_people() -> None:
    """Master, workers, counts, running jobs, schedules and failures are all there."""
    text = plain(render.status_blocks(status(), {JOB.id: 2.5}, 1767323050.0))
    for part in (
        "Master 127.0.0.1:7411",
        "up 1 m 15 s",
        "[::1]:7412",
        "1 running, 2 failed",
        "2.5/s",
        "10 m 0 s",
        "prices  nightly  line one line two",
        "   85  prices",
    ):
        assert part in text
    quiet = status(jobs={}, running=(), failed=(), schedules=(), workers=())
    text = plain(render.status_blocks(quiet, {}, 0.0))
    assert "dscrapy worker" in text
    assert "Jobs: none." in text
    many = status(jobs={"running": 101})
    assert "100 more running" in plain(render.status_blocks(many, {}, 0.0))


def test_processes_are_shown_where_people_look() -> None:
    """How many crawl a job now; none of a job that nothing works at."""
    tables = [
        plain([render.jobs_table([JOB, job(processes=0)], NOW)]),
        plain(
            render.status_blocks(status(running=(JOB, job(processes=0))), {}, 0.0)[3:4]
        ),
    ]
    for text in tables:
        header, several, none = text.splitlines()[:3]
        cells = [line[: header.index("PROCS") + 5].split() for line in (several, none)]
        assert cells == [[JOB.id, "running", "3"], [JOB.id, "running"]]
    assert "processes     3 now, 1 started so far" in render.shown_text(shown())
    assert json.loads(render.dump(render.shown_json(shown())))["processes"] == 3
    assert [render.plural(n, "process") for n in (1, 3)] == ["1 process", "3 processes"]


def test_errors_are_shown_where_people_look() -> None:
    """Beside the items, in every view; where they are not known nothing is said."""
    bad = job(state="succeeded", reason="finished", items=0, errors=40)
    unknown = job(errors=None)
    tables = [
        plain([render.jobs_table([bad, unknown], NOW)]),
        plain(render.status_blocks(status(running=(bad, unknown)), {}, 0.0)[3:4]),
    ]
    for text in tables:
        header, told, untold = text.splitlines()[:3]
        end = header.index("ERRORS") + len("ERRORS")
        assert header[:end].split()[-2:] == ["ITEMS", "ERRORS"]
        assert told[:end].split()[-2:] == ["0", "40"]
        assert untold[:end].endswith("      ")
    assert "\nerrors        40\n" in render.shown_text(shown(job=bad))
    assert "errors" not in render.shown_text(shown(job=unknown))
    assert json.loads(render.dump(render.shown_json(shown(job=bad))))["errors"] == 40
    assert render.job_json(bad)["errors"] == 40
    assert render.job_json(unknown)["errors"] is None
    line = f"{JOB.id} succeeded finished: 10 pages, 0 items, 40 errors"
    assert render.ended_line(bad) == line
    assert render.ended_line(job(reason="", errors=None)) == (
        f"{JOB.id} running: 10 pages, 7 items"
    )


def test_tables_are_aligned_and_never_cut() -> None:
    """Off a terminal columns line up and long text stays whole."""
    table = plain([render.jobs_table([job(name="n" * 200), job(pages=12345)], NOW)])
    header, first, second = table.splitlines()
    assert "n" * 200 in first
    assert header.index("PAGES") + len("PAGES") == second.index("12345") + 5
    assert not any(line.endswith(" ") for line in (header, first, second))


@pytest.mark.parametrize("width", [50, 80, 120, 200])
def test_a_terminal_cuts_reasons_and_nothing_else(width: int) -> None:
    """Ids, states, names and counts are whole, whatever else a row has."""
    wordy = job(
        state="succeeded",
        errors=1234567,
        processes=0,
        project="/srv/" + "p" * 30,
        spider="s" * 30,
        name="n" * 30,
        reason="r" * 200,
        workers=tuple(f"worker-of-a-long-name-{n}" for n in range(5)),
    )
    everything = status(running=(wordy,), failed=(wordy,))
    views: tuple[tuple[list[Block], tuple[str, ...]], ...] = (
        ([render.jobs_table([wordy], NOW)], ()),
        (render.status_blocks(everything, {}, 0.0), ("p" * 30,)),
    )
    for blocks, missing in views:
        shown_text = _on_terminal(blocks, width)
        for word in (JOB.id, "succeeded", "1234567", "p" * 30, "s" * 30, "n" * 30):
            assert (word in shown_text) == (word not in missing)
        assert "rrr…" in shown_text
    assert "worker-of-a-long-name-1 and 3 more" in shown_text
    assert "2026-01-02 " in shown_text


@pytest.mark.parametrize("width", [100, 120])
def test_an_ordinary_job_is_one_line(width: int) -> None:
    """A column without content takes no room; an empty table has all headers."""
    plain_job = job(processes=0, name="", state="failed", reason="r" * 90)
    header, row = _on_terminal(
        [render.jobs_table([plain_job], NOW)], width
    ).splitlines()
    assert "PROCS" not in header
    assert row.split()[:5] == [JOB.id, "failed", "10", "7", "4"]
    header, row = _on_terminal([render.jobs_table([job()], NOW)], width).splitlines()
    for word in ("PROCS", "PROJECT", "SPIDER", "NAME"):
        assert word in header
    assert "ERRORS" in _on_terminal([render.jobs_table([], NOW)], width)


def _on_terminal(blocks: list[Block], width: int) -> str:
    """Return what a terminal of this width shows."""
    file = io.StringIO()
    console = Console(file=file, width=width, markup=False, highlight=False)
    console.print(decorated(blocks))
    assert all(len(line) <= width for line in file.getvalue().splitlines())
    return file.getvalue()


def test_show_breaks_long_texts_between_words() -> None:
    """At a terminal they go on below their beginning; what can be copied is whole."""
    reason = "no worker that is connected can run it: start one"
    folder = "/srv/" + "p" * 60
    text = render.shown_text(shown(job=job(reason=reason, project=folder)), 50)
    assert f"project       {folder}\n" in text
    assert "\nreason        no worker that is connected can run\n" in text
    assert "\n              it: start one\n" in text
    assert reason in render.shown_text(shown(job=job(reason=reason)))


def test_progress_starts_with_numbers() -> None:
    """Pages, items, errors, rate, pending, elapsed; then what it is and why it waits.

    On a narrow terminal the words are shorter, on any other the text is cut.
    """
    busy = job(pages=12345, items=23456, reason="r" * 90)
    long = "12345 pages, 23456 items, 4 errors, 12.3/s, 85 pending, 3 m 5 s"
    line = f"{long}, 3 processes: prices"
    assert render.progress_line(busy, 12.34, 185, None) == f"{line} ({'r' * 90})"
    assert render.progress_line(job(state="ready"), None, None, None) == (
        "10 pages, 7 items, 4 errors, 85 pending, 3 processes: prices ready"
    )
    assert render.progress_line(busy, 12.34, 185, 200).startswith(f"{line} (rrr")
    assert render.progress_line(busy, 12.34, 185, 100) == f"{line} ({'r' * 13}…"
    assert render.progress_line(busy, 12.34, 185, 79) == f"{long}, 3 processes"
    small = job(pages=1234, items=2345)
    assert render.progress_line(small, 12.3, 185, 49) == (
        "1234 pg, 2345 it, 4 err, 12.3/s, 85 left, 3 m 5 s"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (0.5, "0.5 s"),
        (59.9, "59 s"),
        (60, "1 m 0 s"),
        (3661, "1 h 1 m"),
        (90000, "1 d 1 h"),
        (-1, "?"),
        (float("nan"), "?"),
    ],
)
def test_spans(seconds: float, text: str) -> None:
    """Spans read well at every size."""
    assert render.span(seconds) == text


def test_iso_is_utc() -> None:
    """Instants are whole seconds in UTC; none stays none."""
    assert render.iso(None) is None
    assert render.iso(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()) == (
        "2026-01-02T03:04:05Z"
    )


def test_rates_follow_what_is_seen() -> None:
    """A rate is over the last sights, forgets ended jobs and survives a new run."""
    meter = RateMeter()
    assert meter.rates() == {}
    for now, pages in ((0.0, 0), (1.0, 10), (2.0, 20)):
        meter.see(status(running=(job(pages=pages),)), now)
    assert meter.rates() == {JOB.id: 10.0}
    for now in range(3, 20):
        meter.see(status(running=(job(pages=20),)), float(now))
    assert meter.rates() == {JOB.id: 0.0}
    meter.see(status(running=(job(pages=1),)), 20.0)
    assert meter.rates() == {}
    meter.see(status(running=()), 21.0)
    assert meter.rates() == {}


def test_jobs_that_wait_say_why() -> None:
    """The first of them; the others are counted."""
    waiting = [job(id="b", state="paused", reason="since noon")]
    blocks = render.status_blocks(
        status(jobs={"ready": 3, "paused": 1}), {}, NOW, waiting=waiting
    )
    text = plain(blocks)
    assert "since noon" in text
    assert "... and 3 more waiting: `dscrapy jobs` lists them." in text
    assert "WHY" not in plain(render.status_blocks(status(), {}, NOW))


def test_a_job_has_its_start_and_how_long_it_took() -> None:
    """So far, while it runs; nothing before it has started."""
    ended = job(id="e", started_at=NOW - 90000.0, finished_at=NOW - 89000.0)
    ready = job(id="r", started_at=None, state="ready")
    table = render.jobs_table([JOB, ended, ready], NOW)
    started, took = (table.headers.index(name) for name in ("STARTED", "TOOK"))
    assert [row[took] for row in table.rows] == ["1 m 0 s", "16 m 40 s", ""]
    assert table.rows[2][started] == ""
    assert len(table.rows[0][started]) == len("03:04:06")
    assert len(table.rows[1][started]) == len("2026-01-01")


@pytest.mark.parametrize(
    ("counts", "told", "wrong"),
    [
        ({"files": 1, "items": 1}, "1 item to /d/9.csv", ""),
        ({"files": 9, "items": 18}, "18 items to 9 files, from /d/1 to /d/9.csv", ""),
        ({"failed": 1}, "nothing to /d/9.csv", "it"),
        (
            {"files": 1, "items": 2, "failed": 2},
            *("2 items to 1 file, from /d/1 to /d/9.csv", "2 files"),
        ),
    ],
)
def test_what_feeds_wrote_is_one_line(
    counts: dict[str, int], told: str, wrong: str
) -> None:
    """How many, where, and what is missing; in JSON each field stands by itself."""
    one = FeedFiles(
        feed="f", first="/d/1", last="/d/9.csv", workers=("w", "v"), **counts
    )
    end = f": {wrong} could not be stored, see the log" if wrong else ""
    assert render.written_text(one) == told + end
    spec = JobSpec(project="p", spider="s")
    shown = m.Shown(call=0, job=JOB, schedule=None, spec=spec, feeds=(one,))
    assert f"wrote         {told} on w, v{end}" in render.shown_text(shown).splitlines()
    (row,) = render.shown_json(shown)["feeds"]
    assert {key: row[key] for key in counts} == counts
    assert set(row) == set(FeedFiles.__struct_fields__)
    assert all(len(line) <= 80 for line in render.shown_text(shown, 80).splitlines())
