"""Environments whose every answer is known, and short ways to a policy or a trainer on them."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, Tuple
from gymnasium.vector import SyncVectorEnv
from torch import nn

from levelhead.actions import ActionHead, CategoricalHead
from levelhead.builders import build_policy, build_trainer
from levelhead.config import Config, NetworkConfig, ObjectiveKind
from levelhead.envs import GymnasiumVecEnv, Step, VecEnv
from levelhead.networks import Network, ObservationReader, Policy
from levelhead.objectives import Objective
from levelhead.trainer import Trainer
from levelhead.values import LinearValueHead

ONE_NUMBER = Box(-np.inf, np.inf, (1,))
TWO_CHOICES = Discrete(2)
SMALL = NetworkConfig(actor=(8,), critic=(8,))


class Counting(gym.Env):
    """The observation is 1000 * index + 100 * episode + step; episodes end as planned.

    Args:
        index: of this environment.
        plan: length and kind of end of the episodes, over and over: 't' is terminated, 'c' cut short, 'b' both.
    """

    observation_space = ONE_NUMBER

    def __init__(self, index: int = 0, plan=((3, "t"), (2, "c"), (4, "c"), (1, "t"), (2, "b")), action_space=None):
        self.index = index
        self.plan = plan
        self.action_space = action_space or TWO_CHOICES
        self.received = []
        self.episode = -1

    def _observe(self):
        return np.array([1000 * self.index + 100 * self.episode + self.step_count], np.float32)

    def reset(self, *, seed=None, options=None):
        self.episode = 0 if seed is not None else self.episode + 1
        self.step_count = 0
        return self._observe(), {}

    def step(self, action):
        self.received.append(np.copy(action))
        self.step_count += 1
        length, kind = self.plan[self.episode % len(self.plan)]
        ended = self.step_count == length
        assert self.step_count <= length, "stepped on after the end of an episode"
        reward = float(self._observe()[0]) / 4
        return self._observe(), reward, ended and kind in "tb", ended and kind in "cb", {}


# The last plan makes an environment end every step, so that resets follow each other at once.
PLANS = [((3, "t"), (2, "c"), (4, "b")), ((5, "c"), (1, "t")), ((1, "c"),)]


def counting_envs(mode, plans=PLANS, **options):
    """A counting environment per plan, in one of Gymnasium's autoreset modes."""
    makers = [lambda i=i, plan=plan: Counting(i, plan) for i, plan in enumerate(plans)]
    return GymnasiumVecEnv(SyncVectorEnv(makers, autoreset_mode=mode, **options))


def expected_story(index, plan):
    """(observation, reward, successor, terminated, truncated), told by the environment alone."""
    env = Counting(index, plan)
    for episode in count():
        observation, _ = env.reset(seed=0 if episode == 0 else None)
        ended = False
        while not ended:
            successor, reward, terminated, truncated, _ = env.step(0)
            yield float(observation[0]), reward, float(successor[0]), terminated, truncated
            observation, ended = successor, terminated or truncated


def told_story(env, steps):
    """The same per environment, as `env` tells it; rows that are not valid are left out."""
    stories = [[] for _ in range(env.num_envs)]
    observation = env.reset(0).clone()
    for _ in range(steps):
        step = env.step(torch.zeros(env.num_envs, dtype=torch.int64))
        successor = step.observation if step.final_observation is None else step.final_observation
        for i, story in enumerate(stories):
            if step.valid is None or step.valid[i]:
                flags = bool(step.terminated[i]), bool(step.truncated[i])
                story.append((observation[i, 0].item(), step.reward[i].item(), successor[i, 0].item(), *flags))
        observation = step.observation.clone()
    return stories


class Hybrid(gym.Env):
    """Five steps; the first of three types wants its number to be the observation, the others pay a third."""

    observation_space = Box(-1.0, 1.0, (1,))
    action_space = Tuple([Discrete(3), Box(-1.0, 1.0, (1,))])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def observe(self):
        self.wanted = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.wanted

    def step(self, action):
        kind, number = action
        reward = 1.0 - float(abs(number - self.wanted)[0]) if kind == 0 else 1 / 3
        self.steps += 1
        return self.observe(), reward, self.steps == 5, False, {}


