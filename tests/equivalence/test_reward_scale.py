"""The promise: rewards times a power of two train the same policy, bit for bit."""

from functools import cache

import pytest
import torch

from levelhead.builders import build_policy, build_trainer
from levelhead.config import ActionConfig, AuxiliaryConfig, Config, MemoryConfig, PPOConfig
from levelhead.envs import make_gymnasium
from levelhead.schedules import constant
from toys import Duo, make_trainer, snapshot

STEPS = 2048
STATISTICS = ("mean", "var", "std")
COMPILED = (
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
)
every_env = pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1", "Pendulum-v1"])


@cache
def trained(env_id, value, advantage, scale, value_clip=None, memory="none", gates=False, auxiliary=0, **more):
    """The policy after a short run, and what its episodes returned."""
    ppo = PPOConfig(epochs=2, advantage=advantage, value_clip=value_clip, entropy_coef=constant(0.01))
    parts = {
        "memory": MemoryConfig(memory),
        "action": ActionConfig(gates={"1": {"0": [0]}} if gates else {}),
        "auxiliary": AuxiliaryConfig(every=auxiliary),
    }
    config = Config(env_id, STEPS, value=value, num_envs=4, reward_scale=scale, device="cpu", ppo=ppo, **parts, **more)
    env = make_gymnasium(env_id, config.num_envs)
    trainer = build_trainer(config, env, build_policy(config, env.observation_space, env.action_space))
    *_, last = trainer
    env.close()
    return snapshot(trainer.policy), last.metrics.get("rollout/ep_rew_mean")


def parts(policy):
    """Names of what differs between a policy and another, by whether statistics of the value head are meant."""
    return {name: name.rpartition(".")[0] == "value_head" and name.rpartition(".")[2] in STATISTICS for name in policy}


@every_env
@pytest.mark.parametrize("value", ["popart", "runningnorm"])
@pytest.mark.parametrize("advantage", ["rollout", "head"])
@pytest.mark.parametrize("exponent", [20, -20])
def test_a_power_of_two_changes_nothing_but_the_statistics_which_it_multiplies(env_id, value, advantage, exponent):
    power_of_two_changes_nothing_but_statistics(env_id, value, advantage, exponent)


@pytest.mark.parametrize(
    ("env_id", "parts"),
    [
        ("CartPole-v1", {"engine": "torch"}),
        ("Pendulum-v1", {"engine": "torch"}),
        ("Pendulum-v1", {"overlap": True}),
        *(pytest.param(env_id, {"engine": "compile"}, marks=COMPILED) for env_id in ("CartPole-v1", "Pendulum-v1")),
        ("CartPole-v1", {"auxiliary": 2}),
        ("CartPole-v1", {"memory": "lstm"}),
        ("Pendulum-v1", {"memory": "gru"}),
        ("Hybrid-v0", {"gates": True}),
        ("Hybrid-v0", {"memory": "lstm"}),
        ("Guarded-v0", {"memory": "gru"}),
    ],
)
@pytest.mark.parametrize("exponent", [20, -20])
def test_so_it_is_with_memory_masks_gates_an_auxiliary_phase_and_steps_in_torch(env_id, parts, exponent):
    power_of_two_changes_nothing_but_statistics(env_id, "popart", "rollout", exponent, **parts)


def power_of_two_changes_nothing_but_statistics(env_id, value, advantage, exponent, **more):
    scale = 2.0**exponent
    plain, plain_return = trained(env_id, value, advantage, 1.0, **more)
    scaled, scaled_return = trained(env_id, value, advantage, scale, **more)
    assert scaled_return == plain_return
    for name, is_statistic in parts(plain).items():
        factor = 1.0 if not is_statistic else scale * scale if name.endswith("var") else scale
        assert torch.equal(scaled[name], plain[name] * factor), name
    assert plain["value_head.linear.weight"].abs().sum() > 0


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize(
    ("value", "advantage"), [("hlgauss", "rollout"), ("popart", "percentile"), ("hlgauss", "percentile")]
)
@pytest.mark.parametrize("exponent", [20, -20])
def test_so_it_is_with_bins_that_follow_the_statistics_and_a_range_of_returns(env_id, value, advantage, exponent):
    power_of_two_changes_nothing_but_statistics(env_id, value, advantage, exponent)


