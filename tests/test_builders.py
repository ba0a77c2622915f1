"""From config to objects."""

import math
from typing import get_args

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import levelhead as lh
from levelhead.advantages import HeadScaledAdvantage, PercentileAdvantage, RawAdvantage, StandardizedAdvantage
from levelhead.builders import (
    build_action_head,
    build_estimator,
    build_network,
    build_objective,
    build_policy,
    build_trainer,
    build_value_head,
)
from levelhead.config import AdvantageScale, ValueKind
from levelhead.envs import make_gymnasium
from levelhead.estimators import GAE, NStep, VTrace
from levelhead.networks import ObservationNormalizer
from levelhead.objectives import (
    A2CObjective,
    ClipObjective,
    KLObjective,
    TrustRegionObjective,
    VPGObjective,
)
from levelhead.schedules import constant
from parts import run_torso
from toys import SMALL, Duo, Toy, same

OBSERVATION, DISCRETE = gym.spaces.Box(-1.0, 1.0, (3,)), gym.spaces.Discrete(4, start=2)
CONTINUOUS = gym.spaces.Box(np.float32([-1, 0]), np.float32([1, 2]))
HEADS = {
    "popart": lh.PopArtValueHead,
    "runningnorm": lh.RunningNormHead,
    "valuenorm": lh.ValueNormHead,
    "linear": lh.LinearValueHead,
    "hlgauss": lh.HLGaussValueHead,
    "twohot": lh.TwoHotValueHead,
    "symlog": lh.TransformValueHead,
    "sqrt": lh.TransformValueHead,
}
ADVANTAGES = {
    "rollout": StandardizedAdvantage,
    "minibatch": StandardizedAdvantage,
    "head": HeadScaledAdvantage,
    "percentile": PercentileAdvantage,
    "none": RawAdvantage,
}


def policy_of(**changes):
    return build_policy(lh.Config("X", device="cpu", network=SMALL, **changes), OBSERVATION, DISCRETE)


def test_weights_are_decided_by_the_seed_alone():
    first = policy_of(seed=3)
    torch.rand(10)
    assert same(first.state_dict(), policy_of(seed=3).state_dict())
    assert not same(first.state_dict(), policy_of(seed=4).state_dict())


def test_weights_do_not_depend_on_torchs_threads():
    built, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            built.append(build_policy(lh.Config("X", device="cpu"), OBSERVATION, DISCRETE).state_dict())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert same(*built)


def test_building_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    policy_of()
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("shared", "actor", "critic"),
    [((), (5,), (6, 7)), ((8,), (5,), (6,)), ((8, 9), (), ()), ((), (), (4,))],
)
def test_torsos_have_the_widths_of_the_config(shared, actor, critic):
    config = lh.Config("X", network=lh.NetworkConfig(shared=shared, actor=actor, critic=critic))
    network = build_network(config, {"": (3,)})

    def widths(torso):
        return tuple(layer.out_features for layer in torso.modules() if isinstance(layer, nn.Linear))

    assert (widths(network.shared), widths(network.actor), widths(network.critic)) == (shared, actor, critic)
    x = run_torso(network.shared, torch.zeros(2, 3))
    assert run_torso(network.actor, x).shape == (2, network.actor_dim)
    assert run_torso(network.critic, x).shape == (2, network.critic_dim)


@pytest.mark.parametrize(
    ("activation", "kind"), [("tanh", nn.Tanh), ("relu", nn.ReLU), ("elu", nn.ELU), ("silu", nn.SiLU)]
)
def test_every_hidden_layer_is_followed_by_the_activation_of_the_config(activation, kind):
    network = build_network(lh.Config("X", network=lh.NetworkConfig(shared=(2,), activation=activation)), {"": (3,)})
    for torso in (network.shared, network.actor, network.critic):
        (layers,) = torso.layers
        assert all(isinstance(layer, nn.Linear) for layer in layers[::2])
        assert all(isinstance(layer, kind) for layer in layers[1::2])
        assert len(layers) % 2 == 0


