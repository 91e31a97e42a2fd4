"""What is told of a job's feeds, whoever dies and is followed by another."""

import hypothesis.strategies as st
from hypothesis import given

from dscrapy.control.state.feed_totals import WRITERS_KEPT_MAX
from dscrapy.control.state.jobs import Course
from tests.unit.test_written import batch, files, publish


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=30))
def test_whatever_dies_and_is_repeated_counts_once(
    lives: list[tuple[int, bool]],
) -> None:
    """Processes, each on its worker, write some batches behind those that are known;
    one that dies has written one more, which nobody has been told of. In the end as
    many files are told as there are batches, and each worker that wrote one of them."""
    course, done, writers = Course(), 0, set()
    for number, (count, dies) in enumerate(lives):
        worker = f"w{number}"
        # It begins with what is known.
        publish(course, worker, batch(done + 1, files(done) if done else None))
        for _ in range(count - dies):
            done += 1
            writers.add(worker)
            publish(course, worker, batch(done + 1, files(done)))
    if done:
        (one,) = course.written
        assert (one.files, one.items) == (done, 2 * done)
        assert set(one.workers) <= writers
        assert len(one.workers) == min(len(writers), WRITERS_KEPT_MAX)
    else:
        assert course.written == ()
