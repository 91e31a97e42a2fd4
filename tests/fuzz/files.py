"""Targets: what people write, what lies beside the journal, and names that lead to
files."""

import tempfile
from functools import cache
from pathlib import Path

from dscrapy.cli.local import crawl_state
from dscrapy.conf import config
from dscrapy.conf.job_file import check_spec, parse_job_file
from dscrapy.control import projections
from dscrapy.errors import ConfigError, UsageError, UserError
from dscrapy.master.storage import DiskStorage
from dscrapy.model import ID_PATTERN, NAME_PATTERN, JobSpec
from tests.fuzz.catalogue import Tally, Target
from tests.fuzz.draw import Draw

ROOT = Path(__file__).parent.parent.parent


@cache
def folder() -> Path:
    """Return a folder of this process, where temporary files go."""
    return Path(tempfile.mkdtemp(prefix="files-"))


def _put(name: str, data: bytes, mode: int = 0o600) -> Path:
    path = folder() / name
    path.write_bytes(data)
    path.chmod(mode)
    return path


def _assert_short(error: UserError) -> None:
    """Check that an error is a line that a terminal can show."""
    text = str(error)
    assert len(text) < 5000
    assert text.isprintable(), text


def _assert_untold(error: UserError, secret: bytes) -> None:
    """Check that an error does not tell what it is about."""
    # Shorter ones may stand in any text.
    is_long = len(secret) >= 16
    assert not is_long or secret.decode(errors="replace") not in str(error)


# ---- conf.toml ---------------------------------------------------------------------


def _conf(data: bytes, tally: Tally) -> None:
    """A conf file gives settings or one line; a token that others can read is none."""
    draw = Draw(data)
    mode = draw.pick((0o600, 0o644))
    path = _put(config.CONF_NAME, draw.rest(), mode)
    folders = config.Folders(config=folder(), state=folder() / "s", data=folder() / "d")
    try:
        found = config.load(path, {}, cwd=folder(), folders=folders)
    except UserError as error:
        _assert_short(error)
        return
    assert found.token is None or mode == 0o600
    assert found.token is None or found.token not in repr(found)


def _conf_seeds() -> list[bytes]:
    example = (ROOT / "conf.example.toml").read_bytes()
    live = example.replace(b"\n# ", b"\n").split(b"\n")
    lines = [line for line in live if b" = " in line or line.startswith(b"[")]
    return [
        b"\0" + example,
        b"\0" + b"\n".join(lines),
        b'\1[dscrapy]\ntoken = "%s"\n' % (b"t" * 40),
        b'\0[dscrapy]\ntoken = "%s"\nstate = "~x/y"\n' % (b"t" * 40),
    ]


CONF = Target(run=_conf, seeds=_conf_seeds)


# ---- job files ---------------------------------------------------------------------


def _jobfile(data: bytes, tally: Tally) -> None:
    """A job file gives jobs that the master takes, or the place of a mistake."""
    draw = Draw(data)
    ending = draw.pick((".toml", ".jsonl"))
    names = bool(draw.below(2))
    try:
        jobs = parse_job_file(
            f"jobs{ending}", draw.rest(), lambda: "0" * 16, require_names=names
        )
    except ConfigError as error:
        _assert_short(error)
        return
    for job in jobs:
        tally.frames += 1
        check_spec(job.spec)


def _jobfile_seeds() -> list[bytes]:
    toml = (
        b'[[jobs]]\nspider = "s"\nproject = "p"\nname = "a"\nevery = "1h"\n'
        b'urls = ["http://a/"]\npriority = 3\n[jobs.args]\nx = "1"\n'
    )
    line = b'{"spider":"s","project_dir":"/p","args":{"a":"b"},"retries":2,"name":"n"}'
    return [b"\0\0" + toml, b"\0\1" + toml * 2, b"\1\0" + line + b"\n" + line]


JOBFILE = Target(run=_jobfile, seeds=_jobfile_seeds)


# ---- beside the journal ------------------------------------------------------------


def _state_files(data: bytes, tally: Tally) -> None:
    """``endpoint.json``, the token and ``crawl.json`` are read or told to be wrong."""
    draw = Draw(data)
    which, rest = draw.below(3), draw.rest()
    settings = config.Config(state=folder(), projects_root=folder())
    try:
        match which:
            case 0:
                _put("endpoint.json", rest)
                endpoint = config.read_endpoint(folder())
                assert endpoint is None or 1 <= endpoint.port <= 65535
            case 1:
                _put("token", rest)
                assert config.find_token(settings).isascii()
            case _:
                _put(crawl_state.RECORD_NAME, rest)
                crawl_state.load_record(folder())
    except UserError as error:
        _assert_untold(error, rest.strip() if which == 1 else b"")


def _state_seeds() -> list[bytes]:
    record = (
        b'{"job":"0123456789abcdef","digest":"d","project":"/p","spider":"s",'
        b'"began_at":1.0,"done":true,"appended":{"o":1},"written":{}}'
    )
    endpoint = b'{"host": "127.0.0.1", "port": 7411, "pid": 1}'
    return [b"\0" + endpoint, b"\1" + b"t" * 32 + b"\n", b"\2" + record]


STATE_FILES = Target(run=_state_files, seeds=_state_seeds)


# ---- names -------------------------------------------------------------------------


def _names(data: bytes, tally: Tally) -> None:
    """No id, name or project that is let through leads out of its folder."""
    draw = Draw(data)
    texts = draw.rest().decode(errors="surrogateescape").split("\n")
    for text in (*texts, "\n".join(texts)):
        tally.frames += 1
        if ID_PATTERN.match(text):
            _assert_inside(text)
        projections.process_of_spool(text)
        if NAME_PATTERN.match(text):
            assert (folder() / text).resolve().parent == folder().resolve()
            assert text.isascii()
            assert text.isprintable()
        _assert_spec(text)


def _assert_inside(identity: str) -> None:
    storage = _storage()
    for name in (
        projections.items_name,
        projections.tagged_name,
        projections.log_name,
        projections.requests_name,
    ):
        path = storage.path(name(identity))
        assert path.resolve().parent.parent == (folder() / "state" / "jobs").resolve()


@cache
def _storage() -> DiskStorage:
    return DiskStorage(folder() / "state")


def _assert_spec(text: str) -> None:
    """Check a job that is named so, of a project that is named so."""
    for spec in (
        JobSpec(project=text, spider="s"),
        JobSpec(project="p", spider=text),
        JobSpec(project_dir=text, spider="s"),
        JobSpec(project="p", spider="s", name=text),
    ):
        try:
            check_spec(spec)
        except UsageError as error:
            _assert_short(error)
            continue
        assert "\0" not in spec.project_dir
        assert spec.spider.isprintable()
        if spec.project:
            place = folder() / spec.project
            assert place.resolve().parent == folder().resolve()


def _name_seeds() -> list[bytes]:
    return [
        b"0123456789abcdef\n0123456789abcdef-12\n0123456789abcdef-0/../../x",
        "../x\n/etc/passwd\n..\n.\na/b\n\x00\nname\u202e\nname.py\na-b_c.d\n".encode(),
        b"n" * 101 + b"\n" + b"n" * 100 + b"\n\x1b[2J\n\xff\xfe",
        b"7-3.1.jsonl\n1-2\n-1-2.jsonl\n9" * 3,
    ]


NAMES = Target(run=_names, seeds=_name_seeds)