@pytest.mark.parametrize(("name", "kind"), HEADS.items())
@pytest.mark.parametrize("tasks", [1, 3])
def test_a_value_head_is_of_the_kind_that_the_config_names(name, kind, tasks):
    head = build_value_head(lh.Config("X", value=name), 5, tasks)
    assert type(head) is kind
    assert (head.input_dim, head.output_dim, head.beta, head.epsilon) == (5, tasks, 0.98, 0.0)
    assert head(torch.randn(4, 5)).tolist() == [[0.0] * tasks] * 4


@pytest.mark.parametrize(("name", "value", "axis"), [("symlog", np.e - 1, 1.0), ("sqrt", 8.0, 2.008)])
def test_a_transform_is_the_one_that_the_config_names(name, value, axis):
    head = build_value_head(lh.Config("X", value=name), 5)
    assert head.normalize(torch.tensor([value])).item() == pytest.approx(axis)


def test_every_kind_of_head_and_of_advantage_has_its_type():
    assert HEADS.keys() == set(get_args(ValueKind))
    assert ADVANTAGES.keys() == set(get_args(AdvantageScale))


@pytest.mark.parametrize(("name", "kind"), ADVANTAGES.items())
def test_advantages_are_scaled_as_the_config_says(tiny, name, kind):
    env, settings = Duo(2), tiny(**{"ppo.advantage": name})
    policy = build_policy(settings, env.observation_space, env.action_space, tasks=env.tasks)
    advantage = build_trainer(settings, env, policy).advantage
    assert type(advantage) is kind
    assert all(x.shape == (2,) for x in advantage.state_dict().values())


def test_an_action_head_fits_its_space():
    head = build_action_head(lh.Config("X"), 5, DISCRETE)
    assert set(head.to_environment(head.mode(torch.randn(100, 5))).tolist()) <= {2, 3, 4, 5}
    head = build_action_head(lh.Config("X", action=lh.ActionConfig(std=math.exp(-1.5))), 5, CONTINUOUS)
    assert head.sigma.log_std.tolist() == [-1.5, -1.5]
    actions = head.to_environment(torch.tensor([[-9.0, -9.0], [9.0, 9.0]]))
    assert actions.tolist() == [[-1.0, 0.0], [1.0, 2.0]]


@pytest.mark.parametrize("normalize", [False, True])
def test_observations_are_normalised_if_the_config_says_so(normalize):
    network = lh.NetworkConfig(normalize_observation=normalize)
    policy = build_policy(lh.Config("X", network=network, device="cpu"), OBSERVATION, DISCRETE)
    found = [module for module in policy.modules() if isinstance(module, ObservationNormalizer)]
    assert len(found) == normalize


@pytest.mark.parametrize(("features", "outputs", "tasks"), [(9, 1, 1), (8, 2, 1), (9, 3, 3), (8, 1, 3)])
def test_a_value_head_that_does_not_fit_the_network_and_the_tasks_is_refused(features, outputs, tasks):
    config = lh.Config("X", network=SMALL, device="cpu")
    reason = f"value head reads {features} features and has {outputs} outputs.*needs 8, and the environments {tasks}, "
    with pytest.raises(lh.ConfigError, match=reason + "one per task"):
        build_policy(
            config,
            OBSERVATION,
            DISCRETE,
            value_head=lh.PopArtValueHead(features, outputs),
            tasks=tuple("abc"[:tasks]) if tasks > 1 else (),
        )


def test_a_group_follows_the_optimiser_in_what_it_does_not_set():
    config = lh.Config(
        "X",
        num_envs=2,
        device="cpu",
        network=lh.NetworkConfig(shared=(4,), actor=(4,), critic=(4,)),
        optimizer=lh.OptimizerConfig(
            learning_rate=constant(0.25),
            eps=1e-3,
            max_grad_norm=2.0,
            shared=lh.GroupConfig(eps=1e-2),
            actor=lh.GroupConfig(learning_rate=constant(0.5)),
            critic=lh.GroupConfig(max_grad_norm=3.0),
        ),
    )
    env = Toy(2)
    policy = build_policy(config, env.observation_space, env.action_space)
    groups = build_trainer(config, env, policy).learner.optimizer.settings.groups
    found = {name: (g.learning_rate(0.0), g.eps, g.max_grad_norm) for name, g in groups.items()}
    assert found == {"shared": (0.25, 1e-2, 2.0), "actor": (0.5, 1e-3, 2.0), "critic": (0.25, 1e-3, 3.0)}


