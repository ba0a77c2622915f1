"""When a training is said to go wrong, and when nothing is said."""

import warnings
from dataclasses import replace

import gymnasium as gym
import pytest
import torch
from torch import nn

import levelhead as lh
from levelhead.builders import build_policy
from levelhead.health import dead_units
from levelhead.schedules import constant
from levelhead.watches import Entropy, Scale, Sustained, build_watches

CHOICES, REALS = gym.spaces.Discrete(2), gym.spaces.Box(-1.0, 1.0, (3,))


def said(watch, name, values, steps=10):
    return [message for value in values if (message := watch({name: value}, steps))]


def test_what_looks_wrong_for_long_is_said_once_and_with_its_value():
    watch = Sustained("x", lambda x: x > 1, 3, "try less")
    assert said(watch, "x", [2, 2, 0, 0, 0, 0, 2, 2]) == []
    assert watch({}, 10) is None  # an iteration without it neither counts nor forgives
    assert said(watch, "x", [4.5, 9, 9, 9]) == ["x is 4.5, and has often been so: try less"]


@pytest.mark.parametrize(
    ("space", "values", "expected"),
    [
        (CHOICES, [0.69] + [0.005] * 5, "stopped exploring"),
        (CHOICES, [0.69] + [0.1] * 30, ""),
        (CHOICES, [0.69] + [0.5] * 200 + [0.005] * 50, ""),  # late: it may know what to do
        (REALS, [4.2] + [4.2 + 6.5] * 5, "noise keeps growing"),
        (REALS, [4.2] + [0.01] * 30, ""),  # of real numbers it passes 0 on its way
        (None, [0.69] + [0.005] * 5, ""),
    ],
)
def test_entropy_is_watched_by_the_kind_of_actions(space, values, expected):
    found = said(Entropy(space, total_steps=1000), "entropy/action", values)
    assert len(found) == (1 if expected else 0)
    assert expected in "".join(found)


@pytest.mark.parametrize(
    ("values", "speaks"),
    [
        ([2.0**i for i in range(40)], True),
        ([1.2**i for i in range(60)], False),
        ([1.0] * 30 + [1e6] * 40, False),  # the first rewards
        ([3.0] * 30 + [1e-4] * 40, True),
    ],
)
@pytest.mark.parametrize("name", ["value/std", "value/std/Pong"])
def test_the_scale_of_values_may_grow_but_not_by_orders_of_magnitude_at_once(name, values, speaks):
    assert len(said(Scale(), name, values)) == speaks


def policy_with(activation):
    network = lh.NetworkConfig(actor=(6,), critic=(4,), activation=activation)
    config = lh.Config("toy", device="cpu", network=network)
    return build_policy(config, gym.spaces.Box(-5.0, 5.0, (3,)), CHOICES)


@pytest.mark.parametrize(("activation", "bias"), [("relu", -1e3), ("tanh", 1e3), ("elu", -1e3)])
def test_units_that_never_change_are_counted(activation, bias):
    policy, x = policy_with(activation), torch.randn(40, 8, 3, generator=torch.Generator().manual_seed(0))
    assert dead_units(policy, x) == 0
    with torch.no_grad():
        next(m for m in policy.network.actor.modules() if isinstance(m, nn.Linear)).bias[:3] = bias
    assert dead_units(policy, x).item() == pytest.approx(3 / 10)
    assert dead_units(policy, torch.ones(40, 8, 3)).isnan()  # where nothing changes nothing can
    assert not any(module._forward_hooks for module in policy.modules())


def test_units_of_pictures_are_channels_and_memory_is_no_unit():
    config = lh.Config("toy", device="cpu", memory=lh.MemoryConfig("lstm", 4))
    policy = build_policy(config, gym.spaces.Box(0, 255, (4, 84, 84), "uint8"), CHOICES)
    x = torch.randint(0, 256, (3, 2, 4, 84, 84), dtype=torch.uint8)
    units, before = 32 + 64 + 64 + 512 + 4 * 64, dead_units(policy, x).item()
    assert before * units == pytest.approx(round(before * units))
    with torch.no_grad():
        last = [m for m in policy.network.shared.modules() if isinstance(m, nn.Linear)][-1]
        last.bias[:] = -1e6
    assert dead_units(policy, x).item() >= before + 200 / units


def warned(config):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lh.train(config.env_id, config=config)
    return " ".join(str(w.message) for w in caught)


BROKEN = {
    "train/approx_kl": {
        "optimizer.learning_rate": constant(0.03),
        "ppo.epochs": 20,
        "ppo.clip_range": constant(5.0),
        "ppo.entropy_coef": constant(0.3),  # lest it settle on one action
    },
    "grad/actor_norm is 0": {"optimizer.learning_rate": constant(0.0), "env_id": "Still-v0"},
    "health/dead_units": {"network.activation": "relu", "optimizer.learning_rate": constant(1.0)},
}


class Still(gym.Env):
    """Nothing that is done matters."""

    observation_space, action_space = REALS, CHOICES

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, True, False, {}


@pytest.mark.parametrize("expected", BROKEN)
def test_broken_settings_are_told(tiny, workdir, expected):
    gym.register("Still-v0", Still)
    try:
        assert expected in warned(tiny(total_steps=40 * 32, **BROKEN[expected]))
    finally:
        del gym.registry["Still-v0"]


def test_a_usual_run_is_told_nothing(tiny, workdir):
    assert warned(replace(lh.preset("CartPole-v1"), total_steps=40_000)) == ""


def test_limits_of_groups_are_those_of_their_gradients(tiny):
    config = tiny(**{"optimizer.critic.max_grad_norm": 5.0})
    for name, limit in (("actor", 0.5), ("critic", 5.0)):
        for share, count in ((0.9, 0), (1.1, 1)):
            watches = build_watches(config, CHOICES)
            found = [said(watch, f"grad/{name}_norm", [share * 100 * limit] * 25) for watch in watches]
            assert sum(map(len, found)) == count
