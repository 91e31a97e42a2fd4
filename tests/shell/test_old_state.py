"""State folders that earlier releases wrote are opened, and nothing of them is lost."""

import shutil
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock

from dscrapy import messages as m
from dscrapy.errors import JournalError
from dscrapy.journal.record import (
    FORMAT_VERSION,
    decode_segment_head,
    encode_record,
    encode_segment_head,
    encode_snapshot,
)
from dscrapy.master.storage import DiskStorage
from tests import builders as b
from tests.doubles.storage import MemoryStorage
from tests.shell.master_in_memory import (
    SPANS,
    CrawlInMemory,
    MasterInMemory,
    receive,
    running,
)

DATA = Path(__file__).parent.parent / "data"
# Written by a master of format 2: a job half crawled (a snapshot in its middle, a page
# with a part stored, its worker given up), one that has succeeded, a schedule.
FORMAT_2 = DATA / "state-2"
# Written by a master of format 3: the same, with a request that two deaths are blamed
# on, and a third process that the journal counts on.
FORMAT_3 = DATA / "state-3"
# Written by a master of format 4: the same, pages with stored parts before the snapshot
# and behind it; the requests of such parts had no effect yet.
FORMAT_4 = DATA / "state-4"
HALF, DONE, SCHEDULE = (b.job_id(number) for number in (1, 2, 3))


async def test_a_folder_of_format_2_goes_on(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """What is committed stands, a void part does not, the rest is crawled; what is
    written from now on is of this format, in segments of its own."""
    folder = tmp_path / "state"
    storage = copy_of(FORMAT_2, folder)
    async with running(storage) as master:
        check_what_ended(master)
        assert await master.files.read(HALF, "items", 0, 100) == (
            b'{"n":0}\n{"n":1}\n{"n":2}\n{"n":3}\n'
        )
        worker = await master.register("w")
        crawl = CrawlInMemory(worker, await receive(worker, m.Start))
        assert crawl.job == HALF
        await crawl.open()
        await crawl.hear(m.Grant)
        urls = {msgspec.json.decode(body)["url"] for body in crawl.bodies.values()}
        assert urls == {"http://a/3", "http://a/4"}
        for number in sorted(crawl.bodies):
            item = msgspec.Raw(b'{"n":%d}' % (number + 10))
            commit = m.Commit(request=number, items=(item,))
            assert await crawl.commit(commit) == ["published"]
        await crawl.hear(m.Finish)
        await crawl.finish()
    async with running(storage) as master:
        lines = (await master.files.read(HALF, "items", 0, 200)).splitlines()
        assert lines[4:] == [b'{"n":13}', b'{"n":14}']
        client = await master.connect("client")
        await client.send(b.submit(9))
        await receive(client, m.Accepted)
    storage.close()
    assert versions_of(folder) == [2, FORMAT_VERSION]


async def test_a_folder_of_format_3_goes_on(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """What is committed stands, a void part does not, who is suspected still is: the
    suspect goes out alone."""
    folder = tmp_path / "state"
    storage = copy_of(FORMAT_3, folder)
    async with running(storage) as master:
        check_what_ended(master)
        assert await master.files.read(HALF, "items", 0, 100) == (
            b'{"n":0}\n{"n":1}\n{"n":2}\n'
        )
        # The worker that the journal counts on does not come back.
        await trio.sleep(SPANS.die_after_s + 1)
        worker = await master.register("other", slots=2)
        crawl = CrawlInMemory(worker, await receive(worker, m.Start))
        while crawl.job != HALF:
            crawl = CrawlInMemory(worker, await receive(worker, m.Start))
        await crawl.open()
        urls: list[str] = []
        while len(urls) < 3:
            await crawl.hear(m.Grant)
            granted = {
                number: msgspec.json.decode(body)["url"]
                for number, body in crawl.bodies.items()
            }
            crawl.bodies.clear()
            if "http://a/5" in granted.values():
                assert len(granted) == 1
            for request, url in granted.items():
                urls.append(url)
                item = msgspec.Raw(b'{"n":%d}' % (request + 10))
                commit = m.Commit(request=request, items=(item,))
                assert await crawl.commit(commit) == ["published"]
        assert sorted(urls) == ["http://a/3", "http://a/4", "http://a/5"]
    storage.close()
    assert versions_of(folder) == [3, FORMAT_VERSION]


async def test_a_folder_of_format_4_goes_on(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """What is committed stands; void parts gave no item and no request."""
    folder = tmp_path / "state"
    storage = copy_of(FORMAT_4, folder)
    async with running(storage) as master:
        check_what_ended(master)
        before = await master.files.read(HALF, "items", 0, 100)
        assert before == b'{"n":0}\n{"n":1}\n{"n":2}\n'
        await trio.sleep(SPANS.die_after_s + 1)
        worker = await master.register("other", slots=2)
        crawl = CrawlInMemory(worker, await receive(worker, m.Start))
        while crawl.job != HALF:
            crawl = CrawlInMemory(worker, await receive(worker, m.Start))
        await crawl.open()
        while len(crawl.bodies) < 4:
            await crawl.hear(m.Grant)
        urls = {msgspec.json.decode(body)["url"] for body in crawl.bodies.values()}
        assert urls == {f"http://a/{number}" for number in (3, 4, 5, 6)}
        for number in sorted(crawl.bodies):
            part = b.part(number, 0, children=b.children(b'{"url":"http://a/7"}'))
            assert await crawl.commit(part, m.Commit(request=number, part=1)) == [
                "taken",
                "published",
            ]
        # Void parts took no number.
        while 7 not in crawl.bodies:
            await crawl.hear(m.Grant)
        assert crawl.bodies[7] == b'{"url":"http://a/7"}'
    storage.close()
    assert versions_of(folder) == [4, FORMAT_VERSION]


def copy_of(data: Path, folder: Path) -> DiskStorage:
    """Return the storage of a folder that is a copy of an earlier release's."""
    shutil.copytree(data, folder)
    return DiskStorage(folder)


def check_what_ended(master: MasterInMemory) -> None:
    """The job that has succeeded and the schedule that has run are as they were."""
    state = master.committer.machine.state
    assert state.jobs[DONE].status == "succeeded"
    assert state.schedules[SCHEDULE].runs == 1


def versions_of(folder: Path) -> list[int]:
    """Return the format versions of a folder's segments, in order."""
    return [
        head.version
        for path in sorted(folder.glob("journal-*.log"))
        if (head := decode_segment_head(path.read_bytes()))
    ]


@pytest.mark.parametrize("is_snapshot", [False, True])
async def test_what_means_nothing_stops_a_start_in_one_line(is_snapshot: bool) -> None:
    """Sound by its checksum, and no facts of ours: path, byte and reason; nothing is
    changed."""
    storage = MemoryStorage()
    name = "journal-0000000001.log"
    data = encode_segment_head(1, 1) + encode_record(1, b'[{"type":"other"}]')
    if is_snapshot:
        name = "snapshot-0000000001.bin"
        storage.put(name, encode_snapshot(1, 1, b"[]"))
        data = encode_segment_head(1, 1)
    storage.put("journal-0000000001.log", data)
    with pytest.raises(JournalError, match="what this dscrapy cannot read") as caught:
        async with running(storage):
            raise AssertionError("it started")
    assert str(caught.value).startswith(f"/memory/{name} at byte 36: ")
    assert storage.read("journal-0000000001.log", 0, 1000) == data
