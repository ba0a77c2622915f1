"""Bad usage: status 2, a message that helps, and nothing left behind."""

import pytest

from levelhead import checkpoint

pytestmark = pytest.mark.usefixtures("workdir")


def written(workdir):
    return [p for p in workdir.rglob("*") if p.is_file()]


BAD = [
    (("tran", "CartPole-v1"), "unknown command 'tran'; did you mean 'train'?"),
    (("frobnicate",), "unknown command 'frobnicate'; see levelhead --help"),
    (("train",), "train needs an environment's id first"),
    (("train", "--seed", "1"), "train needs an environment's id first"),
    (("train", "CartPule-v1"), "cannot make CartPule-v1"),
    (("train", "CartPule-v1"), "Did you mean: `CartPole`"),
    (("train", "CartPole-v1", "--totl-steps", "5"), "--total-steps"),
    (("train", "CartPole-v1", "--ppo.gama", "0.9"), "--ppo.gamma"),
    (("train", "CartPole-v1", "--total-steps", "many"), "--total-steps"),
    (("train", "CartPole-v1", "--total-steps"), "--total-steps"),
    (("train", "CartPole-v1", "--total-steps", "1.5"), "--total-steps"),
    (("train", "CartPole-v1", "--total-steps", "0"), "total_steps is 0; accepted:"),
    (("train", "CartPole-v1", "--value", "popat"), "popart"),
    (("train", "CartPole-v1", "--device", "gpu"), "cuda"),
    (("train", "CartPole-v1", "--ppo.gamma", "1.5"), "ppo.gamma is 1.5; accepted: a value in [0, 1]"),
    (("train", "CartPole-v1", "--ppo.value-clip", "inf"), "--ppo.value-clip"),
    (("train", "CartPole-v1", "--optimizer.max-grad-norm", "inf"), "optimizer.max_grad_norm is inf; accepted:"),
    (("train", "CartPole-v1", "--optimizer.actor.eps", "-1"), "optimizer.actor.eps is -1.0; accepted:"),
    (("train", "CartPole-v1", "--optimizer.learning-rate", "linear:1e-3"), "write a number, SHAPE:START:END"),
    (("train", "CartPole-v1", "--optimizer.learning-rate", "steep:1:0"), "known: constant, linear, cosine"),
    (("train", "CartPole-v1", "--optimizer.learning-rate", "linear:1e-3:-1"), "optimizer.learning_rate is linear"),
    (("train", "CartPole-v1", "--optimizer.shared.eps", "1e-3"), "the network has no such parameters"),
    (("train", "CartPole-v1", "--value", "linear", "--head.beta", "0.9"), "LinearValueHead keeps no statistics"),
    (("train", "CartPole-v1", "--value", "twohot", "--ppo.advantage", "head"), "TwoHotValueHead keeps no statistics"),
    (("train", "CartPole-v1", "--value", "hlgauss", "--ppo.value-clip", "0.2"), "ppo.value_clip has nothing to act on"),
    (("train", "CartPole-v1+Acrobot-v1"), "all the same space; these have CartPole-v1 Discrete(2), Acrobot-v1"),
    (("train", "Pendulum-v1+Pendulum-v1"), "every task of Pendulum-v1+Pendulum-v1 must be another environment"),
    (("train", "CartPole-v1+CartPule-v1"), "cannot make CartPule-v1"),
    (("train", "Pendulum-v1+MountainCarContinuous-v0", "--num-envs", "1"), "needs at least 2, one per task"),
    (("train", "Pendulum-v1+MountainCarContinuous-v0", "--env.kwargs", '{"g": 1}'), "env.kwargs are for a single"),
    (("train", "CartPole-v1", "--env.kwargs", "{x"), "env.kwargs"),
    (("train", "CartPole-v1", "--env.kwargs", "[1]"), "[1] is not a JSON object"),
    (("train", "CartPole-v1", "--env.kwargs", '{"gravitas": 1}'), "gravitas"),
    (("train", "CartPole-v1", "--import", "no_such_module"), "cannot import no_such_module"),
    (("train", "CartPole-v1", "extra"), "extra"),
    (("eval",), "Run directory, checkpoint in one, or 'latest'"),
    (("eval", "latest"), "there is no run under"),
    (("eval", "nowhere"), "nowhere doesn't exist; accepted: a run directory, a checkpoint in one, or 'latest'"),
    (("eval", "."), "neither a checkpoint nor a run directory"),
    (("eval", "latest", "--episode", "3"), "--episodes"),
    (("resume", "nowhere"), "nowhere doesn't exist"),
    (("resume", "latest", "--totalsteps", "3"), "--total-steps"),
    (("list", "extra"), "extra"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_usage_is_told_what_would_be_accepted_and_leaves_no_trace(cli, workdir, arguments, message):
    status, out, err = cli(*arguments)
    assert status == 2
    assert message in err
    assert out == ""
    assert written(workdir) == []


def test_an_occupied_run_dir_is_bad_usage(cli, run, workdir, tiny_options):
    before = written(workdir)
    status, _, err = cli("train", "CartPole-v1", *tiny_options, "--run-dir", run)
    assert status == 2
    assert "is not empty; accepted: a new or an empty directory" in err
    assert written(workdir) == before


@pytest.mark.parametrize("command", [("eval",), ("resume", "--total-steps", "128")])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_named(cli, run, command):
    *_, previous, last = checkpoint.checkpoints(run)
    (last / "policy.safetensors").write_bytes(b"")
    name, *options = command
    status, _, err = cli(name, run, *options)
    assert status == 2
    assert f"{last}/policy.safetensors is damaged" in err
    assert f"The one before it: {previous}" in err


def test_eval_needs_an_episode(cli, run):
    status, _, err = cli("eval", run, "--episodes", "0")
    assert status == 2
    assert "episodes is 0; accepted: at least 1" in err
