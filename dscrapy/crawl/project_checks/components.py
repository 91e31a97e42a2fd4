"""Warnings about a project's enabled components that keep state: people see them before
a job with several processes, and in its log.

``python -m dscrapy.crawl.project_checks.components`` reads a ``JobSpec`` from stdin and
writes lines for people to stdout, as a JSON list, for the project in its current
folder. It is a process of its own, since the project's modules may do anything when
they are imported.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator

import msgspec
from scrapy.crawler import Crawler
from scrapy.settings import BaseSettings
from scrapy.utils.misc import load_object

from dscrapy.crawl.insides.probes import component_managers
from dscrapy.crawl.project_checks.class_sources import Sources, is_library
from dscrapy.crawl.project_checks.once_per_job import SETTING, listed
from dscrapy.crawl.project_checks.stateful import Kept, scan
from dscrapy.crawl.project_loader import load_for_export
from dscrapy.model import JobSpec

# Names in a line: the first ones tell enough to a project that has more of them.
CLASSES_NAMED_MAX = 8
NAMES_MAX = 5

_SETTINGS = (
    "ITEM_PIPELINES",
    "SPIDER_MIDDLEWARES",
    "DOWNLOADER_MIDDLEWARES",
    "EXTENSIONS",
)


def warnings_of(classes: Iterable[type], is_once: Callable[[type], bool]) -> list[str]:
    """Return lines for people about the state that these classes keep.

    Classes for which ``is_once`` holds may read stats: they are called once in a job.
    """
    sources = Sources()
    kept: list[Kept] = []
    readers: list[str] = []
    for cls in dict.fromkeys(classes):
        if is_library(cls.__module__):
            continue
        findings = scan(cls, sources)
        if findings.attributes or findings.files:
            kept.append(findings)
        if findings.reads_stats and not is_once(cls):
            readers.append(findings.cls)
    lines = []
    if kept:
        lines.append(
            "of several processes each has its own, so that results may differ from "
            f"those of one process (-p 1): {_joined(map(_kept_text, kept))}"
        )
    if readers:
        lines.append(
            "each process calls these when its spider closes, and all but the last "
            f"one with stats of its own: {_joined(readers)} (name in {SETTING} what is "
            "to be called once)"
        )
    return lines


def running(crawler: Crawler) -> Iterator[type]:
    """Yield the classes of the components that Scrapy has made for a crawl."""
    for manager in component_managers(crawler):
        for component in getattr(manager, "middlewares", ()):
            yield type(component)


def enabled(settings: BaseSettings) -> Iterator[type]:
    """Yield the classes that the settings enable, as far as they can be loaded."""
    for name in _SETTINGS:
        for path in settings.get_component_priority_dict_with_base(name):
            # The import runs the project's code: any error may come, and comes again
            # in the job, which reports it.
            try:
                cls = load_object(path)
            except Exception:  # noqa: BLE001, S112 - user code
                continue
            if isinstance(cls, type):
                yield cls


def main() -> int:
    """Write the warnings about the job on stdin; 1 if its project cannot be loaded."""
    spec = msgspec.json.decode(sys.stdin.buffer.read(), type=JobSpec)
    out = os.dup(1)
    # The project's output is thrown away, and its input is empty.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nowhere, fd)
    # Modules, add-ons and settings of the project may raise anything.
    try:
        settings, spider_class = load_for_export(spec)
        crawler = Crawler(spider_class, settings)
        crawler.addons.load_settings(crawler.settings)
        lines = warnings_of(enabled(crawler.settings), listed(crawler.settings))
    except (Exception, SystemExit):  # noqa: BLE001 - user code
        return 1
    os.write(out, msgspec.json.encode(lines))
    return 0


def _kept_text(kept: Kept) -> str:
    names = [*kept.attributes, *kept.files]
    ending = ", ..." if len(names) > NAMES_MAX else ""
    return f"{kept.cls} ({', '.join(names[:NAMES_MAX])}{ending})"


def _joined(texts: Iterable[str]) -> str:
    all_texts = list(texts)
    unnamed = len(all_texts) - CLASSES_NAMED_MAX
    ending = f" and {unnamed} more" if unnamed > 0 else ""
    return ", ".join(all_texts[:CLASSES_NAMED_MAX]) + ending


if __name__ == "__main__":
    sys.exit(main())
