"""Commands as people run them: an empty home, real exit codes, pipes that are read."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.crawl_harness import child_environment
from tests.hang import HANG_S

WAIT_S = HANG_S
DSCRAPY = (sys.executable, "-m", "dscrapy")


def run(
    *arguments: str,
    cwd: Path,
    home: Path | None = None,
    input: str | None = None,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run a command with an empty home and no conf file to its end."""
    return subprocess.run(
        [*DSCRAPY, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        cwd=cwd,
        input=input,
        env=environment(home or cwd, **variables),
    )


def run_into(
    writer: int, *arguments: str, cwd: Path, home: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end whose stdout is this descriptor."""
    return subprocess.run(
        [*DSCRAPY, *arguments],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=WAIT_S,
        cwd=cwd,
        env=environment(home or cwd),
    )


def environment(home: Path, **variables: str) -> dict[str, str]:
    """Return an environment whose user has nothing yet."""
    names = ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
    folders = {name: str(home / name) for name in names}
    return {**child_environment(), "HOME": str(home), **folders, **variables}


def assert_user_error(done: subprocess.CompletedProcess[str], code: int) -> str:
    """Check that the last line alone tells the error; return it."""
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    said = [line for line in lines if line.startswith("dscrapy: ")]
    assert said == lines[-1:], done.stderr
    return said[0]


class Running:
    """A command that is running; its stderr is read as it comes."""

    def __init__(self, *arguments: str, cwd: Path, home: Path) -> None:
        self.process = subprocess.Popen(
            [*DSCRAPY, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=environment(home),
        )
        self.err = b""
        self.out = b""

    def until(self, text: str, *, stream: str = "err") -> None:
        """Read until ``text`` appears."""
        assert self.process.stderr is not None
        assert self.process.stdout is not None
        pipe = self.process.stderr if stream == "err" else self.process.stdout
        end = time.monotonic() + WAIT_S
        while text.encode() not in getattr(self, stream):
            ready, _, _ = select.select([pipe], [], [], max(end - time.monotonic(), 0))
            assert ready, (text, self.err, self.out)
            data = os.read(pipe.fileno(), 65536)
            assert data, (text, self.err, self.out)
            setattr(self, stream, getattr(self, stream) + data)

    def finish(self) -> int:
        """Read to the end and return the exit code."""
        out, err = self.process.communicate(timeout=WAIT_S)
        self.out += out
        self.err += err
        return self.process.returncode

    def interrupt(self) -> None:
        """Send what Ctrl-C sends."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(WAIT_S)


@contextmanager
def running(*arguments: str, cwd: Path, home: Path) -> Iterator[Running]:
    """Run a command beside the test; it does not outlive the block."""
    command = Running(*arguments, cwd=cwd, home=home)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            command.kill()
        for pipe in (command.process.stdout, command.process.stderr):
            assert pipe is not None
            pipe.close()
