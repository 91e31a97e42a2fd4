"""The programs of the simulation: a master that is started again, and machines that
run a worker and its crawl processes."""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import trio

from dscrapy.control.decision import Policy
from dscrapy.control.state.workers import Spans
from dscrapy.errors import JournalError, JournalFullError
from dscrapy.master.pruner import prune
from dscrapy.master.reaper import reap
from dscrapy.worker.agent import Worker
from tests.doubles.storage import MemoryStorage, PowerCut
from tests.doubles.wire import End
from tests.shell.master_in_memory import MasterInMemory
from tests.shell.worker_in_memory import config_of, worker_of
from tests.sim.checker import BookedMachine, BookedSessions
from tests.sim.crawl import SimCrawl
from tests.sim.killable_programs import Program
from tests.sim.ledger import BookedJournal

if TYPE_CHECKING:
    from tests.sim.world import World

T = TypeVar("T")

# The time of day when a simulation begins, for people.
WALL_AT = 1_700_000_000.0


@attrs.frozen(kw_only=True)
class Settings:
    """What a master is started with."""

    spans: Spans
    start_deaths_max: int
    segment_bytes_max: int
    snapshot_after_bytes: int
    disk_free_bytes_min: int
    kept_bytes_max: int
    disk_s: float

    @classmethod
    def draw(cls, rng: random.Random) -> "Settings":
        """Return other settings each time; files are small, so that all turns come."""
        grace_s = rng.choice((2.5, 4.0, 6.0))
        die_after_s = rng.choice((5.0, 8.0, 12.0))
        return cls(
            spans=Spans(
                heartbeat_s=min(grace_s, die_after_s) / rng.choice((2, 3)),
                die_after_s=die_after_s,
                reconnect_grace_s=grace_s,
            ),
            start_deaths_max=rng.choice((2, 3, 4)),
            segment_bytes_max=rng.choice((1_500, 6_000, 1 << 20)),
            snapshot_after_bytes=rng.choice((1, 2_500, 8_000, 1 << 30)),
            disk_free_bytes_min=rng.choice((0, 0, 400)),
            kept_bytes_max=rng.choice((0, 2_000, 1 << 20)),
            disk_s=rng.choice((0.0, 0.002, 0.05)),
        )


