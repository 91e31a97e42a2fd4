"""Bugs to plant in single steps of the core, at one job of many."""

from typing import Any

import pytest

from dscrapy.control import views
from dscrapy.control.decide import placement
from dscrapy.control.decide.reconcile import Running


def plant_in_start(monkeypatch: pytest.MonkeyPatch, culprit: str) -> None:
    """Let the assignment of this job raise."""
    start = placement._start

    def planted(state: Any, job: Any, *rest: Any) -> Any:
        assert job.id != culprit, "a bug"
        return start(state, job, *rest)

    monkeypatch.setattr(placement, "_start", planted)


def plant_in_tick(monkeypatch: pytest.MonkeyPatch, culprit: str) -> None:
    """Let looking at this job's deadlines raise, also when there is one."""
    wait_s, tick = Running.wait_s, Running.tick

    def planted_wait_s(running: Running) -> float:
        assert running.job.id != culprit, "a bug"
        return wait_s(running)

    def planted_tick(running: Running) -> None:
        assert running.job.id != culprit, "a bug"
        tick(running)

    monkeypatch.setattr(Running, "wait_s", planted_wait_s)
    monkeypatch.setattr(Running, "tick", planted_tick)


def plant_in_show(monkeypatch: pytest.MonkeyPatch, culprit: str) -> None:
    """Let showing this job raise."""
    show = views.show

    def planted(state: Any, call: int, identity: str) -> Any:
        assert identity != culprit, "a bug"
        return show(state, call, identity)

    monkeypatch.setattr(views, "show", planted)
