"""An export process's link to the master: its questions, commits and orders."""

import asyncio
from collections.abc import Callable, Hashable
from typing import Any, Literal

from dscrapy.crawl.worker_side.worker_link import Link
from dscrapy.messages import (
    Alive,
    Commit,
    Commits,
    CommitsSeen,
    Done,
    Feeds,
    FeedsSeen,
    ItemsEnd,
    Probe,
    Read,
    ReadSeen,
    Run,
    Stop,
    ToCrawl,
)
from dscrapy.model import PROCESS_IDLES

# Bytes of items asked for at a time: large enough that the round trip does not show;
# in between the loop has time for other things.
READ_BYTES = 1024 * 1024
# A process beside a crawl that brings no item for so long ends, and gives its memory
# back: some 70 MiB. Starting the next one costs about a second.
IDLE_S = 30.0


class Stopped(Exception):
    """The process ends before the crawl does, for this reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ExportLink:
    """Questions, answers and orders over ``link``. ``stop_reason`` is why the process
    is to end before the crawl does; ``items_end`` is None until the crawl is over."""

    def __init__(self, link: Link, run: Run) -> None:
        self.stop_reason = ""
        self.items_end: ItemsEnd | None = None
        self._link = link
        self._run = run
        self._answers: dict[Hashable, asyncio.Future[Any]] = {}
        self._has_news = asyncio.Event()
        self._done = asyncio.Event()
        self._unit = 0

    async def attach(self, on_end: Callable[[], None]) -> None:
        """Begin to take messages; ``on_end`` is called when the link ends."""
        await self._link.attach(self._on_message, on_end, lambda: None)

    # ---- questions ------------------------------------------------------------------

    async def ask_feeds(self, lengths: dict[str, int]) -> FeedsSeen:
        """Report lengths of files; return the lengths first reported, and batches."""
        run = self._run
        question = Feeds(job=run.job, process=run.process, lengths=lengths)
        self._link.send(question)
        answer: FeedsSeen = await self._future(FeedsSeen)
        return answer

    async def fetch(self, file: Literal["items", "tagged"], offset: int) -> bytes:
        """Return bytes of the job's file, none where it ends; before the crawl is over
        wait for some. Raises ``Stopped``."""
        if self.items_end is None and self.stop_reason:
            raise Stopped(self.stop_reason)
        if self._is_end(file, offset):
            return b""
        future = self._read(file, offset)
        while True:
            self._has_news.clear()
            news = asyncio.ensure_future(self._has_news.wait())
            try:
                await asyncio.wait(
                    (future, news), timeout=IDLE_S, return_when="FIRST_COMPLETED"
                )
            finally:
                news.cancel()
            if future.done():
                data: bytes = future.result().data
                if data:
                    return data
                raise RuntimeError(f"{file} of the job is cut short at byte {offset}")
            if self._is_end(file, offset):
                # There is nothing to wait for any more.
                del self._answers[file, offset]
                return b""
            if self.items_end is None and (
                self.stop_reason or not self._has_news.is_set()
            ):
                raise Stopped(self.stop_reason or PROCESS_IDLES)

    def _read(
        self, file: Literal["items", "tagged"], offset: int
    ) -> asyncio.Future[ReadSeen]:
        question = Read(
            job=self._run.job,
            process=self._run.process,
            file=file,
            offset=offset,
            limit=READ_BYTES,
            wait=self.items_end is None,
        )
        self._link.send(question)
        return self._future((file, offset))

    def _is_end(self, file: Literal["items", "tagged"], offset: int) -> bool:
        end = self.items_end
        if end is None:
            return False
        return offset >= (end.items_bytes if file == "items" else end.tagged_bytes)

    def _future(self, key: Hashable) -> asyncio.Future[Any]:
        """Return a future for the answer to this key's question."""
        assert key not in self._answers
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[key] = future
        return future

    # ---- commits --------------------------------------------------------------------

    async def commit(self, **fields: Any) -> None:
        """Commit the next unit with these fields; return when it is durable."""
        self._unit += 1
        answer = self._future(self._unit)
        self._send(Commit(unit=self._unit, **fields))
        if (await answer) != "published":
            # The master has given this process up; so will its worker, by a kill.
            await asyncio.Event().wait()

    async def close(self, **fields: Any) -> None:
        """Commit the last unit, and wait until the process may end."""
        self._unit += 1
        self._send(Commit(unit=self._unit, kind="closed", **fields))
        await self._done.wait()
        self._link.close()

    def _send(self, commit: Commit) -> None:
        run = self._run
        self._link.send(Commits(job=run.job, process=run.process, commits=(commit,)))

    # ---- messages -------------------------------------------------------------------

    def _on_message(self, message: ToCrawl) -> None:
        match message:
            case Probe(number=number):
                self._link.send(Alive(number=number))
            case FeedsSeen():
                self._answer(FeedsSeen, message)
            case ReadSeen():
                self._answer((message.file, message.offset), message)
            case CommitsSeen():
                for ack in message.seen:
                    self._answer(ack.unit, ack.result)
            case ItemsEnd():
                self.items_end = message
                self._has_news.set()
            case Stop(reason=reason):
                self.stop_reason = self.stop_reason or reason
                self._has_news.set()
            case Done():
                self._done.set()
            case _:
                # Spans and the like are for crawls: an export requests no pages.
                return

    def _answer(self, key: Hashable, answer: Any) -> None:
        # An answer may come when nobody waits for it any more.
        future = self._answers.pop(key, None)
        if future is not None:
            future.set_result(answer)
