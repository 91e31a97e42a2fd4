"""The worker's hold on a crawl process, with real and ill-behaved small children."""

import contextlib
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, Literal

import attrs
import msgspec
import pytest
import trio

from dscrapy import messages as m
from dscrapy.errors import RemoteProtocolError
from dscrapy.worker.crawl_process import (
    DUMP_S,
    MESSAGES_WAITING_MAX,
    PROBES,
    CrawlProcess,
    Death,
)
from tests import builders as b
from tests.hang import HANG_S

JOB = b.ID
WAIT_S = HANG_S
# What a child that is started may take until it does as its script says, ten times.
BEGIN_S = 5.0
# What each child begins with: how to read and write the frames of its link.
PRELUDE = """
import json, os, signal, socket, struct, subprocess, sys, time
link = socket.socket(fileno=int(sys.argv[1]))
lifeline = int(sys.argv[2])
def read(size):
    data = b""
    while len(data) < size:
        more = link.recv(size - len(data))
        if not more:
            sys.exit(7)
        data += more
    return data
def receive():
    return json.loads(read(struct.unpack(">I", read(4))[0]))
def send(**message):
    data = json.dumps(message).encode()
    link.sendall(struct.pack(">I", len(data)) + data)
def commit(*commits, **ids):
    send(**{"type": "commits", "job": run["job"], "process": run["process"],
        "commits": commits, **ids})
run = receive()
print("began", flush=True)
"""


@attrs.define
class Heard:
    """What a crawl process said; nothing may be said of request 666."""

    messages: list[m.FromProcess] = attrs.field(factory=list)
    log: bytes = b""
    began: trio.Event = attrs.field(factory=trio.Event)

    def add(self, message: m.FromProcess, frame: bytes) -> None:
        assert msgspec.json.decode(frame[4:], type=m.FromProcess) == message
        if isinstance(message, m.Release) and 666 in message.requests:
            raise RemoteProtocolError("not_held", "it does not hold request 666")
        self.messages.append(message)

    def add_log(self, data: bytes) -> None:
        self.log += data
        if b"began\n" in self.log:
            self.began.set()


def process_of(
    script: str,
    heard: Heard,
    folder: Path,
    role: Literal["crawl", "export"] = "crawl",
    **fields: Any,
) -> CrawlProcess:
    """Return a process that runs the script after the prelude."""
    values: dict[str, Any] = {"process_silent_s": 0.0, "stop_grace_s": WAIT_S}
    start = b.start(3, role=role)
    return CrawlProcess(
        start=start,
        folder=folder,
        on_message=heard.add,
        on_log=heard.add_log,
        command=(sys.executable, "-c", PRELUDE + script),
        **(values | fields),
    )


async def run(process: CrawlProcess) -> Death:
    """Run it to its end, within bounds."""
    with trio.fail_after(WAIT_S):
        return await process.run()


def is_there(pid: int) -> bool:
    """Whether a process runs; a zombie that init has not taken yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


async def gone(pid: int) -> None:
    """Wait for the end of a process that is not our child."""
    with trio.fail_after(WAIT_S):
        while is_there(pid):  # noqa: ASYNC110 - no event tells it
            await trio.sleep(0.01)


async def test_all_that_a_process_said_before_its_end_is_heard(tmp_path: Path) -> None:
    """Messages, as the frames that they came in, and log up to the last byte, and how
    it ended."""
    heard = Heard()
    script = """
for number in range(1, 201):
    commit({"unit": number, "kind": "late", "items": [{"n": "x" * 1000}]})
