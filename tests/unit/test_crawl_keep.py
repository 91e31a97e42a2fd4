"""Which crawls are kept, and what becomes of the rest."""

from pathlib import Path

import pytest

from dscrapy.cli import crawl_keep
from dscrapy.cli.crawl_state import Crawl, hold_lock, lock_of
from dscrapy.errors import UserError
from dscrapy.keep import Keep


def run(base: Path, date: int, *, done: bool = True) -> Crawl:
    """A crawl of that date as a run leaves it."""
    crawl = Crawl.of(base, base / "project", "s", {"date": str(date)}, {})
    with crawl.locked():
        record = crawl.start_over("a" * 16, "digest")
        job = crawl.folder / "jobs" / record.job
        job.mkdir(parents=True)
        for name in ("items.jsonl", "tagged.jsonl", "log.txt", "requests.jsonl"):
            (job / name).write_bytes(b"x" * 100)
        (crawl.folder / "spool").mkdir()
        (crawl.folder / "journal-0000000001.log").write_bytes(b"x" * 1000)
        record.done = done
        record.ended_at = float(date + 1)
        record.state = "succeeded" if done else ""
        crawl.save(record)
        if done:
            crawl.finish(record)
    return crawl


def names(base: Path) -> set[str]:
    """What lies in the folder of all crawls."""
    return {path.name for path in (base / "crawls").iterdir()}


def test_a_loop_over_dates_leaves_bounded_state(tmp_path: Path) -> None:
    """Folders and lock files: those of the latest finished ones."""
    for date in range(12):
        run(tmp_path, date)
        crawl_keep.prune(tmp_path, Keep(jobs=3))
    kept = crawl_keep.kept(tmp_path)
    assert [one.arguments for one in kept] == [(f"-a date={n}",) for n in (9, 10, 11)]
    assert len(names(tmp_path)) == 6


def test_a_finished_crawl_shrinks_to_items_log_and_summary(tmp_path: Path) -> None:
    """Its master's state is of no more use."""
    crawl = run(tmp_path, 1)
    left = {path.name for path in crawl.folder.rglob("*") if path.is_file()}
    assert left == {"crawl.json", "items.jsonl", "log.txt"}
    assert not (crawl.folder / "spool").exists()


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        (Keep(), 4),
        (Keep(jobs=0), 0),
        (Keep(days=1.0), 0),
        (Keep(days=1e6), 4),
        (Keep(bytes=0), 1),
    ],
)
def test_each_limit_counts(tmp_path: Path, limits: Keep, left: int) -> None:
    """The latest stays whatever its bytes; a dry run removes none."""
    for date in range(4):
        run(tmp_path, date)
    told = crawl_keep.prune(tmp_path, limits, dry_run=True)
    assert len(crawl_keep.kept(tmp_path)) == 4
    assert crawl_keep.prune(tmp_path, limits) == told
    assert len(crawl_keep.kept(tmp_path)) == left == 4 - len(told)


def test_unfinished_and_running_crawls_stay(tmp_path: Path) -> None:
    """An unfinished one goes by its name alone, a running one not at all."""
    unfinished, running = run(tmp_path, 1, done=False), run(tmp_path, 2)
    with running.locked():
        assert crawl_keep.prune(tmp_path, Keep(jobs=0)) == []
        stands = {one.id: one.stands for one in crawl_keep.kept(tmp_path)}
        assert stands == {
            unfinished.folder.name: "unfinished",
            running.folder.name: "running",
        }
        with pytest.raises(UserError, match="runs now"):
            crawl_keep.remove(tmp_path, running.folder.name)
    assert crawl_keep.remove(tmp_path, unfinished.folder.name) > 1000
    assert names(tmp_path) == {running.folder.name, lock_of(running.folder).name}
    for name in (unfinished.folder.name, "..", "", "x/../y"):
        with pytest.raises(UserError, match="no crawl"):
            crawl_keep.remove(tmp_path, name)


def test_a_run_that_keeps_nothing_leaves_nothing(tmp_path: Path) -> None:
    """A killed one neither, once another crawl has ended; one that runs is let be."""
    kept = run(tmp_path, 1)
    once = kept.once("b" * 16)
    with once.locked():
        once.start_over("a" * 16, "digest")
        assert crawl_keep.prune(tmp_path, Keep()) == []
        once.discard()
    assert names(tmp_path) == {kept.folder.name, lock_of(kept.folder).name}
    with once.locked():
        once.start_over("a" * 16, "digest")
    crawl_keep.prune(tmp_path, Keep())
    assert names(tmp_path) == {kept.folder.name, lock_of(kept.folder).name}


def test_a_lock_file_that_was_removed_locks_nobody_out(tmp_path: Path) -> None:
    """Who opened it before it was removed takes the one that is there then."""
    crawl = run(tmp_path, 1)
    with hold_lock(lock_of(crawl.folder)) as is_ours:
        assert is_ours
        lock_of(crawl.folder).unlink()
        with crawl.locked(), pytest.raises(UserError), crawl.locked():
            pass


def test_what_others_put_there_is_let_be(tmp_path: Path) -> None:
    """And a record that cannot be read is listed, never removed by a rule."""
    assert crawl_keep.kept(tmp_path) == []
    crawl = run(tmp_path, 1)
    (tmp_path / "crawls" / "mine").mkdir()
    (crawl.folder / "crawl.json").write_text("{")
    assert [one.stands for one in crawl_keep.kept(tmp_path)] == ["unreadable"]
    assert crawl_keep.prune(tmp_path, Keep(jobs=0)) == []
    assert "mine" in names(tmp_path)
