"""Which components are called once at a job's end, however many processes it has.

They report how the whole crawl went (by mail, say), from the stats at
``spider_closed``. In a process that leaves before the job's end those stats are a part
of the job's.
"""

from collections.abc import Callable
from typing import Any

from scrapy.settings import BaseSettings
from scrapy.utils.misc import load_object

from dscrapy.crawl.outcomes import Failed, describe

# Import paths, with commas or as a list, of a project's own such classes.
SETTING = "DSCRAPY_ONCE_PER_JOB"

# Names, not classes: importing Scrapy's gives a warning that it is deprecated, and the
# other package may be missing.
ONCE_PER_JOB = frozenset(
    {
        "scrapy.extensions.statsmailer.StatsMailer",
        "spidermon.contrib.scrapy.extensions.Spidermon",
    }
)


def listed(settings: BaseSettings) -> Callable[[type], bool]:
    """Return whether a class, or a base of it, is to be called once in a job.

    Raises ``Failed`` if the setting names what cannot be loaded or is no class.
    """
    names = ONCE_PER_JOB.union(_name(_load(entry)) for entry in _entries(settings))

    def is_once(cls: type) -> bool:
        return any(_name(base) in names for base in cls.__mro__)

    return is_once


def _entries(settings: BaseSettings) -> list[Any]:
    value = settings.get(SETTING)
    # A class itself may stand where Scrapy takes paths.
    entries = [value] if isinstance(value, type) else settings.getlist(SETTING)
    return [
        entry.strip() if isinstance(entry, str) else entry for entry in entries if entry
    ]


def _load(entry: Any) -> type:
    # The import runs the project's code: any error may come.
    try:
        loaded = load_object(entry)
    except Exception as error:
        raise Failed(
            "import_error",
            f"{SETTING} names {entry}, which cannot be loaded: {describe(error)}",
            error,
        ) from error
    if not isinstance(loaded, type):
        raise Failed("import_error", f"{SETTING} names {entry}, which is no class")
    return loaded


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
