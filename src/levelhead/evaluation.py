"""Greedy episodes on environments of their own."""

from dataclasses import dataclass

import numpy as np
import torch

from levelhead.envs import VecEnv
from levelhead.networks import Policy
from levelhead.seeding import Stream, derive


@dataclass(frozen=True)
class Report:
    """Returns and lengths of whole episodes, in the environment's own units."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def mean_return(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std_return(self) -> float:
        """Population standard deviation over the episodes."""
        return float(np.std(self.returns))


@torch.no_grad()
def run_episodes(policy: Policy, env: VecEnv, episodes: int, seed: int) -> Report:
    """Plays `episodes` whole episodes greedily and changes nothing in the policy.

    Every environment plays its own fixed share, so that short episodes don't crowd out long ones.
    """
    training = policy.training
    policy.eval()
    try:
        return _play(policy, env, episodes, seed)
    finally:
        policy.train(training)


def _play(policy: Policy, env: VecEnv, episodes: int, seed: int) -> Report:
    n = env.num_envs
    share = np.full(n, episodes // n) + (np.arange(n) < episodes % n)
    finished: list[list[tuple[float, int]]] = [[] for _ in range(n)]
    total, length = np.zeros(n), np.zeros(n, dtype=np.int64)
    observation = env.reset(derive(seed, Stream.EVALUATION))
    while any(len(done) < share[i] for i, done in enumerate(finished)):
        x = policy.prepare(observation.to(policy.device))
        action = policy.action_head.to_environment(policy.action_head.mode(policy.actor_features(x)))
        step = env.step(action)
        observation = step.observation
        valid = np.ones(n, dtype=np.bool_) if step.valid is None else step.valid.cpu().numpy()
        total += step.reward.cpu().numpy() * valid
        length += valid
        for i in np.flatnonzero((step.terminated | step.truncated).cpu().numpy()):
            if len(finished[i]) < share[i]:
                finished[i].append((float(total[i]), int(length[i])))
            total[i], length[i] = 0.0, 0
    played = [episode for done in finished for episode in done]
    return Report(tuple(r for r, _ in played), tuple(length for _, length in played))
