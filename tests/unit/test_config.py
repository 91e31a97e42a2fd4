"""Settings: which source wins, where files are looked for, what errors say."""

import json
import tomllib
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dscrapy.client import Target
from dscrapy.conf.config import (
    CONF_BYTES_MAX,
    TOKEN_CHARS_MIN,
    Config,
    Endpoint,
    Folders,
    MasterConfig,
    example,
    find_master,
    find_token,
    load,
    override,
    parse_duration,
    parse_endpoint,
    read_endpoint,
)
from dscrapy.conf.strict import parse_toml
from dscrapy.errors import ConfigError, UnauthorisedError, UsageError, UserError

TOKEN = "t" * TOKEN_CHARS_MIN


@attrs.frozen
class Place:
    """A person's folders and current folder, all under one temporary folder."""

    root: Path

    @property
    def cwd(self) -> Path:
        return self.root / "here"

    @property
    def folders(self) -> Folders:
        root = self.root
        return Folders(config=root / "config", state=root / "state", data=root / "data")

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def load(self, conf: Path | None = None, **environ: str) -> Config:
        return load(conf, environ, cwd=self.cwd, folders=self.folders)

    def error(self, conf: Path | None = None, **environ: str) -> str:
        with pytest.raises(UserError) as caught:
            self.load(conf, **environ)
        text = str(caught.value)
        assert "\n" not in text
        return text


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "here").mkdir()
    return Place(tmp_path)


def test_nothing_written_means_defaults(place: Place) -> None:
    """Without files and variables every setting has its default."""
    config = place.load()
    assert config == Config(
        state=place.root / "state", projects_root=place.root / "data" / "projects"
    )
    assert not config.worker_port_given


def test_example_uncommented_is_the_defaults(place: Place) -> None:
    """Every key of the example is known and holds the default it names."""
    lines = example().splitlines()
    keys = [line.removeprefix("# ") for line in lines if " = " in line]
    assert len(keys) > 20
    text = "\n".join(
        line.removeprefix("# ") if line.removeprefix("# ") in keys else line
        for line in lines
    )
    conf = place.write("all.toml", text)
    got = place.load(conf)
    assert got == attrs.evolve(place.load(), conf=conf, worker_port_given=True)
    # And as it stands, it sets nothing.
    conf = place.write("example.toml", example())
    assert place.load(conf) == attrs.evolve(place.load(), conf=conf)


def test_conf_places_in_order(place: Place) -> None:
    """--conf, then DSCRAPY_CONF, then ./conf.toml, then the user's folder."""
    flag, variable, here, users = (
        place.write(name, f"[dscrapy.worker]\nslots = {slots}\n")
        for slots, name in enumerate(
            ("flag.toml", "var.toml", "here/conf.toml", "config/conf.toml"), start=1
        )
    )
    assert place.load(flag, DSCRAPY_CONF=str(variable)).worker.slots == 1
    assert place.load(DSCRAPY_CONF="../var.toml").worker.slots == 2
    assert place.load().worker.slots == 3
    assert place.load().conf == here
    here.unlink()
    assert place.load().worker.slots == 4
    assert place.load().conf == users


@pytest.mark.parametrize(
    "text", ["[other]\nx = 1\n", "= not TOML at all", "# dscrapy\n[other]\n", ""]
)
def test_a_foreign_conf_in_the_current_folder_is_left_alone(
    place: Place, text: str
) -> None:
    """./conf.toml counts only with a [dscrapy] table; another program's may be bad."""
    place.write("here/conf.toml", text)
    place.write("config/conf.toml", "[dscrapy.worker]\nslots = 4\n")
    assert place.load().worker.slots == 4


