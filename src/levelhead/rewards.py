"""Rewards brought to a common scale before returns are made of them, the way of those who have no levelled critic."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from levelhead.distributed import total
from levelhead.numerics import Moments, moments
from levelhead.returns import accumulated
from levelhead.rollout import Rollout
from levelhead.tree import restore


class RewardTransform:
    """Divides rewards by the running standard deviation of the discounted return, and clips them.

    The discounted return here is that of the rewards *so far* in an episode, over all environments of all ranks. Its
    statistics take in a rollout before that is divided by them. Multiplying every reward by the same number changes
    nothing.

    Args:
        num_envs: N.
        gamma: discount.
        normalize: whether rewards are divided at all.
        clip: rewards are clipped to +-clip, after the division; None for no clip.
        device: of the rollouts.

    Source: of the details for continuous actions in "The 37 implementation details of PPO" (Huang et al. 2022),
    those on reward scaling and clipping; Gymnasium's NormalizeReward does so step by step.
    """

    def __init__(
        self,
        num_envs: int,
        gamma: float,
        normalize: bool,
        clip: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.gamma = gamma
        self.normalize = normalize
        self.clip = clip
        self.returns = torch.zeros(num_envs, dtype=torch.float64, device=device)
        """Of the episodes under way, so far."""
        self._moments = torch.zeros(3, dtype=torch.float64, device=device)

    def __call__(self, rollout: Rollout) -> Rollout:
        """The rollout with its rewards transformed."""
        reward = torch.where(rollout.valid, rollout.reward, 0.0).double()
        if self.normalize:
            reward = reward / self._std(rollout, reward)
        if self.clip is not None:
            reward = reward.clamp(-self.clip, self.clip)
        return replace(rollout, reward=reward.to(rollout.reward.dtype))

    def _std(self, rollout: Rollout, reward: Tensor) -> Tensor:
        """0-d, this rollout included; 1 as long as all returns are alike."""
        ended = rollout.terminated | rollout.truncated
        returns = accumulated(reward, ended, self.gamma, self.returns)
        self.returns.copy_(torch.where(ended[-1], 0.0, returns[-1]))
        new = moments(returns.reshape(-1, 1), rollout.valid.reshape(-1, 1), total)
        weight, mean, var = Moments(*self._moments.unbind()).merged(Moments(*(x.squeeze(0) for x in new)))
        self._moments.copy_(torch.stack((weight, mean, var)))
        return torch.where(var > 0, var.sqrt(), 1.0)

    def reset(self) -> None:
        """New episodes begin everywhere."""
        self.returns.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """What has been seen so far. `returns` are the episodes' own, and are kept where these go on."""
        return {"moments": self._moments}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        restore(self.state_dict(), state, type(self).__name__)
