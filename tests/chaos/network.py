"""A network that breaks between workers and master: see ``relay``."""

import random
from collections import Counter
from pathlib import Path

import attrs
import trio

from tests.chaos.kills import WORKS, shuffled
from tests.chaos.relay import WAYS, Relay, Way
from tests.chaos.rig import DIE_AFTER_S, GRACE_S, Rig, running_rig, say
from tests.chaos.table import Wrong, counted
from tests.equivalence.ours import port_of

SECONDS = 60.0
WORKERS = ("w0", "w1", "w2")
JOBS_AT_A_TIME = 2
PAUSE_S = (0.2, 2.0)
# Spans of what lasts: shorter than the grace, between both, beyond ``die_after_s``.
SPANS_S = (GRACE_S / 2, (GRACE_S + DIE_AFTER_S) / 2, DIE_AFTER_S + 1.5)
DELAY_S = (0.02, 0.4)
# A reset falls somewhere within so many bytes: a few frames, or a large one.
RESET_WITHIN_BYTES = (400, 20_000)
FAULTS = (
    "reset",
    "reset within a frame",
    "delay",
    "held up",
    "held down",
    "held both ways",
    "half-open, then reset",
)


@attrs.define
class Weather:
    """Draws a fault, a stretch of network and a span, again and again."""

    rig: Rig
    relays: list[Relay]
    around: trio.Nursery
    faults: Counter[str] = attrs.Factory(Counter)
    beyond: int = 0
    _busy: set[int] = attrs.Factory(set)

    async def run(self, seconds: float) -> None:
        """Spoil the network for so long; what lasts ends by itself."""
        end = trio.current_time() + seconds
        rng = self.rig.rng
        while trio.current_time() < end:
            await trio.sleep(rng.uniform(*PAUSE_S))
            free = [n for n in range(len(self.relays)) if n not in self._busy]
            if not free:
                continue
            fault = rng.choice(FAULTS)
            # All at once is what a broken switch at the master's side does.
            chosen = free if rng.random() < 0.15 else [rng.choice(free)]
            span_s = rng.choice(SPANS_S)
            for number in chosen:
                self._busy.add(number)
                self.around.start_soon(self._spoil, number, fault, span_s)
            self.faults[fault] += len(chosen)
            say(f"{self.faults.total():4} {fault} for {chosen}, {span_s:g} s")

    async def _spoil(self, number: int, fault: str, span_s: float) -> None:
        relay, rng = self.relays[number], self.rig.rng
        match fault:
            case "reset":
                relay.reset()
            case "reset within a frame":
                relay.reset_after(rng.randint(1, rng.choice(RESET_WITHIN_BYTES)))
            case "delay":
                relay.delay_s = rng.uniform(*DELAY_S)
                await trio.sleep(span_s)
                relay.delay_s = 0.0
            case "held up":
                await self._hold(relay, ("up",), span_s)
            case "held down":
                await self._hold(relay, ("down",), span_s)
            case "held both ways":
                await self._hold(relay, WAYS, span_s)
            case "half-open, then reset":
                await self._hold(relay, (rng.choice(WAYS),), span_s, reset=True)
        self._busy.discard(number)

    async def _hold(
        self, relay: Relay, ways: tuple[Way, ...], span_s: float, *, reset: bool = False
    ) -> None:
        self.beyond += span_s > DIE_AFTER_S
        for way in ways:
            relay.hold(way)
        await trio.sleep(span_s)
        # What has waited is lost with a reset, and comes late without.
        if reset:
            relay.reset()
        for way in ways:
            relay.let_go(way)


async def bad_network(folder: Path, seed: int, minutes: float) -> str:
    """Jobs of many kinds over a network that breaks in every way."""
    del minutes
    async with running_rig(folder, random.Random(f"network-{seed}")) as rig:
        await rig.start_master()
        for work in WORKS:
            await rig.plain(work)
        port = port_of(rig.cluster.state)
        relays = [Relay(lambda: ("127.0.0.1", port)) for _ in WORKERS]
        async with trio.open_nursery() as around:
            for name, relay in zip(WORKERS, relays, strict=True):
                at = await around.start(relay.serve)
                rig.start_worker(name, master=f"127.0.0.1:{at}")
            weather = Weather(rig, relays, around)
            works = shuffled(rig.rng, WORKS)
            end = trio.current_time() + SECONDS
            async with trio.open_nursery() as jobs:
                for _ in range(JOBS_AT_A_TIME):
                    jobs.start_soon(rig.feed, works, lambda: trio.current_time() >= end)
                await weather.run(SECONDS)
            around.cancel_scope.cancel()
        connections = sum(relay.connections for relay in relays)
        resets = sum(relay.resets for relay in relays)
        if connections <= len(relays) or not resets:
            raise Wrong(f"{connections} connections, {resets} resets: nothing happened")
        return (
            f"{weather.faults.total()} faults: {counted(weather.faults)}; "
            f"{weather.beyond} held beyond die_after_s; {resets} resets, "
            f"{connections} connections of {len(relays)} workers; {rig.counts}"
        )
