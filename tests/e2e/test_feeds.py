"""Feeds that an export process writes, against ``scrapy crawl`` with the same FEEDS."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dscrapy import messages as m
from dscrapy.crawl.export.feed_files import NO_FILE
from dscrapy.model import JobSpec
from tests.e2e.crawl_harness import (
    PROJECT,
    WAIT_S,
    CrawlProcess,
    child_environment,
    running_site,
)
from tests.e2e.feeds_harness import (
    JOB,
    PIECE_BYTES,
    Feeds,
    Job,
    files_in,
    finish,
    is_at,
    job_of,
    lines_of,
    never,
    project_with,
    stats_of,
    written_of,
)


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with running_site() as address:
        yield address


# ---- the same by Scrapy --------------------------------------------------------------


def crawled(site: str, spider: str, folder: Path, feeds: Feeds) -> Job:
    """Crawl one page; return the job with what it gave."""
    args = {"site": site, "count": "1"}
    spec = JobSpec(project_dir=str(PROJECT), spider=spider, args=args)
    process = CrawlProcess(spec, PROJECT, folder / "crawl.log")
    try:
        process.finish()
        settings = {"FEEDS": json.dumps(feeds)}
        return Job(
            spec=JobSpec(
                project_dir=str(PROJECT), spider=spider, args=args, settings=settings
            ),
            items="".join(f"{line}\n" for line in process.lines).encode(),
            tagged=b"".join(form + b"\n" for form in process.tagged),
        )
    finally:
        process.close()


def scrapy_crawl(job: Job, feeds: Feeds, folder: Path = PROJECT) -> str:
    """Run ``scrapy crawl`` with these feeds; return its log."""
    words = [sys.executable, "-P", "-m", "scrapy", "crawl", job.spec.spider]
    settings = {
        **job.spec.settings,
        "FEEDS": json.dumps(feeds),
        "TELNETCONSOLE_ENABLED": "0",
        "REMOTE_CONTROL_ENABLED": "0",
        "LOG_FILE": "",
        "JOBDIR": "",
    }
    for name, value in settings.items():
        words += ["-s", f"{name}={value}"]
    for name, value in job.spec.args.items():
        words += ["-a", f"{name}={value}"]
    done = subprocess.run(
        words,
        cwd=folder,
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=WAIT_S,
        check=True,
    )
    return done.stderr.decode()


def feeds_in(folder: Path) -> Feeds:
    """Return feeds of every kind; each name tells what is asked for."""
    return {
        f"{folder}/%(name)s/items.json": {"format": "json", "overwrite": True},
        f"{folder}/%(name)s.csv": {"format": "csv"},
        f"{folder}/%(name)s-%(site)s.xml".replace("%(site)s", "%(count)s"): {
            "format": "xml",
            "indent": 2,
        },
        f"{folder}/wide.csv": {"format": "csv", "encoding": "utf-16"},
        f"file://{folder}/lines.jl": {"format": "jsonlines", "encoding": "utf-16"},
        f"{folder}/some.jsonl": {"format": "jsonl", "fields": ["number", "title"]},
        f"{folder}/batch-%(batch_id)d.json": {"format": "json", "batch_item_count": 2},
        f"{folder}/items.jsonl.gz": {
            "format": "jsonl",
            "postprocessing": ["scrapy.extensions.postprocessing.GzipPlugin"],
            "gzip_mtime": 1,
            "gzip_filename": "f",
        },
        f"{folder}/books.csv": {
            "format": "csv",
            "item_classes": ["testsite.items.Book"],
        },
        f"{folder}/none.json": {
            "format": "json",
            "item_classes": ["testsite.items.Shelf"],
            "store_empty": False,
        },
    }


def stored(log: str) -> dict[str, int]:
    """Return the stats about feeds in Scrapy's log."""
    found = re.findall(r"'(feedexport/[^']+)': (\d+)", log)
    return {name: int(count) for name, count in found}


def logged(log: str) -> dict[str, tuple[int, int]]:
    """Return how many files and items there are of each feed in Scrapy's log, by the
    beginning of its name."""
    found: dict[str, tuple[int, int]] = {}
    for count, uri in re.findall(r"Stored \w+ feed \((\d+) items\) in: (\S+)", log):
        name = short(uri)
        files, items = found.get(name, (0, 0))
        found[name] = (files + 1, items + int(count))
    return found


