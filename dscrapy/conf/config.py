"""Settings: keys of ``conf.toml``, where the file is found, and which source wins.

A command's flags win over ``DSCRAPY_*`` variables, variables over ``conf.toml``, the
file over the defaults here. Where the master is counts as one setting with two forms,
its address and its state folder: a folder given at one level hides an address from a
lower one, or ``--state`` would talk to whatever ``DSCRAPY_MASTER`` says.

``conf.example.toml`` is ``example()``, so the two cannot differ.
"""

import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import attrs
import platformdirs

from dscrapy.conf.strict import FieldError, StrictError, parse_toml, structure
from dscrapy.conf.variables import in_section, name_of
from dscrapy.errors import ConfigError, UnauthorisedError, UsageError
from dscrapy.model import NAME_PATTERN
from dscrapy.text import show

T = TypeVar("T")
N = TypeVar("N", int, float)
Section = Literal["master", "worker", "client"]

CONF_NAME = "conf.toml"
ENDPOINT_NAME = "endpoint.json"
ENDPOINT_VERSION = 1
TOKEN_NAME = "token"  # noqa: S105 - the name of a file, not a secret

# 128 bits are 22 characters in base64; fewer can be guessed.
TOKEN_CHARS_MIN = 22
# Bounds what is hashed for every connection.
TOKEN_CHARS_MAX = 256
_TOKEN_RULE = f"must be {TOKEN_CHARS_MIN} to {TOKEN_CHARS_MAX} ASCII characters"
# Bounds what a mistaken path can make us read; a conf file is a few kilobytes.
CONF_BYTES_MAX = 1024 * 1024
MIB = 1024 * 1024
DAY_S = 24 * 3600.0


@attrs.frozen
class Endpoint:
    """Where something listens."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """Return the endpoint of ``HOST:PORT`` or ``[IPv6]:PORT``.

    Raises ``UsageError``.
    """
    match = re.fullmatch(r"(?:\[([^\[\]\s]+)\]|([^\[\]:\s]+)):([0-9]{1,5})", text)
    if match and 1 <= int(match[3]) <= 65535:
        return Endpoint(match[1] or match[2], int(match[3]))
    raise UsageError(
        f"{show(text)} is not HOST:PORT, such as 192.0.2.7:7411 or [2001:db8::7]:7411"
    )


def expanded(path: str | Path) -> Path:
    """Return the path with its ``~`` or ``~user`` replaced; raises ``UsageError``."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError(f"{show(str(path))}: there is no such user") from None


_DURATION = re.compile(
    r"(?:([0-9]{1,6})d)?(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?"
    r"(?:([0-9]{1,9}(?:\.[0-9]{1,3})?)s)?"
)


def parse_duration(text: str) -> float:
    """Return the seconds of ``10s``, ``30m``, ``2h``, ``1d`` or ``1h30m``.

    Raises ``UsageError``, for nothing and for zero too.
    """
    match = _DURATION.fullmatch(text)
    if match:
        days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
        total = days * DAY_S + hours * 3600 + minutes * 60 + seconds
        if total > 0:
            return total
    raise UsageError(f"{show(text)} is not a duration, such as 10s, 30m, 2h or 1h30m")


def _number(default: N, about: str, low: float, high: float) -> N:
    """A field with a line for ``conf.example.toml`` and a range."""

    def check(value: N) -> str | None:
        if low <= value <= high:
            return None
        return f"must be from {low:g} to {high:g}, got {show(value)}"

    return _text(default, about, check)


def _text(default: T, about: str, check: Callable[[T], str | None]) -> T:
    """A field likewise; ``check`` returns what is wrong with a value, or None."""

    def validate(_: Any, field: "attrs.Attribute[T]", value: T) -> None:
        if problem := check(value):
            raise FieldError(field.name, problem)

    field: Any = attrs.field(
        default=default, validator=validate, metadata={"about": about}
    )
    return cast(T, field)