@pytest.mark.parametrize(("beta", "expected"), [(None, 0.98), (constant(0.5), 0.5)])
def test_the_head_keeps_its_own_beta_unless_the_config_names_one(beta, expected):
    config = lh.Config("X", num_envs=2, device="cpu", network=SMALL, head=lh.HeadConfig(beta))
    env = Toy(2)
    trainer = build_trainer(config, env, build_policy(config, env.observation_space, env.action_space))
    next(trainer)
    assert trainer.policy.value_head.beta == expected


@pytest.mark.parametrize(
    ("changes", "inside"),
    [
        ({"value": "popart"}, True),
        ({"value": "runningnorm", "ppo.advantage": "head"}, True),
        ({"value": "hlgauss", "ppo.advantage": "percentile"}, True),
        ({"value": "twohot", "ppo.advantage": "percentile"}, False),
        ({"value": "symlog"}, False),
        ({"value": "sqrt"}, False),
        ({"value": "popart", "ppo.advantage": "none"}, False),
        ({"value": "valuenorm"}, False),
        ({"value": "linear"}, False),
    ],
)
def test_a_trainer_says_whether_the_scale_promise_applies(tiny, with_fields, changes, inside):
    config = with_fields(tiny(), changes)
    env = make_gymnasium("CartPole-v1", config.num_envs)
    promise = build_trainer(config, env, build_policy(config, env.observation_space, env.action_space)).scale_promise
    env.close()
    assert ("bit for bit" in promise) is inside
    assert ("depends on the reward's scale" in promise) is not inside


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"value": "linear", "head.beta": constant(0.9)}, r"head\.beta.*LinearValueHead keeps no statistics"),
        ({"value": "linear", "ppo.advantage": "head"}, r"ppo\.advantage.*LinearValueHead keeps no statistics"),
        ({"value": "twohot", "ppo.advantage": "head"}, r"ppo\.advantage.*TwoHotValueHead keeps no statistics"),
        ({"value": "symlog", "ppo.advantage": "head"}, r"ppo\.advantage.*TransformValueHead keeps no statistics"),
        ({"value": "sqrt", "head.beta": constant(0.9)}, r"head\.beta.*TransformValueHead keeps no statistics"),
        ({"value": "twohot", "head.beta": constant(0.9)}, r"head\.beta.*TwoHotValueHead keeps no statistics"),
        ({"value": "hlgauss", "ppo.value_clip": constant(0.2)}, r"ppo\.value_clip.*HLGaussValueHead is a cross-ent"),
        ({"value": "twohot", "ppo.value_clip": constant(0.2)}, r"ppo\.value_clip.*TwoHotValueHead is a cross-ent"),
        ({"value": "hlgauss", "ppo.value_huber": constant(1.0)}, r"ppo\.value_huber.*HLGaussValueHead is a cross-ent"),
        ({"value": "twohot", "ppo.value_huber": constant(1.0)}, r"ppo\.value_huber.*TwoHotValueHead is a cross-ent"),
        ({"optimizer.shared.eps": 1e-3}, r"optimizer\.shared.*no such parameters"),
        ({"optimizer.clip": "global", "objective": "trpo"}, r"optimizer\.clip.*no step moves several groups"),
        ({"optimizer.clip": "global", "objective": "vpg"}, r"optimizer\.clip.*no step moves several groups"),
        (
            {"optimizer.clip": "global", "critic.joint": False, "critic.epochs_after": 1},
            r"optimizer\.clip.*no step moves several groups",
        ),
        ({"optimizer.shared.learning_rate": constant(1e-3)}, r"optimizer\.shared.*no such parameters"),
    ],
)
def test_a_setting_that_the_parts_leave_without_effect_is_refused(tiny, with_fields, changes, reason):
    config = with_fields(tiny(), changes)
    env = make_gymnasium("CartPole-v1", config.num_envs)
    policy = build_policy(config, env.observation_space, env.action_space)
    with pytest.raises(lh.ConfigError, match=reason):
        build_trainer(config, env, policy)
    env.close()


