"""The worker's own port, for ``status --at HOST:PORT``; the same protocol."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import attrs
import trio

from dscrapy import messages as m
from dscrapy.conf.config import Config, Endpoint, find_token
from dscrapy.errors import RemoteProtocolError, UnauthorisedError
from dscrapy.model import JobView, WorkerView
from dscrapy.net.admission import Admission, address_of
from dscrapy.net.connection import Connection
from dscrapy.net.host import boot_instant, own_versions
from dscrapy.worker.master_link import Link
from dscrapy.worker.process_view import ProcessView

logger = logging.getLogger(__name__)

# Clients that have proved the token, at the same time. Enough for people and their
# scripts; this port has no other users.
CONNECTIONS_MAX = 64
# Clients that have not proved it: fewer than the master takes, since crawl processes
# need open files as well.
NEWCOMERS_MAX = 64
HANDSHAKE_TIMEOUT_S = 5.0
# A client that asks nothing for this long is let go.
IDLE_S = 60.0


class Served(Protocol):
    """The worker that has this port."""

    name: str
    endpoint: Endpoint
    slots: int
    draining: bool
    link: Link

    @property
    def busy(self) -> int:
        """How many of its slots are taken."""

    @property
    def processes(self) -> Mapping[int, ProcessView]:
        """Its processes by their number."""


@attrs.define(kw_only=True)
class StatusPort:
    """Serves connections to the worker's own port."""

    config: Config
    worker: Served
    started_at: float = attrs.field(factory=boot_instant)
    _connections: int = 0
    _admission: Admission = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._admission = Admission(
            incoming={"client": m.ClientCall},
            handshake_timeout_s=HANDSHAKE_TIMEOUT_S,
            logger=logger,
            newcomers_max=NEWCOMERS_MAX,
        )

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve one connection to its end; closes the stream. Never raises."""
        try:
            token = find_token(self.config)
            connection = await self._admission.admit(stream, token=token)
            if connection is None or self._connections >= CONNECTIONS_MAX:
                return
            self._connections += 1
            try:
                await self._serve(connection)
            finally:
                self._connections -= 1
        except UnauthorisedError as error:
            # Our own token is gone; those who dial must not fill the log with that.
            self._admission.log_refusal(address_of(stream), error)
        except RemoteProtocolError as error:
            logger.info("a connection to our own port ends: %s", error)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            logger.debug("a connection to our own port broke")
        finally:
            await trio.aclose_forcefully(stream)

    async def _serve(self, connection: Connection[Any]) -> None:
        with trio.move_on_after(IDLE_S):
            while (call := await connection.receive()) is not None:
                await connection.send(self._answer(call))

    def _answer(self, call: m.ClientCall) -> m.Message:
        match call:
            case m.GetStatus():
                return self._status(call.call)
            case m.Ping():
                return m.Accepted(call=call.call)
            case _:
                text = "a worker answers status only: ask the master"
                return m.Refused(call=call.call, code="not_here", text=text)

    def _status(self, call: int) -> m.Status:
        worker = self.worker
        jobs: dict[str, list[ProcessView]] = {}
        for process in worker.processes.values():
            jobs.setdefault(process.start.job, []).append(process)
        running = tuple(_view(worker, processes) for processes in jobs.values())
        view = WorkerView(
            name=worker.name,
            host=worker.endpoint.host,
            port=worker.endpoint.port,
            slots=worker.slots,
            busy=worker.busy,
            state="draining"
            if worker.draining
            else "live"
            if worker.link.connected
            else "away",
            last_heartbeat_s=0.0,
            versions={},
            note=worker.link.state,
        )
        return m.Status(
            call=call,
            role="worker",
            host=worker.endpoint.host,
            port=worker.endpoint.port,
            uptime_s=boot_instant() - self.started_at,
            epoch=0,
            versions=own_versions(),
            note=worker.link.state,
            jobs={"running": len(running)},
            running=running,
            failed=(),
            schedules=(),
            workers=(view,),
        )


def _view(worker: Served, processes: Sequence[ProcessView]) -> JobView:
    """Return what this worker knows of a job that it has processes of."""
    start = processes[0].start
    spec = start.spec
    return JobView(
        id=start.job,
        name=spec.name,
        project=spec.project or spec.project_dir,
        spider=spec.spider,
        state="running",
        reason="",
        priority=spec.priority,
        parallelism=spec.parallelism,
        pages=sum(process.pages for process in processes),
        items=sum(process.items for process in processes),
        errors=None,
        pending=0,
        leased=sum(len(process.leased) for process in processes),
        poisoned=0,
        processes=sum(process.start.role == "crawl" for process in processes),
        retries_left=spec.retries,
        runs=len(processes),
        workers=(worker.name,),
        schedule=None,
        submitted_at=0.0,
        started_at=None,
        finished_at=None,
    )