def test_a_conf_that_was_named_must_be_one(place: Place) -> None:
    """A missing file, a folder, and a file without the table are errors."""
    assert place.error(Path("no.toml")) == f"{place.cwd}/no.toml: no such file"
    assert "cannot be read: Is a directory" in place.error(place.cwd)
    foreign = place.write("x.toml", "[other]\n")
    assert place.error(foreign) == f"{foreign}: has no [dscrapy] table"
    big = place.write("big.toml", "#" * (CONF_BYTES_MAX + 1))
    assert place.error(big) == f"{big}: is over the limit of {CONF_BYTES_MAX} bytes"
    assert "cannot be read" in place.error(Path("a\0b"))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "[dscrapy.worker]\nslots = 'four'\n",
            "dscrapy.worker.slots: expected a whole number, got 'four'",
        ),
        (
            "[dscrapy.worker]\nslosts = 4\n",
            "dscrapy.worker.slosts: unknown key; did you mean slots?",
        ),
        ("[dscrapy.slave]\n", "dscrapy.slave: unknown key; known here: "),
        ("dscrapy = 3\n", "dscrapy: expected a table, got 3"),
        ("[dscrapy]\nworker = 3\n", "dscrapy.worker: expected a table, got 3"),
        (
            "[dscrapy.worker]\nport = 70000\n",
            "dscrapy.worker.port: must be from 0 to 65535, got 70000",
        ),
        (
            "[dscrapy.worker]\nmaster = 'nas'\n",
            "dscrapy.worker.master: 'nas' is not HOST:PORT",
        ),
        ("[dscrapy.worker]\nname = 'a/b'\n", "dscrapy.worker.name: must be letters"),
        ("[dscrapy.master]\nhost = ''\n", "dscrapy.master.host: must be a host name"),
        ('[dscrapy]\nstate = "a\\u0000"\n', "dscrapy.state: must not hold a NUL"),
        (
            "[dscrapy.master]\nheartbeat_s = nan\n",
            "dscrapy.master.heartbeat_s: expected a finite number, got nan",
        ),
        (
            "[dscrapy.master]\nheartbeat_s = 3\n",
            "dscrapy.master.heartbeat_s: 3 is more than half of die_after_s (20) or "
            "reconnect_grace_s (5)",
        ),
        (
            "[dscrapy.master]\ndie_after_s = 3\n",
            "dscrapy.master.heartbeat_s: 2 is more than half of die_after_s (3) or ",
        ),
        ("[dscrapy\n", "line 1, column 9: "),
        ("[dscrapy]\n\nx ==\n", "line 3, column 4: Invalid value"),
        ("[dscrapy]\nx = '", "end of document: "),
        ("[dscrapy]\nx = " + "[" * 5000, "nested too deep"),
        ("[dscrapy]\nx = " + "9" * 5000, "Exceeds the limit"),
    ],
)
def test_mistakes_name_file_place_and_reason(
    place: Place, text: str, error: str
) -> None:
    """Every mistake in a file is one line: file, key or line, what was expected."""
    path = place.write("here/conf.toml", text)
    shown = place.error()
    assert shown.startswith(f"{path}: {error}")


def test_bytes_that_are_no_text_name_the_line() -> None:
    """Bad UTF-8 names its line; a byte order mark is no mistake."""
    with pytest.raises(ConfigError, match=r"^c: line 2: not UTF-8$"):
        parse_toml("c", b"a = 1\nb = '\xff'\n")
    assert parse_toml("c", b"\xef\xbb\xbfa = 1\r\n") == {"a": 1}


@given(data=st.binary() | st.text(alphabet="ab[]{}=.\"'\n 0123:-T").map(str.encode))
def test_any_bytes_parse_or_raise_ours(data: bytes) -> None:
    """No input of a conf file ends in anything but a document or a ConfigError."""
    try:
        document = parse_toml("c", data)
    except ConfigError:
        return
    assert document == tomllib.loads(data.decode("utf-8-sig"))


def test_variables_win_over_the_file_and_flags_over_both(place: Place) -> None:
    """Flag > variable > conf.toml > default, for addresses and state."""
    conf = place.write(
        "c.toml",
        '[dscrapy]\nstate = "s"\n[dscrapy.client]\nmaster = "file:1"\n'
        '[dscrapy.worker]\nmaster = "file:1"\nslots = 3\n',
    )
    config = place.load(conf)
    # A relative folder in a file belongs to the file.
    assert config.state == place.root / "s"
    assert config.client.master == "file:1"
    config = place.load(conf, DSCRAPY_MASTER="[::1]:2", DSCRAPY_STATE="t")
    assert config.state == place.cwd / "t"
    assert config.client.master == config.worker.master == "[::1]:2"
    config = override(config, "worker", master="flag:3", slots=4, name=None)
    assert config.worker.master == "flag:3"
    assert config.worker.slots == 4
    assert config.client.master == "[::1]:2"


