"""Numbers of threads are tried in turn, and the fastest stays."""

import pytest

from levelhead.threads import Threads, wanted


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


@pytest.mark.parametrize(("asked", "native", "torch"), [(None, 2, 1), (0, 0, 0), (1, 1, 1), (5, 5, 5)])
def test_native_code_has_two_where_nobody_asks_for_a_number(asked, native, torch):
    assert (wanted(asked, native=True), wanted(asked, native=False)) == (native, torch)


@pytest.mark.parametrize(("asked", "expected"), [(1, 1), (3, 3), (64, 6)])
def test_what_was_asked_for_stays_from_the_start(used, asked, expected):
    threads = Threads(asked, used.append)
    assert threads.note(1.0) is None
    assert used == [threads.count] == [expected]
