"""The project and its spider, loaded as the ``scrapy`` command would.

Whatever is wrong with them is raised as ``Failed``.
"""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from scrapy import Spider
from scrapy.crawler import AsyncCrawlerProcess
from scrapy.settings import BaseSettings, Settings
from scrapy.spiderloader import DummySpiderLoader, get_spider_loader
from scrapy.utils.misc import load_object
from scrapy.utils.project import ENVVAR, get_project_settings
from scrapy.utils.reactor import is_asyncio_reactor_installed, is_reactor_installed
from scrapy.utils.spider import iter_spider_classes
from twisted.internet.asyncioreactor import AsyncioSelectorReactor

from dscrapy.crawl.outcomes import Failed, describe
from dscrapy.messages import Local
from dscrapy.model import JobSpec

SPIDERS_NAMED_MAX = 20
PROJECT_VARIABLE = "SCRAPY_PROJECT"


class Loaded(NamedTuple):
    """A spider class, its arguments, and the process object to run it in."""

    process: AsyncCrawlerProcess
    spider_class: type[Spider]
    arguments: dict[str, str]


def load(spec: JobSpec, local: Local | None = None) -> Loaded:
    """Load the project of ``spec`` and the spider that it names.

    The current folder is the project's or, with ``local``, that of the command's
    caller, where Scrapy looks for the closest ``scrapy.cfg``. Raises ``Failed``.
    Installs the reactor, so it can be called once.
    """
    arguments = spider_arguments(spec)
    folder = code_folder(spec)
    is_file = spec.spider.endswith(".py")
    _choose_settings(spec, folder)
    if not is_file and not _has_settings(folder):
        raise Failed("unknown_project", f"no Scrapy project (scrapy.cfg) in {folder}")
    settings = _settings(spec, folder, is_file, local)
    module = _import_file(folder, spec.spider) if is_file else None
    process = _process(settings, folder)
    if module is not None:
        classes = list(iter_spider_classes(module))
        if not classes:
            raise Failed("unknown_spider", f"no spider in {folder / spec.spider}")
        # ``scrapy runspider`` takes the last class, too.
        return Loaded(process, classes[-1], arguments)
    return Loaded(process, _spider_by_name(process, spec.spider, folder), arguments)


def load_for_export(spec: JobSpec) -> tuple[Settings, type[Spider]]:
    """Return the settings and the spider class of ``spec``; see ``load``.

    Raises ``Failed``. Installs no reactor and changes no logging.
    """
    folder = code_folder(spec)
    is_file = spec.spider.endswith(".py")
    _choose_settings(spec, folder)
    settings = _settings(spec, folder, is_file, None)
    if is_file:
        classes = list(iter_spider_classes(_import_file(folder, spec.spider)))
        if not classes:
            raise Failed("unknown_spider", f"no spider in {folder / spec.spider}")
        return settings, classes[-1]
    # The project's modules may raise anything.
    try:
        return settings, get_spider_loader(settings).load(spec.spider)
    except (Exception, SystemExit) as error:
        raise Failed("import_error", describe(error), error) from error


def spider_arguments(spec: JobSpec) -> dict[str, str]:
    """Return the spider's arguments, with the job's URLs as ``urls``."""
    if not spec.urls:
        return dict(spec.args)
    if "urls" in spec.args:
        raise Failed(
            "bad_arguments",
            "urls are given twice: with --url and as the spider argument urls "
            "(-a urls=...); leave one out",
        )
    return {**spec.args, "urls": ";".join(spec.urls)}


def check_reactor(settings: BaseSettings) -> None:
    """Raise ``Failed`` when the settings ask for another reactor than asyncio's."""
    path = settings["TWISTED_REACTOR"]
    if not settings.getbool("TWISTED_REACTOR_ENABLED") or not path:
        return
    if load_object(path) is not AsyncioSelectorReactor:
        raise Failed(
            "unsupported",
            f"TWISTED_REACTOR is {path}; only asyncio's reactor, Scrapy's default, "
            "is supported",
        )


def code_folder(spec: JobSpec) -> Path:
    """Return the folder of the project's code: the current one for a project that
    workers know by its name."""
    return Path(spec.project_dir) if spec.project_dir else Path.cwd()


