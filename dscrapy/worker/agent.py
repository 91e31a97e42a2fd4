"""The worker: runs crawl processes for the master, and forwards messages between them.

It has no state on disk. Messages that the master must not miss wait in the outbox; when
the worker comes back to a master, its registration lists the processes that it runs.
"""

import logging
import math
import secrets
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import attrs
import trio

from dscrapy import messages as m
from dscrapy.conf.config import Config, Endpoint
from dscrapy.errors import UserError
from dscrapy.lines import heading
from dscrapy.model import WORKER_DRAINS, JobSpec, Outcome
from dscrapy.net.connection import dial
from dscrapy.net.cpus import usable_cpus
from dscrapy.net.host import boot_instant, own_versions
from dscrapy.net.listening import listen
from dscrapy.net.threads import InThread
from dscrapy.projects import PROJECT_FILE, code_digest
from dscrapy.worker.caller_streams import Caller
from dscrapy.worker.crawl_process import CrawlProcess
from dscrapy.worker.master_link import Dial, Link
from dscrapy.worker.outbox import Outbox
from dscrapy.worker.process_view import Process, ProcessView
from dscrapy.worker.status_port import StatusPort

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Ports tried upward from the default when none was given.
PORTS_TRIED = 100
# Projects that a refusal names.
PROJECTS_NAMED_MAX = 20
# Time for the last messages to a master that does not read.
LEAVE_S = 2.0
# How long the end of a process is held back for its last log lines.
LOG_DRAIN_S = 5.0


async def serve(
    config: Config,
    *,
    handle_signals: bool = True,
    drain: trio.Event | None = None,
    instance: str = "",
    caller: Caller | None = None,
    task_status: trio.TaskStatus[Endpoint] = trio.TASK_STATUS_IGNORED,
) -> int:
    """Work until drained or stopped; return the exit code.

    The first signal drains, as ``drain`` does when it is set; the second stops at
    once. ``instance`` may be given where there surely is one worker of this name at a
    time: then the master need not wait for the one before. ``caller`` is for a worker
    that is a part of a command. ``task_status`` gets the worker's own address. Raises
    ``UserError`` when it cannot start. When cancelled, its crawl processes are killed.
    """
    listeners = await _listen(config)
    host, port = listeners[0].socket.getsockname()[:2]
    worker = Worker(
        config=config,
        name=config.worker.name or f"{socket.gethostname()}-{port}",
        endpoint=Endpoint(host, port),
        slots=config.worker.slots or usable_cpus(),
        instance=instance or secrets.token_hex(8),
        crawl=partial(CrawlProcess, caller=caller),
    )
    async with trio.open_nursery() as nursery:
        if handle_signals:
            await nursery.start(worker.watch_signals)
        if drain is not None:
            nursery.start_soon(worker.drain_when, drain)
        status_port = StatusPort(config=config, worker=worker)
        nursery.start_soon(trio.serve_listeners, status_port.serve, listeners)
        logger.info(
            "worker %s with %d slots on %s", worker.name, worker.slots, worker.endpoint
        )
        task_status.started(worker.endpoint)
        await worker.run()
        nursery.cancel_scope.cancel()
    if worker.failure is not None:
        raise worker.failure
    return 1 if worker.forced else 0


async def _listen(config: Config) -> list[trio.SocketListener]:
    host, first = config.worker.host, config.worker.port
    tries = 1 if config.worker_port_given or not first else PORTS_TRIED
    for port in range(first, min(first + tries, 65536)):
        listeners = await listen(host, port)
        if listeners is not None:
            return listeners
    raise UserError(
        f"port {first} on {host} is in use: choose another with --port, or leave it "
        "out and the worker takes a free one"
    )


async def _in_thread(call: Callable[[], T], /) -> T:
    # A folder on a network disk may hang; that must not hold up a worker's end.
    return await trio.to_thread.run_sync(call, abandon_on_cancel=True)


