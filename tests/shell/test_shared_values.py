"""Values that requests share, over the master's disk and its restart."""

import msgspec
from trio.testing import MockClock

from dscrapy import messages as m
from tests import builders as b
from tests.doubles.storage import MemoryStorage
from tests.shell.master_in_memory import CrawlInMemory, receive, running

LONG = b'"' + b"x" * 20_000 + b'"'


async def test_leases_bring_the_values_that_their_bodies_refer_to(
    autojump_clock: MockClock,
) -> None:
    """From memory, and from the file after a restart; once a message, whatever was
    leased first."""
    storage = MemoryStorage()
    async with running(storage) as master:
        client = await master.connect("client")
        await client.send(b.submit(1))
        crawl = await CrawlInMemory.begun(await master.register("w"), window=2)
        await crawl.hear(m.Lead)
        given = msgspec.structs.replace(
            b.children(*(b'{"n":%d}' % number for number in range(4))),
            values=(msgspec.Raw(LONG), msgspec.Raw(b"2")),
            uses=((0,), (0, 1), (), (1,)),
        )
        await crawl.send(crawl.unit("start", children=given), crawl.unit("started"))
        grant = await receive(crawl.worker, m.Grant)
        assert [bytes(one) for one in grant.values] == [LONG, b"2"]
        await crawl.commit(m.Commit(request=1))
        ended = b.ended(crawl.process, crawl.job)
        await crawl.worker.send(ended)
        await crawl.hear(m.EndedSeen)
    async with running(storage, kept_bytes_max=0) as master:
        worker = await master.register("w")
        crawl = await CrawlInMemory.begun(worker, window=16)
        grant = await receive(worker, m.Grant)
        assert grant.requests == (2, 3, 4)
        assert [bytes(one) for one in grant.values] == [LONG, b"2"]
    data = storage.read("jobs/0000000000000001/requests.jsonl", 0, 100_000)
    assert data.count(LONG) == 1
