"""Faults, drawn from the seed: each seed has some kinds of them, at its own rates.

A fault takes hold at once; what it breaks mends itself after a while that is drawn,
too, so that several are in force at a time.
"""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
import trio

from tests.sim.machines import Machine
from tests.sim.network import Ways

if TYPE_CHECKING:
    from tests.sim.world import World

# Seconds between two faults, on average, by seed.
RATES = (0.08, 0.2, 0.5)


@attrs.define(eq=False)
class Faults:
    """``kinds`` are the faults of this seed with their weights."""

    world: "World"
    rng: random.Random
    kinds: dict[str, float] = attrs.field(factory=dict)
    rate: float = 0.1
    _mending: list[Callable[[], None]] = attrs.field(factory=list)
    twins: int = 0

    def __attrs_post_init__(self) -> None:
        rng = self.rng
        self.rate = rng.choice(RATES)
        chance = rng.choice((0.2, 0.5, 0.9))
        self.kinds = {
            kind: rng.choice((1.0, 1.0, 3.0)) for kind in KINDS if rng.random() < chance
        }
        network = self.world.network
        network.lag_s = rng.choice((0.0, 0.01, 0.3))
        network.splits = rng.choice((0.0, 0.0, 0.1))

    async def run(self) -> None:
        """Let things fail until cancelled."""
        if not self.kinds:
            await trio.sleep_forever()
        names = list(self.kinds)
        weights = list(self.kinds.values())
        while True:
            await trio.sleep(self.rng.expovariate(self.rate))
            (kind,) = self.rng.choices(names, weights)
            if KINDS[kind](self):
                self.world.count(kind)

    def _mend_in(self, seconds: float, mend: Callable[[], None]) -> None:
        """Mend something after a while, or when all faults end."""
        self._mending.append(mend)

        async def later() -> None:
            await trio.sleep(seconds)
            if mend in self._mending:
                self._mending.remove(mend)
                mend()

        self.world.nursery.start_soon(later)

    def heal(self) -> None:
        """End all faults, and let run whatever is to run."""
        mending, self._mending = self._mending, []
        for mend in mending:
            mend()
        world, disk = self.world, self.world.master.storage
        disk.room = disk.syncs_left = disk.appends_left = disk.renames_left = None
        disk.calls_left = None
        world.network.splits = 0.0
        world.network.lag_s = min(world.network.lag_s, 0.01)
        for wire in world.network.live():
            for way in wire.ways:
                way.cut_after = None
        if world.master.program is None:
            world.master.start()
        for machine in world.machines:
            if machine.program is None and machine.is_wanted:
                machine.start()

    def note(self, *what: object) -> None:
        """Say in the trace what fails."""
        self.world.trace.note("fault:", *what)

    def machine(self) -> Machine | None:
        """Return a machine whose worker runs and is not stopped."""
        able = [
            one
            for one in self.world.machines
            if one.program is not None and not one.program.is_stopped
        ]
        return self.rng.choice(able) if able else None


# ---- the network -------------------------------------------------------------------


def _cut(faults: Faults) -> bool:
    wires, rng = faults.world.network.live(), faults.rng
    if not wires:
        return False
    wire = rng.choice(wires)
    after = rng.choice((None, rng.randint(0, 40), rng.randint(0, 2000)))
    kind = "reset" if after is not None or rng.random() < 0.6 else "end"
    faults.note("connection cut", kind, after)
    faults.world.network.cut_one(wire, kind, after, rng.randint(0, 1))  # type: ignore[arg-type]  # one of the two
    return True


def _half_open(faults: Faults) -> bool:
    wires, rng = faults.world.network.live(), faults.rng
    if not wires:
        return False
    wire, side = rng.choice(wires), rng.randint(0, 1)
    faults.note("half-open, gone is side", side)
    wire.abandon(side)
    return True


def _partition(faults: Faults) -> bool:
    rng, network = faults.rng, faults.world.network
    machine = faults.machine()
    if machine is None or machine.party in network.held:
        return False
    party = machine.party
    ways: Ways = rng.choice(("both", "both", "there", "back"))
    faults.note("partition", party, ways)
    network.part(party, ways)
    faults._mend_in(rng.choice((2.0, 6.0, 20.0)), lambda: network.heal(party))
    return True


def _slow(faults: Faults) -> bool:
    network, lag_s = faults.world.network, faults.rng.choice((0.5, 2.0))
    wires = network.live()
    if not wires:
        return False
    wire = faults.rng.choice(wires)
    before, wire.lag_s = wire.lag_s, lag_s

    def mend() -> None:
        wire.lag_s = before

    faults._mend_in(faults.rng.uniform(1.0, 15.0), mend)
    return True


# ---- processes ---------------------------------------------------------------------


def _kill_crawl(faults: Faults, *, counted: bool) -> bool:
    rng = faults.rng
    crawls = [one for machine in faults.world.machines for one in machine.live_crawls()]
    if not crawls:
        return False
    crawl = rng.choice(crawls)
    faults.note("kill process", crawl.start.process, "counted" if counted else "")
    crawl.kill("was killed", counted=counted, lose=rng.random() < 0.5)
    return True


def _stop_crawl(faults: Faults) -> bool:
    rng = faults.rng
    crawls = [one for machine in faults.world.machines for one in machine.live_crawls()]
    if not crawls:
        return False
    program = rng.choice(crawls).program
    faults.note("stop process", program.name)
    program.stop()
    faults._mend_in(rng.choice((1.0, 8.0, 25.0)), program.go_on)
    return True


