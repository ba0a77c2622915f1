"""Advantages and value targets from rewards and values, all in raw reward units and time-major `[T, N]`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from levelhead.numerics import Reduce, local


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float | Tensor = 0.99,
    lam: float | Tensor = 0.95,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation with time limits told apart from real ends.

        delta_t = r_t + gamma (1 - terminated_t) V(s'_t) - V(s_t)
        A_t = delta_t + gamma lam (1 - terminated_t) (1 - truncated_t) A_{t+1},   target_t = A_t + V(s_t)

    `lam=1` gives Monte-Carlo returns, bootstrapped where the data is cut; `lam=0` one-step TD.

    Args:
        reward, value, next_value: `[T, N]` floats. `next_value` is the value of the *true* successor: where an episode
            was cut by a time limit, that of its final observation, never of the next episode's first.
        terminated, truncated: `[T, N]` bool.
        gamma: discount in [0, 1].
        lam: in [0, 1].
        valid: `[T, N]` bool; rows that hold no real transition get advantage 0 and their own value as target, and
            nothing flows through them.

    Returns:
        Advantages and targets, `[T, N]`.

    Raises:
        ValueError: the shapes differ, as nothing broadcasts, or a flag is not bool.

    Source: Schulman et al. 2016, "High-dimensional continuous control using generalized advantage estimation",
    equation 16; Pardo et al. 2018, "Time limits in reinforcement learning", for the truncation.
    """
    delta, carry = _errors(reward, value, next_value, terminated, truncated, gamma, valid)
    advantage = _discounted_sum(delta, lam * carry)
    return advantage, advantage + value


