"""Running commands in this process."""

import re

import pytest

from levelhead.cli import main

SMALL = [
    *("--num-envs", "2", "--num-steps", "16", "--network.actor", "8", "--network.critic", "8"),
    *("--ppo.epochs", "1", "--ppo.minibatches", "2", "--device", "cpu"),
]
TINY = ["--total-steps", "64", "--checkpoint-every", "32", *SMALL]


@pytest.fixture
def cli(capsys, monkeypatch):
    """Runs a command in this process: exit status, output and errors, the latter as one line without frames."""

    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return caught.value.code, out, " ".join(re.sub("[│╭╮╰╯─]", " ", err).split())

    return run


@pytest.fixture
def tiny_options():
    """Options that make training a matter of a moment; all but the first two leave the number of steps open."""
    return TINY


@pytest.fixture
def run(workdir, cli):
    """A finished run under `runs/`."""
    assert cli("train", "CartPole-v1", *TINY)[0] == 0
    return next((workdir / "runs/CartPole-v1").iterdir())