def test_a_state_folder_hides_the_address_of_a_lower_level(place: Place) -> None:
    """Who names a state folder means its master, whatever was set less directly."""
    conf = place.write("c.toml", '[dscrapy.client]\nmaster = "file:1"\n')
    assert place.load(conf, DSCRAPY_STATE="t").client.master == ""
    config = place.load(conf, DSCRAPY_MASTER="var:2", DSCRAPY_STATE="t")
    assert config.client.master == "var:2"
    hidden = override(config, "client", state=Path("/elsewhere"))
    assert (hidden.client.master, hidden.worker.master) == ("", "")
    assert hidden.state == Path("/elsewhere")
    both = override(config, "client", state=Path("/elsewhere"), master="flag:3")
    assert both.client.master == "flag:3"


def test_the_home_of_nobody_is_one_line(place: Place) -> None:
    """``~name`` of a user that is not there, wherever a folder is named."""
    conf = place.write("c.toml", '[dscrapy]\nstate = "~nobody-of-that-name/x"\n')
    assert "dscrapy.state: '~nobody-of-that-name/x': there is no" in place.error(conf)
    conf = place.write("d.toml", '[dscrapy.worker]\nprojects_root = "~no-such"\n')
    assert "dscrapy.worker.projects_root: '~no-such': there" in place.error(conf)
    assert "there is no such user" in place.error(DSCRAPY_STATE="~no-such/x")
    assert "there is no such user" in place.error(DSCRAPY_CONF="~no-such/x")


def test_no_repr_tells_a_token() -> None:
    """Nor a log that shows one."""
    config = Config(state=Path("s"), projects_root=Path("p"), token=TOKEN)
    target = Target(host="h", port=1, token=TOKEN, token_from="x")
    assert TOKEN not in f"{config!r} {config} {target!r} {target}"


def test_flags_out_of_range_name_the_flag(place: Place) -> None:
    """A bad flag is a usage error in the words of the command line."""
    config = place.load()
    with pytest.raises(UsageError, match=r"^--slots: must be from 0 to 10000, got -1$"):
        override(config, "worker", slots=-1)
    with pytest.raises(UsageError, match=r"^--connect-timeout-s: must be from"):
        override(config, "client", connect_timeout_s=-1.0)
    with pytest.raises(UsageError, match=r"^--master: 'x' is not HOST:PORT"):
        override(config, "client", master="x")
    assert place.error(DSCRAPY_MASTER="x:y").startswith("DSCRAPY_MASTER: 'x:y' is not")


def test_a_given_worker_port_is_known_as_given(place: Place) -> None:
    """Only a port that nobody chose may move; choosing the default is choosing."""
    assert not override(place.load(), "worker", port=None).worker_port_given
    assert override(place.load(), "worker", port=7412).worker_port_given
    conf = place.write("c.toml", "[dscrapy.worker]\nport = 7412\n")
    assert place.load(conf).worker_port_given
    conf = place.write("c.toml", "[dscrapy.master]\nport = 7412\n")
    assert not place.load(conf).worker_port_given


def test_a_conf_with_a_token_must_be_private(place: Place) -> None:
    """A token in a file that others can read is refused, with the remedy."""
    text = f'[dscrapy]\ntoken = "{TOKEN}"\n'
    for mode in (0o640, 0o604, 0o620):
        path = place.write("c.toml", text, mode)
        error = place.error(path)
        assert f"(mode {mode:04o}); run: chmod 600 {path}" in error
        assert TOKEN not in error
    assert place.load(place.write("c.toml", text, 0o600)).token == TOKEN
    assert TOKEN not in repr(place.load(path))
    short = place.write("c.toml", '[dscrapy]\ntoken = "abc"\n', 0o600)
    assert "dscrapy.token: must be 22 to 256 ASCII" in place.error(short)


def test_token_is_found_in_order(place: Place) -> None:
    """Variable, then conf file, then the state folder's token file."""
    in_conf = place.write("c.toml", f'[dscrapy]\ntoken = "{"c" * 30}"\n', 0o600)
    place.write("state/token", "s" * 40 + "\n")
    assert find_token(place.load(in_conf, DSCRAPY_TOKEN="v" * 30)) == "v" * 30
    assert find_token(place.load(in_conf)) == "c" * 30
    assert find_token(place.load()) == "s" * 40


def test_no_token_names_the_places_looked_at(place: Place) -> None:
    """The error tells where a token could have been; exit code 4."""
    conf = place.write("c.toml", "[dscrapy]\n")
    with pytest.raises(UnauthorisedError) as caught:
        find_token(place.load(conf))
    for where in ("DSCRAPY_TOKEN", str(conf), str(place.root / "state/token")):
        assert where in str(caught.value)
    assert caught.value.exit_code == 4
    place.write("state/token", "short")
    with pytest.raises(UnauthorisedError, match=r"token holds no token"):
        find_token(place.load())
    with pytest.raises(UnauthorisedError, match=r"^DSCRAPY_TOKEN is no token: it must"):
        place.load(DSCRAPY_TOKEN="wrong")
    with pytest.raises(UnauthorisedError):
        place.load(DSCRAPY_TOKEN="\udcff" * 30)