@attrs.define(kw_only=True, eq=False)
class Worker:
    """One worker. ``crawl`` makes a crawl process that is not started yet."""

    config: Config
    name: str
    endpoint: Endpoint
    slots: int
    crawl: Callable[..., Process] = CrawlProcess
    in_thread: InThread = _in_thread
    dial: Dial = dial
    instant: Callable[[], float] = boot_instant
    instance: str = attrs.field(factory=lambda: secrets.token_hex(8))
    processes: dict[int, ProcessView] = attrs.field(factory=dict)
    draining: bool = False
    forced: bool = False
    failure: UserError | None = None
    outbox: Outbox = attrs.field(factory=Outbox)
    link: Link = attrs.field(init=False)
    _nursery: trio.Nursery = attrs.field(init=False)
    _valid_until: float = -math.inf
    _is_leaving: bool = False
    _changed: trio.Event = attrs.field(factory=trio.Event)
    _has_room: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.link = Link(
            config=self.config,
            agent=self,
            outbox=self.outbox,
            dial=self.dial,
            instant=self.instant,
        )

    # ---- its life ---------------------------------------------------------------

    async def run(self) -> None:
        """Serve until drained or forced; kills what still runs when cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._run_link)
            await self._until(self._is_done)
            await self._leave()
            nursery.cancel_scope.cancel()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._changed = trio.Event()
            await self._changed.wait()

    async def _run_link(self) -> None:
        try:
            await self.link.run()
        except UserError as error:
            self.failure = error
            self._changed.set()

    def _is_done(self) -> bool:
        if self.forced or self.failure is not None:
            return True
        # Items that the master has not acknowledged are worth waiting for.
        return self.draining and not self.processes and self.outbox.is_settled

    async def _leave(self) -> None:
        """Kill the processes that are left, and log out if the master is connected."""
        for view in self.processes.values():
            view.scope.cancel()
        with trio.move_on_after(LEAVE_S):
            # Once the worker has left, its jobs may run elsewhere at once.
            await self._until(
                lambda: all(view.ended for view in self.processes.values())
            )
        if self.link.connected and self.failure is None:
            self._is_leaving = True
            self.outbox.add_soon(m.Leaving())
            self.link.wake()
            with trio.move_on_after(LEAVE_S):
                # The master closes the session when it has understood.
                while self.link.connected:
                    await self.link.wait_moved()
        logger.info("worker %s leaves", self.name)

    async def watch_signals(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """First SIGINT or SIGTERM: drain. Second: stop now."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            is_first = True
            async for number in signals:
                name = signal.Signals(number).name
                if not is_first:
                    logger.warning("%s again: stopping now", name)
                    self.stop()
                    return
                is_first = False
                count = len(self.processes)
                text = "%s: %d crawl processes finish what they started; again kills"
                logger.info(text, name, count)
                self.drain()

    async def drain_when(self, event: trio.Event) -> None:
        """Drain as soon as this event is set."""
        await event.wait()
        self.drain()

    def drain(self) -> None:
        """Take nothing new, finish what has started, then leave.

        The master stops the processes; without a connection the worker stops them at
        once itself.
        """
        if not self.draining:
            self.draining = True
            self.outbox.add_soon(m.Draining())
            self.link.wake()
            if not self.link.connected:
                self._stop_all()
        self._changed.set()

    def _stop_all(self) -> None:
        for number, view in self.processes.items():
            if not view.is_stopping:
                job = view.start.job
                view.hand_on(m.Stop(job=job, process=number, reason=WORKER_DRAINS))

    def stop(self) -> None:
        """Leave at once; processes that still run are killed."""
        self.forced = True
        self._changed.set()

    # ---- what the link asks and tells -------------------------------------------

    def registration(self) -> m.Register:
        for view in self.processes.values():
            self._report_started(view)
        return m.Register(
            name=self.name,
            instance=self.instance,
            host=self.endpoint.host,
            port=self.endpoint.port,
            slots=self.slots,
            draining=self.draining,
            versions=own_versions(),
            held=tuple(
                view.report(self.outbox.requests_of(number))
                for number, view in self.processes.items()
            ),
        )

    def registered(self, registered: m.Registered) -> None:
        self._notify_room()
        for number in registered.drop:
            view = self.processes.get(number)
            if view is not None:
                # The outbox keeps its commits: the first commit of a request wins.
                logger.warning("process %d is dropped: it was given up", number)
                view.scope.cancel()

    async def wait_room(self) -> None:
        """Wait until the outbox has room for messages of crawl processes."""
        while self.outbox.is_full:
            await self._has_room.wait()

    def _notify_room(self) -> None:
        if not self.outbox.is_full:
            self._has_room.set()
            self._has_room = trio.Event()

    def lost(self) -> None:
        if not self._is_leaving:
            logger.warning("connection to the master lost")
        if self.draining:
            self._stop_all()

    def extend(self, until: float) -> None:
        self._valid_until = until
        for view in self.processes.values():
            if view.process is not None:
                view.process.extend(until)

    def receive(self, message: m.ToWorker) -> None:
        match message:
            case m.Start():
                self._start(message)
            case m.EndedSeen():
                self.processes.pop(message.process, None)
            case m.Drain():
                logger.info("the master drains this worker")
                self.drain()
            case m.Registered() | m.HeartbeatSeen() | m.Refused():
                logger.warning("unexpected message %s", type(message).__name__)
            case _:
                view = self.processes.get(message.process)
                if view is not None:
                    view.hand_on(message)
        # An answer may have been the last thing to wait for.
        self._changed.set()
        self._notify_room()

    # ---- processes --------------------------------------------------------------

    def _start(self, start: m.Start) -> None:
        if start.process in self.processes:
            return
        view = ProcessView(start=start)
        self.processes[start.process] = view
        self._nursery.start_soon(self._run, view)

    async def _run(self, view: ProcessView) -> None:
        start = view.start
        logger.info(
            "job %s: spider %s, process %d, to %s",
            start.job,
            start.spec.spider,
            start.process,
            start.role,
        )
        end: m.Ended | None = None
        try:
            with view.scope:
                end = await self._run_to_end(view)
        finally:
            view.end()
            self._changed.set()
        if end is None:
            text = "crawl process was stopped"
            end = m.Ended(job=start.job, process=start.process, how="exited", text=text)
        logger.info("job %s: process %d ended", start.job, start.process)
        self.outbox.end_log(start.process)
        self.link.wake()
        with trio.move_on_after(LOG_DRAIN_S):
            while self.link.connected and self.outbox.has_log(start.process):
                await self.link.wait_moved()
        self.outbox.add_end(end)
        self.link.wake()
        self._changed.set()

    async def _run_to_end(self, view: ProcessView) -> m.Ended:
        start = view.start
        ended = partial(m.Ended, job=start.job, process=start.process)
        if self.draining:
            return ended(how="refused", text="the worker is draining")
        if start.role == "crawl" and self.busy > self.slots:
            return ended(how="refused", text="no free slot")
        found = await self.in_thread(
            partial(_find_code, start.spec, self.config.projects_root, self.name)
        )
        if isinstance(found, Outcome):
            return ended(how="failed", outcome=found)
        folder, digest = found
        if start.digest and start.digest != digest:
            text = f"the code in {folder} differs from what the job began with"
            return ended(how="other_code", text=text)
        # Reported from here on: only code that is run becomes the job's.
        view.digest = digest
        process = self.crawl(
            start=start,
            folder=folder,
            process_silent_s=self.config.worker.process_silent_s,
            stop_grace_s=self.config.worker.stop_grace_s,
            on_message=partial(self._on_message, view),
            on_log=partial(self._on_log, start),
            wait_room=self.wait_room,
            valid_until=self._valid_until,
        )
        view.begin(process)
        self._report_started(view)
        self._on_log(start, heading(start.process, self.name))
        try:
            death = await process.run()
        except OSError as error:
            text = f"cannot start a crawl process in {folder}: {error}"
            return ended(how="refused", text=text)
        return ended(
            how="exited",
            counted=death.counted,
            text=death.text,
            under_way=view.leased_of(death.under_way),
            alone=len(view.leased) == 1,
        )

    @property
    def busy(self) -> int:
        """Return how many slots are taken, also by processes that are being started.

        Processes that write feeds take none.
        """
        return sum(
            view.start.role == "crawl"
            and not view.ended
            and not view.scope.cancel_called
            for view in self.processes.values()
        )

    def _report_started(self, view: ProcessView) -> None:
        if view.digest:
            start = view.start
            self.outbox.add_soon(
                m.Started(job=start.job, process=start.process, digest=view.digest)
            )
            self.link.wake()

    # ---- what crawl processes say ------------------------------------------------

    def _on_message(
        self, view: ProcessView, message: m.FromProcess, frame: bytes
    ) -> None:
        view.hear(message)
        # On a new session the registration says the same.
        if isinstance(message, m.Opened | m.Release | m.Yielded | m.Closing):
            self.outbox.add_soon(message, frame)
        elif isinstance(message, m.Progress):
            # What the process has committed before may decide what it gets next.
            self.outbox.add_in_turn(frame)
        else:
            self.outbox.retain(message, frame)
        self.link.wake()

    def _on_log(self, start: m.Start, data: bytes) -> None:
        self.outbox.add_log(start.job, start.process, data)
        self.link.wake()