class Pixels(gym.Env):
    """Five steps; the picture is bright on the side of the choice that pays."""

    observation_space = Box(0, 255, (36, 36, 1), np.uint8)
    action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def observe(self):
        self.side = int(self.np_random.integers(2))
        picture = np.zeros((36, 36, 1), np.uint8)
        picture[:, 18 * self.side : 18 * (self.side + 1)] = 255
        return picture

    def step(self, action):
        reward = float(action == self.side)
        self.steps += 1
        return self.observe(), reward, self.steps == 5, False, {}


class Recall(gym.Env):
    """The first of four observations is a sign; the last action is paid if it is that of the sign."""

    observation_space = Box(-1.0, 1.0, (1,))
    action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.sign = 0, int(self.np_random.integers(2))
        return np.array([2 * self.sign - 1], np.float32), {}

    def step(self, action):
        self.steps += 1
        reward = float(action == self.sign) if self.steps == 4 else 0.0
        return np.zeros(1, np.float32), reward, self.steps == 4, False, {}


class Guarded(gym.Env):
    """Ten choices, of which the mask leaves two: the lower one pays, and what is masked ends the world."""

    observation_space = Box(0.0, 1.0, (1,))
    action_space = Discrete(10, start=3)

    def __init__(self, nothing_legal_at=None):
        self.nothing_legal_at = nothing_legal_at

    def told(self):
        self.legal = self.np_random.choice(10, 2, replace=False)
        mask = np.zeros(10, np.int8)
        if self.steps != self.nothing_legal_at:
            mask[self.legal] = 1
        return np.ones(1, np.float32), {"action_mask": mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.told()

    def step(self, action):
        assert action - 3 in self.legal, "an illegal action"
        reward = float(action - 3 == min(self.legal))
        self.steps += 1
        observation, info = self.told()
        return observation, reward, self.steps == 6, False, info


class Toy(VecEnv):
    """One step per episode, observation 1, reward `scale`; subclasses change what they like."""

    observation_space = ONE_NUMBER
    action_space = TWO_CHOICES

    def __init__(self, num_envs: int = 8, scale: float = 1.0) -> None:
        self.num_envs = num_envs
        self.scale = scale
        self.generator = torch.Generator()

    def observe(self):
        return torch.ones(self.num_envs, 1)

    def flags(self, value: bool):
        return torch.full((self.num_envs,), value)

    def reset(self, seed):
        self.generator.manual_seed(seed)
        self.observation = self.observe()
        return self.observation

    def reward(self, action):
        return torch.ones(self.num_envs)

    def step(self, action):
        reward = self.scale * self.reward(action)
        self.observation = self.observe()
        return Step(self.observation, reward, self.flags(True), self.flags(False))

    def close(self):
        pass


class Bandit(Toy):
    """The second of two arms pays."""

    def reward(self, action):
        return action.float()


class Noise(Toy):
    """Random observations and rewards that nothing can be learned from."""

    def observe(self):
        return torch.randn(self.num_envs, 1, generator=self.generator)

    def reward(self, action):
        return torch.randn(self.num_envs, generator=self.generator)


class Matching(Toy):
    """The action should equal the observation; it costs the square of the distance."""

    action_space = Box(-2.0, 2.0, (1,))

    def observe(self):
        return torch.rand(self.num_envs, 1, generator=self.generator) * 2 - 1

    def reward(self, action):
        return -(action - self.observation).square().squeeze(-1)


class Chain(Toy):
    """Reward `scale` for ever, cut every `length` steps by a time limit: every state is worth scale / (1 - gamma)."""

    length = 5

    def reset(self, seed):
        self.clock = 0
        return super().reset(seed)

    def step(self, action):
        self.clock += 1
        step = super().step(action)
        return step._replace(
            terminated=self.flags(False),
            truncated=self.flags(self.clock % self.length == 0),
            final_observation=self.observe(),
        )


class Switching(VecEnv):
    """Counting environments whose every new episode plays the next task: episode e of environment i is task i + e.

    The task changes as soon as an episode has ended, even where a row that is not valid comes before the next one.
    `task` is one tensor that is written in place, so whoever keeps it must copy it in time.
    """

    tasks = ("a", "b", "c")

    def __init__(self, env: GymnasiumVecEnv) -> None:
        self.env = env
        self.num_envs = env.num_envs
        self.observation_space = env.observation_space
        self.action_space = env.action_space
        self.task = torch.zeros(self.num_envs, dtype=torch.int64)

    def reset(self, seed):
        self.task.copy_(torch.arange(self.num_envs) % len(self.tasks))
        return self.env.reset(seed)

    def step(self, action):
        step = self.env.step(action)
        self.task.add_(step.terminated | step.truncated).remainder_(len(self.tasks))
        return step

    def close(self):
        self.env.close()


class Duo(Noise):
    """Two tasks that the environments play in turn, with random episodes; rewards are drawn, then scaled by task."""

    tasks = ("low", "high")

    def __init__(self, num_envs: int = 8, scales=(1.0, 1e6)) -> None:
        super().__init__(num_envs)
        self.task = torch.arange(num_envs) % 2
        self.scales = torch.tensor(scales)

    def step(self, action):
        step = super().step(action)
        terminated, truncated = torch.rand(2, self.num_envs, generator=self.generator) < 0.2
        return Step(
            step.observation,
            (step.reward + action) * self.scales[self.task],
            terminated,
            truncated,
            final_observation=torch.where((terminated | truncated).unsqueeze(1), self.observe(), step.observation),
        )


class Tampered(VecEnv):
    """Another environment with its answers changed by `tamper(number of the call from 0, step) -> step`."""

    def __init__(self, env: VecEnv, tamper: Callable[[int, Step], Step]) -> None:
        self.env = env
        self.tamper = tamper
        self.calls = 0
        self.num_envs = env.num_envs
        self.observation_space = env.observation_space
        self.action_space = env.action_space
        self.tasks = env.tasks

    @property
    def task(self):
        return self.env.task

    def reset(self, seed):
        return self.env.reset(seed)

    def step(self, action):
        step = self.tamper(self.calls, self.env.step(action))
        self.calls += 1
        return step

    def close(self):
        self.env.close()


def readout(action_head: ActionHead | None = None, tasks: int = 1) -> Policy:
    """A policy on one number, whose value is 3 + 2 k times that number for task k; actions are drawn blindly."""
    head = action_head or CategoricalHead(1, 2)
    nn.init.zeros_(head.linear.weight)
    value_head = LinearValueHead(1, tasks)
    with torch.no_grad():
        value_head.linear.weight.copy_(3.0 + 2.0 * torch.arange(tasks).unsqueeze(1))
    torso = Network(nn.Identity(), nn.Identity(), nn.Identity(), 1, 1)
    tasks = tuple("abc"[:tasks]) if tasks > 1 else ()
    return Policy(ObservationReader(ONE_NUMBER, normalize=False), torso, head, value_head, tasks=tasks)


def config(env: VecEnv, **options) -> Config:
    """16 steps per rollout, small networks; `options` are fields of the config."""
    base = Config("toy", num_envs=env.num_envs, num_steps=16, network=SMALL, device="cpu")
    return replace(base, **options)


def make_trainer(env: VecEnv, objective: Objective | ObjectiveKind | None = None, **options) -> Trainer:
    """A trainer at its beginning, for an objective by its name in the config or one of your own."""
    if isinstance(objective, str):
        objective, options["objective"] = None, objective
    settings = config(env, **options)
    policy = build_policy(settings, env.observation_space, env.action_space, tasks=env.tasks)
    return build_trainer(settings, env, policy, objective)


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of everything that a module would save."""
    return {name: x.clone() for name, x in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of named tensors are the same, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())