def told_by(closed: m.Commit) -> dict[str, tuple[int, int]]:
    """Return the same as our process tells it; nothing has failed."""
    assert not any(one.failed for one in closed.written)
    assert all(Path(one.last).is_file() for one in closed.written)
    return {short(one.first): (one.files, one.items) for one in closed.written}


def short(place: str) -> str:
    """Return a file's name up to the number of its batch."""
    return re.split(r"-\d+\.json", Path(place).name)[0]


@pytest.mark.parametrize("spider", ["kinds", "shelved"])
def test_feeds_are_those_of_scrapy(site: str, tmp_path: Path, spider: str) -> None:
    """Every format and option, written by a job's first run and appended to by its
    second: byte for byte the same files, and the same counts in the stats."""
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    for _run in range(2):
        job = crawled(site, spider, tmp_path, feeds_in(ours))
        log = scrapy_crawl(job, feeds_in(plain))
        closed = finish(job)
        files = files_in(plain)
        assert len(files) > 7
        assert files_in(ours) == files
        assert stats_of(*job.told, closed) == stored(log)
        assert told_by(closed) == logged(log)
        assert m.Alive(number=1) in job.asked


@pytest.mark.long
def test_a_kill_at_any_moment_doubles_nothing(tmp_path: Path) -> None:
    """Killed at each of its messages in turn, and run again: the files are those of
    one run, what stood in them before included, and no other file is left."""
    items = lines_of(3, 10)
    second = items.splitlines(keepends=True)[2]
    batches = {"format": "jsonl", "batch_item_count": 2}
    feeds: Feeds = {
        f"{tmp_path}/%(name)s.csv": {"format": "csv"},
        f"{tmp_path}/batch-%(batch_id)d.jsonl": batches,
        f"{tmp_path}/new.jsonl": {"format": "jsonl", "overwrite": True},
    }
    table = b"number,text\r\n" + b"".join(
        b"%d,%s\r\n" % (number, b"x" * 10) for number in range(3)
    )
    expected = {
        "batch-1.jsonl": b"{}\n" + items[: -len(second)],
        "batch-2.jsonl": second,
        "new.jsonl": items,
        "pages.csv": b"number,text\r\n0,before\r\n" + table,
    }
    moment, code = 0, None
    while code is None:
        moment += 1
        for path in tmp_path.iterdir():
            path.unlink()
        (tmp_path / "pages.csv").write_bytes(b"number,text\r\n0,before\r\n")
        (tmp_path / "batch-1.jsonl").write_bytes(b"{}\n")
        job = job_of(items, feeds)
        code = job.export(PROJECT, partial(is_at, job, moment))
        if code is None:
            finish(job)
        assert files_in(tmp_path) == expected, moment
        told = {"%(name)s.csv": (1, 3, 0), "batch-%(batch_id)d.jsonl": (2, 3, 0)}
        assert written_of(job) == {**told, "new.jsonl": (1, 3, 0)}, moment
    # What is known, where batches begin, a piece of items and of their forms, the first
    # batch and that it is there, three files, the last commit; then none.
    assert moment == 1 + 1 + 2 + 2 + 3 + 1 + 1


@pytest.mark.parametrize("there", [0, 1, 5000, 60_000])
def test_an_append_that_was_cut_short_is_completed(there: int, tmp_path: Path) -> None:
    """Whatever of it was written before the kill, nothing is there twice."""
    items = lines_of(50, 1000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}\n" + items[:there])
    job = job_of(items, {str(path): {"format": "jsonl"}})
    job.lengths[str(path)] = 3
    finish(job)
    assert files_in(tmp_path) == {"a.jsonl": b"{}\n" + items}


def test_a_repeat_begins_as_the_first_try_began(tmp_path: Path) -> None:
    """An encoding with a mark at the file's beginning: what an earlier try has left
    there is no beginning of another's."""
    path = tmp_path / "a.csv"
    whole = "n\r\n1\r\n2\r\n".encode("utf-16")
    path.write_bytes(whole[:9])
    feeds: Feeds = {str(path): {"format": "csv", "encoding": "utf-16"}}
    job = job_of(b'{"n": 1}\n{"n": 2}\n', feeds)
    job.lengths[str(path)] = NO_FILE
    finish(job)
    assert path.read_bytes() == whole


