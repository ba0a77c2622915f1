"""The policy: which parameter belongs where, what acting answers, and what it must not change."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch.testing import assert_close

from levelhead.builders import build_policy
from levelhead.config import Config, MemoryConfig, NetworkConfig
from levelhead.errors import ConfigError
from levelhead.networks import ObservationNormalizer
from levelhead.tree import tree_leaves
from parts import features_of
from toys import same, snapshot

SHAPE = (4, 2)
OBSERVATIONS = Box(-1e3, 1e3, SHAPE, np.float64)
CHOICES = Discrete(3, start=5)
REALS = Box(-0.25, 0.5, (2,))
CONFIG = Config("toy", network=NetworkConfig(shared=(8,), actor=(8,), critic=(8,), normalize_observation=True))


def trained_policy(space=CHOICES, config=CONFIG):
    """A policy whose every weight and statistic has moved from where it started."""
    policy = build_policy(config, OBSERVATIONS, space)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    x = 5 * torch.randn(50, *SHAPE, generator=generator) + 3
    policy.reader.update(x, torch.ones(50, dtype=torch.bool), torch.tensor(True))
    policy.value_head.adopt(100 * torch.randn(50, generator=generator) + 7)
    return policy


def observations(*shape):
    return 10 * torch.randn(*shape, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("space", [CHOICES, REALS])
@pytest.mark.parametrize("shared", [(), (8,)])
def test_every_parameter_belongs_to_exactly_one_group(space, shared):
    policy = build_policy(replace(CONFIG, network=replace(CONFIG.network, shared=shared)), OBSERVATIONS, space)
    groups = policy.groups()
    assert set(groups) == ({"shared", "actor", "critic"} if shared else {"actor", "critic"})
    owned = [id(p) for parameters in groups.values() for p in parameters]
    assert sorted(owned) == sorted(id(p) for p in policy.parameters())
    assert {id(p) for p in policy.action_head.parameters()} <= {id(p) for p in groups["actor"]}
    assert {id(p) for p in policy.value_head.parameters()} <= {id(p) for p in groups["critic"]}


def test_the_actor_and_the_critic_read_the_same_shared_features():
    policy, x = trained_policy(), torch.randn(6, 8)
    state, reset = policy.network.initial_state(6), torch.ones(1, 6, dtype=torch.bool)
    actor, critic = policy.features(x, state, reset)
    assert torch.equal(actor, policy.actor_features(x, state, reset)[0])
    assert torch.equal(critic, policy.critic_features(x, state, reset)[0])


def test_values_are_in_reward_units_one_per_observation():
    policy, x = trained_policy(), observations(5, 3)
    value = policy.value(x)
    assert value.shape == (5, 3)
    assert not value.requires_grad
    expected = policy.value_head(features_of(policy, policy.reader(x))[1]).squeeze(-1)
    assert torch.equal(value, expected)
    assert value.std() > 10  # the targets' std was 100: these are not normalised values
    one = policy.value(x[2, 1])  # with no leading dimension at all
    assert one.shape == ()
    torch.testing.assert_close(one, value[2, 1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int32, torch.uint8])
def test_observations_of_any_dtype_are_flattened_to_float32(dtype):
    x = observations(5, 3).abs().to(dtype)
    prepared = build_policy(Config("toy"), OBSERVATIONS, CHOICES).reader(x)
    assert prepared.dtype == torch.float32
    assert torch.equal(prepared, x.reshape(5, 3, 8).float())


def test_the_network_reads_normalised_observations():
    policy, x = trained_policy(), observations(5, 3)
    flat = x.reshape(5, 3, 8).float()
    (normalizer,) = (m for m in policy.modules() if isinstance(m, ObservationNormalizer))
    assert torch.equal(policy.reader(x), normalizer(flat))
    assert not torch.isclose(policy.reader(x), flat).any()


@pytest.mark.parametrize("space", [CHOICES, REALS])
def test_acting_on_a_batch_is_acting_on_each(space):
    policy, x = trained_policy(space), observations(20)
    batch = policy.act(x)
    assert batch.shape == (20, *space.shape)
    for one, action in zip(x, batch, strict=True):
        np.testing.assert_allclose(policy.act(one.numpy()), action, rtol=1e-5, atol=1e-6)
        assert space.contains(action if space is REALS else np.int64(action))


def test_acting_is_greedy():
    policy, x = trained_policy(), observations(20)
    logits = policy.action_head.linear(features_of(policy, policy.reader(x))[0])
    assert (policy.act(x) == logits.argmax(-1).numpy() + 5).all()
    assert len(set(policy.act(x).tolist())) > 1


@pytest.mark.parametrize("shape", [(), (8,), (2, 4), (3, 2, 4), (2, 5, *SHAPE)])
def test_an_observation_of_another_shape_is_refused(shape):
    with pytest.raises(ConfigError, match=r"expected \(4, 2\) or a batch|batch of observations"):
        trained_policy().act(np.zeros(shape))


@pytest.mark.parametrize("space", [CHOICES, REALS])
def test_acting_and_judging_change_nothing(space):
    policy = trained_policy(space).train()
    before, random = snapshot(policy), torch.get_rng_state()
    policy.act(observations(20))
    policy.value(observations(20))
    assert same(before, policy.state_dict())
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in policy.parameters())


@pytest.mark.parametrize("space", [CHOICES, REALS])
def test_a_saved_policy_acts_and_judges_as_before(space):
    policy, copy = trained_policy(space), build_policy(replace(CONFIG, seed=2), OBSERVATIONS, space)
    copy.load_state_dict(policy.state_dict())
    x = observations(20)
    assert (policy.act(x) == copy.act(x)).all()
    assert torch.equal(policy.value(x), copy.value(x))


def test_a_new_critic_predicts_zero():
    assert (build_policy(CONFIG, OBSERVATIONS, CHOICES).value(observations(10)) == 0).all()


def test_weights_come_from_the_seed_alone_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    one, other = (snapshot(build_policy(replace(CONFIG, seed=s), OBSERVATIONS, CHOICES)) for s in (1, 2))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert same(one, build_policy(CONFIG, OBSERVATIONS, CHOICES).state_dict())
    assert not same(one, other)


def test_bfloat16_is_for_layers_alone():
    # A network wide enough for its digits to show.
    network = NetworkConfig(shared=(64,), actor=(64,), critic=(64,), precision="bfloat16")
    memory = MemoryConfig("lstm", 8, "before")
    reduced, full = (
        trained_policy(config=replace(CONFIG, memory=memory, network=replace(network, precision=precision)))
        for precision in ("bfloat16", "float32")
    )
    x, reset = reduced.reader(observations(20)), torch.ones(1, 20, dtype=torch.bool)
    seen = []
    for policy in (reduced, full):
        features, state = policy.actor_features(x, policy.network.initial_state(20), reset)
        assert {part.dtype for part in (features, *tree_leaves(state), *policy.parameters())} == {torch.float32}
        seen.append(features)
        features.sum().backward()
    assert not torch.equal(*seen)
    assert_close(*seen, rtol=0.0, atol=0.1)
    gradients = [torch.cat([p.grad.flatten() for p in policy.network.actor.parameters()]) for policy in (reduced, full)]
    assert_close(*gradients, rtol=0.05, atol=0.2)


def test_float64_goes_all_the_way():
    config = replace(CONFIG, network=replace(CONFIG.network, precision="float64"))
    policy = trained_policy(config=config)
    actor, critic = features_of(policy, policy.reader(observations(20)))
    assert actor.dtype == critic.dtype == policy.values(observations(20)).dtype == torch.float64
    # What a float32 cannot hold reaches the network.
    x = torch.full((1, *SHAPE), 1.0, dtype=torch.float64)
    assert not torch.equal(policy.reader(x), policy.reader(x + 1e-12))
