"""What was seen while acting is what is learned from: for every memory, action head and mask, in any autoreset mode."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn
from torch.testing import assert_close

import levelhead as lh
from levelhead.actions import CategoricalHead
from levelhead.builders import build_policy, build_trainer
from levelhead.collector import Collector
from levelhead.config import ActionConfig, Config, MemoryConfig, NetworkConfig, PPOConfig
from levelhead.envs import GymnasiumVecEnv
from levelhead.networks import Network, Policy
from levelhead.networks.observation import ObservationReader
from levelhead.objectives import A2CObjective, ClipObjective, KLObjective, TrustRegionObjective, VPGObjective
from levelhead.rollout import chunked
from levelhead.schedules import constant
from levelhead.tree import tree_leaves, tree_map
from levelhead.values import LinearValueHead
from networks.test_memory import Total
from toys import ONE_NUMBER, counting_envs

HYBRID = Tuple([Discrete(3), Box(-1.0, 1.0, (2,)), Dict({"mode": MultiDiscrete([2, 3]), "keys": MultiBinary(2)})])
ACTIONS = {
    "discrete": (Discrete(4, start=1), {}),
    "several": (MultiDiscrete([2, 4, 3]), {}),
    "real": (Box(-1.0, 1.0, (2,)), {}),
    "conditioned": (Box(-1.0, 1.0, (2,)), {"sigma": "conditioned"}),
    "tanh": (Box(-1.0, 3.0, (2,)), {"distribution": "tanh"}),
    "beta": (Box(-1.0, 3.0, (2,)), {"distribution": "beta"}),
    "hybrid": (HYBRID, {"gates": {"1": {"0": [1]}, "2/keys": {"0": [0, 2]}}}),
    "autoregressive": (HYBRID, {"sees": {"1": ["0", "2/mode"], "2/keys": ["0"]}, "gates": {"1": {"0": [1]}}}),
}
MEMORIES = [MemoryConfig()] + [
    MemoryConfig(kind, 6, place, sharing)
    for kind, place, sharing in itertools.product(("lstm", "gru"), ("before", "after"), ("shared", "separate"))
]


class Rambling(gym.Env):
    """Random observations, episodes of random length, ended and cut; masks, if asked for, leave a random choice."""

    observation_space = Box(-np.inf, np.inf, (2,))

    def __init__(self, action_space, masked):
        self.action_space = action_space
        self.masked = masked

    def told(self):
        observation = self.np_random.normal(size=2).astype(np.float32)
        return observation, ({"action_mask": self.mask(self.action_space)} if self.masked else {})

    def mask(self, space):
        match space:
            case Dict():
                return {key: self.mask(child) for key, child in space.spaces.items()}
            case Tuple():
                return tuple(self.mask(child) for child in space.spaces)
            case MultiDiscrete():
                return np.concatenate([self.some(int(n)) for n in space.nvec])
            case MultiBinary():
                return np.concatenate([self.some(2) for _ in range(space.n)])
            case Discrete():
                return self.some(int(space.n))
            case _:
                return None

    def some(self, n):
        mask = self.np_random.integers(0, 2, n)
        mask[self.np_random.integers(n)] = 1
        return mask.astype(np.int8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.told()

    def step(self, action):
        ended, cut = self.np_random.random(2) < (0.1, 0.15)
        observation, info = self.told()
        return observation, float(self.np_random.normal()), bool(ended), bool(cut), info


def rambling(space, masked, mode=AutoresetMode.SAME_STEP, n=4):
    return GymnasiumVecEnv(SyncVectorEnv([lambda: Rambling(space, masked)] * n, autoreset_mode=mode))


class FirstRatio(ClipObjective):
    """Keeps the probability ratios of every minibatch, and the rows that they belong to."""

    def __init__(self):
        super().__init__(constant(0.2))
        self.ratios = []

    def __call__(self, new, batch, kl):
        self.ratios.append((new.log_prob - batch.log_prob).exp().detach())
        return super().__call__(new, batch, kl)


def scrambled(policy):
    """Weights far from where they start, so that inputs matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return policy


def trainer_of(env, memory, action, chunk, objective, burn_in=0):
    chunked_by = chunk if memory.kind != "none" else None
    config = Config(
        "toy",
        num_envs=env.num_envs,
        num_steps=12,
        memory=memory,
        action=ActionConfig(**action),
        network=NetworkConfig(shared=(5,), actor=(6,), critic=(6,)),
        ppo=PPOConfig(epochs=1, minibatches=2, chunk=chunked_by, burn_in=burn_in),
        device="cpu",
    )
    policy = scrambled(build_policy(config, env.observation_space, env.action_space))
    return build_trainer(config, env, policy, objective)


