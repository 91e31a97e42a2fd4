"""Which crawls are kept, and what becomes of the rest."""

import fcntl
from pathlib import Path

import attrs
import pytest

from dscrapy.cli.local import crawl_keep
from dscrapy.cli.local.crawl_state import Crawl, hold_lock, is_held, lock_of
from dscrapy.conf.config import Config, MasterConfig
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


def test_the_conf_files_limits_count_in_place_of_the_default(tmp_path: Path) -> None:
    """Where any of them is set, the others are none."""
    config = Config(state=tmp_path, projects_root=tmp_path)
    assert crawl_keep.limits_of(config) == crawl_keep.DEFAULT
    few = attrs.evolve(config, master=MasterConfig(keep_jobs=3))
    assert crawl_keep.limits_of(few) == Keep(jobs=3)


def test_what_a_run_took_over_since_is_not_removed(tmp_path: Path) -> None:
    """A rule goes by what is there under the lock, whatever was seen before."""
    unfinished, finished = run(tmp_path, 1, done=False), run(tmp_path, 2)
    assert not crawl_keep._remove(unfinished.folder, only_done=True)
    assert unfinished.folder.exists()
    assert crawl_keep._remove(finished.folder, only_done=True)
    assert not crawl_keep._remove(finished.folder, only_done=True)


def test_a_look_tells_what_would_be_done(tmp_path: Path) -> None:
    """Nothing of what runs, for which a removal is refused."""
    crawl = run(tmp_path, 1)
    once = crawl.once("b" * 16)
    with once.locked(), crawl.locked():
        once.start_over("a" * 16, "digest")
        assert crawl_keep.prune(tmp_path, Keep(jobs=0), dry_run=True) == []
        with pytest.raises(UserError, match="runs now"):
            crawl_keep.remove(tmp_path, crawl.folder.name, dry_run=True)
    there = names(tmp_path)
    assert crawl_keep.remove(tmp_path, crawl.folder.name, dry_run=True) > 0
    assert names(tmp_path) == there


def test_what_was_set_aside_keeps_its_lock_file(tmp_path: Path) -> None:
    """Until the last of that name is gone."""
    crawl = run(tmp_path, 1, done=False)
    aside = crawl.set_aside().name
    run(tmp_path, 1)
    crawl_keep.remove(tmp_path, crawl.folder.name)
    assert names(tmp_path) == {aside, lock_of(crawl.folder).name}
    crawl_keep.remove(tmp_path, aside)
    assert names(tmp_path) == set()


def test_a_lock_file_that_goes_while_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next run would lock another file, and both would run."""
    path = lock_of(run(tmp_path, 1).folder)
    lock = fcntl.flock

    def lock_late(handle: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        path.unlink()
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with hold_lock(path) as is_ours:
        assert is_ours
        assert is_held(path)


def test_who_only_looks_keeps_no_run_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look is over in a moment; the run waits for that."""
    path = lock_of(run(tmp_path, 1).folder)
    lock, asked = fcntl.flock, []
    with path.open() as look:
        lock(look, fcntl.LOCK_SH)

        def lock_counted(handle: int, operation: int) -> None:
            asked.append(operation)
            if len(asked) == 4:
                lock(look, fcntl.LOCK_UN)
            lock(handle, operation)

        monkeypatch.setattr(fcntl, "flock", lock_counted)
        with hold_lock(path) as is_ours:
            assert is_ours
            assert len(asked) == 4
