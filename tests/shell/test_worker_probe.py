"""Whose event loop is silent for too long, by the worker's own waits."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from dscrapy import messages as m
from dscrapy.crawl.worker_side.in_flight_table import InFlightTable
from dscrapy.proto.codec import Decoder
from dscrapy.worker.crawl_process import DUMP_S, PROBES, CrawlProcess, marks_file
from tests import builders as b

TO_CRAWL: Decoder[m.ToCrawl] = Decoder(m.ToCrawl)
SILENT_S = 600.0
STEP_S = SILENT_S / PROBES


class Probed:
    """A process that answers when the test says so; no other is started.

    The kernel's side is recorded: each signal with its instant.
    """

    def __init__(self, patch: pytest.MonkeyPatch, silent_s: float = SILENT_S) -> None:
        self.began = trio.current_time()
        self.signals: list[tuple[float, int]] = []
        start = b.start(3)
        self.process = CrawlProcess(
            start=start,
            folder=Path(),
            process_silent_s=silent_s,
            stop_grace_s=1.0,
            on_message=lambda message, frame: None,
            on_log=lambda data: None,
        )
        running: Any = SimpleNamespace(pid=123, returncode=None)
        self.process._process = running
        patch.setattr(os, "killpg", self._killpg)

    @property
    def now(self) -> float:
        return trio.current_time() - self.began

    def _killpg(self, pid: int, number: int) -> None:
        assert pid == 123
        self.signals.append((self.now, number))

    @property
    def asked(self) -> list[int]:
        """Return the numbers of the probes so far."""
        told = (TO_CRAWL.decode(frame[4:]) for frame in self.process._waiting)
        return [one.number for one in told if isinstance(one, m.Probe)]

    def answer(self, number: int) -> None:
        """Let the process answer a probe."""
        self.process._take(m.Alive(number=number), b"")


async def test_a_blocked_loop_is_dumped_and_killed(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked ten times, then asked for its stack, then killed, on the job's account."""
    probed = Probed(monkeypatch)
    await probed.process._probe()
    assert probed.asked == list(range(1, PROBES + 1))
    assert probed.signals == [
        (SILENT_S, signal.SIGUSR1),
        (SILENT_S + DUMP_S, signal.SIGKILL),
    ]
    assert probed.process._kill_counted
    assert "silent for 600 s" in probed.process._killed_for


@pytest.mark.parametrize("late", [0.0, 0.5, PROBES - 1.5])
async def test_one_that_answers_is_left_alone(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, late: float
) -> None:
    """However late, and though it has missed nine probes: the silence begins anew."""
    probed = Probed(monkeypatch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(probed.process._probe)
        for _ in range(40):
            await trio.sleep(late * STEP_S)
            await trio.testing.wait_all_tasks_blocked()
            probed.answer(probed.asked[-1])
            await trio.sleep(STEP_S)
        assert probed.now > 3 * SILENT_S
        assert probed.signals == []
        nursery.cancel_scope.cancel()


async def test_an_answer_to_an_old_probe_is_no_sign_of_life_now(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that the loop ran then, not since."""
    probed = Probed(monkeypatch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(probed.process._probe)
        for _ in range(2 * PROBES):
            await trio.sleep(STEP_S)
            probed.answer(1)
        nursery.cancel_scope.cancel()
    assert [number for _, number in probed.signals][:1] == [signal.SIGUSR1]


async def test_time_in_which_the_worker_did_not_run_does_not_count(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was stopped for an hour, again and again, has not listened for so
    long: each time is one probe that came back late."""
    probed = Probed(monkeypatch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(probed.process._probe)
        for _ in range(5):
            await trio.testing.wait_all_tasks_blocked()
            autojump_clock.jump(3600)
            await trio.sleep(STEP_S / 2)
            probed.answer(probed.asked[-1])
            await trio.sleep(STEP_S)
        assert probed.signals == []
        # Then it is silent, and the time for that begins now.
        began = probed.now
        await trio.sleep(SILENT_S - 2 * STEP_S)
        assert probed.signals == []
        await trio.sleep(3 * STEP_S)
        nursery.cancel_scope.cancel()
    assert [number for _, number in probed.signals] == [signal.SIGUSR1, signal.SIGKILL]
    assert probed.signals[0][0] - began <= SILENT_S


async def test_waiting_for_the_callers_input_is_no_silence(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long: it is not even asked. A loop that goes on and hangs is silent."""
    probed = Probed(monkeypatch)
    probed.process._marks = fd = marks_file()
    marks = InFlightTable(fd)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(probed.process._probe)
        await trio.sleep(SILENT_S - 1.5 * STEP_S)
        marks.await_stdin(on=True)
        await trio.sleep(20 * SILENT_S)
        assert len(probed.asked) == PROBES - 1
        marks.await_stdin(on=False)
        await trio.sleep(SILENT_S - STEP_S)
        assert probed.signals == []
        await trio.sleep(2 * STEP_S)
        nursery.cancel_scope.cancel()
    os.close(fd)
    assert [number for _, number in probed.signals][:1] == [signal.SIGUSR1]


async def test_nobody_is_asked_where_it_is_switched_off(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``process_silent_s = 0``: never."""
    probed = Probed(monkeypatch, 0.0)
    await probed.process._probe()
    assert (probed.asked, probed.signals) == ([], [])