@attrs.define(eq=False)
class SimMaster:
    """The master; ``storage`` is its disk, whichever process has it now.

    ``wall_shift_s`` and ``boot_shift_s`` are what its clocks have leapt.
    """

    world: "World"
    storage: MemoryStorage
    rng: random.Random
    program: Program | None = None
    running: MasterInMemory | None = None
    wall_shift_s: float = 0.0
    boot_shift_s: float = 0.0
    is_calm: bool = False
    settings: Settings | None = None
    stopped_at: float = math.inf
    # What is to become of the disk when the power goes in a call.
    power: str = "kill"

    def start(self) -> None:
        """Start it on what is on its disk."""
        assert self.program is None
        self.settings = Settings.draw(self.rng)
        self.program = Program("master")
        self.program.run_in(self.world.nursery, self._live, self.program, self.settings)

    def start_in(self, seconds: float) -> None:
        """Start it again after a while, unless it runs by then."""

        async def later() -> None:
            await trio.sleep(seconds)
            if self.program is None:
                self.start()

        self.world.nursery.start_soon(later)

    # ---- one life ------------------------------------------------------------------

    async def _live(self, program: Program, settings: Settings) -> None:
        streams: trio.MemoryReceiveChannel[End]
        backlog, streams = trio.open_memory_channel[End](math.inf)
        end = ""
        try:
            with program.scope:
                await self._disk_wait(settings)
                master = self._open(program, settings)
                self.world.network.accept = backlog.send_nowait
                async with trio.open_nursery() as nursery:
                    runs = (master.committer.run, master.files.run)
                    for run in runs:
                        nursery.start_soon(self._guarded, program, run)
                    nursery.start_soon(reap, master.committer)
                    if not master.committer.machine.policy.keep.is_everything:
                        nursery.start_soon(prune, master.committer, master.files)
                    async for stream in streams:
                        nursery.start_soon(master.server.serve, stream)
        except PowerCut:
            self.world.power_goes(self.power)
        except (JournalError, JournalFullError) as error:
            end = self._judge(error)
        except Exception as error:  # noqa: BLE001 - whatever it is ends the simulation
            if not program.is_dead:
                self.world.checker.broken("the master crashed", _told(error))
        if self.program is program:
            self.world.trace.note("master ends", end)
            self.gone(silently=False)
            self.start_in(self.rng.uniform(0.2, 2.0))

    async def _guarded(self, program: Program, run: Callable[[], Any]) -> None:
        """Run a part of it; what stops that stops the master."""
        try:
            await run()
        except PowerCut:
            if self.program is program:
                self.world.power_goes(self.power)
        except (JournalError, JournalFullError) as error:
            self._judge(error)
            program.scope.cancel()

    def _judge(self, error: JournalError | JournalFullError) -> str:
        """A disk that fails may stop the master; nothing else may."""
        disk = self.storage
        limits = (disk.syncs_left, disk.appends_left, disk.renames_left)
        is_failing = any(limit is not None for limit in limits)
        is_full = isinstance(error, JournalFullError) and disk.room is not None
        if not is_failing and not is_full:
            self.world.checker.broken("the master stops", str(error))
        self.world.count("master stopped by its disk")
        return str(error)

    def _open(self, program: Program, settings: Settings) -> MasterInMemory:
        world, storage = self.world, self.storage
        checker = world.checker
        policy = Policy(
            spans=settings.spans,
            start_deaths_max=settings.start_deaths_max,
            keep=world.removals.draw_keep(),
        )
        machine = BookedMachine(checker=checker, policy=policy, one_in=64)
        storage.lock()
        journal = BookedJournal.open(
            storage, segment_bytes_max=settings.segment_bytes_max
        )
        assert isinstance(journal, BookedJournal)
        journal.ledger = checker.ledger
        master = MasterInMemory(
            storage,
            machine=machine,
            journal=journal,
            sessions=BookedSessions(checker, lambda: program.is_dead),
            snapshot_after_bytes=settings.snapshot_after_bytes,
            disk_free_bytes_min=settings.disk_free_bytes_min,
            kept_bytes_max=settings.kept_bytes_max,
            instant=lambda: trio.current_time() + self.boot_shift_s,
            wall=lambda: WALL_AT + trio.current_time() + self.wall_shift_s,
            in_thread=self._in_thread,
        )
        master.server.connections_max = 1000
        if journal.snapshot is not None:
            world.count("master started from a snapshot")
        left_behind = checker.ledger.left_behind(storage)
        master.committer.replay()
        if left_behind:
            world.count("removal that was cut short, ended at a start")
        if journal.torn is not None:
            world.count("torn tail put aside")
        world.count("master started")
        checker.ledger.check_state(machine.state)
        checker.ledger.check_files(storage)
        checker.machine, checker.master_at = machine, trio.current_time()
        checker.epoch = machine.state.epoch + 1
        self.running = master
        world.trace.note("master starts, epoch", checker.epoch)
        return master

    async def _in_thread(self, call: Callable[[], T], /) -> T:
        assert self.settings is not None
        await self._disk_wait(self.settings)
        result = call()
        await self._disk_wait(self.settings)
        return result

    async def _disk_wait(self, settings: Settings) -> None:
        if settings.disk_s:
            await trio.sleep(settings.disk_s * self.rng.random())
        else:
            await trio.lowlevel.checkpoint()

    # ---- what happens to it --------------------------------------------------------

    def gone(self, *, silently: bool) -> None:
        """Its process is no more; what it has written is there."""
        program, self.program, self.running = self.program, None, None
        self.world.network.accept = None
        self.storage = self.storage.reopened()
        self.world.checker.machine = None
        if program is not None:
            program.kill()
        self.world.network.hang_up(1, party=None, silently=silently)

    def stop(self) -> None:
        """Stop it, as SIGSTOP does."""
        if self.program is not None and not self.program.is_stopped:
            self.stopped_at = trio.current_time()
            self.program.stop()

    def go_on(self) -> None:
        """Let it go on."""
        if self.program is not None and self.program.is_stopped:
            run_time = self.world.checker.run_time
            run_time.add_gap(self.stopped_at, trio.current_time())
            self.program.go_on()


