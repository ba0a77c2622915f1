"""Options of `train`: their names stay, and each reaches its field of the config."""

import re
from dataclasses import replace

import pytest

import levelhead as lh
from fields import flat
from levelhead import api
from levelhead.config import Config
from levelhead.schedules import constant

pytestmark = pytest.mark.usefixtures("workdir")

OPTIONS = {
    "action.bounds", "action.color", "action.distribution", "action.gates", "action.log-std-bounds", "action.sees",
    "action.sigma", "action.std", "action.std-hidden", "auxiliary.clone-coef", "auxiliary.epochs",
    "auxiliary.every", "baseline", "checkpoint-every", "clip-reward", "credit",
    "critic.epochs-after", "critic.epochs-before", "critic.joint", "critic.minibatches", "critic.no-joint",
    "backend", "device", "engine",
    "env.kwargs", "env.max-restarts", "env.timeout", "env.workers",
    "eval-episodes", "eval-every", "head.beta", "import", "keep-checkpoints", "memory.kind", "memory.place",
    "memory.sharing", "memory.size", "network.activation", "network.actor", "network.critic",
    "network.image-encoder", "network.no-normalize-observation", "network.normalize-observation", "network.shared",
    "double-buffer", "no-double-buffer", "no-normalize-reward", "no-overlap", "normalize-reward", "num-envs",
    "num-steps", "objective", "optimizer.clip",
    "network.precision", "overlap", "parallel.cutoff", "parallel.shards", "parallel.timeout",
    "optimizer.eps", "optimizer.kl-target", "optimizer.learning-rate", "optimizer.max-grad-norm",
    "optimizer.warmup", "optimizer.weight-decay", "ppo.advantage", "ppo.burn-in", "ppo.chunk", "ppo.clip-range",
    "ppo.dual-clip", "ppo.entropy-coef", "ppo.epochs", "ppo.freeze-actor", "ppo.gamma", "ppo.kl-check",
    "ppo.kl-limit", "ppo.kl-target", "ppo.lam", "ppo.minibatches", "ppo.n-step", "ppo.value-clip", "ppo.value-coef",
    "ppo.value-huber", "reward-scale", "run-dir", "seed", "targets", "threads", "total-steps", "value",
    "write-failure",
    *(f"optimizer.{g}.{x}" for g in ("shared", "actor", "critic") for x in ("eps", "learning-rate", "max-grad-norm")),
}  # fmt: skip


def test_the_options_of_train_keep_their_names(cli):
    # Scripts rely on them: one may be added here, and none may go.
    _, out, _ = cli("train", "--help")
    assert set(re.findall(r"(?<![\w.-])--([a-z][a-z.-]*)", out)) - {"help"} == OPTIONS


@pytest.fixture
def parsed(cli, monkeypatch):
    """The config that training would begin with, and the environment's id."""
    seen = []

    def stop(env, *, config, console):
        seen.append((env, config))
        raise lh.ConfigError("enough")

    def parse(*arguments):
        monkeypatch.setattr(api, "train", stop)
        status, _, err = cli("train", *arguments)
        assert (status, err) == (2, "levelhead: enough"), err
        return seen[-1]

    return parse