def _kill_worker(faults: Faults) -> bool:
    rng, machine = faults.rng, faults.machine()
    if machine is None:
        return False
    silently = rng.random() < 0.3
    faults.note("kill worker", machine.party, "silently" if silently else "")
    machine.kill(silently=silently)
    machine.start_in(rng.choice((0.1, 3.0, 15.0)))
    return True


def _stop_worker(faults: Faults, *, whole: bool) -> bool:
    rng, machine = faults.rng, faults.machine()
    if machine is None:
        return False
    faults.note("stop", "machine" if whole else "worker", machine.party)
    machine.stop(whole=whole)
    faults._mend_in(rng.choice((1.0, 9.0, 25.0)), machine.go_on)
    return True


def _kill_master(faults: Faults) -> bool:
    master = faults.world.master
    if master.program is None:
        return False
    faults.note("kill master")
    master.gone(silently=faults.rng.random() < 0.3)
    master.start_in(faults.rng.choice((0.1, 2.0, 10.0)))
    return True


def _kill_in_call(faults: Faults, *, power: str) -> bool:
    master = faults.world.master
    if master.program is None:
        return False
    faults.note("master dies in a disk call, power:", power)
    master.power = power
    master.storage.calls_left = faults.rng.randint(0, 12)
    return True


def _stop_master(faults: Faults) -> bool:
    master = faults.world.master
    if master.program is None or master.program.is_stopped:
        return False
    faults.note("stop master")
    master.stop()
    faults._mend_in(faults.rng.choice((0.7, 5.0, 30.0)), master.go_on)
    return True


# ---- disk and clocks ---------------------------------------------------------------


def _fill_disk(faults: Faults) -> bool:
    master, rng = faults.world.master, faults.rng
    disk = master.storage
    if disk.room is not None:
        return False
    # Little enough for one call to fail, or for a snapshot beside which groups fit.
    room = disk.used_bytes() + rng.choice((rng.randint(0, 300), rng.randint(0, 4000)))
    faults.note("disk full at", room)
    disk.room = room
    is_restarted = rng.random() < 0.5

    def mend() -> None:
        # Whoever has the disk by then; some would start the master again, too.
        faults.note("room again")
        if is_restarted and master.program is not None:
            master.gone(silently=False)
            master.start_in(1.0)
        master.storage.room = None

    faults._mend_in(rng.uniform(1.0, 15.0), mend)
    return True


def _fail_disk(faults: Faults, *, call: str) -> bool:
    master = faults.world.master
    if master.program is None:
        return False
    faults.note("next", call, "fail")
    setattr(master.storage, f"{call}_left", faults.rng.randint(0, 8))
    return True


def _leap_wall(faults: Faults) -> bool:
    leap_s = faults.rng.choice((-3600.0, -5.0, 7.0, 3600.0, 86400.0))
    faults.note("wall clock leaps", leap_s)
    faults.world.master.wall_shift_s += leap_s
    return True


def _leap_boot(faults: Faults) -> bool:
    leap_s, machine = faults.rng.choice((3.0, 30.0)), faults.machine()
    if machine is None:
        return False
    faults.note("boot clock leaps", machine.party, leap_s)
    machine.boot_shift_s += leap_s
    return True


def _leap_master_boot(faults: Faults) -> bool:
    leap_s = faults.rng.choice((3.0, 60.0))
    faults.note("the master's boot clock leaps", leap_s)
    faults.world.master.boot_shift_s += leap_s
    now = trio.current_time()
    faults.world.checker.run_time.add_gap(now, now)
    return True


# ---- all of them -------------------------------------------------------------------


def _cut_power(faults: Faults) -> bool:
    faults.world.cut_power()
    return False


def _second_of_name(faults: Faults) -> bool:
    """Start another worker under a name that is taken, for a while."""
    world, rng = faults.world, faults.rng
    machine = rng.choice(world.machines)
    if len(world.machines) > 6 or "'" in machine.name:
        return False
    faults.twins += 1
    name = f"{machine.name}'{faults.twins}"
    other = Machine(world, name, 1, machine.folder, world.random(name))
    faults.note("another worker of the name", machine.name)
    world.machines.append(other)
    other.start()

    def mend() -> None:
        other.is_wanted = False
        if other.program is not None:
            other.kill(silently=False)
        world.machines.remove(other)

    faults._mend_in(rng.uniform(2.0, 20.0), mend)
    return True


KINDS: dict[str, Callable[[Faults], bool]] = {
    "connection cut": _cut,
    "connection half-open": _half_open,
    "partition": _partition,
    "connection slow": _slow,
    "process killed, counted": lambda faults: _kill_crawl(faults, counted=True),
    "process killed": lambda faults: _kill_crawl(faults, counted=False),
    "process stopped": _stop_crawl,
    "worker killed": _kill_worker,
    "worker stopped": lambda faults: _stop_worker(faults, whole=False),
    "machine stopped": lambda faults: _stop_worker(faults, whole=True),
    "second worker of a name": _second_of_name,
    "master killed": _kill_master,
    "master to die in a disk call": lambda faults: _kill_in_call(faults, power="kill"),
    "power to go in a disk call": lambda faults: _kill_in_call(faults, power="all"),
    "power cut": _cut_power,
    "master stopped": _stop_master,
    "disk full": _fill_disk,
    "sync to fail": lambda faults: _fail_disk(faults, call="syncs"),
    "append to fail": lambda faults: _fail_disk(faults, call="appends"),
    "rename to fail": lambda faults: _fail_disk(faults, call="renames"),
    "wall clock leaps": _leap_wall,
    "boot clock of a worker leaps": _leap_boot,
    "boot clock of the master leaps": _leap_master_boot,
}