def _endpoint_or_empty(value: str) -> str | None:
    try:
        if value:
            parse_endpoint(value)
    except UsageError as error:
        return str(error)
    return None


def _host(value: str) -> str | None:
    good = value and value.isprintable() and " " not in value
    return None if good else f"must be a host name or address, got {show(value)}"


def _name_or_empty(value: str) -> str | None:
    if not value or NAME_PATTERN.match(value):
        return None
    return (
        "must be letters, digits, '.', '_' and '-' (at most 100, the first a letter "
        f"or digit), got {show(value)}"
    )


def _token_or_empty(value: str) -> str | None:
    if not value or is_token(value):
        return None
    return _TOKEN_RULE


def _path(value: str) -> str | None:
    if "\0" in value:
        return "must not hold a NUL character"
    try:
        expanded(value)
    except UsageError as error:
        return str(error)
    return None


@attrs.frozen(kw_only=True)
class MasterConfig:
    """Table ``[dscrapy.master]``."""

    host: str = _text("127.0.0.1", "address to listen on; nothing is encrypted", _host)
    port: int = _number(7411, "port to listen on; 0: any free one", 0, 65535)
    heartbeat_s: float = _number(2.0, "seconds between heartbeats", 0.05, 3600)
    die_after_s: float = _number(
        20.0, "seconds until a silent worker's jobs run elsewhere", 0.1, DAY_S
    )
    reconnect_grace_s: float = _number(
        5.0, "the same, once its connection broke; seconds", 0.1, DAY_S
    )
    start_deaths_max: int = _number(
        3, "a job fails when this many of its processes died", 1, 1000
    )
    suspect_patience_s: float = _number(
        60.0, "seconds that suspects which only wait are tried apart", 0.1, DAY_S
    )
    disk_free_bytes_min: int = _number(
        64 * MIB, "no new work while the disk has fewer bytes free", 0, 2**60
    )
    segment_bytes_max: int = _number(
        256 * MIB, "bytes of one file of the journal", 64 * 1024, 2**40
    )
    snapshot_after_bytes: int = _number(
        64 * MIB, "bytes of journal after which a snapshot is made", 1, 2**60
    )
    log_bytes_max: int = _number(
        64 * MIB, "bytes kept of one job's log", 64 * 1024, 2**60
    )
    connections_max: int = _number(
        4096, "workers and clients at the same time", 1, 1_000_000
    )
    handshake_timeout_s: float = _number(
        5.0, "seconds a connection has to prove the token", 0.1, 600
    )
    keep_jobs: int = _number(0, "ended jobs that are kept; 0: all", 0, 10_000_000)
    keep_days: float = _number(0.0, "days they are kept; 0: for ever", 0, 100_000)
    keep_bytes: int = _number(0, "bytes kept of ended jobs; 0: all", 0, 2**60)
    pickles: bool = attrs.field(
        default=True,
        metadata={"about": "whether requests may carry pickles between processes"},
    )

    def __attrs_post_init__(self) -> None:
        # One lost heartbeat must not cost a worker its jobs.
        if self.heartbeat_s * 2 > min(self.die_after_s, self.reconnect_grace_s):
            raise FieldError(
                "heartbeat_s",
                f"{self.heartbeat_s:g} is more than half of die_after_s "
                f"({self.die_after_s:g}) or reconnect_grace_s "
                f"({self.reconnect_grace_s:g})",
            )


@attrs.frozen(kw_only=True)
class WorkerConfig:
    """Table ``[dscrapy.worker]``.

    ``projects_root`` is as written; ``Config.projects_root`` is the folder.
    """

    master: str = _text(
        "",
        "HOST:PORT of the master; empty: the one of the state folder",
        _endpoint_or_empty,
    )
    host: str = _text("127.0.0.1", "address that `status --at` finds", _host)
    port: int = _number(
        7412, "its port; when not given, the next free one from here", 0, 65535
    )
    slots: int = _number(
        0, "crawl processes at the same time; 0: as many as usable CPUs", 0, 10_000
    )
    name: str = _text(
        "", "name of this worker; empty: host name and port", _name_or_empty
    )
    projects_root: str = _text(
        "", "folder of projects; empty: `projects` in the user's data folder", _path
    )
    process_silent_s: float = _number(
        600.0,
        "seconds until a silent crawl process is killed; 0: never",
        0,
        7 * DAY_S,
    )
    stop_grace_s: float = _number(
        60.0,
        "seconds a stopped crawl process has before it is killed",
        0,
        DAY_S,
    )
    reconnect_s_max: float = _number(
        10.0, "longest pause between tries to reach the master; s", 0.1, 3600
    )


