"""Greedy episodes on environments of their own."""

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from levelhead.envs import VecEnv
from levelhead.errors import TrainingFault
from levelhead.masks import require_legal
from levelhead.networks import Policy
from levelhead.seeding import Stream, derive
from levelhead.tree import Tree, tree_map


@dataclass(frozen=True)
class Report:
    """Returns and lengths of whole episodes, in the environment's own units."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    tasks: tuple[str, ...] = ()
    """The task of each episode; empty where there is one alone."""

    @property
    def mean_return(self) -> float:
        """Over the episodes; where there are several tasks, over the means of each."""
        return float(np.mean([part.mean_return for part in self.by_task.values()] if self.tasks else self.returns))

    @property
    def by_task(self) -> dict[str, "Report"]:
        """A report for each task that was played; empty where there is one alone."""
        parts: dict[str, Report] = {}
        for name in dict.fromkeys(self.tasks):
            rows = [i for i, task in enumerate(self.tasks) if task == name]
            parts[name] = Report(tuple(self.returns[i] for i in rows), tuple(self.lengths[i] for i in rows))
        return parts

    @property
    def std_return(self) -> float:
        """Population standard deviation over the episodes."""
        return float(np.std(self.returns))


LONGEST = 100_000
"""Steps of an episode, after which it is taken as it is: nothing says that it would ever end."""


@torch.no_grad()
def run_episodes(policy: Policy, env: VecEnv, episodes: int, seed: int) -> Report:
    """Plays `episodes` whole episodes greedily and changes nothing in the policy.

    Every environment plays its own fixed share, so that short episodes don't crowd out long ones; tasks share evenly.
    An episode that doesn't end is taken for ended after `LONGEST` steps, with a warning.

    Raises:
        TrainingFault: a reward is not finite; names the environment.
    """
    training = policy.training
    policy.eval()
    try:
        return _play(policy, env, episodes, seed)
    finally:
        policy.train(training)


def _play(policy: Policy, env: VecEnv, episodes: int, seed: int) -> Report:
    n = env.num_envs
    finished: list[list[tuple[float, int, int]]] = [[] for _ in range(n)]
    total, length = np.zeros(n), np.zeros(n, dtype=np.int64)
    observation = env.reset(derive(seed, Stream.EVALUATION))
    share = _shares(episodes, _tasks(env))
    head, state = policy.action_head, policy.network.initial_state(n)
    begins = torch.ones(n, dtype=torch.bool)
    while any(len(done) < share[i] for i, done in enumerate(finished)):
        x = policy.reader(tree_map(lambda part: part.to(policy.device), observation))
        features, state = policy.actor_features(x, state, begins.to(policy.device).unsqueeze(0))
        action = head.to_environment(head.mode(features, _mask(env, policy)))
        task = _tasks(env)
        step = env.step(action)
        observation = step.observation
        valid = np.ones(n, dtype=np.bool_) if step.valid is None else step.valid.cpu().numpy()
        begins = (step.terminated | step.truncated).cpu() | ~torch.from_numpy(valid)
        total += np.where(valid, step.reward.cpu().numpy(), 0.0)
        if not np.isfinite(total).all():
            raise TrainingFault(f"non-finite reward of environment {np.isfinite(total).argmin()}, in evaluation")
        length += valid
        endless = length >= LONGEST
        if endless.any():
            warnings.warn(
                f"an episode has taken {LONGEST:,} steps and counts as it is: has the environment no time limit?",
                stacklevel=4,
            )
        for i in np.flatnonzero((step.terminated | step.truncated).cpu().numpy() | endless):
            if len(finished[i]) < share[i]:
                finished[i].append((float(total[i]), int(length[i]), int(task[i])))
            total[i], length[i] = 0.0, 0
    played = [episode for done in finished for episode in done]
    return Report(
        returns=tuple(total for total, _, _ in played),
        lengths=tuple(length for _, length, _ in played),
        tasks=tuple(env.tasks[task] for _, _, task in played) if env.tasks else (),
    )


def _mask(env: VecEnv, policy: Policy) -> Tree | None:
    if env.action_mask is None:
        return None
    require_legal(policy.action_head.legal(env.action_mask), "environment")
    return tree_map(lambda x: x.to(policy.device), env.action_mask)


def _tasks(env: VecEnv) -> npt.NDArray[np.int64]:
    """What each environment is playing now."""
    return np.zeros(env.num_envs, dtype=np.int64) if env.task is None else env.task.cpu().numpy().copy()


def _shares(episodes: int, task: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many episodes each environment plays: the same for every task, and within a task for every environment."""
    shares = np.zeros_like(task)
    played = np.unique(task)
    for quota, k in zip(_split(episodes, len(played)), played, strict=True):
        members = task == k
        shares[members] = _split(int(quota), int(members.sum()))
    return shares


def _split(total: int, parts: int) -> npt.NDArray[np.int64]:
    return total // parts + (np.arange(parts) < total % parts)