def test_endpoint_file(place: Place) -> None:
    """The master's endpoint file is read; anything else there is an error."""
    state = place.root / "state"
    assert read_endpoint(state) is None
    good = {"host": "::1", "port": 7, "pid": 5}
    place.write("state/endpoint.json", json.dumps(good))
    endpoint = read_endpoint(state)
    assert endpoint == Endpoint("::1", 7)
    for bad in ("", "[]", "{", "[" * 5000, '{"host": "h", "port": "7", "pid": 5}'):
        place.write("state/endpoint.json", bad)
        with pytest.raises(ConfigError, match="not a file of a master"):
            read_endpoint(state)
    place.write("state/endpoint.json", json.dumps(good | {"version": 1}))
    assert read_endpoint(state) == endpoint
    place.write("state/endpoint.json", '{"version": 2, "socket": "x"}')
    with pytest.raises(ConfigError, match="another dscrapy"):
        read_endpoint(state)
    for port in (0, 65536):
        place.write("state/endpoint.json", json.dumps(good | {"port": port}))
        with pytest.raises(ConfigError, match="not a file of a master"):
            read_endpoint(state)


def test_find_master(place: Place) -> None:
    """Given address, else the state folder's master, else the default address."""
    assert find_master(place.load(), "client") == Endpoint("127.0.0.1", 7411)
    place.write("state/endpoint.json", '{"host": "0.0.0.0", "port": 9, "pid": 1}')
    # "Every address" cannot be dialled everywhere.
    assert find_master(place.load(), "worker") == Endpoint("127.0.0.1", 9)
    config = override(place.load(), "worker", master="h:1")
    assert find_master(config, "worker") == Endpoint("h", 1)
    assert find_master(config, "client") == Endpoint("127.0.0.1", 9)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:7411", "127.0.0.1", 7411),
        ("nas.example:1", "nas.example", 1),
        ("[2001:db8::7]:65535", "2001:db8::7", 65535),
    ],
)
def test_endpoints_parse_and_show_alike(text: str, host: str, port: int) -> None:
    """HOST:PORT and [IPv6]:PORT; what is shown parses again."""
    endpoint = parse_endpoint(text)
    assert endpoint == Endpoint(host, port)
    assert str(endpoint) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h",
        ":1",
        "h:",
        "h:0",
        "h:65536",
        "h:-1",
        "h:x",
        "::1:5",
        "[::1]",
        "[]:1",
        "h:1 ",
        " h:1",
        "h h:1",
        "h:1\n",
        "h:٣",
        "http://h:1",
        "[a]b:1",
        "h:000001",
    ],
)
def test_what_is_no_endpoint_is_a_usage_error(text: str) -> None:
    """Anything else gets one line that shows the form."""
    with pytest.raises(UsageError, match=r"is not HOST:PORT, such as"):
        parse_endpoint(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("0.5s", 0.5),
        ("30m", 1800),
        ("2h", 7200),
        ("1d", 86400),
        ("1h30m", 5400),
        ("1d1h1m1.25s", 90061.25),
        ("90m", 5400),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """Days, hours, minutes and seconds add up."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0s",
        "0d0h",
        "10",
        "m",
        "-5m",
        "1.5h",
        "30m1h",
        "5 m",
        "5m ",
        "٣s",
        "1w",
        "1s\n",
        "1e3s",
        "9999999999s",
        "0.0001s",
    ],
)
def test_what_is_no_duration_is_a_usage_error(text: str) -> None:
    """No unit, no amount, wrong order: one line that shows the forms."""
    with pytest.raises(UsageError, match=r"is not a duration, such as 10s"):
        parse_duration(text)


def test_one_lost_heartbeat_never_costs_a_worker_its_jobs() -> None:
    """The cross check is part of the class, however it is made."""
    with pytest.raises(ValueError, match="more than half"):
        MasterConfig(heartbeat_s=3.0)
    MasterConfig(heartbeat_s=2.5)
    with pytest.raises(ValueError, match="more than half"):
        attrs.evolve(MasterConfig(), reconnect_grace_s=3.9)
