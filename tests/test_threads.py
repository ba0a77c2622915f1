"""Numbers of threads are tried in turn, and the fastest stays."""

import pytest

from levelhead.threads import Threads


@pytest.fixture
def used(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(6))
    return []


def test_the_fastest_stays(used):
    threads = Threads(0, used.append)
    speeds = {1: 800.0, 2: 1310.0, 4: 900.0}
    told = [threads.note(10.0)]  # warming up
    told += [threads.note(speeds[used[-1]]) for _ in range(3)]
    assert used == [1, 1, 2, 4, 2]
    assert told == [None, None, None, "threads: 2 (1: 800 steps/s, 2: 1,310 steps/s, 4: 900 steps/s)"]
    assert threads.note(1e9) is None
    assert (threads.count, len(used)) == (2, 5)


@pytest.mark.parametrize(("asked", "expected"), [(1, 1), (3, 3), (64, 6)])
def test_what_was_asked_for_stays_from_the_start(used, asked, expected):
    threads = Threads(asked, used.append)
    assert threads.note(1.0) is None
    assert used == [threads.count] == [expected]