send(type="closing", job=run["job"], process=run["process"], reason="r")
print("the last line", end="", flush=True)
os._exit(5)
"""
    death = await run(process_of(script, heard, tmp_path))
    *commits, closing = heard.messages
    units = [one.commits[0].unit for one in commits if isinstance(one, m.Commits)]
    assert units == list(range(1, 201))
    assert closing == m.Closing(job=JOB, process=3, reason="r")
    assert heard.log == b"began\nthe last line"
    assert death.counted
    assert "exited with code 5" in death.text


async def test_a_process_gets_its_folder_its_seed_and_no_settings_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No ``DSCRAPY_*`` variable reaches it: one of them is the token."""
    monkeypatch.setenv("DSCRAPY_TOKEN", "secret")
    monkeypatch.setenv("OF_THE_USER", "kept")
    heard = Heard()
    script = """
ours = [name for name in os.environ if name.startswith("DSCRAPY_")]
print(ours, os.environ["OF_THE_USER"], os.environ["PYTHONHASHSEED"], os.getcwd())
print(sys.stdin.read() == "", os.getsid(0) == os.getpid(), run["spec"]["spider"])
"""
    await run(process_of(script, heard, tmp_path))
    expected = f"began\n[] kept 41 {tmp_path}\nTrue True s\n"
    assert heard.log.decode() == expected


@pytest.mark.parametrize("role", ["crawl", "export"])
async def test_what_it_is_told_before_its_start_it_hears_first(
    role: Literal["crawl", "export"], tmp_path: Path
) -> None:
    """What to run, until when it may start requests (the latest that is known), then
    what was told, in order."""
    heard = Heard()
    script = """
told = [receive() for _ in range(3)]
print(run["role"], told[0]["until"], [one["type"] for one in told])
"""
    process = process_of(script, heard, tmp_path, role, valid_until=1.0)
    process.tell(m.StartMay(job=JOB, process=3, upto=1, upto_free=1))
    process.extend(2.0)
    process.tell(m.Finish(job=JOB, process=3, number=1))
    await run(process)
    expected = f"began\n{role} 2.0 ['valid', 'start_may', 'finish']\n"
    assert heard.log.decode() == expected
    # Nobody listens any more; that harms nobody.
    process.extend(3.0)
    process.kill("too late")


@pytest.mark.parametrize(
    ("how", "counted", "text"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", False, "killed by SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", True, "killed by SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 3)", True, "killed by signal 37"),
        ("sys.exit(3)", True, "exited with code 3"),
    ],
)
async def test_a_death_counts_unless_it_came_from_outside(
    how: str, counted: bool, text: str, tmp_path: Path
) -> None:
    """Whoever kills from outside does it by SIGKILL; all else is the job's doing."""
    death = await run(process_of(how, Heard(), tmp_path))
    assert death.counted is counted
    assert text in death.text


KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
OOM = "nr_free_pages 7\noom_kill {}\nallocstall 3\n"


@pytest.mark.parametrize(
    ("before", "meanwhile", "how", "counted", "text"),
    [
        (OOM.format(2), OOM.format(3), KILLED, True, "killed for lack of memory"),
        (OOM.format(2), OOM.format(2), KILLED, False, "killed by SIGKILL"),
        (OOM.format(2), OOM.format(3), "sys.exit(3)", True, "exited with code 3"),
        (OOM.format(2), OOM.format(3), "os.abort()", True, "killed by SIGABRT"),
        ("nr_free_pages 7\n", "nr_free_pages 6\n", KILLED, False, "by SIGKILL"),
        ("", "", KILLED, False, "by SIGKILL"),
    ],
)
async def test_a_kill_for_lack_of_memory_is_no_kill_from_outside(
    before: str,
    meanwhile: str,
    how: str,
    counted: bool,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel's count says which it was: the job's doing only if it rose while the
    process ran, and only of a SIGKILL. Where there is no count nobody is blamed."""
    vmstat = tmp_path / "vmstat"
    if before:
        vmstat.write_text(before)
    monkeypatch.setattr("dscrapy.worker.crawl_process.VMSTAT", vmstat)
    script = f"""
if {meanwhile!r}:
    open({str(vmstat)!r}, "w").write({meanwhile!r})
{how}
"""
    death = await run(process_of(script, Heard(), tmp_path))
    assert death.counted is counted
    assert text in death.text


async def test_whoever_the_worker_kills_did_not_lack_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program did, at the same time."""
    vmstat = tmp_path / "vmstat"
    vmstat.write_text(OOM.format(0))
    monkeypatch.setattr("dscrapy.worker.crawl_process.VMSTAT", vmstat)
    heard = Heard()
    process = process_of("time.sleep(1000)", heard, tmp_path)

    async def kill() -> None:
        await heard.began.wait()
        vmstat.write_text(OOM.format(1))
        process.kill("another has the job")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill)
        death = await run(process)
    assert not death.counted
    assert death.text.endswith("was killed: another has the job")