@attrs.define(eq=False)
class Machine:
    """A machine with a worker, its crawl processes, and a boot clock of its own."""

    world: "World"
    name: str
    slots: int
    folder: Path
    rng: random.Random
    boot_shift_s: float = 0.0
    lives: int = 0
    program: Program | None = None
    worker: Worker | None = None
    crawls: dict[int, SimCrawl] = attrs.field(factory=dict)
    is_wanted: bool = True

    def boot(self) -> float:
        """Return an instant of its boot clock."""
        return trio.current_time() + self.boot_shift_s

    @property
    def party(self) -> str:
        """What its connections are known by."""
        return f"{self.name}-{self.lives}"

    def live_crawls(self) -> list[SimCrawl]:
        """Return its crawl processes that live."""
        return [crawl for crawl in self.crawls.values() if crawl.is_alive]

    def start(self) -> None:
        """Start its worker."""
        assert self.program is None
        self.lives += 1
        self.crawls = {}
        self.program = Program(self.party)
        self.worker = worker_of(
            self.world.network,
            self._crawl,
            self.folder,
            name=self.name.split("'")[0],
            slots=self.slots,
            draw=self.rng.random,
            config=self.world.config,
            instance=self.party,
            instant=self.boot,
            dial=self._dial_as(self.party),
        )
        self.program.run_in(self.world.nursery, self._live, self.program, self.worker)

    def _dial_as(self, party: str) -> Callable[..., Any]:
        network, ways = self.world.network, self.world.checker.ways
        dial_as = network.dialler(party)

        async def dial(*args: Any, **kwargs: Any) -> Any:
            connection = await dial_as(*args, **kwargs)
            ways[party] = network.latest[party].ways[0]
            return connection

        return dial

    def start_in(self, seconds: float) -> None:
        """Start it again after a while, unless it runs by then or is not wanted."""

        async def later() -> None:
            await trio.sleep(seconds)
            if self.program is None and self.is_wanted:
                self.start()

        self.world.nursery.start_soon(later)

    async def _live(self, program: Program, worker: Worker) -> None:
        try:
            with program.scope:
                await worker.run()
        except Exception as error:  # noqa: BLE001 - whatever it is ends the simulation
            if not program.is_dead:
                self.world.checker.broken("a worker crashed", _told(error))
        if self.program is program:
            # It was drained, or refused.
            self.world.trace.note("worker ends", self.party, worker.failure or "")
            self.kill(silently=False)
            self.start_in(self.rng.uniform(0.5, 2.0))

    def _crawl(self, **fields: Any) -> SimCrawl:
        start = fields["start"]
        crawl = SimCrawl(
            machine=self,
            site=self.world.site_of(start.job),
            rng=random.Random(f"{self.world.seed}/crawl/{start.process}"),
            **fields,
        )
        self.world.checker.crawls[start.process] = crawl
        return crawl

    # ---- what happens to it --------------------------------------------------------

    def kill(self, *, silently: bool) -> None:
        """Kill its worker, and with it its crawl processes."""
        program, self.program, self.worker = self.program, None, None
        for crawl in self.live_crawls():
            crawl.kill("was killed with its worker", counted=False, lose=True)
        if program is not None:
            program.kill()
        self.world.network.hang_up(0, party=self.party, silently=silently)

    def stop(self, *, whole: bool) -> None:
        """Stop its worker, or the whole machine."""
        if self.program is not None:
            self.program.stop()
        for crawl in self.live_crawls() if whole else ():
            crawl.program.stop()

    def go_on(self) -> None:
        """Let everything on it go on."""
        if self.program is not None:
            self.program.go_on()
        for crawl in self.live_crawls():
            crawl.program.go_on()


def project_config(folder: Path) -> Any:
    """Return the settings of all workers; the project in ``folder`` is theirs."""
    config = config_of(folder)
    worker = attrs.evolve(config.worker, reconnect_s_max=2.0)
    return attrs.evolve(config, worker=worker)


def _told(error: BaseException) -> str:
    """Return an error and where it was raised, in one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    where = ""
    trace = error.__traceback__
    while trace is not None:
        where = f"{trace.tb_frame.f_code.co_qualname} line {trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}: {error} in {where}"