@pytest.mark.parametrize("memory", MEMORIES, ids=lambda m: f"{m.kind}-{m.place}-{m.sharing}")
@pytest.mark.parametrize(
    ("kind", "masked"),
    [(kind, False) for kind in ACTIONS]
    + [(kind, True) for kind in ("discrete", "several", "hybrid", "autoregressive")],
)
def test_ratios_are_one_at_the_first_minibatch(memory, kind, masked):
    space, action = ACTIONS[kind]
    objective = FirstRatio()
    trainer = trainer_of(rambling(space, masked), memory, action, 4, objective)
    for turn, _ in zip(range(2), trainer, strict=False):
        ratio = objective.ratios[2 * turn]
        assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=2e-5)
        assert (objective.ratios[2 * turn + 1] - 1).abs().max() > 1e-4  # the second has seen a step


OTHERS = {
    "kl": lambda: KLObjective(constant(0.01)),
    "trpo": lambda: TrustRegionObjective(constant(0.01)),
    "a2c": A2CObjective,
    "vpg": VPGObjective,
}


def watching(objective):
    """The same objective, and a list of the probability ratios that it was asked about."""
    ratios, kind = [], type(objective)

    class Watching(kind):
        def __call__(self, new, batch, kl):
            ratios.append((new.log_prob - batch.log_prob).exp().detach())
            return super().__call__(new, batch, kl)

    objective.__class__ = Watching
    return objective, ratios


@pytest.mark.parametrize("objective", OTHERS)
@pytest.mark.parametrize(
    ("kind", "masked", "memory"),
    [
        *((kind, False, MEMORIES[0]) for kind in ACTIONS),
        *((kind, True, MEMORIES[1]) for kind in ("discrete", "hybrid", "autoregressive")),
        ("several", True, MEMORIES[4]),
        ("tanh", False, MEMORIES[5]),
        ("beta", False, MEMORIES[8]),
    ],
    ids=lambda x: f"{x.kind}-{x.place}-{x.sharing}" if isinstance(x, MemoryConfig) else None,
)
def test_so_they_are_with_every_objective(objective, kind, masked, memory):
    space, action = ACTIONS[kind]
    watched, ratios = watching(OTHERS[objective]())
    trainer = trainer_of(rambling(space, masked), memory, action, 4, watched)
    start = [p.detach().clone() for p in trainer.policy.parameters()]
    turn = next(trainer)
    assert_close(ratios[0], torch.ones_like(ratios[0]), rtol=0, atol=2e-5)
    assert not any(torch.equal(p, then) for p, then in zip(trainer.policy.parameters(), start, strict=True))
    if watched.needs_kl:
        # The penalty on a divergence is told of it once all is over, by asking once more.
        assert turn.metrics["train/kl"] > 0
        assert (ratios[-1] - 1).abs().max() > 1e-4


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("memory", MEMORIES[1:], ids=lambda m: f"{m.kind}-{m.place}-{m.sharing}")
@pytest.mark.parametrize("chunk", [None, 3])
def test_logits_and_values_replayed_in_training_are_those_of_acting(mode, memory, chunk):
    trainer = trainer_of(rambling(Discrete(4), True, mode), memory, {}, chunk, FirstRatio())
    policy, length = trainer.policy, chunk or 12
    for iteration in range(3):
        rollout = trainer.collector.collect(iteration)
        assert rollout.begins.any(), "no episode began: nothing was tested"
        x, begins = (chunked(part, length) for part in (policy.reader(rollout.observation), rollout.begins))
        state = tree_map(lambda s: s.flatten(0, 1), rollout.state)
        with torch.no_grad():
            actor, critic = policy.features(x.flatten(0, 1), state, begins)
            mask = chunked(rollout.action_mask, length).flatten(0, 1)
            logits = policy.action_head.sample(actor, torch.zeros(len(actor), 4), mask)[1]
            value = policy.value_head(critic).squeeze(-1)
        valid = chunked(rollout.valid, length).flatten()
        assert_close(logits[valid], chunked(rollout.parameters, length).flatten(0, 1)[valid], rtol=1e-5, atol=1e-5)
        assert_close(value[valid], chunked(rollout.value, length).flatten()[valid], rtol=1e-5, atol=1e-5)