TEXTS = {
    "backend": ("auto", "auto"),
    "engine": ("torch", "torch"),
    "env.workers": ("2", 2),
    "env.timeout": ("0.5", 0.5),
    "env.max_restarts": ("3", 3),
    "overlap": (None, True),
    "double_buffer": (None, True),
    "total_steps": ("77", 77),
    "seed": ("5", 5),
    "value": ("linear", "linear"),
    "objective": ("kl", "kl"),
    "targets": ("mc", "mc"),
    "baseline": ("mean", "mean"),
    "credit": ("episode", "episode"),
    "num_envs": ("3", 3),
    "num_steps": ("9", 9),
    "reward_scale": ("1e-3", 1e-3),
    "normalize_reward": (None, True),
    "clip_reward": ("10", 10.0),
    "device": ("cpu", "cpu"),
    "threads": ("0", 0),
    "run_dir": ("a/b", "a/b"),
    "eval_every": ("10", 10),
    "eval_episodes": ("2", 2),
    "checkpoint_every": ("0", 0),
    "keep_checkpoints": ("3", 3),
    "write_failure": ("warn", "warn"),
    "imports": ("a b.c", ["a", "b.c"]),
    "env.kwargs": ('{"g": 5.0, "x": [true, null]}', {"g": 5.0, "x": [True, None]}),
    "network.shared": ("4 5", [4, 5]),
    "network.actor": ("6", [6]),
    "network.critic": ("", []),
    "network.activation": ("relu", "relu"),
    "network.normalize_observation": (None, True),
    "network.image_encoder": ("impala", "impala"),
    "network.precision": ("float64", "float64"),
    "parallel.shards": ("2", 2),
    "parallel.timeout": ("0.5", 0.5),
    "parallel.cutoff": ("0.5", 0.5),
    "memory.kind": ("gru", "gru"),
    "memory.size": ("7", 7),
    "memory.place": ("before", "before"),
    "memory.sharing": ("separate", "separate"),
    "action.distribution": ("beta", "beta"),
    "action.bounds": ("rescale", "rescale"),
    "action.sigma": ("conditioned", "conditioned"),
    "action.std": ("0.5", 0.5),
    "action.std_hidden": ("8 9", [8, 9]),
    "action.log_std_bounds": ("-3 1", [-3.0, 1.0]),
    "action.color": ("0.5", 0.5),
    "action.gates": ('{"1/0": {"0": [2]}}', {"1/0": {"0": [2]}}),
    "action.sees": ('{"1": ["0"]}', {"1": ["0"]}),
    "head.beta": ("linear:0.9:0.99", "linear:0.9:0.99"),
    "ppo.gamma": ("0.9", 0.9),
    "ppo.lam": ("1", 1.0),
    "ppo.epochs": ("2", 2),
    "ppo.minibatches": ("3", 3),
    "ppo.chunk": ("8", 8),
    "ppo.burn_in": ("3", 3),
    "ppo.n_step": ("3", 3),
    "ppo.freeze_actor": ("3", 3),
    "ppo.clip_range": ("cosine:0.3:0.1", "cosine:0.3:0.1"),
    "ppo.dual_clip": ("3", 3.0),
    "ppo.kl_target": ("0.02", 0.02),
    "ppo.kl_limit": ("piecewise:0=0.02,1=0.01", "piecewise:0.0=0.02,1.0=0.01"),
    "ppo.kl_check": ("epoch", "epoch"),
    "ppo.advantage": ("head", "head"),
    "ppo.entropy_coef": ("exponential:0.05:0.001", "exponential:0.05:0.001"),
    "ppo.value_coef": ("0.25", 0.25),
    "ppo.value_clip": ("0.2", 0.2),
    "ppo.value_huber": ("1", 1.0),
    "critic.epochs_before": ("2", 2),
    "critic.epochs_after": ("3", 3),
    "auxiliary.every": ("2", 2),
    "auxiliary.epochs": ("3", 3),
    "auxiliary.clone_coef": ("0.5", 0.5),
    "critic.minibatches": ("5", 5),
    "optimizer.learning_rate": ("linear:3e-4:0", "linear:0.0003:0.0"),
    "optimizer.eps": ("1e-8", 1e-8),
    "optimizer.max_grad_norm": ("1", 1.0),
    "optimizer.clip": ("global", "global"),
    "optimizer.weight_decay": ("1e-4", 1e-4),
    "optimizer.warmup": ("10", 10),
    "optimizer.kl_target": ("0.01", 0.01),
    **{
        f"optimizer.{group}.{name}": (text, value)
        for group in ("shared", "actor", "critic")
        for name, text, value in (
            ("learning_rate", "1e-4", 1e-4),
            ("eps", "1e-7", 1e-7),
            ("max_grad_norm", "2", 2.0),
        )
    },
}


LAYERS = {"shared": (6.5e-4, 1e-5), "actor": (3e-4, 1e-8), "critic": (1e-3, 1e-6)}

AROUND = {
    "double_buffer": ["--backend", "processes"],
    "eval_episodes": ["--eval-every", "9"],
    "memory.kind": [],
    "memory": ["--memory.kind", "lstm"],
    "baseline": ["--ppo.advantage", "none"],
    "ppo.n_step": ["--targets", "nstep"],
    "ppo.kl_target": ["--objective", "kl"],
    "ppo.kl_check": ["--ppo.kl-limit", "0.1"],
    "critic.minibatches": ["--critic.epochs-after", "1"],
    "env.kwargs": [],
    "env": ["--backend", "processes"],
    "auxiliary.every": [],
    "auxiliary": ["--auxiliary.every", "1"],
}
"""What must hold around a field for it to have something to act on."""


