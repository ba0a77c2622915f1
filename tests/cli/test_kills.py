"""Commands that are killed: in the end nothing shows. benchmarks/kills.py does so at many random moments."""

import signal
import subprocess
import sys
import time
from pathlib import Path

OPTIONS = (
    *("--num-envs", 2, "--num-steps", 16, "--total-steps", 16 * 2 * 200, "--checkpoint-every", 160, "--device", "cpu"),
    *("--network.actor", 8, "--network.critic", 8),
)


def kill(command, moment):
    """Starts levelhead, and kills it when the moment has come."""
    with subprocess.Popen([sys.executable, "-m", "levelhead", *map(str, command)], stderr=subprocess.PIPE) as process:
        try:
            while not moment():
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.001)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL


def test_a_run_that_was_killed_as_it_began_and_later_ends_as_if_it_never_had_been(cli, outcome, workdir):
    cut, whole = Path("cut"), Path("whole")
    kill(("train", "CartPole-v1", *OPTIONS, "--run-dir", cut), (cut / "config.json").exists)
    log = cut / "metrics.jsonl"
    kill(("resume", cut), lambda: log.exists() and log.read_text().count("\n") >= 77)
    for command in (("resume", cut), ("train", "CartPole-v1", *OPTIONS, "--run-dir", whole)):
        assert cli(*command)[0] == 0
    assert outcome(cut) == outcome(whole)
