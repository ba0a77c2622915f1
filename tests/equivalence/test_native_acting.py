"""Native code acts as torch does: the same noise chooses the same actions."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from torch import nn

from levelhead import native
from levelhead.accelerate import NativeActor, acting_refusal
from levelhead.acting import Actor
from levelhead.config import ActionConfig, MemoryConfig, NetworkConfig
from levelhead.networks import State
from levelhead.schedules import Schedule, constant
from levelhead.tree import tree_leaves
from parts import CHOICES, INSTRUCTION_SETS, REALS, make_policy, normalizer_of
from parts import steep_policy as make
from toys import Chain, make_trainer

pytestmark = pytest.mark.skipif(not native.available(), reason="built without a compiler")

SPACES = {
    "one of 4": CHOICES,
    "one of 3 from 5": Discrete(3, start=5),
    "3 of 3, 2, 5": MultiDiscrete([3, 2, 5]),
    "4 switches": MultiBinary(4),
    "3 reals": REALS,
    "a matrix": Box(-1.0, 2.0, (2, 2)),
}
STEPS = 6


def act(actor, observation, mask=None, seed=2):
    """What an actor does with rows of observations, `[T, N, ...]`, and what it keeps."""
    head, (steps, rows) = actor.policy.action_head, tree_leaves(observation)[0].shape[:2]
    noise = head.noise((steps, rows), torch.Generator().manual_seed(seed))
    begins = torch.zeros(steps, rows, dtype=torch.bool)
    with torch.no_grad():
        actor.start(observation, begins, noise, State((), (), ()))
        done = [actor(t, None if mask is None else mask[t]) for t in range(steps)]
    return torch.stack(done), [x.clone() for x in tree_leaves(actor.choices)]


def agree(policy, observation, mask=None):
    expected, kept = act(Actor(policy), observation, mask)
    assert acting_refusal(policy) is None
    for instructions in INSTRUCTION_SETS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "best_instruction_set", lambda name=instructions: name)
            # What torch would have chosen: native code must not reach for it.
            patch.setattr(type(policy.reader), "forward", None)
            given, parts = act(NativeActor(policy), observation, mask)
        if expected.dtype.is_floating_point:
            torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
        else:
            assert torch.equal(given, expected)
        for part, x in zip(parts, kept, strict=True):
            assert part.dtype == x.dtype
            torch.testing.assert_close(part, x, rtol=1e-4, atol=1e-5, equal_nan=True)
    return expected


def rows(n, *shape, dtype=torch.float32):
    return torch.randn(STEPS, n, *shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("n", [1, 8, 13])
@pytest.mark.parametrize("space", SPACES)
def test_in_every_space(space, n):
    chosen = agree(make(SPACES[space]), rows(n, 3))
    assert chosen.unique(dim=0).shape[0] > 1


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "silu"])
@pytest.mark.parametrize(("shared", "actor"), [((), ()), ((8,), ()), ((16, 7), (9,)), ((), (33, 1, 70))], ids=str)
def test_with_every_activation_and_shape(activation, shared, actor):
    agree(make(network=NetworkConfig(shared, actor, (), activation)), rows(8, 3))


@pytest.mark.parametrize(
    "action",
    [
        ActionConfig(sigma="scheduled", std=Schedule(0.5, 0.1)),
        ActionConfig(sigma="fixed"),
        ActionConfig(std=constant(0.3)),
        ActionConfig(bounds="rescale", color=1.0),
    ],
    ids=lambda action: f"{action.sigma}, {action.bounds}",
)
def test_with_every_sigma_that_is_the_same_everywhere(action):
    policy = make(REALS, action=action)
    policy.action_head.advance(0.5)
    agree(policy, rows(8, 3))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reads_observations_as_torch_does(dtype, normalize):
    space = Box(-np.inf, np.inf, (2, 3), dtype)
    policy = make(observation=space, network=NetworkConfig(normalize_observation=normalize))
    x = 3.0 + rows(8, 2, 3, dtype=torch.float64 if dtype is np.float64 else torch.float32)
    if normalize:
        policy.reader.update(x, torch.ones(STEPS, 8, dtype=torch.bool), torch.tensor(True))
        normalizer_of(policy).std[0] = 1e-3  # so that something is clipped
    agree(policy, x)


@pytest.mark.parametrize("space", ["one of 4", "3 of 3, 2, 5", "4 switches"])
def test_what_is_not_legal_is_never_chosen(space):
    policy = make(SPACES[space])
    generator = torch.Generator().manual_seed(5)
    mask = torch.rand(STEPS, 8, policy.action_head.code_dim, generator=generator) < 0.5
    mask |= policy.action_head.code(act(Actor(policy), rows(8, 3))[1][0]) > 0  # something is legal everywhere
    chosen = agree(policy, rows(8, 3), mask)
    assert bool(mask[policy.action_head.code(chosen.reshape(STEPS, 8, -1).squeeze(-1)) > 0].all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("space", ["one of 4", "3 of 3, 2, 5", "3 reals"])
def test_what_is_not_finite_stays_so_and_chooses_something(space, bad):
    x = rows(8, 3)
    x[2, 5, 1] = bad
    agree(make(SPACES[space], network=NetworkConfig(activation="relu")), x)


def test_every_rollout_acts_with_the_parameters_of_its_time():
    policy, x = make(), rows(8, 3)
    actor = NativeActor(policy)
    _, before = act(actor, x)
    with torch.no_grad():
        policy.action_head.linear.bias[2] += 1e3
    chosen, after = act(actor, x)
    assert bool((chosen == 2).all())
    assert not torch.equal(before[1], after[1])


def test_a_wider_network_may_come_with_a_wider_head():
    policy, x = make(), rows(8, 3)
    actor = policy.network.actor.layers[0]
    actor[-2], policy.action_head.linear = nn.Linear(actor[-2].in_features, 128), nn.Linear(128, 4)
    agree(policy, x)


def test_observations_of_another_size_are_torchs_to_refuse():
    with pytest.raises(RuntimeError, match="shape"):
        act(NativeActor(make()), rows(8, 2))


def test_torch_takes_over_where_something_of_ones_own_came_in():
    policy, x = make(), rows(8, 3)
    actor = NativeActor(policy)
    act(actor, x)
    policy.network.actor.layers[0].register_forward_hook(lambda _, __, y: torch.full_like(y, 50.0))
    assert "hooks" in acting_refusal(policy)
    expected, given = act(Actor(policy), x), act(actor, x)
    assert torch.equal(given[0], expected[0])
    assert torch.equal(given[1][1], expected[1][1])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"memory": MemoryConfig("gru", 8)}, "GRU"),
        ({"action": ActionConfig(sigma="conditioned")}, "ConditionedSigma"),
        ({"action": ActionConfig(distribution="beta")}, "BetaHead"),
        ({"observation": Discrete(5)}, "Choices"),
        ({"observation": Dict({"numbers": Box(-1.0, 1.0, (3,), np.float32)})}, "Encoder"),
        ({"observation": Box(0, 9, (3,), np.int64)}, "int64"),
        ({"observation": Box(0, 255, (40, 40, 3), np.uint8)}, "not one vector"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_it_lacks_is_named_and_torch_acts(options, reason):
    assert reason in acting_refusal(make(REALS, **options))


def test_a_run_says_what_acts():
    by_torch, by_native = (make_trainer(Chain(), engine=engine) for engine in ("torch", "auto"))
    assert by_torch.engines == "actions and gradient steps by torch: it was asked for"
    assert by_native.engines == f"actions and gradient steps by native code, {native.best_instruction_set()}"
    assert [type(t.collector.actor) for t in (by_torch, by_native)] == [Actor, NativeActor]


def test_what_the_steps_lack_leaves_acting_to_native_code():
    policy = make_policy(value="hlgauss")
    assert acting_refusal(policy) is None


def test_whoever_keeps_an_action_keeps_it():
    env = Chain()
    kept = []
    send = env.send

    def keep(action):
        kept.append((action, action.clone()))
        send(action)

    env.send = keep
    for _ in make_trainer(env, engine="native", total_steps=200):
        pass
    assert all(torch.equal(action, copy) for action, copy in kept)


def test_processes_that_train_together_use_what_the_narrowest_has(monkeypatch):
    monkeypatch.setattr(native, "_limit", len(native.INSTRUCTION_SETS) - 1)
    native.limit("portable")
    assert native.best_instruction_set() == "portable"
