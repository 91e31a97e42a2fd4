"""Bugs to plant in single steps of the core, at one job of many."""

from typing import Any

import pytest

from dscrapy.control import views
from dscrapy.control.decide import placement
from dscrapy.control.decide.reconcile import JobReconciler


def plant_in_start(monkeypatch: pytest.MonkeyPatch, culprit: str) -> None:
    """Let the assignment of this job raise."""
    start = placement._start

    def planted(decision: Any, job: Any, *rest: Any) -> None:
        assert job.id != culprit, "a bug"
        start(decision, job, *rest)

    monkeypatch.setattr(placement, "_start", planted)


def plant_in_tick(monkeypatch: pytest.MonkeyPatch, culprit: str) -> None:
    """Let looking at this job's deadlines raise, also when there is one."""
    wait_s, tick = JobReconciler.wait_s, JobReconciler.tick

    def planted_wait_s(reconciler: JobReconciler) -> float:
        assert reconciler.job.id != culprit, "a bug"
        return wait_s(reconciler)

    def planted_tick(reconciler: JobReconciler) -> None:
        assert reconciler.job.id != culprit, "a bug"
        tick(reconciler)

    monkeypatch.setattr(JobReconciler, "wait_s", planted_wait_s)
    monkeypatch.setattr(JobReconciler, "tick", planted_tick)


def plant_in_show(monkeypatch: pytest.MonkeyPatch, culprit: str) -> None:
    """Let showing this job raise."""
    show = views.show

    def planted(state: Any, call: int, identity: str) -> Any:
        assert identity != culprit, "a bug"
        return show(state, call, identity)

    monkeypatch.setattr(views, "show", planted)