@attrs.frozen(kw_only=True)
class ClientConfig:
    """Table ``[dscrapy.client]``."""

    master: str = _text(
        "",
        "HOST:PORT of the master; empty: the one of the state folder",
        _endpoint_or_empty,
    )
    connect_timeout_s: float = _number(
        5.0, "seconds until the master counts as not reachable", 0.05, 3600
    )


@attrs.frozen(kw_only=True)
class _Table:
    """Table ``[dscrapy]`` as written."""

    state: str = _text(
        "", "folder of the master's state; empty: the user's state folder", _path
    )
    token: str = _text(
        "", "the shared secret; this file must then have mode 0600", _token_or_empty
    )
    master: MasterConfig = MasterConfig()
    worker: WorkerConfig = WorkerConfig()
    client: ClientConfig = ClientConfig()


_TABLES = (
    ("dscrapy", _Table),
    ("dscrapy.master", MasterConfig),
    ("dscrapy.worker", WorkerConfig),
    ("dscrapy.client", ClientConfig),
)


@attrs.frozen(kw_only=True)
class Folders:
    """Where a person's files lie by the habits of the system."""

    config: Path
    state: Path
    data: Path

    @classmethod
    def of_user(cls) -> "Folders":
        """Return platformdirs' folders."""
        return cls(
            config=platformdirs.user_config_path("dscrapy"),
            state=platformdirs.user_state_path("dscrapy"),
            data=platformdirs.user_data_path("dscrapy"),
        )


@attrs.frozen(kw_only=True)
class Config:
    """All settings of one command, from all sources.

    ``state`` and ``projects_root`` are absolute folders. ``token`` is the one of
    ``DSCRAPY_TOKEN`` or of the conf file; usually None, and ``find_token`` reads
    the state folder's. ``conf`` is the file that was read, if any.
    """

    state: Path
    projects_root: Path
    token: str | None = attrs.field(default=None, repr=False)
    master: MasterConfig = MasterConfig()
    worker: WorkerConfig = WorkerConfig()
    client: ClientConfig = ClientConfig()
    worker_port_given: bool = False
    conf: Path | None = None


def load(
    conf_flag: Path | None,
    environ: Mapping[str, str],
    *,
    cwd: Path | None = None,
    folders: Folders | None = None,
) -> Config:
    """Return the settings of conf file and variables; ``override`` adds flags.

    Raises ``ConfigError`` for the file, ``UsageError`` for a variable and
    ``UnauthorisedError`` for a ``DSCRAPY_TOKEN`` that cannot be a token.
    """
    cwd = cwd or Path.cwd()
    folders = folders or Folders.of_user()
    conf, raw = _find_conf(conf_flag, environ, cwd, folders)
    table = _Table()
    if conf is not None:
        try:
            table = structure(raw, _Table, "dscrapy")
        except StrictError as error:
            raise ConfigError(conf, *error.as_one()) from None
    # Paths in a file mean the same wherever the command is run.
    base = conf.parent if conf else cwd
    config = Config(
        state=_folder(table.state, base, folders.state),
        projects_root=_folder(
            table.worker.projects_root, base, folders.data / "projects"
        ),
        token=table.token or None,
        master=table.master,
        worker=table.worker,
        client=table.client,
        worker_port_given="port" in cast(dict[str, Any], raw.get("worker", {})),
        conf=conf,
    )
    return _with_variables(config, environ, cwd)


