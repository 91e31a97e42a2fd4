"""Job files of any content give submissions, or our error."""

import json

from hypothesis import given
from hypothesis import strategies as st

from dscrapy.conf.job_file import check_spec, parse_job_file
from dscrapy.errors import ConfigError
from tests import builders as b
from tests.unit.test_job_file import FULL

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
_entries = st.dictionaries(st.sampled_from(sorted(FULL)) | st.text(), _json).map(
    lambda changes: json.dumps({"project": "p", "spider": "s"} | changes).encode()
)


@given(
    data=st.binary() | _entries | st.lists(_entries).map(b"\n".join),
    ending=st.sampled_from([".toml", ".jsonl", ".json", ""]),
    names=st.booleans(),
)
def test_any_bytes_give_jobs_or_our_error(
    data: bytes, ending: str, names: bool
) -> None:
    """Whatever a file holds: submissions that pass the check, or a ConfigError."""
    try:
        submissions = parse_job_file(
            f"j{ending}", data, lambda: b.ID, require_names=names
        )
    except ConfigError:
        return
    for submission in submissions:
        check_spec(submission.spec)
