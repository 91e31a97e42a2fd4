"""Values of classes that have no tag, as pickles; nothing else here unpickles.

Loading a pickle runs code that it names, so a pickle is loaded only with a MAC by the
key of the job, which the master gives to the job's processes and to nobody else. One
that comes from a page, was changed on a disk or was made for another job is refused
before it is looked at. A value becomes a pickle only when loading the pickle has just
succeeded here; never when it reaches the spider or the crawler, since every process has
its own. A part of it that has a tag (``save``) is kept apart: the part's tree stands
beside the pickle, as does the name of a method of the spider.
"""

import pickle
from asyncio import AbstractEventLoop
from collections.abc import Callable
from hashlib import blake2b
from hmac import compare_digest
from io import BytesIO
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    WrapperDescriptorType,
)
from typing import Any, NamedTuple

from scrapy import Spider
from scrapy.core.downloader import Downloader
from scrapy.core.engine import ExecutionEngine
from scrapy.core.scheduler import BaseScheduler
from scrapy.core.scraper import Scraper
from scrapy.crawler import Crawler, CrawlerRunnerBase
from scrapy.middleware import MiddlewareManager
from scrapy.settings import BaseSettings
from scrapy.signalmanager import SignalManager
from scrapy.statscollectors import StatsCollector

from dscrapy.crawl.codec.tags import UndecodableError, UnencodableError, UnreadableError

MAC_BYTES = 16
# Protocol of Python 3.8 and later: any process of a job reads it.
_PROTOCOL = 5
_DESCRIPTORS = (
    ClassMethodDescriptorType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    WrapperDescriptorType,
)
_NAMED = (type, FunctionType, BuiltinFunctionType, MethodType)
# Objects of these classes belong to one process.
_REFUSED = (
    Spider,
    Crawler,
    CrawlerRunnerBase,
    ExecutionEngine,
    Downloader,
    Scraper,
    BaseScheduler,
    MiddlewareManager,
    BaseSettings,
    SignalManager,
    StatsCollector,
    AbstractEventLoop,
)


class Pickled(NamedTuple):
    """A pickle of an instance of the class ``name``, or of a reference to that name.

    ``trees`` are those of the parts kept apart, in the order of their numbers in
    ``data``.
    """

    name: str
    data: bytes
    mac: bytes
    trees: list[Any]


class Pickles:
    """Makes and loads the pickles of one job; without a key there are none."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def dump(self, value: Any, save: Callable[[Any], Any]) -> Pickled:
        """Return a pickle of ``value``; raises ``UnencodableError``.

        ``save`` returns the tree of a part that is to be kept apart, else None.
        """
        name = name_of(value)
        if not self._key:
            raise UnencodableError(f"no tag for {name}, and pickles are off")
        file, apart = BytesIO(), _Apart(save)
        # Whatever the classes' own methods raise; a lambda is an AttributeError.
        try:
            _Pickler(file, apart).dump(value)
            data = file.getvalue()
            loaded = _Unpickler(data, apart.values).load()
            is_same = type(loaded) is type(value) and _may_equal(loaded, value)
        except UnencodableError:
            raise
        except Exception as error:
            raise UnencodableError(
                f"{name} cannot be pickled: {type(error).__name__}: {error}"
            ) from error
        if not is_same:
            raise UnencodableError(f"{name} is not the same after pickling")
        return Pickled(name, data, self._mac(name, data), apart.trees)

    def load(self, pickled: Pickled, read: Callable[[Any], Any]) -> Any:
        """Return the value; ``read`` reads the trees that stand beside it.

        Raises ``UndecodableError`` for a pickle that no process of this job made, and
        ``UnreadableError`` for one that this process cannot load.
        """
        name, data, mac, trees = pickled
        if not self._key:
            raise UnreadableError(f"{name:.200} is a pickle, and pickles are off")
        if not compare_digest(mac, self._mac(name, data)):
            raise UndecodableError("a pickle that no process of this job has made")
        apart = [read(tree) for tree in trees]
        # Its maker has loaded it; in this process a package may be missing or older.
        try:
            return _Unpickler(data, apart).load()
        except Exception as error:
            raise UnreadableError(f"{name}: {type(error).__name__}: {error}") from error

    def _mac(self, name: str, data: bytes) -> bytes:
        head = name.encode(errors="surrogatepass")
        length = len(head).to_bytes(4, "big")
        mac = blake2b(key=self._key, digest_size=MAC_BYTES, person=b"dscrapy-pickle")
        mac.update(length + head + data)
        return mac.digest()


def name_of(value: Any) -> str:
    """Return ``module:qualname`` of a class or function, or of a value's class."""
    named: Any = value if isinstance(value, _NAMED) else type(value)
    return f"{named.__module__}:{named.__qualname__}"


class _Apart:
    """The parts of a value that stand beside its pickle, each once."""

    def __init__(self, save: Callable[[Any], Any]) -> None:
        self._save = save
        self._places: dict[int, int] = {}
        self.values: list[Any] = []
        self.trees: list[Any] = []

    def place(self, value: Any) -> int | None:
        place = self._places.get(id(value))
        if place is None:
            tree = self._save(value)
            if tree is None:
                return None
            place = self._places[id(value)] = len(self.values)
            # Kept alive, so that no other object gets the same id.
            self.values.append(value)
            self.trees.append(tree)
        return place


class _Pickler(pickle.Pickler):
    def __init__(self, file: BytesIO, apart: _Apart) -> None:
        super().__init__(file, _PROTOCOL)
        self._apart = apart

    def persistent_id(self, value: Any) -> int | None:
        if isinstance(value, _REFUSED):
            raise UnencodableError(f"it reaches {name_of(value)}")
        return self._apart.place(value)

    def reducer_override(self, value: Any) -> Any:
        # Pickled as usual, a descriptor would become the value that its class returns.
        if isinstance(value, _DESCRIPTORS):
            return _descriptor, (value.__objclass__, value.__name__)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, apart: list[Any]) -> None:
        super().__init__(BytesIO(data))
        self._values = apart

    def persistent_load(self, place: Any) -> Any:
        return self._values[place]


def _descriptor(cls: type, name: str) -> Any:
    return vars(cls)[name]


def _may_equal(loaded: Any, value: Any) -> bool:
    """Whether two instances of a class that defines equality are equal.

    True where equality says nothing: it is identity, or the answer is an array.
    """
    compare: Any = type(value).__eq__
    if compare is object.__eq__:
        return True
    answer = loaded == value
    return answer if isinstance(answer, bool) else True
