"""The master: composes storage, journal, state and sessions, and serves.

One nursery holds the master's life: committer (scheduling), files, reaper and the
listener, whose connections are nurseries of their own. What stops it is a signal, or
an error of the journal, after which only a restart knows what is true.
"""

import json
import logging
import os
import resource
import secrets
import signal
from collections.abc import Awaitable, Callable, Sequence

import attrs
import msgspec
import trio

from dscrapy import messages as m
from dscrapy.conf.config import (
    ENDPOINT_NAME,
    ENDPOINT_VERSION,
    TOKEN_NAME,
    Config,
    Endpoint,
    is_token,
)
from dscrapy.control import views
from dscrapy.control.clock import Now
from dscrapy.control.decision import Policy
from dscrapy.control.machine import Machine
from dscrapy.control.state.workers import Spans
from dscrapy.errors import JournalError, JournalFullError, UserError
from dscrapy.keep import Keep
from dscrapy.master.committer import NO_SESSION, Committer
from dscrapy.master.files import JobFiles
from dscrapy.master.journal import Journal
from dscrapy.master.pruner import prune
from dscrapy.master.reaper import reap
from dscrapy.master.session import Sessions, SessionServer
from dscrapy.master.storage import NO_ROOM_ERRORS, DiskStorage, Storage
from dscrapy.model import Submission
from dscrapy.net.admission import NEWCOMERS_MAX
from dscrapy.net.host import boot_instant, own_versions
from dscrapy.net.listening import listen

logger = logging.getLogger(__name__)

# 192 bits; at least 128 are asked for.
_TOKEN_BYTES = 24
# The master sends this secret to nobody; crawl processes get keys made from it.
SECRET_NAME = "pickle.key"  # noqa: S105 - the name of a file, not a secret
_SECRET_BYTES = 32
# Files open at the same time beside connections: journal, job files in threads,
# modules being imported. Beyond the system's limit a commit could not open its file.
_FILES_OPEN_MAX = 64
_LOOPBACK = ("127.", "::1", "localhost")


async def serve(
    config: Config,
    *,
    submissions: Sequence[Submission] = (),
    handle_signals: bool = True,
    task_status: trio.TaskStatus[Endpoint] = trio.TASK_STATUS_IGNORED,
) -> int:
    """Serve until a signal comes; return the exit code.

    ``submissions`` are jobs of a file, loaded once by name. ``task_status`` gets the
    address once the master listens. Raises ``UserError`` when it cannot start, or
    cannot go on.
    """
    storage = DiskStorage(config.state)
    storage.lock()
    try:
        listeners = await _listen(config.master.host, config.master.port)
        try:
            master = await trio.to_thread.run_sync(_Master.open, config, storage)
        except BaseException:
            for listener in listeners:
                await listener.aclose()
            raise
        return await master.run(listeners, submissions, handle_signals, task_status)
    except JournalFullError as error:
        raise UserError(f"no room in state folder {config.state}: {error}") from None
    except OSError as error:
        if error.errno not in NO_ROOM_ERRORS:
            raise
        raise UserError(
            f"no room in state folder {config.state} ({error.strerror}): make room "
            "and start again"
        ) from None
    except JournalError as error:
        raise UserError(str(error)) from None
    finally:
        storage.close()