def override(
    config: Config,
    section: Section,
    *,
    state: Path | None = None,
    **values: str | int | float | None,
) -> Config:
    """Return ``config`` under the flags of a command; None means not given.

    ``values`` are fields of the section, ``state`` is ``--state``. Raises
    ``UsageError`` that names the flag.
    """
    flags = {name: value for name, value in values.items() if value is not None}
    try:
        if state is not None:
            config = _in_state(config, state.absolute())
        changed = attrs.evolve(getattr(config, section), **flags)
    except FieldError as error:
        raise UsageError(f"--{error.key.replace('_', '-')}: {error.reason}") from None
    config = attrs.evolve(config, **{section: changed})
    if section == "worker" and "port" in flags:
        config = attrs.evolve(config, worker_port_given=True)
    return config


def read_endpoint(state: Path) -> Endpoint | None:
    """Return what the master of this state folder wrote down, None without one.

    Raises ``ConfigError`` for a file that no master wrote.
    """
    path = state / ENDPOINT_NAME
    read = _read(path)
    if read is None:
        return None
    try:
        data = json.loads(read[0])
        version = data.get("version", 1) if isinstance(data, dict) else 1
        if version != ENDPOINT_VERSION:
            raise ConfigError(path, "version", "the master of another dscrapy wrote it")
        written = structure(data, _Written)
    except (ValueError, RecursionError):
        # A StrictError is a ValueError too.
        written = None
    if written is None or not 1 <= written.port <= 65535 or not written.host:
        raise ConfigError(
            path, "", "not a file of a master: delete it and start the master again"
        )
    return Endpoint(written.host, written.port)


def find_master(config: Config, section: Literal["worker", "client"]) -> Endpoint:
    """Return where the master is: as given, of the state folder, or the default."""
    address: str = getattr(config, section).master
    if address:
        return parse_endpoint(address)
    found = read_endpoint(config.state)
    found = found or Endpoint(config.master.host, config.master.port)
    # "Every address" is a thing to listen on, not to dial.
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
    return attrs.evolve(found, host=loopback.get(found.host, found.host))


def is_token(text: str) -> bool:
    """Whether ``text`` can be a token: long enough and of plain characters."""
    return (
        TOKEN_CHARS_MIN <= len(text) <= TOKEN_CHARS_MAX
        and text.isascii()
        and text.isprintable()
        and " " not in text
    )


def find_token(config: Config) -> str:
    """Return the token of variable, conf file or state folder, in this order.

    Raises ``UnauthorisedError`` that names the places looked at.
    """
    if config.token:
        return config.token
    path = config.state / TOKEN_NAME
    try:
        read = _read(path)
    except ConfigError as error:
        raise UnauthorisedError(str(error)) from None
    if read is None:
        conf = f"`token` in {config.conf}" if config.conf else f"no {CONF_NAME}"
        raise UnauthorisedError(
            f"no token: DSCRAPY_TOKEN is not set, {conf} has none, {path} does not "
            "exist; copy the master's token file there or name its folder by --state"
        )
    token = read[0].decode(errors="replace").strip()
    if not is_token(token):
        raise UnauthorisedError(f"{path} holds no token; copy the master's file again")
    return token


def example() -> str:
    """Return ``conf.example.toml``: every key, its default and what it means."""
    lines = [
        "# Settings of dscrapy, all at their defaults; uncomment what you change.",
        "# A flag wins over a DSCRAPY_* variable, that over this file. It is read from",
        f"# --conf or DSCRAPY_CONF, else ./{CONF_NAME} if that has a [dscrapy] table,",
        "# else from the user's config folder. A key's variable is its table and name:",
        "# `port` of [dscrapy.master] is DSCRAPY_MASTER_PORT.",
    ]
    for name, cls in _TABLES:
        lines += ["", f"[{name}]"]
        for field in attrs.fields(cast(Any, cls)):
            if "about" in field.metadata:
                lines.append(f"# {field.metadata['about']}")
                lines.append(f"# {field.name} = {json.dumps(field.default)}")
    return "\n".join(lines) + "\n"