BODY = nn.Linear(3, 8)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (lh.Network(nn.Identity(), BODY, BODY, 8, 8), r"network\.actor\.layers\.0\.weight is in 2 of"),
        (lh.Network(nn.Identity(), nn.Linear(5, 8), nn.Linear(3, 8), 8, 8), r"doesn't take observations of Box"),
        (lh.Network(nn.Identity(), nn.Linear(3, 8), nn.Linear(3, 8), 8, 9), r"network\.critic answers \(1, 8\)"),
        (lh.Network(nn.Dropout(0.1), nn.Linear(3, 8), nn.Linear(3, 8), 8, 8), r"module network\.shared"),
        (lh.Network(nn.BatchNorm1d(3), nn.Linear(3, 8), nn.Linear(3, 8), 8, 8), r"module network\.shared"),
    ],
)
def test_a_network_that_would_fail_later_is_refused_at_once(network, reason):
    with pytest.raises(lh.ConfigError, match=reason):
        build_policy(lh.Config("X", device="cpu"), OBSERVATION, DISCRETE, network=network)


def test_a_parameter_that_no_group_optimises_is_refused():
    network = lh.Network(nn.Identity(), nn.Linear(3, 8), nn.Linear(3, 8), 8, 8)
    network.extra = nn.Parameter(torch.ones(1))
    with pytest.raises(lh.ConfigError, match=r"network\.extra is in 0 of"):
        build_policy(lh.Config("X", device="cpu"), OBSERVATION, DISCRETE, network=network)


@pytest.mark.parametrize(
    ("changes", "estimator"),
    [
        ({}, GAE(0.99, lam=0.95)),
        ({"ppo.gamma": 0.9, "ppo.lam": 0.5, "baseline": "none", "ppo.advantage": "none"}, GAE(0.9, "none", lam=0.5)),
        ({"targets": "mc", "credit": "episode"}, GAE(0.99, credit="episode", lam=1.0)),
        ({"targets": "nstep", "ppo.n_step": 3}, NStep(0.99, n=3)),
        ({"targets": "vtrace", "ppo.lam": 0.5}, VTrace(0.99, lam=0.5)),
    ],
)
def test_returns_are_estimated_as_the_config_says(tiny, changes, estimator):
    assert build_estimator(tiny(**changes)) == estimator


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("clip", ClipObjective),
        ("kl", KLObjective),
        ("trpo", TrustRegionObjective),
        ("a2c", A2CObjective),
        ("vpg", VPGObjective),
    ],
)
def test_an_objective_is_of_the_kind_that_the_config_names(tiny, name, kind):
    assert type(build_objective(tiny(objective=name, **{"ppo.epochs": 1}), torch.device("cpu"))) is kind


def test_an_objective_has_the_settings_of_the_config(tiny):
    cpu = torch.device("cpu")
    clip = build_objective(tiny(**{"ppo.clip_range": constant(0.1), "ppo.dual_clip": 3.0}), cpu)
    assert (clip.clip_range.schedule, clip.dual) == (constant(0.1), 3.0)
    kl, trpo = (build_objective(tiny(objective=o, **{"ppo.kl_target": constant(0.5)}), cpu) for o in ("kl", "trpo"))
    assert kl.target.schedule == trpo.max_kl.schedule == constant(0.5)


@pytest.mark.parametrize("objective", [TrustRegionObjective(constant(0.01)), VPGObjective()])
@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"ppo.kl_limit": constant(0.1)}, "ppo.kl_limit"),
        ({"critic.epochs_after": 1}, "critic.epochs_after"),
        ({"optimizer.kl_target": constant(0.1)}, "optimizer.kl_target"),
    ],
)
def test_an_objective_of_one_step_has_no_use_for_what_acts_on_several(tiny, objective, changes, name):
    env, config = Toy(2), tiny(**changes)
    policy = build_policy(config, env.observation_space, env.action_space)
    reason = f"{name} has nothing to act on: the objective is a {type(objective).__name__}"
    with pytest.raises(lh.ConfigError, match=reason):
        build_trainer(config, env, policy, objective)
