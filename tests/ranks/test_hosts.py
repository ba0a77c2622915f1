"""Several hosts, each with a network, a `torchrun` and a directory of its own, that stands for its disk."""

import json
import sys
import time

import pytest
from scenarios import run
from test_equality import SCRIPT, compare
from test_lost import MODULE, OPTIONS, iterations, kwargs

from hosts import Hosts, refusal
from levelhead import checkpoint

pytestmark = pytest.mark.root
TIMEOUT = 5


@pytest.fixture(scope="module", autouse=True)
def allowed():
    if reason := refusal():
        pytest.skip(reason)


@pytest.fixture
def disks(tmp_path):
    """Directories, one for each host."""

    def make(count):
        found = [tmp_path / str(host) for host in range(count)]
        for directory in found:
            directory.mkdir()
        return found

    return make


def everything_said(processes, timeout):
    """By host, once all have ended."""
    deadline = time.monotonic() + timeout
    return [process.communicate(timeout=deadline - time.monotonic())[0] for process in processes]


def test_hosts_that_are_far_apart_equal_one_process(disks, tmp_path):
    directories, names = disks(2), ("observations", "kl rate", "native")
    with Hosts(2, delay=0.02) as hosts:
        processes = hosts.torchrun(sys.executable, (SCRIPT, ".", 2, *names), directories)
        said = everything_said(processes, 100)
    assert [process.returncode for process in processes] == [0, 0], said
    assert not list(directories[1].iterdir())
    for name in names:
        run(name, tmp_path, 2)
        compare(name, tmp_path, directories[0])


BUSY = """
step = Fickle.step

def long(env, action):
    \"\"\"Rank 0 is in the middle of a rollout, and not in a collective, when rank 1 dies.\"\"\"
    first = env.steps == 52 and os.environ["RANK"] == "0" and not os.path.exists("seen")
    if first:
        open("seen", "w").close()
        time.sleep(3)
    return step(env, action)

Fickle.step = long
"""


@pytest.mark.parametrize("module", [MODULE, MODULE + BUSY], ids=["in a collective", "in a rollout"])
def test_a_rank_that_dies_comes_back_from_what_only_the_first_host_has(disks, module):
    directories = disks(2)
    for directory in directories:
        (directory / "fickle.py").write_text(module)
    command = ("-m", "levelhead", "train", "Fickle-v0", *OPTIONS, "--env.kwargs", kwargs("die"))
    with Hosts(2) as hosts:
        processes = hosts.torchrun(sys.executable, command, directories, restarts=1)
        said = everything_said(processes, 100)
    assert [process.returncode for process in processes] == [0, 0], said
    (found,) = (directories[0] / "runs" / "Fickle-v0").iterdir()
    assert iterations(found) == list(range(1, 11))
    assert not (directories[1] / "runs").exists()


GONE = "the host of rank 0, 10.77.0.1, doesn't answer"


@pytest.mark.parametrize(
    ("cut", "cutoff", "lost"),
    [
        (2, 1.0, ["rank 2 was last seen", "rank 2 was last seen", GONE]),
        (0, 1.0, ["rank 1 was last seen", GONE, GONE]),
        (0, 0.6, ["rank 1 was last seen", GONE, GONE]),
    ],
    ids=["of another host", "of the store's host", "while the store is asked"],
)
def test_a_link_that_is_cut_ends_both_sides(disks, cut, cutoff, lost):
    directories = disks(3)
    options = ("--num-envs", 6, "--num-steps", 32, "--total-steps", 10**8, "--checkpoint-every", 960)
    limits = ("--parallel.timeout", TIMEOUT, "--parallel.cutoff", cutoff)
    command = ("-m", "levelhead", "train", "CartPole-v1", "--run-dir", "run", *options, *limits)
    with Hosts(3) as hosts:
        processes = hosts.torchrun(sys.executable, command, directories)
        while not checkpoint.checkpoints(directories[0] / "run"):
            assert all(process.poll() is None for process in processes)
            time.sleep(0.1)
        hosts.cut(cut)
        said = everything_said(processes, 80)
    assert all(process.returncode for process in processes)
    for rank, (text, expected) in enumerate(zip(said, lost, strict=True)):
        (line,) = [line for line in text.splitlines() if line.startswith(f"levelhead, rank {rank}: ")]
        assert f"rank {rank} has lost others; {expected}" in line
    last = checkpoint.checkpoints(directories[0] / "run")[-1]
    _, state = checkpoint.load(last)
    logged = [json.loads(line)["step"] for line in (directories[0] / "run" / "metrics.jsonl").read_text().splitlines()]
    assert state["step"] in logged
