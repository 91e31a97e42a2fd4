"""The crawl process's end of its link, on a socket pair in one event loop."""

import asyncio
import socket

from dscrapy.crawl.worker_side.worker_link import Link
from dscrapy.messages import Alive, Closing, Probe, ToCrawl
from dscrapy.proto.codec import encode
from dscrapy.proto.framing import encode_frame

# More than an unread link takes: the socket's buffers and ours.
MANY = 12_000
# Long enough on a busy machine.
WAIT_S = 20.0


def test_a_worker_that_does_not_read_pauses_the_link() -> None:
    """What is sent then waits here; when it has caught up that is told."""

    async def scene() -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        resumed = asyncio.Event()
        link = Link(ours)
        await link.attach(lambda message: None, lambda: None, resumed.set)
        large = Closing(job="0" * 16, process=1, reason="x" * 1000)
        frame = len(encode_frame(encode(large)))
        link.send(Alive(number=1))
        assert not link.is_paused
        for _ in range(MANY):
            link.send(large)
        assert link.is_paused
        loop = asyncio.get_running_loop()
        left = MANY * frame + len(encode_frame(encode(Alive(number=1))))
        while left:
            left -= len(await loop.sock_recv(theirs, 1 << 20))
        await resumed.wait()
        assert not link.is_paused
        link.close()
        theirs.close()

    asyncio.run(asyncio.wait_for(scene(), WAIT_S))


def test_messages_behind_the_first_are_delivered_when_attached() -> None:
    """Also a half one, and the end of the link is told once."""

    async def scene() -> None:
        ours, theirs = socket.socketpair()
        frames = b"".join(encode_frame(encode(Probe(number=n))) for n in range(4))
        theirs.sendall(frames[:-3])
        link = Link(ours)
        assert link.receive() == Probe(number=0)
        got: list[ToCrawl] = []
        ended = asyncio.Event()
        await link.attach(got.append, ended.set, lambda: None)
        assert got == [Probe(number=1), Probe(number=2)]
        theirs.sendall(frames[-3:])
        theirs.close()
        await ended.wait()
        assert got[2:] == [Probe(number=3)]

    asyncio.run(asyncio.wait_for(scene(), WAIT_S))
