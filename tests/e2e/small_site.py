"""A site inside the test's own process, which can be asked what it has seen.

- ``/p/NAME``: a page; with ``?ms=M`` it answers after M milliseconds
- ``/to?url=URL``: redirects there
- ``/status/CODE``: answers with that code
- ``/robots.txt``: ``robots``, or 404 where that is empty

Pages wait, once, until ``together`` of them are asked for at the same time; those after
the first ``free`` wait for ``let_go``.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from tests.hang import HANG_S


class SmallSite(ThreadingHTTPServer):
    """Counts requests that it answers at the same time; ``paths`` in order."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, robots: str = "", together: int = 0, free: float = math.inf
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.together = together
        self.free = free
        self.robots = robots
        self.paths: list[str] = []
        self.instants: list[float] = []
        self.at_once = 0
        self.most_at_once = 0
        self.lock = threading.Condition()

    @property
    def address(self) -> str:
        """The site's address, without a slash at the end."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def has_come(self, condition: Callable[[], bool]) -> bool:
        """Wait until this holds of what the site has seen, and say whether it does."""
        with self.lock:
            return self.lock.wait_for(condition, HANG_S)

    def let_go(self) -> None:
        """Let all pages go, from now on."""
        with self.lock:
            self.free = math.inf
            self.lock.notify_all()


class _Handler(BaseHTTPRequestHandler):
    server: SmallSite
    protocol_version = "HTTP/1.1"
    # Headers and body leave in one packet; else each answer waits for an ACK.
    wbufsize = -1

    def do_GET(self) -> None:
        site = self.server
        parts = urlsplit(self.path)
        with site.lock:
            site.paths.append(self.path)
            site.instants.append(time.clock_gettime(time.CLOCK_BOOTTIME))
            site.at_once += 1
            site.most_at_once = max(site.most_at_once, site.at_once)
            place = len(site.paths)
            site.lock.notify_all()
            if parts.path.startswith("/p/"):
                site.lock.wait_for(
                    lambda: place <= site.free and site.together <= site.most_at_once,
                    HANG_S,
                )
        query = parse_qs(parts.query)
        time.sleep(int(query.get("ms", ["0"])[0]) / 1000)
        with site.lock:
            site.at_once -= 1
            site.lock.notify_all()
        match parts.path.strip("/").split("/"):
            case ["robots.txt"] if site.robots:
                self._answer(200, site.robots, "text/plain")
            case ["p", name]:
                self._answer(200, f"<title>{name}</title>")
            case ["to"]:
                self._answer(302, "", location=query["url"][0])
            case ["status", code]:
                self._answer(int(code), "<title>status</title>")
            case _:
                self._answer(404, "<title>not found</title>")

    def _answer(
        self, code: int, body: str, kind: str = "text/html", location: str = ""
    ) -> None:
        data = body.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing; the site has its own log."""


@contextmanager
def small_site(
    robots: str = "", together: int = 0, free: float = math.inf
) -> Iterator[SmallSite]:
    """Serve until the end of the block."""
    site = SmallSite(robots, together, free)
    thread = threading.Thread(target=site.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        site.shutdown()
        thread.join()
        site.server_close()