def test_what_others_appended_since_is_never_removed(tmp_path: Path) -> None:
    """Another job has written to the file after the first try told its length, and
    after it was done: its items stay, and ours are there once."""
    items = lines_of(3, 10)
    feed: Feeds = {str(tmp_path / "a.jsonl"): {"format": "jsonl"}}
    for behind, expected in (
        (b'{"other": 1}\n', b'{}\n{"other": 1}\n' + items),
        (items + b'{"other": 1}\n', b"{}\n" + items + b'{"other": 1}\n'),
    ):
        (tmp_path / "a.jsonl").write_bytes(b"{}\n" + behind)
        job = job_of(items, feed)
        job.lengths[str(tmp_path / "a.jsonl")] = 3
        finish(job)
        assert files_in(tmp_path) == {"a.jsonl": expected}


def test_files_of_an_earlier_try_under_other_names_are_removed(tmp_path: Path) -> None:
    """A name with the time in it is another one the next time; what was there before
    the first try stays."""
    for name in ("old-1.json", "kept.json", f".dscrapy-{JOB}-9.part"):
        (tmp_path / name).write_text("[]")
    job = job_of(lines_of(1, 1), {f"{tmp_path}/new-%(time)s.json": {"format": "json"}})
    job.lengths = {
        str(tmp_path / "old-1.json"): NO_FILE,
        str(tmp_path / "gone.json"): NO_FILE,
        str(tmp_path / "kept.json"): 2,
    }
    finish(job)
    assert [name[:4] for name in sorted(files_in(tmp_path))] == ["kept", "new-"]


def test_a_file_that_is_replaced_is_whole_at_every_moment(tmp_path: Path) -> None:
    """Until the last item the old one stands; links and permissions stay."""
    target, link = tmp_path / "real" / "a.json", tmp_path / "a.json"
    target.parent.mkdir()
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    items = lines_of(20, 100_000)
    job = job_of(items, {str(link): {"format": "jsonl", "overwrite": True}})

    def is_last_read(message: m.FromCrawl) -> bool:
        if not isinstance(message, m.Read) or message.file == "tagged":
            return False
        return message.offset + PIECE_BYTES >= len(items)

    assert job.export(PROJECT, is_last_read) is None
    assert target.read_text() == "old"
    finish(job)
    assert target.read_bytes() == items
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in target.parent.iterdir()] == ["a.json"]


def test_a_feed_that_fails_is_told_and_the_others_are_written(tmp_path: Path) -> None:
    """As in Scrapy: an error in the log and a count; the export does not fail."""
    (tmp_path / "file").write_text("")
    feeds: Feeds = {
        f"{tmp_path}/a.jsonl": {"format": "jsonl"},
        "broken://me:word@somewhere": {"format": "jsonl"},
        f"{tmp_path}/file/b.jsonl": {"format": "jsonl"},
    }
    storages = {"broken": "testsite.storages.Broken"}
    folder = project_with(
        tmp_path,
        "storages.py",
        "from scrapy.extensions.feedexport import BlockingFeedStorage\n"
        "class Broken(BlockingFeedStorage):\n"
        "    def __init__(self, uri, *, feed_options=None): pass\n"
        "    def _store_in_thread(self, file):\n"
        "        file.seek(0)\n"
        "        raise RuntimeError(f'got {len(file.read())} bytes')\n",
    )
    items = lines_of(2, 10)
    job = job_of(items, feeds, FEED_STORAGES=json.dumps(storages))
    closed = finish(job, folder)
    assert (tmp_path / "a.jsonl").read_bytes() == items
    assert f"got {len(items)} bytes" in job.log
    counts = stats_of(*job.told, closed)
    assert counts["feedexport/failed_count/Broken"] == 1
    assert counts["feedexport/success_count/FileFeedStorage"] == 1
    told = {one.last: (one.files, one.items, one.failed) for one in closed.written}
    assert told == {
        f"{tmp_path}/a.jsonl": (1, 2, 0),
        "broken://me:***@somewhere": (0, 0, 1),
    }


