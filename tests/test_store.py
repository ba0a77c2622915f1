"""What ranks leave for each other, on stores of this process."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import PrefixStore, TCPStore

from levelhead.store import Words, answered, open_store


@pytest.fixture
def server(monkeypatch):
    """What `torchrun` keeps for all attempts."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    return store


def attempts(count):
    """Those that so many ranks believe to be in."""
    with ThreadPoolExecutor(count) as pool:
        return [attempt for _, attempt in pool.map(lambda number: open_store(number, count, 5.0), range(count))]


def test_ranks_agree_on_the_attempt_whichever_of_them_were_there_before(server):
    assert attempts(3) == [1, 1, 1]
    server.add("levelhead/starts/1", 1)  # of an attempt in which the others did not come so far
    assert attempts(3) == [2, 2, 2]


def test_a_rank_that_does_not_come_is_named(server):
    with pytest.raises(RuntimeError, match=r"rank 1 was not there after 0\.1 seconds"):
        open_store(0, 2, 0.1)


def test_answers_and_errors_are_passed_on_and_silence_ends(server):
    assert answered(lambda: 3, 1.0) == 3

    def refuse():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        answered(refuse, 1.0)
    never = threading.Event()
    with pytest.raises(RuntimeError, match=r"no answer in 0\.1 seconds"):
        answered(never.wait, 0.1)
    never.set()


@pytest.fixture
def words(server, monkeypatch):
    monkeypatch.setattr(Words, "BEAT", 0.05)
    monkeypatch.setattr(Words, "PATIENCE", 0.5)
    found = [Words(PrefixStore("x", server), number, 3) for number in range(3)]
    yield found
    for one in found:
        one.close()


def test_those_that_are_silent_are_missing_or_else_those_behind(words):
    for one in words:
        one.leave("here")
    time.sleep(0.1)
    assert words[0].missing() == ""
    for one in words[:2]:
        one.leave("there")
    assert words[0].missing() == "rank 2 was last seen here"
    words[1].close()
    assert words[0].missing() == "rank 1 was last seen there"
