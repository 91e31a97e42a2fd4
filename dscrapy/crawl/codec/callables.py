"""Functions and classes that requests carry, by names that every process resolves.

===========  ===============================================================
``$m``       a method of the spider: its name
``$g``       a function or class of the project: ``module:qualname``; or one
             of ``stdlib_types.BUILTINS``: its name
``$pa``      ``functools.partial``: function, arguments, keywords
===========  ===============================================================

Other functions and classes that have a name are pickles, which hold the name.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import FunctionType, MethodType
from typing import Any

from scrapy import Spider

from dscrapy.crawl.codec import tags
from dscrapy.crawl.codec.stdlib_types import BUILTINS, NO_TAG, Down, builtin_name
from dscrapy.crawl.codec.tags import UndecodableError


class Functions:
    """Names of one spider's methods and of its project's functions."""

    def __init__(self, spider: Spider, is_project: Callable[[str], bool]) -> None:
        self._spider = spider
        self._is_project = is_project
        self._names: dict[Any, str | None] = {}

    # ---- writing --------------------------------------------------------------

    def tree(self, value: Any, down: Down) -> Any:
        """Return the tree of a function or class, ``NO_TAG`` for anything else."""
        kind = type(value)
        if kind is MethodType:
            name = self.method_name(value)
            return NO_TAG if name is None else {"$m": name}
        if kind is partial:
            return self._partial(value, down)
        if not isinstance(value, type | FunctionType):
            return NO_TAG
        name = builtin_name(value)
        if name is None and self._is_project(value.__module__ or ""):
            name = tags.class_path(value)
        return NO_TAG if name is None else {"$g": name}

    def method_name(self, function: Any) -> str | None:
        """Return the name of a method of this spider, bound to it."""
        if type(function) is not MethodType or function.__self__ is not self._spider:
            return None
        plain = function.__func__
        if plain not in self._names:
            self._names[plain] = self._find_name(plain)
        return self._names[plain]

    def _find_name(self, plain: Any) -> str | None:
        for cls in type(self._spider).__mro__:
            for name, value in vars(cls).items():
                if value is plain:
                    # A subclass may have put another in its place.
                    bound = getattr(self._spider, name, None)
                    if getattr(bound, "__func__", None) is plain:
                        return name
        return None

    def _partial(self, value: Any, down: Down) -> Any:
        if vars(value):
            return NO_TAG
        arguments = [down(argument) for argument in value.args]
        return {"$pa": [down(value.func), arguments, down(value.keywords)]}

    # ---- reading --------------------------------------------------------------

    def method(self, name: Any) -> Any:
        """Return the method of the spider that has this name."""
        method = getattr(self._spider, name, None) if isinstance(name, str) else None
        is_spiders = isinstance(method, MethodType) and method.__self__ is self._spider
        if not is_spiders:
            raise UndecodableError(f"{name!r:.200} is no method of this spider")
        return method

    def read_method(self, payload: Any, down: Down) -> Any:
        """Read ``$m``."""
        return self.method(payload)

    def read_global(self, payload: Any, down: Down) -> Any:
        """Read ``$g``."""
        module, colon, qualname = payload.partition(":")
        if not colon:
            return BUILTINS[payload]
        target = None
        if self._is_project(module):
            try:
                target = tags.walk(import_module(module), qualname)
            except ImportError as error:
                raise UndecodableError(f"{payload!r:.200}: {error}") from error
        # A module may import a function or class that is not the project's.
        is_projects = isinstance(target, type | FunctionType) and (
            self._is_project(target.__module__ or "")
        )
        if not is_projects:
            raise UndecodableError(f"{payload!r:.200} is nothing of the project's")
        return target

    def read_partial(self, payload: Any, down: Down) -> Any:
        """Read ``$pa``."""
        function, arguments, keywords = payload
        return partial(
            down(function),
            *[down(argument) for argument in arguments],
            **down(keywords),
        )
