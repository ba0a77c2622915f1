"""Numbers of threads are tried in turn, and the fastest stays."""

import pytest

from levelhead import threads as module
from levelhead.threads import Threads, processors, wanted


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


@pytest.mark.parametrize(
    ("quota", "ranks", "expected"),
    [(None, 1, 6), ("max 100000", 1, 6), ("200000 100000", 1, 2), ("150000 100000", 1, 1), ("50000 100000", 1, 1),
     ("900000 100000", 1, 6), ("400000 100000", 2, 2), ("nonsense", 2, 3), (None, 8, 1)],
)  # fmt: skip
def test_processors_are_those_of_the_mask_or_of_a_quota_shared_by_ranks(
    used, monkeypatch, tmp_path, quota, ranks, expected
):
    monkeypatch.setattr(module, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert processors() == expected


@pytest.mark.parametrize(("asked", "native", "torch"), [(None, 2, 1), (0, 0, 0), (1, 1, 1), (5, 5, 5)])
def test_native_code_has_two_where_nobody_asks_for_a_number(asked, native, torch):
    assert (wanted(asked, native=True), wanted(asked, native=False)) == (native, torch)


@pytest.mark.parametrize(("asked", "expected"), [(1, 1), (3, 3), (64, 6)])
def test_what_was_asked_for_stays_from_the_start(used, asked, expected):
    threads = Threads(asked, used.append)
    assert threads.note(1.0) is None
    assert used == [threads.count] == [expected]