async def test_a_silent_process_is_dumped_and_killed_and_that_counts(
    tmp_path: Path,
) -> None:
    """Its stack is in the log, for whoever asks where it hangs."""
    heard = Heard()
    script = """
import faulthandler
faulthandler.register(signal.SIGUSR1)
def hangs_here():
    time.sleep(1000)
hangs_here()
"""
    began = trio.current_time()
    process = process_of(script, heard, tmp_path, process_silent_s=BEGIN_S)
    death = await run(process)
    assert death.counted
    assert f"event loop was silent for {BEGIN_S:g} s" in death.text
    assert b"hangs_here" in heard.log
    assert trio.current_time() - began >= BEGIN_S + DUMP_S


async def test_a_process_that_answers_probes_is_left_alone(tmp_path: Path) -> None:
    """Longer than it may be silent, and however late each answer is."""
    heard = Heard()
    script = """
for _ in range(13):
    probe = receive()
    time.sleep(0.02)
    send(type="alive", number=probe["number"])
"""
    assert PROBES < 13
    process = process_of(script, heard, tmp_path, process_silent_s=BEGIN_S)
    death = await run(process)
    assert "exited with code 0" in death.text
    assert heard.log == b"began\n"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ('commit(job="other")', "not_held"),
        ("commit(process=4)", "not_held"),
        (
            'send(type="release", job=run["job"], process=3, requests=[666])',
            "not_held",
        ),
        ('send(type="start")', "bad_message"),
        ('link.sendall(b"\\xff" * 8)', "frame_too_long"),
    ],
)
async def test_a_process_that_says_what_it_may_not_is_killed_and_that_counts(
    said: str, why: str, tmp_path: Path
) -> None:
    """Nothing about another's lease gets through, nor a frame beyond bounds."""
    heard = Heard()
    death = await run(process_of(f"{said}\ntime.sleep(1000)", heard, tmp_path))
    assert heard.messages == []
    assert death.counted
    assert why in death.text


async def test_a_process_that_does_not_stop_is_killed_after_its_grace(
    tmp_path: Path,
) -> None:
    """It is told first; its death is not held against the job."""
    heard = Heard()
    script = """
print(receive()["reason"], flush=True)
time.sleep(1000)
"""
    process = process_of(script, heard, tmp_path, stop_grace_s=BEGIN_S)
    process.stop(m.Stop(job=JOB, process=3, reason="cancelled"))
    death = await run(process)
    assert heard.log == b"began\ncancelled\n"
    assert not death.counted
    assert f"did not stop within {BEGIN_S:g} s" in death.text


async def test_a_process_that_does_not_read_is_killed_and_no_message_dropped(
    tmp_path: Path,
) -> None:
    """A lease that is dropped would be lost: it dies when too much waits, which is
    not held against the job. What keeps it valid costs nothing, however often."""
    heard = Heard()
    process = process_of("time.sleep(1000)", heard, tmp_path)
    # More than the socket pair takes.
    body = msgspec.Raw(b'"%s"' % (b"x" * 10_000))
    columns: Any = {"hosts": ("h",), "host_of": (0,), "bodies": (body,)}
    async with trio.open_nursery() as nursery:
        deaths: list[Death] = []

        async def note() -> None:
            deaths.append(await run(process))

        nursery.start_soon(note)
        with trio.fail_after(WAIT_S):
            await heard.began.wait()
        for number in range(MESSAGES_WAITING_MAX):
            process.tell(m.Grant(job=JOB, process=3, requests=(number,), **columns))
            process.extend(float(number))
        await trio.sleep(0.1)
        assert deaths == []
        for number in range(100):
            process.tell(m.Grant(job=JOB, process=3, requests=(number,), **columns))
    assert not deaths[0].counted
    assert "does not read" in deaths[0].text


