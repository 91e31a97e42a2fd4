"""The demonstration's site: the standard library's documentation, served by pydoc.

Every machine that has Python has it, online or not: thousands of linked pages.
"""

import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import trio

# Python starts in a fraction of a second; this is for a machine that is very busy.
START_S_MAX = 30.0
STOP_S_MAX = 5.0
# What it prints before its address is a line or two.
GREETING_BYTES_MAX = 64 * 1024

# -I -S: the standard library alone, whatever is installed or set. -W: importing old
# modules is the point here, no reason to warn.
COMMAND = (sys.executable, "-I", "-S", "-W", "ignore", "-m", "pydoc")
ADDRESS = re.compile(rb"http://[a-z0-9.]+:\d+/")


class SiteError(Exception):
    """The site did not start: one line that says why."""


async def start(
    folder: Path, host: str = "127.0.0.1", port: int = 0
) -> tuple[trio.Process, str]:
    """Start the site in a child process; return that and the site's address.

    ``folder`` is empty: pydoc lists the modules of the folder it runs in, too. The
    caller runs ``drain`` and closes the child by ``end``. Raises ``SiteError``.
    """
    process = await trio.lowlevel.open_process(
        [*COMMAND, "-n", host, "-p", str(port)],
        # pydoc reads commands from its input, and ends when the input does.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        # Ctrl-C is for the demonstration, which then ends this one.
        start_new_session=True,
    )
    address = ""
    try:
        assert process.stdout is not None
        with trio.move_on_after(START_S_MAX):
            address = await _address(process.stdout)
        if not address:
            raise SiteError(
                f"pydoc did not start on {host}, port {port}: {' '.join(COMMAND)}"
            )
    finally:
        if not address:
            await end(process, STOP_S_MAX)
    return process, address


async def drain(process: trio.Process) -> None:
    """Read what the site says: some modules print, and a full pipe would stop it."""
    assert process.stdout is not None
    # ``end`` closes it.
    with suppress(trio.ClosedResourceError):
        while await process.stdout.receive_some():
            pass


async def end(process: trio.Process, grace_s: float) -> int:
    """Terminate a child, kill it after ``grace_s``; return its exit status."""
    with trio.CancelScope(shield=True):
        process.terminate()
        with trio.move_on_after(grace_s):
            await process.wait()
        process.kill()
        status = await process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                await stream.aclose()
    return status


async def _address(output: trio.abc.ReceiveStream) -> str:
    """Return the address that pydoc prints, nothing if it ends without."""
    answer = b""
    while len(answer) < GREETING_BYTES_MAX:
        data = await output.receive_some()
        if not data:
            return ""
        answer += data
        # Only with the end of its line is the number complete.
        if match := ADDRESS.search(answer):
            return match[0].decode()
    return ""
