"""Native code reads observations for the critic as torch does."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from torch import nn

from levelhead import native
from levelhead.accelerate import NativeCritic, valuing_refusal
from levelhead.config import ActionConfig, MemoryConfig, NetworkConfig
from levelhead.critic import Critic
from levelhead.networks import State
from parts import INSTRUCTION_SETS, REALS, normalizer_of
from parts import steep_policy as make
from toys import Chain, make_trainer

pytestmark = pytest.mark.skipif(not native.available(), reason="built without a compiler")

NOTHING = State((), (), ())


def read(critic, observation):
    steps, rows = observation.shape[:2]
    critic.start()
    with torch.no_grad():
        features, state = critic(observation, NOTHING, torch.zeros(steps, rows, dtype=torch.bool))
    assert state == NOTHING
    return features


def agree(policy, observation):
    expected = read(Critic(policy), observation)
    assert valuing_refusal(policy) is None
    for instructions in INSTRUCTION_SETS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "best_instruction_set", lambda name=instructions: name)
            # What torch would have read: native code must not reach for it.
            patch.setattr(type(policy.reader), "forward", None)
            given = read(NativeCritic(policy), observation)
        assert given.shape == expected.shape
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


def rows(steps, n, *shape, dtype=torch.float32):
    return torch.randn(steps, n, *shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize(("steps", "n"), [(1, 1), (5, 8), (129, 3), (40, 13)], ids=str)
def test_any_number_of_rows(steps, n):
    agree(make(), rows(steps, n, 3))


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "silu"])
@pytest.mark.parametrize(("shared", "critic"), [((), (8,)), ((8,), ()), ((16, 7), (9,)), ((), (33, 1, 70))], ids=str)
def test_with_every_activation_and_shape(activation, shared, critic):
    agree(make(network=NetworkConfig(shared, (), critic, activation)), rows(6, 8, 3))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reads_observations_as_torch_does(dtype, normalize):
    policy = make(
        observation=Box(-np.inf, np.inf, (2, 3), dtype), network=NetworkConfig(normalize_observation=normalize)
    )
    x = 3.0 + rows(6, 8, 2, 3, dtype=torch.float64 if dtype is np.float64 else torch.float32)
    if normalize:
        policy.reader.update(x, torch.ones(6, 8, dtype=torch.bool), torch.tensor(True))
        normalizer_of(policy).std[0] = 1e-3  # so that something is clipped
    agree(policy, x)
    agree(policy, x.transpose(0, 1))  # which lies otherwise in memory


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad):
    x = rows(6, 8, 3)
    x[2, 5, 1] = bad
    agree(make(network=NetworkConfig(activation="relu")), x)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"memory": MemoryConfig("gru", 8)}, "GRU"),
        ({"network": NetworkConfig(critic=())}, "no layers"),
        ({"observation": Discrete(5)}, "Choices"),
        ({"observation": Dict({"numbers": Box(-1.0, 1.0, (3,), np.float32)})}, "Encoder"),
        ({"observation": Box(0, 9, (3,), np.int64)}, "int64"),
        ({"observation": Box(0, 255, (40, 40, 3), np.uint8)}, "not one vector"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_it_lacks_is_named_and_torch_reads(options, reason):
    assert reason in valuing_refusal(make(**options))


@pytest.mark.parametrize(
    "options",
    [{"value": "hlgauss"}, {"space": REALS, "action": ActionConfig(distribution="beta")}],
    ids=["value head", "action head"],
)
def test_heads_are_of_no_account(options):
    agree(make(**options), rows(6, 8, 3))


def test_final_observations_of_another_kind_than_their_space_says_are_left_to_torch():
    policy = make()
    whole = rows(1, 8, 3).mul(10).long()
    assert torch.equal(read(NativeCritic(policy), whole), read(Critic(policy), whole))
    with pytest.raises(RuntimeError, match="shape"):
        read(NativeCritic(policy), rows(1, 8, 2))


def test_a_wider_network_may_come_with_a_wider_head():
    policy = make()
    layers(policy)[-2] = nn.Linear(layers(policy)[-2].in_features, 128)
    agree(policy, rows(6, 8, 3))


def test_layers_that_do_not_fit_each_other_are_refused():
    policy = make()
    layers(policy)[-2] = nn.Linear(5, 64)
    with pytest.raises(ValueError, match="doesn't take what that answers"):
        NativeCritic(policy).start()


def test_every_rollout_is_read_with_the_parameters_of_its_time():
    policy, x = make(), rows(6, 8, 3)
    critic = NativeCritic(policy)
    before = read(critic, x)
    with torch.no_grad():
        layers(policy)[0].weight.mul_(2.0)
    assert not torch.equal(read(critic, x), before)
    agree(policy, x)


def layers(policy):
    return policy.network.critic.layers[0]


def swap(policy):
    layers(policy)[0] = nn.Linear(3, 64)


def move(policy):
    layers(policy)[0].weight.data = layers(policy)[0].weight.data.clone() + 1.0


def exchange(policy):
    layers(policy)[0].weight = nn.Parameter(layers(policy)[0].weight.detach() + 1.0)


def activate(policy):
    layers(policy)[1] = nn.ReLU()


def hook(policy):
    layers(policy)[0].register_forward_hook(lambda _, __, y: y + 1.0)


@pytest.mark.parametrize("change", [swap, move, exchange, activate, hook], ids=lambda f: f.__name__)
def test_a_change_of_the_policy_is_seen_by_the_next_rollout(change):
    policy, x = make(), rows(6, 8, 3)
    critic = NativeCritic(policy)
    before = read(critic, x)
    change(policy)
    after = read(critic, x)
    torch.testing.assert_close(after, read(Critic(policy), x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after, before)


def test_a_hook_that_is_removed_again_gives_the_rollout_back_to_native_code():
    policy, x = make(), rows(6, 8, 3)
    critic = NativeCritic(policy)
    read(critic, x)
    handle = layers(policy)[0].register_forward_hook(lambda _, __, y: y + 1.0)
    hooked = read(critic, x)
    handle.remove()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(policy.reader), "forward", None)
        assert not torch.allclose(read(critic, x), hooked)


def test_a_run_reads_with_it_unless_torch_is_asked_for():
    kinds = [type(make_trainer(Chain(), engine=engine).collector.critic) for engine in ("torch", "auto")]
    assert kinds == [Critic, NativeCritic]


def test_final_observations_are_valued_too():
    trainers = [make_trainer(Chain(), engine=engine, num_steps=12) for engine in ("torch", "native")]
    rollouts = [trainer.collector.collect(0) for trainer in trainers]
    assert bool(rollouts[0].truncated.any())
    for name in ("value", "next_value", "last_features"):
        torch.testing.assert_close(*(getattr(r, name) for r in rollouts), rtol=1e-4, atol=1e-5)