def project_modules(folder: Path) -> Callable[[str], bool]:
    """Return a function that tells whether a module is the project's: its top-level
    package lies in the project's folder, or is that of the settings."""
    root = folder.resolve()
    answers: dict[str, bool] = {}
    if settings_module := os.environ.get(ENVVAR):
        answers[settings_module.partition(".")[0]] = True

    def is_of_project(module: str) -> bool:
        top = module.partition(".")[0]
        if top not in answers:
            answers[top] = _lies_in(root, top)
        return answers[top]

    return is_of_project


def _lies_in(root: Path, top: str) -> bool:
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    places = list(spec.submodule_search_locations or ())
    if spec.has_location and spec.origin is not None:
        places.append(spec.origin)
    resolved = [Path(place).resolve() for place in places]
    # A virtual environment inside of the folder is not the project's code.
    return bool(resolved) and all(
        place.is_relative_to(root) and "site-packages" not in place.parts
        for place in resolved
    )


def _choose_settings(spec: JobSpec, folder: Path) -> None:
    """Set the environment variables and the import path for the job's settings.

    A job that sets one of the two variables sets both: a value from this machine would
    take precedence over the job's.
    """
    if spec.scrapy_project or spec.settings_module:
        for name, value in (
            (PROJECT_VARIABLE, spec.scrapy_project),
            (ENVVAR, spec.settings_module),
        ):
            if value:
                os.environ[name] = value
            else:
                os.environ.pop(name, None)
    is_bare = ENVVAR in os.environ and not (folder / "scrapy.cfg").is_file()
    if is_bare and str(folder) not in sys.path:
        # As Scrapy does with the folder of a scrapy.cfg.
        sys.path.append(str(folder))


def _has_settings(folder: Path) -> bool:
    return ENVVAR in os.environ or (folder / "scrapy.cfg").is_file()


def _settings(
    spec: JobSpec, folder: Path, is_file: bool, local: Local | None
) -> Settings:
    # The settings module is the project's code: any error may come.
    try:
        settings = get_project_settings()
        if is_file:
            settings.set("SPIDER_LOADER_CLASS", DummySpiderLoader, priority="command")
        settings.setdict(spec.settings, priority="cmdline")
        if local is None:
            # This process's stderr is the job's log.
            settings.set("LOG_FILE", None, priority="cmdline")
        else:
            settings.setdict(local.settings, priority="cmdline")
        check_reactor(settings)
    except (Exception, SystemExit) as error:
        if isinstance(error, Failed):
            raise
        raise Failed(
            "import_error",
            f"the settings of the project in {folder} cannot be loaded: "
            f"{describe(error)}",
            error,
        ) from error
    return settings


def _process(settings: Settings, folder: Path) -> AsyncCrawlerProcess:
    # Loads every spider module of the project, then installs the reactor.
    try:
        return AsyncCrawlerProcess(settings)
    except (Exception, SystemExit) as error:
        if is_reactor_installed() and not is_asyncio_reactor_installed():
            raise Failed(
                "unsupported",
                f"the project in {folder} installs a Twisted reactor other than "
                "asyncio's when it is imported (import twisted.internet.reactor "
                "inside of functions only)",
                error,
            ) from error
        raise Failed(
            "import_error",
            f"the project in {folder} cannot be loaded: {describe(error)}",
            error,
        ) from error


def _spider_by_name(
    process: AsyncCrawlerProcess, name: str, folder: Path
) -> type[Spider]:
    try:
        return process.spider_loader.load(name)
    except KeyError:
        names = sorted(process.spider_loader.list())
    listing = ", ".join(names[:SPIDERS_NAMED_MAX]) or "none"
    if len(names) > SPIDERS_NAMED_MAX:
        listing += f" and {len(names) - SPIDERS_NAMED_MAX} more"
    raise Failed(
        "unknown_spider", f"no spider {name!r} in {folder}; there are: {listing}"
    )


def _import_file(folder: Path, name: str) -> ModuleType:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise Failed("unknown_spider", f"the spider file {name} is not inside {folder}")
    if not path.is_file():
        raise Failed("unknown_spider", f"no file {path}")
    sys.path.insert(0, str(path.parent))
    try:
        module = import_module(path.stem)
    except (Exception, SystemExit) as error:
        raise Failed(
            "import_error", f"{path} cannot be loaded: {describe(error)}", error
        ) from error
    finally:
        sys.path.remove(str(path.parent))
    if Path(module.__file__ or "").resolve() != path:
        raise Failed(
            "import_error",
            f"{path} cannot be loaded: another module named {path.stem} is in its "
            "way; give the file another name",
        )
    return module