def variables() -> frozenset[str]:
    """Return the names of all ``DSCRAPY_*`` variables that there are."""
    return frozenset({"DSCRAPY_CONF", "DSCRAPY_MASTER"}).union(
        name_of(table.removeprefix("dscrapy").removeprefix("."), field.name)
        for table, cls in _TABLES
        for field in attrs.fields(cast(Any, cls))
        if "about" in field.metadata
    )


@attrs.frozen(kw_only=True)
class _Written:
    """What ``endpoint.json`` contains; a file without ``version`` has version 1.

    ``pid`` is for people.
    """

    host: str
    port: int
    pid: int
    version: int = 1


def _find_conf(
    flag: Path | None, environ: Mapping[str, str], cwd: Path, folders: Folders
) -> tuple[Path | None, Any]:
    """Return the conf file that counts and its [dscrapy] table."""
    variable = environ.get("DSCRAPY_CONF", "")
    named = flag or (Path(variable) if variable else None)
    users = folders.config / CONF_NAME
    if named is not None:
        path = cwd / expanded(named)
    else:
        local = cwd / CONF_NAME
        path = local if _has_dscrapy_table(local) else users
    read = _read(path)
    if read is None:
        if named is not None:
            raise ConfigError(path, "", "no such file")
        return None, {}
    data, mode = read
    document = parse_toml(path, data)
    if "dscrapy" not in document:
        raise ConfigError(path, "", "has no [dscrapy] table")
    table = document["dscrapy"]
    if isinstance(table, dict) and table.get("token") and mode & 0o077:
        raise ConfigError(
            path,
            "dscrapy.token",
            f"others can read this file (mode {mode:04o}); run: chmod 600 {path}",
        )
    return path, table


def _has_dscrapy_table(path: Path) -> bool:
    """Whether a ``conf.toml`` that nobody named has a [dscrapy] table.

    Other programs have such a file too; a mistake in it does not matter here.
    """
    read = _read(path) if path.is_file() else None
    return (
        read is not None
        and b"dscrapy" in read[0]
        and ("dscrapy" in parse_toml(path, read[0]))
    )


def _read(path: Path) -> tuple[bytes, int] | None:
    """Return a file's bytes and permissions, None if there is no such file."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(CONF_BYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        # A path with a NUL character is a ValueError.
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(path, "", f"cannot be read: {reason}") from None
    if len(data) > CONF_BYTES_MAX:
        raise ConfigError(path, "", f"is over the limit of {CONF_BYTES_MAX} bytes")
    return data, mode


def _folder(text: str, base: Path, default: Path) -> Path:
    return (base / expanded(text) if text else default).absolute()


def _in_state(config: Config, state: Path) -> Config:
    """Return the settings with this state folder and no address that hides it."""
    return attrs.evolve(
        config,
        state=state,
        worker=attrs.evolve(config.worker, master=""),
        client=attrs.evolve(config.client, master=""),
    )


def _with_variables(config: Config, environ: Mapping[str, str], cwd: Path) -> Config:
    if state := environ.get("DSCRAPY_STATE"):
        config = _in_state(config, _folder(state, cwd, cwd))
    for section in ("master", "worker", "client"):
        table = in_section(environ, section, getattr(config, section))
        config = attrs.evolve(config, **{section: table})
    if root := environ.get("DSCRAPY_WORKER_PROJECTS_ROOT"):
        config = attrs.evolve(config, projects_root=_folder(root, cwd, cwd))
    if environ.get("DSCRAPY_WORKER_PORT"):
        config = attrs.evolve(config, worker_port_given=True)
    if token := environ.get("DSCRAPY_TOKEN"):
        if not is_token(token):
            raise UnauthorisedError(f"DSCRAPY_TOKEN is no token: it {_TOKEN_RULE}")
        config = attrs.evolve(config, token=token)
    return config
