"""Tracebacks start with the project's code and hold none of ours, unless it is ours."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from scrapy.utils.misc import load_object, walk_modules_iter

from dscrapy.crawl.outcomes import outcome_of
from dscrapy.crawl.outgoing.early_end import failure_log
from dscrapy.crawl.scrapy_side.stats_collector import merged
from dscrapy.crawl.traces import user_trace
from dscrapy.model import Outcome


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return a function that writes a module and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)
    # Of what imports modules here pytest's part is left out: no project has it.
    finders = [one for one in sys.meta_path if "pytest" not in type(one).__module__]
    monkeypatch.setattr(sys, "meta_path", finders)

    def write(text: str) -> str:
        name = f"project_{len(list(tmp_path.glob('*.py')))}_of_a_test"
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return write


def raised(action: Callable[[], object]) -> Exception:
    """Return what the action raises, without the frames of this file: they are no
    library's."""
    try:
        action()
    except Exception as error:  # noqa: BLE001 - any error will do
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        return error.with_traceback(trace)
    raise AssertionError("nothing was raised")


def test_an_import_error_has_the_project_s_frames_alone(
    project: Callable[[str], str],
) -> None:
    """Neither Scrapy's nor the import system's, also of what one module imports."""
    inner = project("import nowhere_at_all\n")
    outer = project(f"import {inner}\n")
    lines = user_trace(raised(lambda: list(walk_modules_iter(outer)))).splitlines()
    frames = [line for line in lines if line.startswith("  File ")]
    assert [f"{outer}.py" in frames[0], f"{inner}.py" in frames[1]] == [True, True]
    assert len(frames) == 2
    assert lines[-1] == "ModuleNotFoundError: No module named 'nowhere_at_all'"


def test_a_syntax_error_names_its_place_alone(project: Callable[[str], str]) -> None:
    """No frame says more than that."""
    name = project("class :\n")
    error = raised(lambda: list(walk_modules_iter(name)))
    trace = user_trace(error)
    assert f"{name}.py" in trace
    assert trace.count("  File ") == 1
    assert "Traceback" not in trace


def test_causes_are_shown_in_the_same_way(project: Callable[[str], str]) -> None:
    """An error that another one led to has both, in the project's frames."""
    name = project(
        "def go():\n"
        "    try:\n"
        "        int('x')\n"
        "    except ValueError as error:\n"
        "        raise LookupError('no') from error\n"
    )
    trace = user_trace(raised(load_object(f"{name}.go")))
    assert trace.count(f"{name}.py") == 2
    assert "ValueError: invalid literal" in trace
    assert trace.endswith("LookupError: no\n")


def test_an_error_of_scrapy_s_keeps_its_frames() -> None:
    """Where nothing of the project ran, they are all there is."""
    error = raised(lambda: load_object("scrapy.NoSuchThing"))
    assert "scrapy/utils/misc.py" in user_trace(error)


def test_our_own_bugs_are_shown_whole() -> None:
    """From the first frame on: somebody has to find them."""
    error = raised(lambda: merged(None))  # type: ignore[arg-type] # the bug
    assert "dscrapy/crawl/scrapy_side/stats_collector.py" in user_trace(error)


def test_a_failure_is_logged_as_scrapy_would() -> None:
    """Its first line has a date and a level, which a terminal filters by."""
    outcome = outcome_of("import_error", "no\nsettings", LookupError("no"))
    assert outcome.traceback == "LookupError: no\n"
    head, last = failure_log(outcome).splitlines()
    assert head.endswith(" [dscrapy] ERROR: The crawl failed: no settings")
    assert last == "LookupError: no"
    assert failure_log(Outcome(text="no")).endswith("The crawl failed: no\n")
