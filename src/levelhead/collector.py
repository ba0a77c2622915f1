"""Steps the environments with the policy and hands out rollouts."""

import itertools
from collections import deque

import numpy as np
import torch
from torch import Tensor

from levelhead.envs import VecEnv
from levelhead.errors import ConfigError
from levelhead.masks import require_legal
from levelhead.networks import Policy, State
from levelhead.numerics import pick
from levelhead.rollout import Rollout
from levelhead.seeding import Stream, derive, generator
from levelhead.spaces import zeros
from levelhead.tree import Tree, tree_leaves, tree_map

EPISODE_WINDOW = 100
"""Episode statistics are means over this many latest episodes of a task, as in Stable-Baselines3."""


class Collector:
    """Only the actor runs inside the stepping loop; log-probabilities and values follow in batches.

    Args:
        env: the environments; they are reset here.
        policy: acts and values; its device is where rollouts live.
        num_steps: T, the length of a rollout.
        seed: of the run.
        reward_scale: multiplies every reward that the learner sees; episode statistics stay in the environment's units.
        chunk: steps that are learned from in one piece; None for all.
        burn_in: steps before each chunk, but the first, at which the memory's state is kept.
    """

    def __init__(
        self,
        env: VecEnv,
        policy: Policy,
        num_steps: int,
        seed: int,
        reward_scale: float = 1.0,
        chunk: int | None = None,
        burn_in: int = 0,
    ) -> None:
        self.env = env
        self.policy = policy
        self.seed = seed
        self.reward_scale = reward_scale
        tasks = max(len(env.tasks), 1)
        self.returns = [deque[float](maxlen=EPISODE_WINDOW) for _ in range(tasks)]
        self.lengths = [deque[int](maxlen=EPISODE_WINDOW) for _ in range(tasks)]

        t, n, device = num_steps, env.num_envs, policy.device
        self._kept = [max(start - burn_in, 0) for start in range(0, t, chunk or t)]
        # One row more than steps: the last one is what the next rollout starts from.
        self._observation = zeros(env.observation_space, (t + 1, n), device)
        self._observed = [_row(self._observation, i) for i in range(t + 1)]
        self._begins = torch.zeros(t + 1, n, dtype=torch.bool, device=device)
        self._reward = torch.zeros(t, n, device=device)
        self._terminated = torch.zeros(t, n, dtype=torch.bool, device=device)
        self._truncated = torch.zeros(t, n, dtype=torch.bool, device=device)
        self._valid = torch.ones(t, n, dtype=torch.bool, device=device)
        self._task = torch.zeros(t, n, dtype=torch.int64, device=device) if env.tasks else None
        self._state = policy.network.initial_state(n)
        self._mask: Tree | None = None
        self._choices: Tree = None
        self.reset(0)

    def reset(self, iteration: int) -> None:
        """Starts new episodes everywhere, seeded by the iteration they start in."""
        first = self.env.reset(derive(self.seed, Stream.ENVIRONMENT, iteration))
        self._write_observation(-1, first)
        self._begins[-1] = True
        if self.env.action_mask is not None:
            legal = self.policy.action_head.legal(self.env.action_mask)
            if legal.shape != (self.env.num_envs,):
                raise ConfigError(f"the environments' masks are for {tuple(legal.shape)}, not {self.env.num_envs} rows")
            if self._mask is None:
                steps, device = len(self._reward), self.policy.device
                self._mask = tree_map(lambda x: x.new_zeros(steps, *x.shape, device=device), self.env.action_mask)
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
        begins = self._begins.unbind()
        flags = zip(self._reward.unbind(), self._terminated.unbind(), self._truncated.unbind(), strict=True)
        shape = (len(self._reward), env.num_envs)
        noise = head.noise(shape, generator(self.seed, Stream.ACTION, iteration))
        noise = tree_map(lambda x: x.to(policy.device), noise)
        self._valid.fill_(True)
        finals: dict[int, Tree] = {}
        acting = critic = self._state
        remembered: list[State] = []

        tree_map(Tensor.copy_, self._observed[0], self._observed[-1])
        begins[0].copy_(begins[-1])
        for t, (reward, terminated, truncated) in enumerate(flags):
            if self._task is not None and env.task is not None:
                _write(self._task[t], env.task, "task")
            if t in self._kept:
                remembered.append(acting)
            x = policy.reader(self._observed[t])
            features, acting = policy.actor_features(x, acting, begins[t].unsqueeze(0))
            choice = head.sample(features, _row(noise, t), self._write_mask(t))
            self._keep(t, choice)
            step = env.step(head.to_environment(choice[0]))
            self._write_observation(t + 1, step.observation)
            _write(reward, step.reward, "reward")
            _write(terminated, step.terminated, "terminated")
            _write(truncated, step.truncated, "truncated")
            torch.logical_or(terminated, truncated, out=begins[t + 1])
            if step.valid is not None:
                _write(self._valid[t], step.valid, "valid")
                begins[t + 1].logical_or_(~self._valid[t])
            if step.final_observation is not None and bool(step.truncated.any()):
                finals[t] = tree_map(torch.clone, step.final_observation)

        if self._task is not None:
            self._require_known(self._task)
        action, parameters = self._choices
        # What follows an end, and is not valid, is still the old episode's: its final observation, seen once more.
        begins = self._begins[:-1].clone()
        begins[1:] &= self._valid[1:] | ~self._valid[:-1]
        value, next_value, features, critics = self._values(critic, begins, finals)
        self._state = State(acting.shared, acting.actor, critics.pop().critic)
        remembered = [State(a.shared, a.actor, c.critic) for a, c in zip(remembered, critics, strict=True)]
        return Rollout(
            observation=tree_map(lambda x: x[:-1], self._observation),
            action=action,
            action_mask=self._mask,
            parameters=parameters,
            log_prob=head.log_prob(parameters, action),
            reward=self._reward * self.reward_scale,
            terminated=self._terminated,
            truncated=self._truncated,
            valid=self._valid,
            begins=begins,
            state=tree_map(lambda *states: torch.stack(states), *remembered),
            value=value,
            next_value=next_value,
            last_features=features,
            task=self._task,
        )

    def _write_observation(self, t: int, observation: Tree) -> None:
        try:
            tree_map(lambda row, x: _write(row, x, "observation"), self._observed[t], observation)
        except ValueError as error:
            space = self.env.observation_space
            raise ConfigError(f"the environments' observation does not fit {space}: {error}") from error

    def _write_mask(self, t: int) -> Tree | None:
        """What is legal at step t, kept for learning."""
        mask = self.env.action_mask
        if (mask is None) != (self._mask is None):
            raise ConfigError("the environments give action masks at some steps, and none at others")
        if mask is None:
            return None
        require_legal(self.policy.action_head.legal(mask), "environment")
        tree_map(lambda rows, x: _write(rows[t], x, "action_mask"), self._mask, mask)
        return _row(self._mask, t)

    def _keep(self, t: int, choice: tuple[Tree, Tree]) -> None:
        if self._choices is None:
            steps = len(self._reward)
            self._choices = tree_map(lambda x: x.new_empty(steps, *x.shape), choice)
            self._rows = list(zip(*(x.unbind() for x in tree_leaves(self._choices)), strict=True))
        for row, x in zip(self._rows[t], tree_leaves(choice), strict=True):
            row.copy_(x)

    def _require_known(self, task: Tensor) -> None:
        known = len(self.env.tasks)
        if not bool(((task >= 0) & (task < known)).all()):
            raise ConfigError(
                f"the environments play tasks {task.unique().tolist()}; they named {known}: {self.env.tasks}"
            )

    def _values(
        self, state: State, begins: Tensor, finals: dict[int, Tree]
    ) -> tuple[Tensor, Tensor, Tensor, list[State]]:
        """Values of the observations and of their true successors, each `[T, N]`; what the value head read in the last
        row; and the states that are kept, and that after the last row.

        A final observation is valued with what was remembered after its step, and leaves that as it was.
        """
        steps, task = len(begins), self._task
        # Without memory there is no order to keep: one pass reads everything.
        stops = {0, steps, *self._kept, *(t + 1 for t in finals)} if self.policy.remembers else {0}
        # The row after the last is the last one's successor, whatever the next rollout makes of it.
        begins = torch.cat((begins, torch.zeros_like(begins[:1])))
        before: dict[int, State] = {}
        parts: list[Tensor] = []
        for start, stop in itertools.pairwise((*sorted(stops), steps + 1)):
            before[start] = state
            rows = tree_map(lambda x, a=start, b=stop: x[a:b], self._observation)
            features, state = self._critic_features(rows, state, begins[start:stop])
            parts.append(features)
        features = torch.cat(parts)
        values = self._read_values(self._observation, features)
        next_value = pick(values[1:], task).clone()
        for t, observation in finals.items():
            observation = tree_map(lambda x: x.to(values.device).unsqueeze(0), observation)
            final, _ = self._critic_features(observation, before.get(t + 1, state), torch.zeros_like(begins[:1]))
            cut = pick(self._read_values(observation, final)[0], None if task is None else task[t])
            next_value[t] = torch.where(self._truncated[t], cut, next_value[t])
        states = [before.get(t, state) for t in (*self._kept, steps)]
        return pick(values[:-1], task), next_value, features[-2], states

    def _critic_features(self, observation: Tree, state: State, begins: Tensor) -> tuple[Tensor, State]:
        """Of `[T, N, ...]` observations, `[T, N, D]`."""
        x = tree_map(lambda part: part.flatten(0, 1), self.policy.reader(observation))
        features, state = self.policy.critic_features(x, state, begins)
        return features.unflatten(0, begins.shape), state

    def _read_values(self, observation: Tree, features: Tensor) -> Tensor:
        """The critic's values, one per task; NaN where the observation is not finite, which a network could hide."""
        values = self.policy.value_head(features)
        for part in tree_leaves(observation):
            if part.is_floating_point():
                finite = part.isfinite().reshape(*features.shape[:2], -1).all(-1, keepdim=True)
                values = torch.where(finite, values, torch.nan)
        return values

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


def _row(tree: Tree, t: int) -> Tree:
    return tree_map(lambda x: x[t], tree)


def _write(row: Tensor, value: Tensor, name: str) -> None:
    if value.shape != row.shape:
        raise ConfigError(f"the environments' {name} has shape {tuple(value.shape)}; expected {tuple(row.shape)}")
    row.copy_(value)