def test_every_field_of_the_config_has_an_option():
    assert set(flat(Config("X"))) == {"env_id", "critic.joint", *TEXTS}


@pytest.mark.parametrize("field", TEXTS)
def test_an_option_reaches_its_field_and_no_other(parsed, field):
    text, value = TEXTS[field]
    around = AROUND.get(field, AROUND.get(field.partition(".")[0], []))
    option = f"--{'import' if field == 'imports' else field.replace('_', '-')}"
    words = [] if text is None else [text] if text.startswith("{") else text.split()
    _, before = parsed("Some-v0", *around)
    env, after = parsed("Some-v0", *around, option, *words)
    assert env == after.env_id == "Some-v0"
    assert flat(after) == {**flat(before), field: value}


@pytest.mark.parametrize(
    ("option", "choices"),
    [
        ("value", "popart runningnorm valuenorm linear twohot hlgauss symlog sqrt"),
        ("ppo.advantage", "rollout minibatch head percentile none"),
        ("objective", "clip kl trpo vpg"),
        ("targets", "gae mc nstep vtrace"),
        ("credit", "episode to-go"),
        ("device", "auto cpu cuda"),
    ],
)
def test_choices_keep_their_names(parsed, option, choices):
    for choice in choices.split():
        _, config = parsed("Some-v0", f"--{option}", choice)
        assert flat(config)[option] == choice


@pytest.mark.parametrize("form", [["--objective", "a2c"], ["--objective=a2c"]])
def test_options_start_from_the_preset_of_the_objective(parsed, form):
    _, config = parsed("CartPole-v1", "--ppo.gamma", "0.9", *form)
    expected = lh.preset("CartPole-v1", "a2c")
    assert config == replace(expected, ppo=replace(expected.ppo, gamma=0.9))


def test_the_layered_preset_has_a_learning_rate_and_an_eps_for_each_layer(parsed):
    _, config = parsed("CartPole-v1", "--preset", "layered", "--objective", "kl")
    found = {name: (group.learning_rate, group.eps) for name, group in vars(config.optimizer).items() if name in LAYERS}
    assert found == {name: (constant(rate), eps) for name, (rate, eps) in LAYERS.items()}
    assert config.network.shared
    assert config.objective == "kl"


def test_options_start_from_the_preset_of_the_environment(parsed):
    _, config = parsed("CartPole-v1", "--optimizer.eps", "1e-3")
    assert config.optimizer.learning_rate == lh.preset("CartPole-v1").optimizer.learning_rate
    assert config.optimizer.eps == 1e-3


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "Some-v0"])
@pytest.mark.parametrize("objective", ["clip", "kl", "trpo", "a2c", "vpg"])
@pytest.mark.parametrize("words", [("--objective", "{}"), ("--objective={}",)], ids=" ".join)
def test_every_objective_has_options_that_start_from_its_preset(parsed, env_id, objective, words):
    given = [word.format(objective) for word in words]
    _, config = parsed(env_id, "--seed", "3", *given)
    assert config == replace(lh.preset(env_id, objective), seed=3)


def test_of_several_objectives_the_last_counts(parsed):
    for first, last in (("vpg", "a2c"), ("a2c", "vpg")):
        _, config = parsed("CartPole-v1", "--objective", first, f"--objective={last}")
        assert config == lh.preset("CartPole-v1", last)


def test_an_objective_that_is_none_is_refused_by_the_parser(cli):
    for given in (["--objective", "reinforce"], ["--objective"]):
        status, _, err = cli("train", "CartPole-v1", *given)
        assert status == 2
        assert "objective" in err


def test_the_critic_can_be_kept_out_of_the_actors_epochs(parsed):
    _, config = parsed("Some-v0", "--critic.no-joint", "--critic.epochs-after", "2")
    assert config.critic == lh.CriticConfig(joint=False, epochs_after=2)


@pytest.mark.parametrize("field", ["head.beta", "checkpoint_every", "run_dir", "ppo.value_clip", "optimizer.actor.eps"])
def test_none_is_an_answer_where_the_default_is_none(parsed, field):
    _, config = parsed("Some-v0", f"--{field.replace('_', '-')}", "None")
    assert flat(config)[field] is None
