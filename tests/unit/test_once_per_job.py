"""Once per job: Spidermon and StatsMailer by name, a project's own by the setting."""

from collections import Counter, OrderedDict
from typing import Any

import pytest
from scrapy.settings import Settings

from dscrapy.crawl.outcomes import Failed
from dscrapy.crawl.project_checks.once_per_job import SETTING, listed


def _is_once(value: Any = None) -> Any:
    return listed(Settings({} if value is None else {SETTING: value}))


def _class(path: str, *bases: type) -> type:
    module, _, name = path.rpartition(".")
    return type(name, bases, {"__module__": module, "__qualname__": name})


def test_the_listed_classes_are_known_without_being_imported() -> None:
    """Spidermon, StatsMailer and what is derived from them; nothing else."""
    is_once = _is_once()
    spidermon = _class("spidermon.contrib.scrapy.extensions.Spidermon")
    assert is_once(spidermon)
    assert is_once(_class("project.extensions.Ours", spidermon))
    assert is_once(_class("scrapy.extensions.statsmailer.StatsMailer"))
    assert not is_once(_class("project.extensions.StatsMailer"))


@pytest.mark.parametrize(
    "value",
    [
        ["collections.Counter", "collections.OrderedDict"],
        "collections.Counter, collections.OrderedDict,",
        [Counter, OrderedDict],
    ],
)
def test_the_setting_names_more(value: Any) -> None:
    """Paths with commas, lists of paths or classes; those of the list stay."""
    is_once = _is_once(value)
    assert is_once(Counter)
    assert is_once(OrderedDict)
    assert is_once(_class("scrapy.extensions.statsmailer.StatsMailer"))
    assert not is_once(dict)


def test_a_class_alone_is_taken_as_it_is() -> None:
    """DSCRAPY_ONCE_PER_JOB = MyExtension, without a list around it."""
    assert _is_once(Counter)(Counter)


@pytest.mark.parametrize(
    "value", ["no_such_module.Report", "collections.NoSuchClass", "os.path.join", "x"]
)
def test_what_cannot_be_meant_is_told(value: str) -> None:
    """A name that leads nowhere, or to no class, fails the job with one line."""
    with pytest.raises(Failed, match=SETTING) as raised:
        _is_once(value)
    assert raised.value.outcome.failure == "import_error"
    assert value in raised.value.outcome.text