@attrs.define(kw_only=True)
class _Master:
    config: Config
    storage: Storage
    journal: Journal
    files: JobFiles
    committer: Committer
    sessions: Sessions
    token: str = attrs.field(repr=False)
    started_at: float
    failure: JournalError | None = None

    @classmethod
    def open(cls, config: Config, storage: Storage) -> "_Master":
        """Read the journal and rebuild the state, blocking."""
        settings = config.master
        journal = Journal.open(storage, segment_bytes_max=settings.segment_bytes_max)
        files = JobFiles(storage, log_bytes_max=settings.log_bytes_max)
        policy = Policy(
            spans=Spans(
                heartbeat_s=settings.heartbeat_s,
                die_after_s=settings.die_after_s,
                reconnect_grace_s=settings.reconnect_grace_s,
            ),
            start_deaths_max=settings.start_deaths_max,
            suspect_patience_s=settings.suspect_patience_s,
            secret=_secret(storage) if settings.pickles else b"",
            keep=Keep.of(settings),
        )
        sessions = Sessions()
        committer = Committer(
            Machine(policy=policy),
            journal,
            files,
            storage,
            sessions,
            snapshot_after_bytes=settings.snapshot_after_bytes,
            disk_free_bytes_min=settings.disk_free_bytes_min,
            instant=boot_instant,
        )
        committer.replay()
        return cls(
            config=config,
            storage=storage,
            journal=journal,
            files=files,
            committer=committer,
            sessions=sessions,
            token=_token(config, storage),
            started_at=boot_instant(),
        )

    async def run(
        self,
        listeners: list[trio.SocketListener],
        submissions: Sequence[Submission],
        handle_signals: bool,
        task_status: trio.TaskStatus[Endpoint],
    ) -> int:
        endpoint = _endpoint_of(listeners)
        wanted = self.config.master.connections_max
        connections_max, newcomers_max = _connections_max(wanted)
        server = SessionServer(
            token=self.token,
            committer=self.committer,
            files=self.files,
            sessions=self.sessions,
            handshake_timeout_s=self.config.master.handshake_timeout_s,
            connections_max=connections_max,
            newcomers_max=newcomers_max,
        )
        self.committer.status = lambda call, now: self._status(endpoint, call, now)
        written = {
            "version": ENDPOINT_VERSION,
            "host": endpoint.host,
            "port": endpoint.port,
            "pid": os.getpid(),
        }
        try:
            submit = self._submission_of(submissions) if submissions else None
            self.storage.write_atomic(ENDPOINT_NAME, json.dumps(written).encode())
            async with trio.open_nursery() as nursery:
                if handle_signals:
                    await nursery.start(_stop_on_signal, nursery.cancel_scope)
                stop = nursery.cancel_scope
                nursery.start_soon(self._guarded, self.committer.run, stop)
                nursery.start_soon(self._guarded, self.files.run, stop)
                nursery.start_soon(reap, self.committer)
                nursery.start_soon(prune, self.committer, self.files)
                if submit is not None:
                    await self.committer.submit(NO_SESSION, submit)
                nursery.start_soon(trio.serve_listeners, server.serve, listeners)
                _announce(self.config, endpoint)
                task_status.started(endpoint)
        finally:
            self.journal.close()
        if self.failure is not None:
            raise self.failure
        logger.info("stopped; running crawl processes wait for the next master")
        return 0

    async def _guarded(
        self, run: Callable[[], Awaitable[None]], stop: trio.CancelScope
    ) -> None:
        try:
            await run()
        except JournalError as error:
            logger.critical("the master stops: %s", error)
            self.failure = error
            stop.cancel()

    def _submission_of(self, submissions: Sequence[Submission]) -> m.Submit:
        """Return a call that submits the jobs of a file that the state does not know.

        Raises ``UserError`` when the state knows a name with other content, or would
        refuse the jobs.
        """
        machine = self.committer.machine
        state = machine.state
        # The next start must find that these jobs have run, so none is pruned.
        machine.policy = attrs.evolve(
            machine.policy,
            kept_names=frozenset(listed.spec.name for listed in submissions),
        )
        known: dict[str, tuple[bytes, float | None]] = {
            job.name: (job.spec, None) for job in state.order if not job.schedule
        }
        for schedule in state.schedules.values():
            name = views.view_schedule(schedule).name
            known[name] = (schedule.spec, schedule.every_s)
        new = []
        for submission in submissions:
            name = submission.spec.name
            content = (msgspec.json.encode(submission.spec), submission.every_s)
            if name not in known:
                new.append(submission)
            elif known[name] != content:
                raise UserError(
                    f"the master has a job named {name} with other content: "
                    "give the changed job another name"
                )
        submit = m.Submit(call=0, part=0, last=True, submissions=tuple(new))
        # Deciding changes nothing, so this only asks what the answer would be.
        dry = machine.decide(NO_SESSION, submit, self.committer.now())
        for _, message in dry.sends:
            if isinstance(message, m.Refused):
                raise UserError(message.text)
        logger.info("%d jobs to load, %d known", len(new), len(submissions) - len(new))
        return submit

    def _status(self, endpoint: Endpoint, call: m.GetStatus, now: Now) -> m.Status:
        return views.status(
            self.committer.machine.state,
            self.committer.machine.policy.spans,
            now,
            call=call.call,
            host=endpoint.host,
            port=endpoint.port,
            uptime_s=boot_instant() - self.started_at,
            versions=own_versions(),
            note=self.committer.note,
        )