def test_the_promise_holds_with_a_value_clip_too():
    one, other = (trained("CartPole-v1", "popart", "rollout", scale, constant(0.2))[0] for scale in (1.0, 2.0**20))
    unclipped, _ = trained("CartPole-v1", "popart", "rollout", 1.0)
    actor = [name for name in one if "actor" in name]
    assert all(torch.equal(one[name], other[name]) for name in actor)
    assert not all(torch.equal(one[name], unclipped[name]) for name in actor)


@pytest.mark.parametrize(
    ("value", "advantage"),
    [
        *(("linear", "rollout"), ("valuenorm", "rollout"), ("popart", "none"), ("linear", "none")),
        *(("twohot", "rollout"), ("symlog", "rollout"), ("sqrt", "rollout"), ("hlgauss", "none")),
        ("symlog", "percentile"),
    ],
)
def test_outside_the_promise_the_scale_decides_what_is_learned(value, advantage):
    plain, _ = trained("CartPole-v1", value, advantage, 1.0)
    scaled, _ = trained("CartPole-v1", value, advantage, 2.0**20)
    assert not torch.equal(plain["action_head.linear.weight"], scaled["action_head.linear.weight"])


LADDER = [
    *((o, t, "value", "to-go", "rollout") for o in ("clip", "kl") for t in ("gae", "mc", "nstep", "vtrace")),
    *((o, t, "value", "to-go", "rollout") for o in ("a2c", "trpo", "vpg") for t in ("gae", "mc", "nstep")),
    *((o, "gae", "value", "to-go", "minibatch") for o in ("clip", "kl", "trpo")),
    *(
        (o, t, b, c, scaling)
        for o, t, scaling in (("vpg", "mc", "percentile"), ("clip", "vtrace", "head"), ("trpo", "nstep", "percentile"))
        for b in ("none", "mean", "value")
        for c in ("episode", "to-go")
    ),
]


def climbed(objective, targets, baseline, credit, advantage, scale, value="popart"):
    """The policy after some iterations on two tasks with episodes of random length."""
    epochs = 1 if objective == "a2c" else 2
    huber = None if value == "hlgauss" else constant(1.0)
    ppo = PPOConfig(epochs=epochs, minibatches=2, advantage=advantage, value_huber=huber)
    options = {"targets": targets, "baseline": baseline, "credit": credit, "value": value, "ppo": ppo}
    trainer = make_trainer(Duo(scales=(scale, 8 * scale)), objective, total_steps=3 * 128, **options)
    promise = trainer.scale_promise
    list(trainer)
    return snapshot(trainer.policy), promise


@pytest.mark.parametrize(
    ("objective", "targets", "baseline", "credit", "advantage"),
    LADDER,
)
def test_the_promise_holds_on_every_rung_of_the_ladder(objective, targets, baseline, credit, advantage):
    rung = objective, targets, baseline, credit, advantage
    (plain, promise), (large, _), (small, _) = (climbed(*rung, scale) for scale in (1.0, 2.0**20, 2.0**-20))
    assert "bit for bit" in promise
    for name, is_statistic in parts(plain).items():
        if not is_statistic:
            assert torch.equal(plain[name], large[name]), name
            assert torch.equal(plain[name], small[name]), name


@pytest.mark.parametrize("value", ["runningnorm", "hlgauss"])
@pytest.mark.parametrize("targets", ["nstep", "vtrace"])
def test_so_it_does_with_other_heads_that_make_it(value, targets):
    rung = "clip", targets, "value", "to-go", "rollout"
    plain, scaled = (climbed(*rung, scale, value)[0] for scale in (1.0, 2.0**20))
    assert all(torch.equal(plain[name], scaled[name]) for name, statistic in parts(plain).items() if not statistic)
