"""``DSCRAPY_*`` variables: one for each key, and a line about what is none."""

import json
from pathlib import Path

import attrs
import pytest

from dscrapy.conf.config import Config, Folders, example, load, override, variables
from dscrapy.conf.variables import remarks
from dscrapy.errors import UsageError

FOLDERS = Folders(config=Path("/c"), state=Path("/s"), data=Path("/d"))
# A value for each kind of default; numbers are too large for no key.
OTHER = {bool: False, int: 99, float: 99.0}
TEXTS = {
    "DSCRAPY_MASTER_HOST": "192.0.2.7",
    "DSCRAPY_WORKER_HOST": "192.0.2.8",
    "DSCRAPY_WORKER_MASTER": "h:1",
    "DSCRAPY_CLIENT_MASTER": "h:2",
    "DSCRAPY_WORKER_NAME": "w9",
    "DSCRAPY_WORKER_PROJECTS_ROOT": "/p",
    "DSCRAPY_STATE": "/t",
    "DSCRAPY_TOKEN": "t" * 30,
}
LARGE = {"segment_bytes_max": 2**20, "log_bytes_max": 2**20, "die_after_s": 999.0}
LARGE |= {"reconnect_grace_s": 999.0, "heartbeat_s": 2.4}


def loaded(tmp_path: Path, text: str = "", **environ: str) -> Config:
    """Return the settings of a conf file and variables."""
    conf = None
    if text:
        conf = tmp_path / "given.toml"
        conf.write_text(text)
        conf.chmod(0o600)
    config = load(conf, environ, cwd=tmp_path, folders=FOLDERS)
    return attrs.evolve(config, conf=None)


def test_each_key_has_a_variable_that_says_the_same(tmp_path: Path) -> None:
    """All of them at other values, in the file and in the environment: no difference,
    and none has its default."""
    lines: list[str] = []
    environ: dict[str, str] = {}
    table = ""
    for line in example().splitlines():
        if line.startswith("[dscrapy"):
            table = line.strip("[]")
            lines.append(line)
        key, equals, default = line.removeprefix("# ").partition(" = ")
        if not equals or not table:
            continue
        name = f"{table}_{key}".replace(".", "_").upper()
        kind = type(json.loads(default))
        value = TEXTS[name] if kind is str else LARGE.get(key, OTHER[kind])
        lines.append(f"{key} = {json.dumps(value)}")
        environ[name] = str(value)
    assert variables() == {*environ, "DSCRAPY_CONF", "DSCRAPY_MASTER"}
    assert loaded(tmp_path, **environ) == loaded(tmp_path, "\n".join(lines))
    for name, text in environ.items():
        assert loaded(tmp_path, **{name: text}) != loaded(tmp_path), name
    assert remarks(environ, variables()) == []


def test_what_wins(tmp_path: Path) -> None:
    """A flag over a variable, that over the file; what is empty is not set."""
    text = "[dscrapy.worker]\nslots = 3\n"
    config = loaded(tmp_path, text, DSCRAPY_WORKER_SLOTS="4")
    assert config.worker.slots == 4
    assert override(config, "worker", slots=5).worker.slots == 5
    assert loaded(tmp_path, text, DSCRAPY_WORKER_SLOTS="").worker.slots == 3


def test_the_master_of_one_of_them_goes_before_that_of_both(tmp_path: Path) -> None:
    """As the more exact word does."""
    config = loaded(tmp_path, DSCRAPY_MASTER="h:1", DSCRAPY_WORKER_MASTER="w:2")
    assert (config.worker.master, config.client.master) == ("w:2", "h:1")


def test_a_port_by_variable_is_a_given_one(tmp_path: Path) -> None:
    """It does not move to the next that is free; folders are from here on."""
    config = loaded(
        tmp_path, DSCRAPY_WORKER_PORT="7412", DSCRAPY_WORKER_PROJECTS_ROOT="sub"
    )
    assert config.worker_port_given
    assert config.projects_root == tmp_path / "sub"


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("DSCRAPY_MASTER_PORT", "x", "must be a whole number, got 'x'"),
        ("DSCRAPY_MASTER_PORT", "70000", "must be from 0 to 65535, got 70000"),
        ("DSCRAPY_MASTER_PICKLES", "no", "must be true or false, got 'no'"),
        ("DSCRAPY_CLIENT_CONNECT_TIMEOUT_S", "5s", "must be a number, got '5s'"),
        ("DSCRAPY_CLIENT_CONNECT_TIMEOUT_S", "nan", "must be from 0.05 to 3600"),
        ("DSCRAPY_WORKER_MASTER", "nas", "'nas' is not HOST:PORT"),
        ("DSCRAPY_MASTER_DIE_AFTER_S", "3", "2 is more than half of die_after_s (3)"),
    ],
)
def test_a_bad_value_names_the_variable(
    tmp_path: Path, name: str, text: str, error: str
) -> None:
    """One line, a wrong command line: exit code 2."""
    with pytest.raises(UsageError) as caught:
        loaded(tmp_path, **{name: text})
    assert str(caught.value).startswith(f"{name}: {error}")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("DSCRAPY_MASTER_PROT", "did you mean DSCRAPY_MASTER_PORT?"),
        ("DSCRAPY_SLOTS", "did you mean DSCRAPY_WORKER_SLOTS?"),
        ("DSCRAPY_CONNECT_TIMEOUT_S", "did you mean DSCRAPY_CLIENT_CONNECT_TIMEOUT_S?"),
        ("DSCRAPY_TOKN", "did you mean DSCRAPY_TOKEN?"),
        ("DSCRAPY_WORKER_FROBNICATES", "it has no effect"),
    ],
)
def test_what_looks_like_a_key_and_is_none_is_told(name: str, said: str) -> None:
    """A slip of the pen would be a default in silence."""
    (line,) = remarks({name: "1"}, variables())
    assert line == f"there is no variable {name}: {said}"


def test_other_variables_are_somebodys_own() -> None:
    """Settings of projects, what the site's own scripts use, other programs."""
    mine = ["DSCRAPY_PICKLE", "DSCRAPY_ONCE_PER_JOB", "DSCRAPY_HOME", "SCRAPY_PROJECT"]
    assert remarks(dict.fromkeys(mine, "1"), variables()) == []