def totals() -> Policy:
    """A policy whose value is the sum of the observations of the episode so far, and that acts blindly."""
    network = Network(nn.Identity(), nn.Identity(), lh.Torso(Total()), 1, 1)
    head, value_head = CategoricalHead(1, 2), LinearValueHead(1)
    nn.init.zeros_(head.linear.weight)
    nn.init.ones_(value_head.linear.weight)
    return Policy(ObservationReader(ONE_NUMBER, normalize=False), network, head, value_head)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_a_value_remembers_its_episode_and_no_other_over_all_rollouts(mode, steps):
    collector = Collector(counting_envs(mode), totals(), steps, seed=1)
    running = None
    for iteration in range(24 // steps):
        rollout = collector.collect(iteration)
        for t in range(steps):
            observation = rollout.observation[t, :, 0].clone()
            # Counting environments begin at a whole hundred.
            begins = observation % 100 == 0
            running = observation if running is None else torch.where(begins, observation, running + observation)
            valid = rollout.valid[t]
            assert torch.equal(rollout.value[t][valid], running[valid])
            matters = valid & ~rollout.terminated[t]
            # The true successor is one more, at a cut too, and comes on top of what was remembered.
            assert torch.equal(rollout.next_value[t][matters], (running + observation + 1)[matters]), (iteration, t)


def test_what_is_remembered_before_each_chunk_is_kept():
    collector = Collector(counting_envs(AutoresetMode.SAME_STEP), totals(), 12, seed=1, chunk=4)
    rollout = collector.collect(0)
    (kept,) = tree_leaves(rollout.state)
    assert kept.shape == (3, collector.env.num_envs, 1)
    assert (kept[0] == 0).all()
    assert torch.equal(kept[1:, :, 0], rollout.value[[3, 7]])


@pytest.mark.parametrize("memory", MEMORIES[1:], ids=lambda m: f"{m.kind}-{m.place}-{m.sharing}")
@pytest.mark.parametrize("burn_in", [1, 3])
def test_burn_in_brings_the_state_before_a_chunk_up_to_date(memory, burn_in):
    trainer = trainer_of(rambling(Discrete(4), True), memory, {}, 4, FirstRatio(), burn_in=burn_in)
    seen, learn = [], trainer.learner.learn
    trainer.learner.learn = lambda batch, *rest: (seen.append(batch), learn(batch, *rest))[1]
    next(trainer)
    policy = trainer.policy
    with torch.no_grad():
        stale = trainer.learner.criterion.state(seen[0].take(torch.arange(12)))
        for parameter in policy.parameters():
            parameter.mul_(1.1)
        fresh = trainer.learner.criterion.state(seen[0].take(torch.arange(12)))
    for before, after in zip(tree_leaves(stale), tree_leaves(fresh), strict=True):
        assert torch.equal(before[:4], after[:4])  # a rollout's first chunk has no steps before it
        assert (before[4:] != after[4:]).any(1).float().mean() > 0.5  # the others, unless an episode has just begun


@pytest.mark.parametrize("memory", MEMORIES[1:], ids=lambda m: f"{m.kind}-{m.place}-{m.sharing}")
def test_burn_in_changes_nothing_as_long_as_the_network_is_the_one_that_acted(memory):
    objective = FirstRatio()
    next(trainer_of(rambling(Discrete(4), True), memory, {}, 4, objective, burn_in=3))
    assert_close(objective.ratios[0], torch.ones_like(objective.ratios[0]), rtol=0, atol=2e-5)


def test_a_policy_that_is_asked_step_by_step_remembers_as_in_training():
    config = Config("toy", memory=MemoryConfig("lstm", 6), network=NetworkConfig(shared=(5,), actor=(6,), critic=(6,)))
    policy = scrambled(build_policy(config, Box(-np.inf, np.inf, (2,)), Box(-9.0, 9.0, (3,))))
    x = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(1))
    begins = torch.zeros(6, 4, dtype=torch.bool)
    begins[0], begins[3, 1], begins[4, [0, 2]] = True, True, True
    with torch.no_grad():
        features, _ = policy.actor_features(x.flatten(0, 1), policy.network.initial_state(4), begins)
        expected = policy.action_head.mode(features).unflatten(0, (6, 4))
    got = []
    for t in range(6):
        if t in (3, 4):
            policy.reset([[1], [0, 2]][t - 3])
        got.append(torch.from_numpy(policy.act(x[t])))
    assert_close(torch.stack(got), expected, rtol=1e-5, atol=1e-5)
    assert not np.allclose(policy.act(x[0]), got[0])
    policy.reset()
    np.testing.assert_allclose(policy.act(x[0]), got[0], rtol=1e-5)
    np.testing.assert_allclose(policy.act(x[0, 0]), got[0][0], rtol=1e-5, atol=1e-5)  # one alone begins anew