def _find_code(spec: JobSpec, root: Path, name: str) -> tuple[Path, str] | Outcome:
    """Return a job's folder and the digest of its code, or why worker ``name``
    cannot run it; blocking."""
    try:
        folder = _folder_of(spec, root, name)
        return folder if isinstance(folder, Outcome) else (folder, code_digest(folder))
    except OSError as error:
        text = f"worker {name} cannot read {error.filename}: {error.strerror}"
        return Outcome(failure="unknown_project", text=text)


def _folder_of(spec: JobSpec, root: Path, name: str) -> Path | Outcome:
    if spec.project_dir:
        folder = Path(spec.project_dir)
        if folder.is_dir():
            return folder
        text = f"worker {name} has no folder {folder}: `--project DIR` is for "
        text += "workers on the same machine"
        return Outcome(failure="unknown_project", text=text)
    folder = root / spec.project
    # Without a scrapy.cfg the module of the settings says where the project is.
    is_chosen = spec.settings_module and folder.is_dir()
    if is_chosen or (folder / PROJECT_FILE).is_file():
        return folder
    projects = sorted(path.parent.name for path in root.glob(f"*/{PROJECT_FILE}"))
    names = ", ".join(projects[:PROJECTS_NAMED_MAX]) or "none"
    text = f"worker {name} has no project {spec.project} in {root}; "
    text += f"projects there: {names}"
    return Outcome(failure="unknown_project", text=text)