def n_step(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float | Tensor = 0.99,
    n: int = 5,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns of n rewards and the value of where they lead; of fewer where the data is cut earlier.

        target_t = r_t + gamma r_{t+1} + ... + gamma^{n-1} r_{t+n-1} + gamma^n V(s_{t+n}),   A_t = target_t - V(s_t)

    Args:
        reward, value, next_value, terminated, truncated, gamma, valid: as in `gae`.
        n: at least 1; with 1 this is one-step TD.

    Returns:
        Advantages and targets, `[T, N]`.

    Raises:
        ValueError: the shapes differ, a flag is not bool, or `n` is less than 1.

    Source: Sutton and Barto 2018, "Reinforcement learning", equation 7.1.
    """
    if n < 1:
        raise ValueError(f"a return takes at least 1 step, not {n}")
    delta, carry = _errors(reward, value, next_value, terminated, truncated, gamma, valid)
    advantage = delta
    for _ in range(min(n, len(reward)) - 1):
        advantage = delta + _inflow(carry, torch.cat((advantage[1:], torch.zeros_like(advantage[:1]))))
    return advantage, advantage + value


def v_trace(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    ratio: Tensor,
    gamma: float | Tensor = 0.99,
    lam: float | Tensor = 1.0,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns of the policy of today from data of another one, by clipped importance weights.

        target_t - V_t = rho_t delta_t + gamma c_t (target_{t+1} - V_{t+1}),
        rho_t = min(rho_clip, ratio_t),   c_t = lam min(c_clip, ratio_t),
        A_t = r_t + gamma ((1 - lam) V_{t+1} + lam target_{t+1}) - V_t

    With a ratio of 1 everywhere this is `gae`. The advantage carries no weight for the action itself: an objective that
    has the probability ratio in it already accounts for that.

    Args:
        reward, value, next_value, terminated, truncated, gamma, valid: as in `gae`; values are those of today.
        ratio: `[T, N]`, probability of the action today over that when it was taken.
        lam: as in `gae`.
        rho_clip: bounds the weight of a step's own error, and so decides whose value is learned: infinity that of
            today's policy, less something between the two.
        c_clip: bounds how far weights carry, and so only the variance.

    Returns:
        Advantages and targets, `[T, N]`.

    Raises:
        ValueError: the shapes differ, or a flag is not bool.

    Source: Espeholt et al. 2018, "IMPALA: scalable distributed deep-RL with importance weighted actor-learner
    architectures", equation 1 and remark 2.
    """
    _check(reward, ratio)
    delta, carry = _errors(reward, value, next_value, terminated, truncated, gamma, valid)
    carry = lam * carry
    if valid is not None:
        ratio = torch.where(valid, ratio, 0.0)
    correction = _discounted_sum(ratio.clamp(max=rho_clip) * delta, carry * ratio.clamp(max=c_clip))
    following = torch.cat((correction[1:], torch.zeros_like(correction[:1])))
    return delta + _inflow(carry, following), correction + value


def accumulated(reward: Tensor, ended: Tensor, gamma: float, before: Tensor) -> Tensor:
    """The discounted sum of an episode's rewards up to each step, `y_t = r_t + gamma y_{t-1}`, `[T, N]`.

    Args:
        reward: `[T, N]`.
        ended: `[T, N]` bool: whether the next row belongs to another episode.
        gamma: discount.
        before: `[N]`, the sum before the first row, 0 where an episode begins there.
    """
    _check(reward, ended)
    first = reward[:1] + gamma * before
    going_on = torch.cat((torch.zeros_like(ended[:1]), ~ended[:-1])).to(reward.dtype)
    return _discounted_sum(torch.cat((first, reward[1:])).flip(0), gamma * going_on.flip(0)).flip(0)


def earlier_rewards(reward: Tensor, ended: Tensor, valid: Tensor) -> Tensor:
    """What an episode gave before each step, as far as the data goes back, not discounted, `[T, N]`.

    Args:
        reward: `[T, N]`.
        ended: `[T, N]` bool: whether the next row belongs to another episode.
        valid: `[T, N]` bool; the reward of other rows is taken for 0.
    """
    _check(reward, ended, valid)
    given = torch.where(valid & ~ended, reward, 0.0)
    before = torch.cat((torch.zeros_like(given[:1]), given[:-1]))
    return accumulated(before, ended, 1.0, torch.zeros_like(before[0]))


def mean_of_others(x: Tensor, masks: Sequence[Tensor], reduce: Reduce = local) -> Tensor:
    """For every sample the mean of its task's in all *other* environments, `[T, N]`; 0 where there are none.

    A mean over all samples would hold the sample's own, and a baseline that depends on the action biases the gradient.

    Args:
        x: `[T, N]`.
        masks: per task, bool `[T, N]`: its valid samples.
        reduce: sums over ranks, whose environments are others too.
    """
    mean = torch.zeros_like(x)
    for mask in masks:
        sums, counts = torch.where(mask, x, 0.0).sum(0), mask.sum(0)
        others = reduce(counts.sum()) - counts
        mean = torch.where(mask, (reduce(sums.sum()) - sums) / others.clamp(min=1), mean)
    return mean


def _check(*given: Tensor) -> None:
    if given[0].ndim != 2 or any(x.shape != given[0].shape for x in given):
        raise ValueError(f"all arguments must be [T, N] of one shape, not {[tuple(x.shape) for x in given]}")


def _errors(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float | Tensor,
    valid: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One-step errors, and gamma where the next row continues the episode, else 0; 0 both where not valid."""
    for name, flags in (("terminated", terminated), ("truncated", truncated), ("valid", valid)):
        if flags is not None and flags.dtype != torch.bool:
            raise ValueError(f"{name} must be bool, not {flags.dtype}")
    _check(reward, value, next_value, terminated, truncated, *(() if valid is None else (valid,)))
    going_on = ~terminated
    delta = reward + gamma * torch.where(going_on, next_value, 0.0) - value
    carry = gamma * (going_on & ~truncated).to(reward.dtype)
    if valid is None:
        return delta, carry
    return torch.where(valid, delta, 0.0), torch.where(valid, carry, 0.0)


def _inflow(carry: Tensor, x: Tensor) -> Tensor:
    """`carry x`, and 0 where the carry is 0: what lies beyond the end of an episode stays there, even NaN."""
    return torch.where(carry == 0, 0.0, carry * x)


def _discounted_sum(x: Tensor, carry: Tensor) -> Tensor:
    """`y_t = x_t + carry_t y_{t+1}` along the first axis.

    By doubling: after k rounds each y_t holds 2^k terms, so T steps take log2(T) operations on whole tensors.
    """
    y, carry, span = x.clone(), carry.clone(), 1
    while span < len(x):
        y = torch.cat((y[:-span] + _inflow(carry[:-span], y[span:]), y[-span:]))
        carry = torch.cat((_inflow(carry[:-span], carry[span:]), carry[-span:]))
        span *= 2
    return y