async def test_a_process_that_is_killed_before_its_start_does_nothing(
    tmp_path: Path,
) -> None:
    """The reason is the first one, whatever else is done to it."""
    heard = Heard()
    process = process_of("time.sleep(1000)", heard, tmp_path)
    process.kill("it never began")
    process.kill("later", counted=True)
    death = await run(process)
    assert death.text.endswith("was killed: it never began")
    assert not death.counted


async def test_a_cancelled_run_leaves_nothing_of_its_group(tmp_path: Path) -> None:
    """The process and what it has started are killed, and waited for."""
    heard = Heard()
    script = """
print(os.getpid(), subprocess.Popen(["sleep", "1000"]).pid, flush=True)
time.sleep(1000)
"""
    process = process_of(script, heard, tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, process)
        with trio.fail_after(WAIT_S):
            while heard.log.count(b"\n") < 2:  # noqa: ASYNC110 - no event tells it
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    own, child = heard.log.split()[1:]
    assert not is_there(int(own))
    await gone(int(child))


async def test_a_child_that_keeps_the_log_open_does_not_hold_the_end(
    tmp_path: Path,
) -> None:
    """The process is gone; what it has left behind may live on."""
    heard = Heard()
    script = """
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
print(child.pid, flush=True)
"""
    began = trio.current_time()
    death = await run(process_of(script, heard, tmp_path))
    child = int(heard.log.split()[1])
    assert is_there(child)
    os.kill(child, signal.SIGKILL)
    assert "exited with code 0" in death.text
    assert trio.current_time() - began < WAIT_S / 2


async def test_a_process_that_cannot_be_started_leaves_no_file_open(
    tmp_path: Path,
) -> None:
    """A worker may try thousands of times."""
    process = process_of("", Heard(), tmp_path / "none")
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        await run(process)
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("files", range(12))
async def test_a_worker_that_runs_out_of_files_loses_none_by_it(
    files: int, tmp_path: Path
) -> None:
    """However few it may still open: what it opened for a process is closed again."""
    process = process_of("", Heard(), tmp_path)
    before = set(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The limit is one on numbers: fill the gaps below it.
    fillers = [os.open(os.devnull, os.O_RDONLY) for _ in range(len(before))]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(fillers) + 1 + files, hard))
    try:
        # With the last few it starts.
        with contextlib.suppress(OSError):
            await run(process)
            assert files > 4
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)
    assert set(os.listdir("/proc/self/fd")) == before


async def test_a_process_that_is_not_read_is_not_taken_for_silent(
    tmp_path: Path,
) -> None:
    """While there is no room for what it says its link fills, its answers to probes
    wait in it, and it blocks in a write; it is no further than that, and lives. Read
    again it goes on, and nothing that it said is lost."""
    heard = Heard()
    silent_s = 0.3
    script = """
import threading
def answer():
    while True:
        asked = receive()
        if asked["type"] == "probe":
            with lock:
                send(type="alive", number=asked["number"])
lock = threading.Lock()
threading.Thread(target=answer, daemon=True).start()
for number in range(1, 201):
    with lock:
        commit({"unit": number, "kind": "late", "items": [{"n": "x" * 50000}]})
print("all is said", flush=True)
os._exit(5)
"""
    room = trio.Event()

    async def wait_room() -> None:
        if len(heard.messages) >= 10:
            await room.wait()

    process = process_of(
        script, heard, tmp_path, process_silent_s=silent_s, wait_room=wait_room
    )
    deaths: list[Death] = []

    async def live() -> None:
        deaths.append(await run(process))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(live)
        with trio.fail_after(WAIT_S):
            while not process._is_reading_paused:  # noqa: ASYNC110 - no event tells it
                await trio.sleep(0.01)
        await trio.sleep(5 * silent_s)
        assert deaths == []
        assert b"all is said" not in heard.log
        # What one read brings, and no more.
        assert 10 <= len(heard.messages) <= 12
        room.set()
    (death,) = deaths
    assert "exited with code 5" in death.text
    assert len(heard.messages) == 200