async def _listen(host: str, port: int) -> list[trio.SocketListener]:
    listeners = await listen(host, port)
    if listeners is None:
        raise UserError(
            f"port {port} on {host} is in use: choose another with --port, or "
            "stop what listens there"
        )
    return listeners


async def _stop_on_signal(
    stop: trio.CancelScope,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            logger.info("%s: stopping", signal.Signals(number).name)
            stop.cancel()
            return


def _connections_max(wanted: int) -> tuple[int, int]:
    """Return how many connections may be open, so that enough files are left for the
    journal: those that have proved the token, and those that have not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    newcomers = NEWCOMERS_MAX
    limit = wanted + newcomers + _FILES_OPEN_MAX
    if hard != resource.RLIM_INFINITY:
        newcomers = max(min(newcomers, hard // 4), 1)
        limit = min(limit, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    connections = max(limit - newcomers - _FILES_OPEN_MAX, 1)
    if connections < wanted:
        logger.warning(
            "at most %d connections: the system allows no more files", connections
        )
    return connections, newcomers


def _endpoint_of(listeners: list[trio.SocketListener]) -> Endpoint:
    host, port = listeners[0].socket.getsockname()[:2]
    return Endpoint(host, port)


def _token(config: Config, storage: Storage) -> str:
    """Return the token: as configured, of the state folder, or a new one."""
    if config.token:
        return config.token
    try:
        data = storage.read(TOKEN_NAME, 0, 4096)
    except FileNotFoundError:
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        storage.write_atomic(TOKEN_NAME, token.encode() + b"\n")
        return token
    token = data.decode(errors="replace").strip()
    if not is_token(token):
        raise UserError(
            f"{storage.path(TOKEN_NAME)} holds no valid token: remove the file, and "
            "the master makes a new one"
        )
    return token


def _secret(storage: Storage) -> bytes:
    """Return what the keys of jobs are made from: the state folder's, or a new one."""
    try:
        data = storage.read(SECRET_NAME, 0, 4096)
    except FileNotFoundError:
        data = secrets.token_bytes(_SECRET_BYTES)
        storage.write_atomic(SECRET_NAME, data)
    if len(data) != _SECRET_BYTES:
        raise UserError(
            f"{storage.path(SECRET_NAME)} is not what a master has written: put the "
            "file back, or remove it; without it, requests of unfinished jobs that "
            "hold a pickle count as failed"
        )
    return data


def _announce(config: Config, endpoint: Endpoint) -> None:
    logger.info("listening on %s, state in %s", endpoint, config.state)
    if endpoint.host.startswith(_LOOPBACK):
        return
    logger.warning(
        "nothing is encrypted: whoever reads this network can take the token and run "
        "code on every worker. Keep the default --host and tunnel instead: "
        "ssh -N -L %d:127.0.0.1:%d THIS-MACHINE",
        endpoint.port,
        endpoint.port,
    )