def test_the_projects_own_exporter_and_listeners_take_part(tmp_path: Path) -> None:
    """A subclass in EXTENSIONS is the one that writes, and who listens to the signals
    about feeds finds the files in their places."""
    folder = project_with(
        tmp_path,
        "own.py",
        "from pathlib import Path\n"
        "from scrapy import signals\n"
        "from scrapy.extensions.feedexport import FeedExporter\n"
        "class Own(FeedExporter):\n"
        "    async def item_scraped(self, item, spider):\n"
        "        super().item_scraped({**item, 'own': True}, spider)\n"
        "class Listener:\n"
        "    @classmethod\n"
        "    def from_crawler(cls, crawler):\n"
        "        listener = cls()\n"
        "        for name in ('feed_slot_closed', 'feed_exporter_closed'):\n"
        "            def heard(name=name, slot=None):\n"
        "                path = Path(crawler.settings['TARGET'])\n"
        "                print('HEARD', name, path.read_text(), flush=True)\n"
        "            setattr(listener, name, heard)\n"
        "            crawler.signals.connect(heard, getattr(signals, name))\n"
        "        return listener\n",
    )
    target = tmp_path / "a.jsonl"
    extensions = {
        "scrapy.extensions.feedexport.FeedExporter": None,
        "testsite.own.Own": 1,
        "testsite.own.Listener": 2,
    }
    job = job_of(
        b'{"n": 1}\n',
        {str(target): {"format": "jsonl"}},
        EXTENSIONS=json.dumps(extensions),
        TARGET=str(target),
    )
    finish(job, folder)
    line = '{"n": 1, "own": true}\n'
    assert target.read_text() == line
    heard = [text for text in job.log.splitlines() if text.startswith("HEARD")]
    assert heard == [
        f"HEARD {name} {line}".strip()
        for name in ("feed_slot_closed", "feed_exporter_closed")
    ]


@pytest.mark.parametrize(
    ("spider", "failure"),
    [("nosuch", "unknown_spider"), ("otherreactor", "unsupported")],
)
def test_an_export_that_cannot_be_run_says_why(
    spider: str, failure: str, tmp_path: Path
) -> None:
    """One commit with the reason, and a normal end."""
    job = job_of(b"{}\n", {f"{tmp_path}/a.json": {"format": "json"}}, spider)
    assert job.export(PROJECT, never) == 0
    assert job.closed is not None
    assert job.closed.end is not None
    assert job.closed.end.failure == failure
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    ("feed", "told"),
    [
        ("%(nosuch)s.json", "nosuch"),
        ("nosuch://x.json", "Unknown feed storage scheme: nosuch"),
    ],
)
def test_feeds_that_scrapy_would_not_write_are_an_error_in_the_log(
    feed: str, told: str, tmp_path: Path
) -> None:
    """The job's items are there all the same, so the job does not fail for it."""
    uri = feed if "://" in feed else f"{tmp_path}/{feed}"
    job = job_of(b"{}\n", {uri: {"format": "json"}})
    finish(job)
    assert told in job.log
    assert "FEEDS are not written" in job.log


def test_a_bad_item_is_missing_where_it_is_bad_alone(tmp_path: Path) -> None:
    """One that XML gives up half way, and one that nobody can read: the files are well
    formed, each feed has all that it can hold, and the rest is counted."""
    deep = b'{"number": 7, "text": ' + b"[" * 2000 + b"]" * 2000 + b"}\n"
    first, last = lines_of(2, 10).splitlines(keepends=True)
    feeds: Feeds = {
        f"{tmp_path}/a.xml": {"format": "xml"},
        f"{tmp_path}/b.csv": {"format": "csv", "fields": ["number"]},
        f"{tmp_path}/c-%(batch_id)d.jsonl": {"format": "jsonl", "batch_item_count": 2},
    }
    job = job_of(first + deep + b"{\n" + b"\xff\n" + last, feeds)
    closed = finish(job)
    assert closed.end is not None
    assert not closed.end.failure
    root = ElementTree.parse(tmp_path / "a.xml").getroot()  # noqa: S314 - our own
    assert [item.findtext("number") for item in root] == ["0", "1"]
    assert (tmp_path / "b.csv").read_bytes() == b"number\r\n0\r\n7\r\n1\r\n"
    assert (tmp_path / "c-1.jsonl").read_bytes() == first + last
    # What nobody can read counts once, what a feed cannot hold once for each.
    assert stats_of(*job.told, closed)["feedexport/item_error_count"] == 4
    assert job.log.count("An item is not in the feeds") == 2
    for name in ("a.xml", "c-1.jsonl"):
        assert f"An item is not in {tmp_path}/{name}" in job.log
