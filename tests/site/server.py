"""A site of generated pages, to be run as a child process.

``server.py [--log FILE]`` serves on a free port of 127.0.0.1, prints its address
(``http://127.0.0.1:PORT``) on one line, and ends when its stdin does. Every request
is one line of the log: instant (CLOCK_BOOTTIME), method, path.

- ``/page/N``: a title, a price and links to ``/page/2N+1``, ``/page/2N+2`` and
  ``/page/N+1``, which keep its query
- ``/slow?n=N``: a title
- ``/status/CODE``: answers with that code
- ``/redirect/N``: redirects to ``/page/N``

With ``?ms=M`` an answer comes after M milliseconds. With ``?gate=FILE&free=K`` all but
the first K pages, and of ``/slow`` those numbered K and more, wait for such a file: so
a test decides how far a crawl gets, on any machine.
"""

import argparse
import sys
import threading
import time
from collections import Counter
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

# Longer waits would outlast the tests' own limits.
MS_MAX = 60_000
# Between two looks for the file that lets pages go.
GATE_STEP_S = 0.02


class Site(ThreadingHTTPServer):
    """Serves in daemon threads and logs requests; the log's file stays open."""

    daemon_threads = True
    # Crawls open many connections at once.
    request_queue_size = 128

    def __init__(self, log: Path | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self._log = log.open("a", buffering=1) if log else None
        self._lock = threading.Lock()
        self._came: Counter[str] = Counter()

    def count(self, gate: str) -> int:
        """Return how many came to this gate before."""
        with self._lock:
            self._came[gate] += 1
            return self._came[gate] - 1

    def note(self, method: str, path: str) -> None:
        """Append a request to the log."""
        if self._log is None:
            return
        with self._lock:
            now = time.clock_gettime(time.CLOCK_BOOTTIME)
            self._log.write(f"{now:.4f} {method} {path}\n")


class Handler(BaseHTTPRequestHandler):
    """Answers from the path alone."""

    server: Site
    protocol_version = "HTTP/1.1"
    # Headers and body leave in one packet; else each answer waits for an ACK.
    wbufsize = -1

    def do_GET(self) -> None:
        """Answer one request."""
        self.server.note("GET", self.path)
        parts = urlsplit(self.path)
        words = parts.path.strip("/").split("/")
        query = dict(parse_qsl(parts.query))
        time.sleep(min(int(query.get("ms", 0)), MS_MAX) / 1000)
        if "gate" in query:
            gate = query["gate"]
            place = self.server.count(gate) if words[0] == "page" else int(query["n"])
            while place >= int(query["free"]) and not Path(gate).exists():
                time.sleep(GATE_STEP_S)
        match words:
            case ["page", number]:
                self._answer(200, page(int(number), parts.query))
            case ["slow"]:
                self._answer(200, "<title>slow</title>")
            case ["status", code]:
                self._answer(int(code), f"<title>status {code}</title>")
            case ["redirect", number]:
                self._answer(302, "", location=f"/page/{number}")
            case _:
                self._answer(404, "<title>not found</title>")

    def _answer(self, code: int, body: str, location: str | None = None) -> None:
        data = body.encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        if location is not None:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing; the site has its own log."""


def page(number: int, query: str) -> str:
    """Return the HTML of page ``number``; its links have the query."""
    more = f"?{escape(query)}" if query else ""
    links = "\n".join(
        f'<a href="/page/{target}{more}">page {target}</a>'
        for target in (2 * number + 1, 2 * number + 2, number + 1)
    )
    return (
        f"<html><head><title>Page {number} - naïve</title></head><body>"
        f"<p class='price'>{number * 7 % 101}.{number % 100:02d}</p>{links}"
        "</body></html>"
    )


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path)
    site = Site(parser.parse_args().log)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    sys.stdout.write(f"http://127.0.0.1:{site.server_address[1]}\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
