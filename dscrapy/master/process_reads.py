"""Answers processes that write feeds and read the job's items, as they are committed.

A process has one read under way. A read may wait for more items for as long as the
crawl takes, so each is a task of its session and ends with it.
"""

import logging
from collections.abc import Awaitable, Callable

import attrs
import trio

from dscrapy import messages as m
from dscrapy.control.decision import OnDamage
from dscrapy.errors import DamagedFileError
from dscrapy.master.committer import NO_SESSION, Committer
from dscrapy.master.files import JobFiles

logger = logging.getLogger(__name__)

# Returns bytes of a job's file (its name, offset, limit), no fewer than are known to be
# there; raises ``DamagedFileError``.
ReadWhole = Callable[[str, str, int, int], Awaitable[bytes]]


@attrs.define(kw_only=True, eq=False)
class ProcessReads:
    """The reads of one session; ``send`` takes the answers."""

    session: int
    committer: Committer
    files: JobFiles
    read_whole: ReadWhole
    send: Callable[[int, m.Message], None]
    nursery: trio.Nursery
    _scopes: dict[int, trio.CancelScope] = attrs.field(factory=dict)

    def begin(self, call: m.Read) -> None:
        """Start to answer a process of the session's worker; the process's earlier read
        that is under way ends without an answer."""
        earlier = self._scopes.get(call.process)
        if earlier is not None:
            earlier.cancel()
        scope = self._scopes[call.process] = trio.CancelScope()
        self.nursery.start_soon(self._answer, call, scope)

    async def _answer(self, call: m.Read, scope: trio.CancelScope) -> None:
        try:
            with scope:
                data = await self._bytes_for(call)
                if data is not None:
                    answer = m.ReadSeen(
                        job=call.job,
                        process=call.process,
                        file=call.file,
                        offset=call.offset,
                        data=data,
                    )
                    self.send(self.session, answer)
        finally:
            if self._scopes.get(call.process) is scope:
                del self._scopes[call.process]

    async def _bytes_for(self, call: m.Read) -> bytes | None:
        """Return bytes for a process, None when it has ended or been given up."""
        while self.committer.machine.holds(self.session, call):
            # Get the event before reading, so that no write in between is missed.
            changes = self.files.items_changes(call.job)
            try:
                data = await self.read_whole(
                    call.job, call.file, call.offset, call.limit
                )
            except DamagedFileError as error:
                logger.error("job %s: %s", call.job, error)
                damage = OnDamage(job=call.job, process=call.process, text=str(error))
                await self.committer.submit(NO_SESSION, damage)
                return None
            if data or not call.wait:
                return data
            await changes.wait()
        return None
