"""Steps the environments with the policy and hands out rollouts."""

from collections import deque

import numpy as np
import torch
from torch import Tensor

from levelhead.envs import VecEnv
from levelhead.errors import ConfigError
from levelhead.networks import Policy
from levelhead.numerics import pick
from levelhead.rollout import Rollout
from levelhead.seeding import Stream, derive, generator
from levelhead.tree import Tree, tree_leaves, tree_map

EPISODE_WINDOW = 100
"""Episode statistics are means over this many latest episodes of a task, as in Stable-Baselines3."""


class Collector:
    """Only the actor runs inside the stepping loop; log-probabilities and values follow in one batch each.

    Args:
        env: the environments; they are reset here.
        policy: acts and values; its device is where rollouts live.
        num_steps: T, the length of a rollout.
        seed: of the run.
        reward_scale: multiplies every reward that the learner sees; episode statistics stay in the environment's units.
    """

    def __init__(self, env: VecEnv, policy: Policy, num_steps: int, seed: int, reward_scale: float = 1.0) -> None:
        self.env = env
        self.policy = policy
        self.seed = seed
        self.reward_scale = reward_scale
        tasks = max(len(env.tasks), 1)
        self.returns = [deque[float](maxlen=EPISODE_WINDOW) for _ in range(tasks)]
        self.lengths = [deque[int](maxlen=EPISODE_WINDOW) for _ in range(tasks)]

        t, n, device = num_steps, env.num_envs, policy.device
        shape = env.observation_space.shape
        assert shape is not None
        self._shape = shape
        # One row more than steps: the last one is what the next rollout starts from.
        self._observation = torch.zeros(t + 1, n, *shape, device=device)
        self._reward = torch.zeros(t, n, device=device)
        self._terminated = torch.zeros(t, n, dtype=torch.bool, device=device)
        self._truncated = torch.zeros(t, n, dtype=torch.bool, device=device)
        self._valid = torch.ones(t, n, dtype=torch.bool, device=device)
        self._task = torch.zeros(t, n, dtype=torch.int64, device=device) if env.tasks else None
        self._choices: Tree = None
        self.reset(0)

    def reset(self, iteration: int) -> None:
        """Starts new episodes everywhere, seeded by the iteration they start in."""
        first = self.env.reset(derive(self.seed, Stream.ENVIRONMENT, iteration))
        _write(self._observation[-1], first, "observation")
        if self._task is not None:
            task = self.env.task
            if task is None or task.dtype != torch.int64 or task.shape != self._task[0].shape:
                n = self.env.num_envs
                raise ConfigError(f"the environments' task is {task}; accepted: {n} numbers of torch.int64")
            self._require_known(task)
        self._return = np.zeros(self.env.num_envs)
        self._length = np.zeros(self.env.num_envs, dtype=np.int64)

    @torch.no_grad()
    def collect(self, iteration: int) -> Rollout:
        """The next T steps of every environment. The rollout's tensors are overwritten by the next call."""
        policy, head, env = self.policy, self.policy.action_head, self.env
        observations = self._observation.unbind()
        flags = zip(self._reward.unbind(), self._terminated.unbind(), self._truncated.unbind(), strict=True)
        shape = (len(observations) - 1, env.num_envs)
        noise = head.noise(shape, generator(self.seed, Stream.ACTION, iteration)).to(self._observation.device)
        self._valid.fill_(True)
        finals: list[tuple[int, Tensor]] = []

        observations[0].copy_(observations[-1])
        for t, (reward, terminated, truncated) in enumerate(flags):
            if self._task is not None and env.task is not None:
                _write(self._task[t], env.task, "task")
            features = policy.actor_features(policy.prepare(observations[t]))
            choice = head.sample(features, noise[t])
            self._keep(t, choice)
            step = env.step(head.to_environment(choice[0]))
            _write(observations[t + 1], step.observation, "observation")
            _write(reward, step.reward, "reward")
            _write(terminated, step.terminated, "terminated")
            _write(truncated, step.truncated, "truncated")
            if step.valid is not None:
                _write(self._valid[t], step.valid, "valid")
            if step.final_observation is not None and bool(step.truncated.any()):
                finals.append((t, step.final_observation.clone()))

        if self._task is not None:
            self._require_known(self._task)
        action, parameters = self._choices
        value, next_value = self._values(finals)
        return Rollout(
            observation=self._observation[:-1],
            action=action,
            parameters=parameters,
            log_prob=head.log_prob(parameters, action),
            reward=self._reward * self.reward_scale,
            terminated=self._terminated,
            truncated=self._truncated,
            valid=self._valid,
            value=value,
            next_value=next_value,
            task=self._task,
        )

    def _keep(self, t: int, choice: tuple[Tensor, Tree]) -> None:
        if self._choices is None:
            steps = len(self._observation) - 1

            def allocate(x: Tensor) -> Tensor:
                return x.new_empty(steps, *x.shape)

            self._choices = tree_map(allocate, choice)
            self._rows = list(zip(*(x.unbind() for x in tree_leaves(self._choices)), strict=True))
        for row, x in zip(self._rows[t], tree_leaves(choice), strict=True):
            row.copy_(x)

    def _require_known(self, task: Tensor) -> None:
        known = len(self.env.tasks)
        if not bool(((task >= 0) & (task < known)).all()):
            raise ConfigError(
                f"the environments play tasks {task.unique().tolist()}; they named {known}: {self.env.tasks}"
            )

    def _values(self, finals: list[tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
        """Values of the observations and of their true successors, each `[T, N]`."""
        values, task = self._all_values(self._observation), self._task
        next_value = pick(values[1:], task).clone()
        for t, observation in finals:
            cut = pick(self._all_values(observation.to(next_value.device)), None if task is None else task[t])
            next_value[t] = torch.where(self._truncated[t], cut, next_value[t])
        return pick(values[:-1], task), next_value

    def _all_values(self, observation: Tensor) -> Tensor:
        """The critic's values, one per task; NaN where the observation is not finite, which a network could hide."""
        finite = observation.isfinite().reshape(*observation.shape[: -len(self._shape)], -1).all(-1, keepdim=True)
        return torch.where(finite, self.policy.values(observation), torch.nan)

    def record_episodes(self) -> None:
        """Takes the latest rollout into the episode statistics; not done where the rollout turns out to be broken."""
        valid = self._valid.cpu().numpy()
        reward = np.where(valid, self._reward.cpu().numpy().astype(np.float64), 0.0)
        ended = (self._terminated | self._truncated).cpu().numpy()
        task = np.zeros(ended.shape, dtype=np.int64) if self._task is None else self._task.cpu().numpy()
        for t in range(len(reward)):
            self._return += reward[t]
            self._length += valid[t]
            if ended[t].any():
                for i in np.flatnonzero(ended[t]):
                    self.returns[task[t, i]].append(float(self._return[i]))
                    self.lengths[task[t, i]].append(int(self._length[i]))
                self._return[ended[t]] = 0.0
                self._length[ended[t]] = 0

    def metrics(self) -> dict[str, float]:
        """Episode statistics over the latest episodes: per task, and the mean over tasks; none before one has ended."""
        metrics: dict[str, float] = {}
        for name, windows in (("rollout/ep_rew_mean", self.returns), ("rollout/ep_len_mean", self.lengths)):
            means = {k: float(np.mean(window)) for k, window in enumerate(windows) if window}
            if means:
                metrics[name] = float(np.mean(list(means.values())))
            if self.env.tasks:
                metrics |= {f"{name}/{self.env.tasks[k]}": mean for k, mean in means.items()}
        return metrics

    def state_dict(self) -> dict[str, object]:
        return {"returns": [list(x) for x in self.returns], "lengths": [list(x) for x in self.lengths]}

    def load_state_dict(self, state: dict[str, list[list[float]]]) -> None:
        for returns, lengths, r, n in zip(self.returns, self.lengths, state["returns"], state["lengths"], strict=True):
            returns.extend(r)
            lengths.extend(int(x) for x in n)


def _write(row: Tensor, value: Tensor, name: str) -> None:
    if value.shape != row.shape:
        raise ConfigError(f"the environments' {name} has shape {tuple(value.shape)}; expected {tuple(row.shape)}")
    row.copy_(value)
